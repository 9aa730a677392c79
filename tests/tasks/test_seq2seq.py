"""Translation and summarization: rows of two texts, the loss against transformers' own, generation, and runs."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch

from launcher.engine.loading import Rows
from launcher.engine.predicting import predict_logits
from launcher.errors import DataError, ModelError
from launcher.recipe.schema import Recipe
from launcher.recipe.task_checks import METRICS
from launcher.tasks.seq2seq import Summarization, Translation, shifted

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "engine"))
import in_process

TASK = {"type": "translation", "max_target_length": 12}


def pairs(number: int, *, seed: int) -> list[dict[str, Any]]:
    """The two words of the text that are about its topic are what is to be written."""
    found = []
    for row, (text, topic) in enumerate(tiny.rows(number, seed=seed)):
        words = [word for word in text.split() if word in tiny.TOPICS[topic]]
        found.append({"id": f"r{row}", "text": text, "target": " ".join(words)})
    return found


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for number, (name, count) in enumerate({"train": 60, "validation": 12, "test": 20}.items()):
        write_jsonl(folder / f"{name}.jsonl", pairs(count, seed=number))
    return folder


def config_for(kind: str, **fields: Any) -> Any:
    from transformers import AutoConfig

    common = {"pad_token_id": 0, "eos_token_id": 3, "decoder_start_token_id": 0}
    if kind == "t5":
        sizes = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_heads": 4, "num_layers": 2, "num_decoder_layers": 2}
        sizes["dropout_rate"] = 0.0
    else:
        sizes = {
            "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
            "decoder_attention_heads": 4, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "max_position_embeddings": 48,
            "dropout": 0.0, "bos_token_id": 2, "forced_eos_token_id": None,
        }  # fmt: skip
    return AutoConfig.for_model(kind, vocab_size=128, **{**common, **sizes, **fields})


def save_model(folder: Path, kind: str, **fields: Any) -> Path:
    from transformers import AutoModelForSeq2SeqLM

    torch.manual_seed(0)
    AutoModelForSeq2SeqLM.from_config(config_for(kind, **fields)).save_pretrained(folder)
    tiny.save_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("t5"), "t5")


@pytest.fixture(scope="module")
def bart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("bart"), "bart")


def task_for(model: Path | str, source: Path | str = "none", /, **changes: Any) -> Translation:
    values = tiny.recipe_values(model, source, **{"task": TASK, **changes})
    kind = Summarization if values["task"]["type"] == "summarization" else Translation
    return kind(Recipe.model_validate(values))


# --- rows ------------------------------------------------------------------------------------------------------------


def test_rows_hold_what_is_read_and_what_is_written(t5, data, tmp_path):
    task = task_for(t5, data, task={**TASK, "source_prefix": "near "}, data={"cache_dir": str(tmp_path)})
    _, prepared = task.prepare_data()
    row, given = prepared.train[0], pairs(60, seed=0)[0]
    read = task.tokenizer.decode(row["input_ids"], skip_special_tokens=True)
    assert read == f"near {given['text']}" and prepared.facts["problem_type"] == "translation"
    assert task.tokenizer.decode(row["target_ids"], skip_special_tokens=True) == given["target"]
    assert row["target_ids"][-1] == task.end_id == task.tokenizer.sep_token_id
    assert row["references"] == [given["target"]] and "token_type_ids" not in row
    assert row["length"] == len(row["input_ids"]) + len(row["target_ids"])
    shown = task.show_row(row, prepared)
    learned = [text for text, kind in shown.parts if kind == "learned"]
    assert "".join(learned).split() == given["target"].split()


def test_targets_that_are_cut_and_rows_with_several_are_said(t5, tmp_path):
    rows = [*pairs(20, seed=0), {"id": "x", "text": "the old iron", "target": ["gold " * 30, "iron"]}]
    write_jsonl(tmp_path / "train.jsonl", rows)
    task = task_for(
        t5, tmp_path / "train.jsonl", data={"cache_dir": str(tmp_path), "validation_share": 0.2, "split_seed": 1}
    )
    _, prepared = task.prepare_data()
    warnings = " ".join(prepared.facts["warnings"])
    assert "1 of the " in warnings and "longer than 12 tokens (task.max_target_length) and were cut" in warnings
    assert "have several targets; the first of each is learned" in warnings
    assert "drawn from all rows alike, as labels are not strata in translation" in warnings
    assert max(map(len, prepared.train["target_ids"])) == 12


def test_a_row_without_a_target_is_named(t5, tmp_path):
    rows = pairs(8, seed=0)
    rows[4]["target"] = "  "
    write_jsonl(tmp_path / "train.jsonl", rows)
    with pytest.raises(DataError, match=r"train\.jsonl:5 \(row 5\).*'target' \(target\) holds ' '.*none of them empty"):
        task_for(t5, tmp_path / "train.jsonl", data={"cache_dir": str(tmp_path)}).prepare_data()


def test_a_file_without_targets_says_which_line_to_write(t5, tmp_path):
    rows = [{"translation": {"en": row["text"], "de": row["target"]}} for row in pairs(8, seed=0)]
    write_jsonl(tmp_path / "train.jsonl", rows)
    with pytest.raises(DataError, match=r"columns 'translation\.en', 'translation\.de'; write into the recipe"):
        task_for(t5, tmp_path / "train.jsonl", data={"cache_dir": str(tmp_path)}).prepare_data()
    columns = {"text": "translation.en", "target": "translation.de"}
    task = task_for(t5, tmp_path / "train.jsonl", data={"cache_dir": str(tmp_path), "columns": columns})
    assert task.prepare_data()[1].train["references"][0] == [pairs(8, seed=0)[0]["target"]]
    write_jsonl(tmp_path / "train.jsonl", [{"text": "a b", "summary": None}] * 3)
    with pytest.raises(DataError, match="has no label"):
        task_for(t5, tmp_path / "train.jsonl", data={"cache_dir": str(tmp_path)}).prepare_data()


def test_known_pairs_of_columns_are_found(t5, tmp_path):
    rows = [{"article": row["text"], "highlights": row["target"], "url": "u"} for row in pairs(8, seed=0)]
    write_jsonl(tmp_path / "train.jsonl", rows)
    task = task_for(
        t5, tmp_path / "train.jsonl", task={**TASK, "type": "summarization"}, data={"cache_dir": str(tmp_path)}
    )
    facts = task.prepare_data()[1].facts
    assert facts["provenance"]["train"][0]["columns"] == {"text": "article", "target": "highlights"}


# --- batches and loss ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_the_loss_is_transformers_own_and_padding_rows_count_nothing(kind, data, tmp_path, request):
    task = task_for(request.getfixturevalue(kind), data, data={"cache_dir": str(tmp_path)})
    rows = Rows(task.prepare_data()[1].train).__getitems__([0, 1, 2, -4])
    batch, model = task.collator(training=True)(rows), task.build_model(None).model.eval()
    assert batch["labels"].shape == batch["decoder_input_ids"].shape
    inputs = {name: value for name, value in batch.items() if name not in ("labels", "sample_weight")}
    ours = task.loss(model(**inputs), batch)
    count = task.items(batch)
    real = {name: batch[name][:3] for name in ("input_ids", "attention_mask", "labels")}
    wanted = model(**real).loss
    assert count == sum(len(row["target_ids"]) for row in rows[:3])
    assert (ours / count).item() == pytest.approx(wanted.item(), rel=1e-5)


def test_a_model_without_its_own_shift_gets_the_usual_one(bart):
    task = task_for(bart)
    labels = torch.tensor([[5, 6, 3, -100], [7, 3, -100, -100]])
    assert torch.equal(shifted(labels, start=0, pad=0), task.shift(labels))
    assert shifted(labels, start=9, pad=1).tolist() == [[9, 5, 6, 3], [9, 7, 3, 1]]


# --- generation ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("beams", [1, 3])
def test_what_is_written_in_batches_is_what_is_written_alone(bart, data, tmp_path, beams):
    task = task_for(bart, data, task={**TASK, "num_beams": beams}, data={"cache_dir": str(tmp_path)})
    _, prepared = task.prepare_data()
    model = task.build_model(prepared).model.eval()
    found, loss = predict_logits(
        model, prepared.test, task.collator(), batch_size=7, device="cpu", generate=task.generate,
        loss=lambda outputs, batch: (task.loss(outputs, batch), task.items(batch)), row_outputs=task.row_outputs,
    )  # fmt: skip
    predictions = task.predictions(found, prepared.test, prepared)
    assert loss is not None and len(predictions.answers) == 20
    for number in (0, 9, 19):
        ids = torch.tensor([prepared.test[number]["input_ids"]])
        alone = model.generate(input_ids=ids, max_new_tokens=12, num_beams=beams, do_sample=False)
        assert predictions.answers[number] == task.tokenizer.decode(alone[0], skip_special_tokens=True)
    ended = [task.end_id in row[np.isfinite(row)] for row in found]
    assert predictions.scores.tolist() == [float(one) for one in ended]
    assert {*task.metrics(predictions), "loss"} - {"cut_off"} == set(METRICS["translation"])


def test_metrics_that_are_checked_are_those_of_summaries(bart, data, tmp_path):
    task = task_for(bart, data, task={**TASK, "type": "summarization"}, data={"cache_dir": str(tmp_path)})
    _, prepared = task.prepare_data()
    predictions = task.predictions(np.full((20, 3), 3.0), prepared.test, prepared)
    assert predictions.answers == ("",) * 20 and (predictions.scores == 1).all()
    assert {*task.metrics(predictions), "loss"} - {"cut_off"} == set(METRICS["summarization"])


def test_the_model_writes_as_the_recipe_says_also_where_it_is_saved(t5, tmp_path):
    from transformers import AutoModelForSeq2SeqLM

    options = {"num_beams": 4, "length_penalty": 0.6, "no_repeat_ngram_size": 3}
    task = task_for(t5, task={**TASK, **options})
    whole, skeleton = (task.build_model(None, skeleton=bare).model for bare in (False, True))
    whole.save_pretrained(tmp_path)
    saved = AutoModelForSeq2SeqLM.from_pretrained(tmp_path)
    for model in (whole, skeleton, saved):
        found = model.generation_config
        assert {name: getattr(found, name) for name in options} == options
        assert (found.max_new_tokens, found.do_sample, found.decoder_start_token_id) == (12, False, 0)


def test_an_own_setting_of_the_model_stays_where_the_recipe_says_nothing(tmp_path):
    from transformers import GenerationConfig

    folder = save_model(tmp_path / "m", "bart")
    GenerationConfig(num_beams=5, length_penalty=2.0, temperature=0.5, do_sample=True, eos_token_id=3).save_pretrained(
        folder
    )
    for bare in (False, True):
        found = task_for(folder).build_model(None, skeleton=bare).model.generation_config
        assert (found.num_beams, found.length_penalty, found.do_sample, found.temperature) == (5, 2.0, False, None)


def test_a_random_model_has_the_special_tokens_of_its_tokenizer(t5):
    values = {"name_or_path": None, "tokenizer_name_or_path": str(t5), "config": {
        "model_type": "t5", "vocab_size": 128, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_heads": 2, "num_layers": 1,
    }}  # fmt: skip
    model = task_for("x", model=values).build_model(None).model
    ids = model.config.pad_token_id, model.config.eos_token_id, model.config.decoder_start_token_id
    assert ids == (0, task_for(t5).end_id, 0) and model.generation_config.eos_token_id == ids[1]
    own = {**values, "config": {**values["config"], "decoder_start_token_id": 7}}
    assert task_for("x", model=own).build_model(None).model.config.decoder_start_token_id == 7


# --- faults ----------------------------------------------------------------------------------------------------------


def test_models_that_write_nothing_are_refused(tmp_path):
    with pytest.raises(ModelError, match="a bert model does not read one text and write another"):
        task_for(tiny.save_bert(tmp_path)).build_model(None)


def test_more_tokens_than_the_model_can_write_are_refused(bart):
    with pytest.raises(ModelError, match=r"max_target_length is 60, but this model writes at most 48 tokens"):
        task_for(bart, task={**TASK, "max_target_length": 60}).build_model(None)


def test_languages_for_a_tokenizer_that_knows_none_are_refused(t5):
    with pytest.raises(ModelError, match=r"task\.source_lang is 'en_XX', but .* knows no languages.*source_prefix"):
        _ = task_for(t5, task={**TASK, "source_lang": "en_XX"}).tokenizer
    with pytest.raises(ModelError, match=r"task\.target_lang is 'de_DE'"):
        task_for(t5, task={**TASK, "target_lang": "de_DE"}).build_model(None)


def test_pairs_of_texts_cannot_be_translated(t5):
    with pytest.raises(DataError, match="reads single texts"):
        task_for(t5).prepare_rows({"text": ["a"], "text_pair": ["b"]}, {"max_length": 8})


# --- real data -------------------------------------------------------------------------------------------------------


def test_real_translations_with_columns_inside_of_columns(shared, t5, tmp_path):
    folder = shared / "data" / "multi30k_en_de"
    source = next(path for path in sorted(folder.glob("*.jsonl")) if "val" in path.name)
    columns = {"text": "translation.en", "target": "translation.de"}
    task = task_for(
        t5, "none", task={**TASK, "max_target_length": 40},
        data={"source": None, "train": {"source": str(source), "limit": 60}, "columns": columns, "cache_dir": str(tmp_path)},
    )  # fmt: skip
    _, prepared = task.prepare_data()
    first = json.loads(source.read_text().splitlines()[0])["translation"]
    texts = [*prepared.train["text"][:], *prepared.validation["text"][:]]
    assert first["en"] in texts and len(texts) == 60


def test_real_summaries_of_lists_of_sentences_with_several_references(shared, t5, tmp_path):
    folder = shared / "data" / "scitldr"
    task = task_for(
        t5, folder, task={"type": "summarization", "max_target_length": 40},
        data={"cache_dir": str(tmp_path), "columns": {"text": "source", "target": "target"}},
    )  # fmt: skip
    _, prepared = task.prepare_data()
    first = json.loads((folder / "test.jsonl").read_text().splitlines()[0])
    assert prepared.test["text"][0] == " ".join(first["source"]) and prepared.test["references"][0] == first["target"]
    assert (len(prepared.train), len(prepared.validation), len(prepared.test)) == (1200, 250, 250)
    assert max(map(len, prepared.test["references"][:])) > 1


# --- runs ------------------------------------------------------------------------------------------------------------


def learn(place: Path, name: str, model: Path | str, data: Path | str, /, **changes: Any) -> dict[str, Any]:
    values = tiny.recipe_values(model, data, name=name, **{"task": TASK, **changes})
    done = tiny.launcher("run", tiny.write_recipe(place / f"{name}.yaml", values), cwd=place, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads((place / "runs" / f"{name}-001" / "evaluation/metrics.json").read_text())


def test_validation_by_loss_alone_writes_nothing(t5, data, tmp_path, monkeypatch):
    run = in_process.prepare(
        t5, data, tmp_path, task={**TASK, "predict_with_generate": False}, training={"num_train_epochs": 1}
    )
    monkeypatch.setattr(Translation, "generate", lambda *_: pytest.fail("a text was written"))
    trainer, _ = run.train()
    rows = [row for row in trainer.state.log_history if "eval_loss" in row]
    assert rows and not any("eval_bleu" in row for row in rows)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_ranks_have_the_losses_of_one_and_the_model_is_used(t5, data, tmp_path):
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    from launcher.evaluation.predictions_io import read_predictions
    from launcher.workflows.inference import FinishedModel, evaluate_run, predict_file, prediction_lines, write_rows

    changes: dict[str, Any] = {
        "training": {"learning_rate": 1e-2, "num_train_epochs": 12, "per_device_train_batch_size": 2}
    }
    learn(tmp_path, "one", t5, data, **changes)
    found = learn(tmp_path, "two", t5, data, **changes, distributed={"processes_per_node": 2, "zero_stage": 3})
    one, two = (tmp_path / "runs" / f"{name}-001" for name in ("one", "two"))
    # At this rate rounding grows from step to step; so the first two epochs are compared.
    early = [{step: loss for step, loss in tiny.losses(run).items() if step <= 16} for run in (one, two)]
    assert early[1] == pytest.approx(early[0], rel=1e-3) and tiny.ledger(two) == tiny.ledger(one)
    assert found["headline"] == ["bleu", "chrf"] and [b["name"] for b in found["baselines"]] == ["copy", "nearest"]
    assert found["rows"] == 20 and found["metrics"]["chrf"] > 10
    assert "Texts with the lowest chrF" in (two / "report.html").read_text()
    stored = read_predictions(two / "evaluation/predictions.parquet")
    # As others load and use it.
    model, tokenizer = (kind.from_pretrained(two / "model") for kind in (AutoModelForSeq2SeqLM, AutoTokenizer))
    inputs = tokenizer(stored.texts[0], return_tensors="pt", return_token_type_ids=False)
    assert tokenizer.decode(model.generate(**inputs)[0], skip_special_tokens=True) == stored.answers[0]
    finished = FinishedModel(two)
    assert finished.predict_texts([stored.texts[0]]).answers == stored.answers[:1]
    predictions = predict_file(finished, str(data / "test.jsonl"))
    # What two ranks of sharded weights wrote together is what one process writes.
    assert predictions.answers == stored.answers and next(prediction_lines(predictions)).startswith(stored.answers[0])
    for ending in ("csv", "jsonl", "parquet"):
        write_rows(predictions, tmp_path / f"out.{ending}")
    assert (tmp_path / "out.csv").read_text().startswith("text,prediction,ended\n")
    assert evaluate_run(two).metrics == pytest.approx(found["metrics"], rel=1e-5)


@pytest.mark.slow
@pytest.mark.soak
@pytest.mark.timeout(600)
@pytest.mark.parametrize("engine", tiny.TWO_RANKS)
def test_two_ranks_of_every_engine_have_the_losses_of_one(t5, data, tmp_path, engine):
    learn(tmp_path, "one", t5, data)
    learn(tmp_path, "two", t5, data, distributed=tiny.TWO_RANKS[engine])
    one, two = (tiny.losses(tmp_path / "runs" / f"{name}-001") for name in ("one", "two"))
    assert two == pytest.approx(one, rel=1e-3)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "strategy", [name if name == "lora" else pytest.param(name, marks=pytest.mark.soak) for name in tiny.STRATEGIES]
)
def test_every_strategy_trains_it_and_the_saved_model_is_the_trained_one(t5, data, tmp_path, strategy):
    found = learn(
        tmp_path, "s", t5, data, strategy=tiny.STRATEGIES[strategy], training={"learning_rate": 1e-2},
        evaluation={"bootstrap": 20, "verify_saved": True},
    )  # fmt: skip
    manifest = json.loads((tmp_path / "runs/s-001/model/MANIFEST.json").read_text())
    assert manifest["verification"]["passed"] is True and found["rows"] == 20
