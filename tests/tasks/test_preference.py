"""Preference tuning: pairs as rows, a reference that is computed once, rewards that rise, and what is told of them."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch

from launcher.contracts import Predictions
from launcher.errors import DataError, RunStateError
from launcher.evaluation.kinds import metrics_for
from launcher.recipe.schema import Recipe
from launcher.tasks.pair_task import answer_lengths
from launcher.tasks.preference import Preference, PreferenceCollator
from launcher.tasks.text_task import IGNORED

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "engine"))
import in_process

TASK = {"type": "preference", "chat_template": "plain"}
LORA = {"type": "lora", "r": 8, "target_modules": "all-linear"}
PAIRS = [
    ("What is red?", "The apple is red.", "No."),
    ("Who is old?", "Tom.", "I do not know who is old, and nobody does."),
    ("Say hello.", "Hello, my friend!", "Bye."),
]


@pytest.fixture(scope="module")
def story(request: pytest.FixtureRequest) -> Path:
    """A real small language model, with tied embeddings."""
    folder = Path(__file__).resolve().parents[2].parent / "shared" / "models" / "stories260k-llama"
    request.getfixturevalue("require")(folder.is_dir(), f"needs the model in {folder}")
    return folder


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pairs")
    for name, count in {"train": 8, "validation": 2, "test": 2}.items():
        write_pairs(
            folder / f"{name}.jsonl", [(f"{number}. {a}", b, c) for number in range(count) for a, b, c in PAIRS]
        )
    return folder


def write_pairs(path: Path, rows: list[tuple[str, str, str]]) -> Path:
    lines = (json.dumps(dict(zip(("prompt", "chosen", "rejected"), row, strict=True))) for row in rows)
    path.write_text("".join(line + "\n" for line in lines))
    return path


def values(model: Path, data: Path | str, /, **changes: Any) -> dict[str, Any]:
    task = {**TASK, **changes.pop("task", {})}
    return tiny.recipe_values(model, data, task=task, **{"data": {"max_length": 64}, **changes})


def task_for(model: Path, data: Path | str = "none", /, **changes: Any) -> Preference:
    return Preference(Recipe.model_validate(values(model, data, strategy={"type": "full"}, **changes)))


# --- rows ------------------------------------------------------------------------------------------------------------


def test_a_row_is_two_texts(story: Path, pairs: Path) -> None:
    task = task_for(story, pairs)
    _, prepared = task.prepare_data()
    row = prepared.train[0]
    for side, answer in (("chosen", "The apple is red."), ("rejected", "No.")):
        text = task.tokenizer.decode(row[f"{side}_ids"], skip_special_tokens=True)
        assert "What is red?" in text and text.rstrip().endswith(answer)
        learned = [i for i, known in zip(row[f"{side}_ids"], row[f"{side}_learned"], strict=True) if known]
        assert task.tokenizer.decode(learned, skip_special_tokens=True).strip() == answer
        # The model learns where an answer ends.
        assert learned[-1] == task.end_id
    longer = max(len(row["chosen_ids"]), len(row["rejected_ids"]))
    assert row["length"] == 2 * (-(-longer // 8) * 8), "what the pair takes in a batch"
    assert prepared.facts["splits"]["train"] == {
        "rows": 24, "texts": 24, "empty": 0, "equal": 0, "cut": 0, "labelled": True, "hidden": 0, "controls": 0,
        "tokens": sum(len(ids) for side in ("chosen", "rejected") for ids in prepared.train[f"{side}_ids"]),
    }  # fmt: skip
    shown = task.show_row({**row, "place": 0}, prepared)
    assert [text for text, kind in shown.parts if kind == "label"] == ["chosen", "rejected"]
    assert "".join(text for text, kind in shown.parts if kind == "learned").count("red") == 1


def test_answers_of_which_nothing_is_left(story: Path, tmp_path: Path) -> None:
    long = "Tell me about it again and again. " * 20
    for name in ("train", "validation"):
        write_pairs(tmp_path / f"{name}.jsonl", [(long, "Yes.", "No."), *PAIRS, ("Count.", "1 " * 200, "1 " * 190)])
    _, prepared = task_for(story, tmp_path).prepare_data()
    counts = prepared.facts["splits"]["train"]
    assert (counts["texts"], counts["rows"], counts["empty"], counts["equal"], counts["cut"]) == (5, 4, 1, 1, 1)
    assert prepared.train["row_id"][:] == [1, 2, 3, 4], "rows keep their numbers in the source"
    told = " ".join(prepared.facts["warnings"])
    assert "1 of the 5 train pairs were left out" in told and "1 of the 5 train pairs have equal answers" in told
    write_pairs(tmp_path / "train.jsonl", [(long, "Yes.", "No.")])
    with pytest.raises(DataError, match=r"every train pair, data.max_length \(64 tokens\)"):
        task_for(story, tmp_path).prepare_data()


def test_what_is_no_pair_is_refused(story: Path) -> None:
    with pytest.raises(DataError, match="predict a file with chosen and rejected"):
        task_for(story).prepare_rows({"text": ["hello"]}, {"max_length": 64})


def test_new_pairs_without_an_answer_within_the_length_are_all_named(story: Path, tmp_path: Path) -> None:
    long = ("Tell me about it again and again. " * 20, "Yes.", "No.")
    task = task_for(story)
    columns = task.read_rows(str(write_pairs(tmp_path / "new.jsonl", [long, *PAIRS, long])))
    with pytest.raises(DataError, match=r"of 2 of the 5 pairs data.max_length \(64 tokens\) .*: number 1, 5; shorten"):
        task.prepare_rows(columns, {"max_length": 64})


# --- batches ---------------------------------------------------------------------------------------------------------


def made_up(chosen: int, rejected: int, *, prompt: int = 3) -> dict[str, Any]:
    sides = {"chosen": chosen, "rejected": rejected}
    ids = {f"{side}_ids": list(range(5, 5 + prompt + size)) for side, size in sides.items()}
    return {**ids, **{f"{side}_learned": [False] * prompt + [True] * size for side, size in sides.items()}}


def test_a_batch_asks_for_the_answers_logits_only() -> None:
    rows = [made_up(2, 5), {**made_up(4, 1), "weight": 0.0}]
    batch = PreferenceCollator(pad_token_id=0, only_learned=True)(rows)
    assert batch["input_ids"].shape == (4, 8) and batch["attention_mask"].sum(dim=1).tolist() == [5, 7, 8, 4]
    # Chosen texts first: rows 0 and 1, then the rejected ones.
    assert batch["logits_to_keep"].tolist() == [2, 3, 4, 5, 6] and batch["sample_weight"].tolist() == [1.0, 0.0]
    assert batch["shift_labels"].tolist()[0] == [8, 9, IGNORED, IGNORED, IGNORED]
    assert [(row != IGNORED).sum() for row in batch["shift_labels"]] == [2, 4, 5, 1]
    whole = PreferenceCollator(pad_token_id=0, only_learned=False)(rows)
    assert "logits_to_keep" not in whole
    assert torch.equal(whole["shift_labels"][:, batch["logits_to_keep"]], batch["shift_labels"])


@pytest.mark.parametrize("sizes", [[6], [3, 3], [1, 5], [2, 2, 2]])
def test_the_sum_is_the_same_however_pairs_are_spread(sizes: list[int], story: Path) -> None:
    task = task_for(story, task={"rpo_alpha": 0.5})
    model, collate = task.build_model(None).model.eval(), task.collator()
    rows = [made_up(2 + number, 7 - number) for number in range(6)]
    reference = torch.randn((7, 2), generator=torch.Generator().manual_seed(0)) - 30

    def summed(first: int, size: int) -> tuple[float, float]:
        batch = collate([*rows[first : first + size], {**rows[0], "weight": 0.0}])
        batch["reference"] = torch.cat([reference[first : first + size], reference[-1:]])
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "logits_to_keep")}
        with torch.no_grad():
            return float(task.loss(model(**inputs), batch)), float(task.items(batch))

    whole, items = summed(0, 6)
    parts = [summed(sum(sizes[:number]), size) for number, size in enumerate(sizes)]
    assert items == 6 == sum(count for _, count in parts)
    assert sum(loss for loss, _ in parts) == pytest.approx(whole, rel=1e-5)


TROCR = {
    "model_type": "trocr", "vocab_size": 512, "d_model": 32, "decoder_layers": 1, "decoder_attention_heads": 2, "decoder_ffn_dim": 32,
}  # fmt: skip


@pytest.mark.parametrize(("numbers", "takes"), [({"model_type": "llama"}, True), (TROCR, False)])
def test_models_that_give_all_logits_are_not_asked_for_some(numbers: dict[str, Any], takes: bool, story: Path) -> None:
    model = {"name_or_path": None, "tokenizer_name_or_path": str(story), "config": numbers}
    task = Preference(Recipe.model_validate(values(story, "none", strategy={"type": "full"}, model=model)))
    assert task.collator().only_learned is takes


# --- a run -----------------------------------------------------------------------------------------------------------


def prepared_run(story: Path, data: Path, runs: Path, /, **changes: Any) -> Any:
    training = {"num_train_epochs": 4, "learning_rate": 1e-2, "global_batch_size": 8, **changes.pop("training", {})}
    return in_process.prepare(
        story, data, runs, **{"task": TASK, "strategy": LORA, "data": {"max_length": 64}, **changes}, training=training
    )


def test_training_raises_the_rewards_of_what_was_chosen(story: Path, pairs: Path, tmp_path: Path) -> None:
    run = prepared_run(story, pairs, tmp_path)
    trainer, _ = run.train()
    losses = tiny.losses(run.run.path)
    assert losses[1] == pytest.approx(np.log(2), abs=1e-5), "with adapters of zero the model is its reference"
    assert losses[max(losses)] < 0.2
    split = run.context.prepared.train
    kept, loss = trainer.logits(split)
    found = metrics_for(run.context.task.predictions(kept, split, run.context.prepared))
    assert found["accuracy"] > 0.9 and found["margin"] > 1 and found["loss"] == pytest.approx(loss, rel=1e-4)
    rows = [row for row in tiny.jsonl(run.run.path / "progress.jsonl") if "eval_loss" in row]
    assert {"eval_accuracy", "eval_margin", "eval_loss"} <= rows[-1].keys()


@pytest.mark.parametrize("loss_type", ["cpo", "simpo", "orpo"])
def test_some_losses_do_without_a_reference(loss_type: str, story: Path, pairs: Path, tmp_path: Path) -> None:
    """Nothing is computed before training, and nothing is kept of it."""
    task = {**TASK, "loss_type": loss_type, "beta": 2.0 if loss_type == "simpo" else 0.5}
    run = prepared_run(story, pairs, tmp_path, task=task, strategy={"type": "full"}, training={"learning_rate": 2e-3})
    trainer, _ = run.train()
    assert trainer.reference is None and not run.run.reference.exists()
    losses = tiny.losses(run.run.path)
    assert losses[max(losses)] < losses[1] / 2
    split = run.context.prepared.train
    kept, loss = trainer.logits(split)
    found = metrics_for(run.context.task.predictions(kept, split, run.context.prepared))
    assert kept.shape == (24, 4) and found["accuracy"] > 0.9 and found["loss"] == pytest.approx(loss, rel=1e-4)


def test_real_preferences_can_be_learned(shared: Path, story: Path, tmp_path: Path) -> None:
    """People's own choices: a small model learns those of train by heart."""
    run = prepared_run(
        story, shared / "data" / "pandalm_pref", tmp_path, strategy={"type": "full"},
        data={"source": None, "max_length": 128, **{
            name: {"source": str(shared / "data" / "pandalm_pref" / f"{name}.jsonl"), "limit": limit}
            for name, limit in (("train", 40), ("validation", 20))
        }},
        training={"num_train_epochs": 6, "learning_rate": 1e-3, "eval_strategy": "no"},
    )  # fmt: skip
    trainer, _ = run.train()
    split = run.context.prepared.train
    kept, _ = trainer.logits(split)
    found = metrics_for(run.context.task.predictions(kept, split, run.context.prepared))
    assert found["accuracy"] > 0.9 and found["margin"] > 0.5


def reference_of(path: Path, split: str = "train") -> np.ndarray:
    from launcher.engine.reference import read_values

    return read_values(path / "reference" / f"{split}.parquet", ("chosen", "rejected"))[0]


def test_the_reference_is_kept_and_read_back(story: Path, pairs: Path, tmp_path: Path) -> None:
    """A stop in the middle: the numbers are those of the first attempt, although the model is another by then."""
    training = {"save_strategy": "steps", "save_steps": 2, "load_best_model_at_end": False, "eval_strategy": "no"}
    run = prepared_run(story, pairs, tmp_path, training=training)
    run.context.stop.reason = "test"
    _, stopped = run.train()
    assert stopped
    first = {split: reference_of(run.run.path, split) for split in ("train", "validation", "test")}
    assert first["train"].shape == (24, 2) and (first["train"] < -1).all()
    again = prepared_run(story, pairs, tmp_path, training=training, run=run.run)
    trainer, _ = again.train(resume=True)
    for split, known in first.items():
        np.testing.assert_array_equal(trainer.reference.values[split], known)
    # The same as a run that nobody has stopped.
    whole = prepared_run(story, pairs, tmp_path / "whole", training=training)
    whole.train()
    assert tiny.losses(run.run.path) == pytest.approx(tiny.losses(whole.run.path), rel=1e-6)


@pytest.mark.parametrize("fault", ["missing", "damaged", "other data"])
def test_a_run_cannot_go_on_without_its_reference(fault: str, story: Path, pairs: Path, tmp_path: Path) -> None:
    training = {"save_strategy": "steps", "save_steps": 2, "load_best_model_at_end": False, "eval_strategy": "no"}
    run = prepared_run(story, pairs, tmp_path, training=training)
    run.context.stop.reason = "test"
    run.train()
    path = run.run.reference / "train.parquet"
    again = prepared_run(story, pairs, tmp_path, training=training, run=run.run)
    if fault == "missing":
        path.unlink()
    elif fault == "damaged":
        path.write_bytes(b"PAR1")
    else:
        again.context = replace(again.context, prepared=replace(again.context.prepared, fingerprint="another"))
    with pytest.raises(RunStateError, match="model before training" if fault != "other data" else "is of other data"):
        again.train(resume=True)


# --- evaluation ------------------------------------------------------------------------------------------------------


def predictions(*rows: tuple[float, float, float]) -> Predictions:
    texts = tuple(f"t{number}" for number in range(len(rows)))
    labels = np.zeros(len(rows), dtype=np.int64)
    return Predictions("preference", np.array(rows), labels, (), texts, tuple(range(len(rows))))


def test_metrics_by_hand() -> None:
    found = metrics_for(predictions((1.0, 0.0, 0.3), (0.5, 0.5, 0.7), (-1.0, 2.0, 3.0), (2.0, 1.5, 0.4)))
    assert found == pytest.approx({"accuracy": 2.5 / 4, "margin": (1 + 0 - 3 + 0.5) / 4, "loss": 4.4 / 4})
    with pytest.raises(DataError, match="row 1 is not a finite number"):
        metrics_for(predictions((1.0, 0.0, 0.3), (np.nan, 0.5, 0.7)))


def test_the_longer_answer_is_the_baseline(story: Path, pairs: Path) -> None:
    from launcher.evaluation.assessment import evaluate_predictions
    from launcher.evaluation.report import ReportFacts, render_report
    from launcher.evaluation.verdict import verdict

    task = task_for(story, pairs)
    _, prepared = task.prepare_data()
    lengths = answer_lengths(prepared.test)
    assert lengths[0].tolist() == [sum(prepared.test[0][f"{side}_learned"]) for side in ("chosen", "rejected")]
    right = [(1.0, 0.0, 0.3)] * len(prepared.test)
    ours = task.pair_predictions(np.array(right), prepared.test)
    (longer,) = task.baselines(["longer"], prepared, ours, split="test")
    # Of the three pairs above, two have the longer answer chosen.
    assert longer.metrics == {"accuracy": pytest.approx(2 / 3)}
    result = evaluate_predictions(ours, [longer], bootstrap=100)
    assert result.headline[0] == "accuracy" and set(result.metrics) == {"accuracy", "margin", "loss"}
    assert result.comparisons[0]["test"]["a_only"] == len(prepared.test) // 3
    assert "longer-answer baseline" in verdict(result).sentence and "test pairs" in verdict(result).sentence
    worse = evaluate_predictions(
        task.pair_predictions(np.array(right)[:, [1, 0, 2]], prepared.test), [longer], bootstrap=100
    )
    assert worse.mistakes and worse.mistakes[0]["rejected"] == 1.0
    page = render_report(ReportFacts("r", "today", "x", evaluation=worse.to_json()))
    assert "reward margin" in page and "Pairs whose rejected answer has the largest lead" in page


def test_predictions_go_to_a_file_and_back(tmp_path: Path) -> None:
    from launcher.evaluation.predictions_io import read_predictions, write_predictions

    written = predictions((1.0, 0.0, 0.3), (0.5, 0.5, 0.7))
    write_predictions(written, tmp_path / "p.parquet")
    back = read_predictions(tmp_path / "p.parquet")
    assert back.scores.tolist() == written.scores.tolist() and back.labels is not None
    from launcher.evaluation.kinds import kind_of

    rows = kind_of(back).rows(back)
    assert [row["preferred"] for row in rows] == ["chosen", "neither"]
    assert kind_of(back).line(rows[0]) == "chosen\t1.0000 against 0.0000\tt0"


# --- planning --------------------------------------------------------------------------------------------------------


def test_a_plan_counts_both_texts_of_a_pair(story: Path, pairs: Path) -> None:
    from launcher.planning.tracing import example_batch

    task = task_for(story, pairs)
    _, prepared = task.prepare_data()
    for data in (prepared, None):
        batch = example_batch(task, data, rows=3, length=64)
        assert batch["input_ids"].shape == (6, 32) and batch["reference"].shape == (3, 2)
        # How much is learned differs from row to row: all of it, to be safe.
        assert len(batch["logits_to_keep"]) == 31


@pytest.mark.parametrize(("key", "value", "message"), [
    ("task", {"loss_type": "ipo", "label_smoothing": 0.1}, "task.label_smoothing is 0.1 but has no effect: task.loss_type is ipo"),
    ("task", {"loss_type": "ipo", "simpo_gamma": 0.5}, "task.simpo_gamma is 0.5 but has no effect: task.loss_type is ipo"),
    ("task", {"loss_type": "exo_pair"}, "task.loss_type is 'exo_pair', which needs task.label_smoothing above 0"),
    ("training", {"label_smoothing_factor": 0.1}, "whose loss is of pairs of answers"),
    ("data", {"streaming": True}, "data.streaming"),
    ("distributed", {"sequence_parallel_size": 2}, "the task is preference"),
])  # fmt: skip
def test_settings_that_do_not_go_together(key: str, value: dict[str, Any], message: str, tmp_path: Path) -> None:
    from launcher.recipe.examine import examine

    found = tiny.write_recipe(tmp_path / "r.yaml", values(Path("m"), "builtin:number-preferences", **{key: value}))
    _, problems = examine(str(found), [])
    assert any(message in str(problem) for problem in problems), problems


def test_the_range_test_has_a_reference_of_its_own(story: Path, pairs: Path, tmp_path: Path) -> None:
    from launcher.recipe.examine import examine
    from launcher.workflows.lr_find import find_rate

    recipe = tiny.write_recipe(tmp_path / "r.yaml", values(story, pairs, strategy=LORA))
    loaded, problems = examine(str(recipe), [])
    assert loaded is not None and not problems
    found = find_rate(loaded, min_lr=1e-6, max_lr=3e-2, steps=12, hardware=in_process.CPU)
    assert found.losses[0] == pytest.approx(np.log(2), abs=1e-5) and found.losses[-1] < found.losses[0]


def test_a_budget_of_tokens_holds_both_texts(story: Path, pairs: Path, tmp_path: Path) -> None:
    training = {"tokens_per_batch": 256, "global_batch_size": None, "num_train_epochs": 1, "eval_strategy": "no"}
    run = prepared_run(story, pairs, tmp_path, training=training)
    seen = []
    own = run.context.task.collator

    def watched(*, training: bool = False) -> Any:
        collate = own(training=training)

        def made(rows: Any) -> Any:
            batch = collate(rows)
            seen.append(batch["input_ids"].numel())
            return batch

        return made

    run.context.task.collator = watched
    trainer, _ = run.train()
    in_training = seen[-trainer.state.global_step :]
    assert max(in_training) <= 256 and max(in_training) > 128, "as many pairs as fit"
    with pytest.raises(
        DataError, match=r"fits into no batch; write at least 128, or lower data.max_length to at most 32"
    ):
        prepared_run(story, pairs, tmp_path, training={**training, "tokens_per_batch": 64})


@pytest.mark.slow
def test_from_the_command_line(story: Path, pairs: Path, tmp_path: Path) -> None:
    """A run with adapters; its evaluation again; new pairs, which the model before training has to judge as well."""
    import shutil

    base = shutil.copytree(story, tmp_path / "base")
    recipe = tiny.write_recipe(
        tmp_path / "r.yaml",
        values(base, pairs, strategy=LORA, training={"learning_rate": 1e-2}, evaluation={"verify_saved": True}),
    )
    done = tiny.launcher("run", recipe, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    run = tmp_path / "runs" / "tiny-001"
    assert "reference: 36 rows by the model before training" in done.stdout
    assert "saved model and adapter verified" in done.stdout
    first = json.loads((run / "evaluation/metrics.json").read_text())["metrics"]
    again = tiny.launcher("evaluate", run, cwd=tmp_path)
    assert again.returncode == 0, again.stdout + again.stderr
    assert json.loads((run / "evaluation/metrics.json").read_text())["metrics"] == pytest.approx(first, abs=1e-3)
    told = tiny.launcher("predict", run, "--file", pairs / "test.jsonl", "--json", cwd=tmp_path)
    assert told.returncode == 0, told.stderr
    rows = json.loads(told.stdout)
    margin = np.mean([row["chosen"] - row["rejected"] for row in rows])
    assert margin == pytest.approx(first["margin"], abs=1e-3), "the same as by the reference of the run"
    base.rename(tmp_path / "elsewhere")
    lost = tiny.launcher("predict", run, "--file", pairs / "test.jsonl", cwd=tmp_path)
    assert lost.returncode != 0 and "needs the model before training" in lost.stderr
