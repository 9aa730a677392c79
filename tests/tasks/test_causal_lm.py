"""Language modelling: rows without a lost token, a loss that is the same however rows are spread, and honest perplexities."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch

from launcher.contracts import Predictions
from launcher.data.blocks import divide, make_blocks
from launcher.errors import DataError, ModelError
from launcher.evaluation.kinds import metrics_for
from launcher.evaluation.language import unigram_losses
from launcher.recipe.schema import Recipe
from launcher.tasks.causal_lm import CausalLM, predicted_tokens
from launcher.tasks.next_token_collator import NextTokenCollator
from launcher.tasks.text_task import IGNORED

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "engine"))
import in_process

LLAMA: dict[str, Any] = {
    "model_type": "llama", "vocab_size": 128, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 64,
}  # fmt: skip
PROBLEM = "causal_lm"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    tiny.save_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def story(request: pytest.FixtureRequest) -> Path:
    """A real small language model, with tied embeddings."""
    folder = Path(__file__).resolve().parents[2].parent / "shared" / "models" / "stories260k-llama"
    request.getfixturevalue("require")(folder.is_dir(), f"needs the model in {folder}")
    return folder


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("texts")
    for number, (name, count) in enumerate({"train": 24, "validation": 9, "test": 11}.items()):
        lines = [text for text, _ in tiny.rows(count, seed=number)]
        (folder / f"{name}.txt").write_text("\n".join(lines) + "\n")
    return folder


def values(model: dict[str, Any], data: Path | str, /, **changes: Any) -> dict[str, Any]:
    return tiny.recipe_values("", data, **{"task": {"type": "causal-lm"}, "model": model, **changes})


def from_numbers(tokenizer: Path, **numbers: Any) -> dict[str, Any]:
    return {"name_or_path": None, "tokenizer_name_or_path": str(tokenizer), "config": {**LLAMA, **numbers}}


def task_for(model: dict[str, Any], data: Path | str = "none", /, **changes: Any) -> CausalLM:
    return CausalLM(Recipe.model_validate(values(model, data, **changes)))


# --- rows ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [1, 2, 7, 8, 9, 15, 16, 50])
def test_each_token_but_the_first_is_predicted_once(length: int) -> None:
    ids = np.arange(length)
    pieces = divide(ids, max_length=8)
    assert all(2 <= len(piece) <= 8 for piece in pieces) or length == 1
    assert np.concatenate([pieces[0][:1], *(piece[1:] for piece in pieces)]).tolist() == ids.tolist()


def test_texts_end_with_the_end_token_where_there_is_one(story: Path, tokenizer: Path) -> None:
    from transformers import AutoTokenizer

    llama = AutoTokenizer.from_pretrained(str(story))
    words = ["Once upon a time", "", "Tom " * 40]
    blocks = make_blocks(llama, words, max_length=16, end=llama.eos_token_id)
    last = {int(text): ids for text, ids in zip(blocks.texts, blocks.input_ids, strict=True)}
    assert all(ids[-1] == llama.eos_token_id for ids in last.values())
    assert blocks.divided == 1 and max(blocks.lengths) == 16
    without = make_blocks(llama, words, max_length=1000, end=None)
    assert [llama.decode(ids, skip_special_tokens=True) for ids in without.input_ids] == [words[0], words[2]]
    assert without.empty == 1  # The start token alone predicts nothing.
    # A tokenizer that ends its texts itself, and has no end token to append.
    task = task_for(from_numbers(tokenizer))
    assert task.tokenizer.eos_token_id is None
    ids = task.cutter(max_length=9, to_learn=True)(["the iron"]).input_ids[0]
    assert task.tokenizer.convert_ids_to_tokens(ids.tolist()) == ["[CLS]", "the", "iron", "[SEP]"]


def test_data_are_told(tokenizer: Path, texts: Path, tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("the apple is new\n\n" + "very old " * 30 + "\n")
    (tmp_path / "validation.txt").write_text("a pear\n")
    _, prepared = task_for(from_numbers(tokenizer), tmp_path, data={"max_length": 16}).prepare_data()
    train = prepared.facts["splits"]["train"]
    assert (train["texts"], train["divided"], train["cut"]) == (2, 1, 0)
    assert train["rows"] == len(prepared.train) == 1 + math.ceil(61 / 15)
    told = " ".join(prepared.facts["warnings"])
    assert "no token was left out" in told and "not pretrained" in told
    counts = {row: len(ids) for row, ids in predicted_tokens(prepared.train).items()}
    assert counts == {0: 5, 1: 61}


@pytest.mark.parametrize(("form", "rows"), [("text", ["a b", "c", "d"]), ("paragraphs", ["a b\nc", "d"])])
def test_plain_text(form: str, rows: list[str], tokenizer: Path, tmp_path: Path) -> None:
    (tmp_path / "t.md").write_bytes(b"a b\r\nc\r\n \r\n\r\nd\r\n")
    found = task_for(from_numbers(tokenizer), data={"source": {"source": str(tmp_path / "t.md"), "format": form}})
    from launcher.data.sources import load_rows

    source = found.recipe.data.source
    assert source is not None
    read = load_rows(source, data=found.recipe.data, base_folder=tmp_path, optional=("id",))
    assert read.columns["text"] == rows


def test_a_tab_in_a_text_file_is_text(tokenizer: Path, tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("apple\tpear\nplum\n")
    assert task_for(from_numbers(tokenizer)).read_rows(str(tmp_path / "t.txt"))["text"] == ["apple\tpear", "plum"]


def test_nothing_to_predict(tokenizer: Path, tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("apple\n" * 2)
    (tmp_path / "validation.jsonl").write_text('{"text": "apple"}\n')
    task = task_for(from_numbers(tokenizer), data={"source": str(tmp_path), "max_length": 65})
    with pytest.raises(DataError, match="at most 64 tokens"):
        task.prepare_data()
    with pytest.raises(DataError, match="single texts"):
        task.prepare_rows({"text": ["a"], "text_pair": ["b"]}, {"max_length": 9})


# --- the loss --------------------------------------------------------------------------------------------------------


def _model_and_rows(tokenizer: Path) -> tuple[CausalLM, Any, list[dict[str, Any]]]:
    torch.manual_seed(0)
    task = task_for(from_numbers(tokenizer))
    model = task.build_model(None).model.eval()
    generator = np.random.default_rng(0)
    rows = [{"input_ids": generator.integers(5, 60, size=size).tolist()} for size in (2, 30, 9, 17, 5, 24)]
    return task, model, rows


def _forward(model: Any, batch: dict[str, Any]) -> Any:
    return model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])


def test_the_loss_is_transformers_own(tokenizer: Path) -> None:
    task, model, rows = _model_and_rows(tokenizer)
    batch = task.collator()(rows)
    with torch.no_grad():
        read = {name: batch[name] for name in ("input_ids", "attention_mask")}
        theirs = model(**read, labels=batch["input_ids"].masked_fill(batch["attention_mask"] == 0, IGNORED)).loss
        ours = task.loss(_forward(model, batch), batch) / task.items(batch)
    assert float(task.items(batch)) == sum(len(row["input_ids"]) - 1 for row in rows)
    assert ours.dtype == torch.float32 and float(ours) == pytest.approx(float(theirs), rel=1e-6)


@pytest.mark.parametrize("sizes", [[6], [3, 3], [1, 5], [2, 2, 2], [1] * 6])
def test_the_sum_is_the_same_however_rows_are_spread(tokenizer: Path, sizes: list[int]) -> None:
    task, model, rows = _model_and_rows(tokenizer)
    collate, whole = task.collator(), task.collator()(rows)
    spare = {"input_ids": rows[0]["input_ids"], "weight": 0.0}
    summed = items = 0.0
    with torch.no_grad():
        expected = float(task.loss(_forward(model, whole), whole) / task.items(whole))
        for number, size in enumerate(sizes):
            first = sum(sizes[:number])
            batch = collate([*rows[first : first + size], spare])
            summed += float(task.loss(_forward(model, batch), batch))
            items += float(task.items(batch))
    assert summed / items == pytest.approx(expected, rel=1e-6)


def test_what_is_kept_of_a_batch_is_small_and_adds_up(tokenizer: Path) -> None:
    task, model, rows = _model_and_rows(tokenizer)
    batch = task.collator()(rows)
    with torch.no_grad():
        outputs = _forward(model, batch)
    kept = task.row_outputs(outputs, batch)
    assert kept.shape == (6, 2)
    assert float(kept[:, 0].sum()) == pytest.approx(float(task.loss(outputs, batch)), rel=1e-6)
    assert kept[:, 1].tolist() == [len(row["input_ids"]) - 1 for row in rows]


def test_label_smoothing_is_torch_s(tokenizer: Path) -> None:
    task, model, rows = _model_and_rows(tokenizer)
    batch = task.collator()(rows)
    with torch.no_grad():
        outputs = _forward(model, batch)
    expected = torch.nn.functional.cross_entropy(
        outputs.logits.flatten(0, 1), batch["labels"].flatten(), ignore_index=IGNORED, label_smoothing=0.1
    )
    found = task.loss(outputs, batch, label_smoothing=0.1) / task.items(batch)
    assert float(found) == pytest.approx(float(expected), rel=1e-6)


def test_ranks_that_share_rows_count_each_token_once(tokenizer: Path) -> None:
    task, model, rows = _model_and_rows(tokenizer)
    rows = [*rows, {"input_ids": [7, 8, 9], "weight": 0.0}]
    whole, shared = task.collator()(rows), NextTokenCollator(pad_token_id=0, parts=3, all_logits=True)(rows)
    assert {tuple(tensor.shape) for tensor in shared.values()} == {(7, 48)}
    with torch.no_grad():
        outputs = model(input_ids=shared["input_ids"], attention_mask=shared["attention_mask"])
        expected = task.loss(_forward(model, whole), whole)
    moved = {"shift_labels": torch.nn.functional.pad(shared["labels"][:, 1:], (0, 1), value=IGNORED)}
    parts = [{"shift_labels": moved["shift_labels"][:, i * 16 : (i + 1) * 16]} for i in range(3)]
    losses = [task.loss({"logits": outputs.logits[:, i * 16 : (i + 1) * 16]}, part) for i, part in enumerate(parts)]
    assert float(sum(losses)) == pytest.approx(float(expected), rel=1e-5)
    assert sum(float(task.items(part)) for part in parts) == float(task.items(whole))


# --- models ----------------------------------------------------------------------------------------------------------

DECODERS = {
    "bert": {"num_attention_heads": 2}, "roberta": {"num_attention_heads": 2}, "gpt2": {"n_embd": 32, "n_head": 2, "n_layer": 2},
    "llama": {}, "qwen2": {}, "gpt_neox": {}, "opt": {"ffn_dim": 64, "word_embed_proj_dim": 32, "num_attention_heads": 2},
    "electra": {"num_attention_heads": 2}, "camembert": {"num_attention_heads": 2},
}  # fmt: skip
SIZES: dict[str, Any] = {
    "vocab_size": 128, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 2, "max_position_embeddings": 64,
}  # fmt: skip


@pytest.mark.parametrize("kind", DECODERS)
def test_no_token_sees_what_it_predicts(kind: str, tokenizer: Path) -> None:
    from transformers import AutoConfig

    known = AutoConfig.for_model(kind)
    numbers = {k: v for k, v in (SIZES | DECODERS[kind]).items() if hasattr(known, k) and k not in known.attribute_map}
    section = {**from_numbers(tokenizer), "config": {"model_type": kind, **numbers}}
    torch.manual_seed(0)
    model = task_for(section).build_model(None).model.eval()
    ids = torch.arange(5, 17)[None]
    other = ids.clone()
    other[0, 6:] = 50
    with torch.no_grad():
        a, b = (model(input_ids=x, attention_mask=torch.ones_like(x)).logits[0, :6] for x in (ids, other))
    assert torch.allclose(a, b, atol=1e-6)


def test_what_reads_both_ways_is_refused(tokenizer: Path) -> None:
    section = {**from_numbers(tokenizer), "config": {"model_type": "xlnet", "vocab_size": 128}}
    with pytest.raises(ModelError, match="both directions"):
        task_for(section).build_model(None, skeleton=True)


def test_more_tokens_than_the_model_knows(tokenizer: Path) -> None:
    with pytest.raises(ModelError, match="vocab_size"):
        task_for(from_numbers(tokenizer, vocab_size=64)).build_model(None, skeleton=True)


def test_a_pretrained_output_layer_is_not_new(story: Path, tokenizer: Path, tmp_path: Path) -> None:
    for skeleton in (True, False):
        loaded = task_for({"name_or_path": str(story)}).build_model(None, skeleton=skeleton)
        assert loaded.newly_initialized == frozenset()
    # An encoder has none, so it is.
    bert = tiny.save_bert(tmp_path / "bert")
    for skeleton in (True, False):
        new = task_for({"name_or_path": str(bert)}).build_model(None, skeleton=skeleton).newly_initialized
        assert new and all(name.startswith("cls.") for name in new)


# --- evaluation ------------------------------------------------------------------------------------------------------


def test_perplexity_of_a_real_model(story: Path) -> None:
    """Loss per token of texts in several pieces, against transformers' own loss on each piece."""
    from transformers import AutoModelForCausalLM

    from launcher.engine.predicting import predict_logits

    words = ["Once upon a time, there was a little girl named Lily.", "She loved to play. " * 30, "Zx qq!"]
    task = task_for({"name_or_path": str(story)})
    rows, prepared = task.prepare_rows({"text": words}, {"max_length": 64})
    assert len(rows) > 3
    model = AutoModelForCausalLM.from_pretrained(str(story)).eval()
    kept, mean = predict_logits(
        model, rows, task.collator(), batch_size=2, device="cpu", row_outputs=task.row_outputs,
        loss=lambda outputs, batch: (task.loss(outputs, batch), task.items(batch)),
    )  # fmt: skip
    found = task.predictions(kept, rows, prepared)
    assert found.texts == tuple(words) and found.scores.shape == (3, 1)
    sums, tokens = np.zeros(3), np.zeros(3)
    for row in rows:
        ids = torch.tensor([row["input_ids"]])
        with torch.no_grad():
            loss = float(model(input_ids=ids, labels=ids).loss)
        sums[row["row_id"]] += loss * (ids.shape[1] - 1)
        tokens[row["row_id"]] += ids.shape[1] - 1
    np.testing.assert_allclose(found.scores[:, 0], sums, rtol=1e-5)
    assert found.labels is not None and found.labels.tolist() == tokens.tolist()
    metrics = metrics_for(found)
    assert metrics["loss"] == pytest.approx(sums.sum() / tokens.sum(), rel=1e-5) == pytest.approx(mean, rel=1e-5)
    assert metrics["perplexity"] == pytest.approx(math.exp(metrics["loss"]))
    losses = sums / tokens
    assert losses[0] < losses[2]  # A story's beginning is likelier than nonsense.


def test_a_unigram_model_by_hand() -> None:
    train = np.array([3, 3, 3, 5, 9])
    # 5 tokens + 3 kinds + 1 place for all others.
    expected = [-math.log(4 / 9) - math.log(2 / 9), -math.log(1 / 9), 0.0]
    found = unigram_losses(train, [np.array([3, 5]), np.array([4]), np.array([], dtype=int)])
    np.testing.assert_allclose(found, expected)
    assert unigram_losses(train, [np.array([100])])[0] == pytest.approx(math.log(9))


def test_predictions_go_to_a_file_and_back(tmp_path: Path) -> None:
    import pyarrow.parquet

    from launcher.evaluation.predictions_io import read_predictions, write_predictions

    written = Predictions(PROBLEM, np.array([[6.0], [0.0]]), np.array([3, 0]), (), ("abc", ""), (4, 7))
    write_predictions(written, tmp_path / "p.parquet")
    table = pyarrow.parquet.read_table(tmp_path / "p.parquet").to_pydict()
    assert table["loss"] == [2.0, None] and table["tokens"] == [3, 0]
    back = read_predictions(tmp_path / "p.parquet")
    assert back.scores.tolist() == written.scores.tolist() and back.labels.tolist() == [3, 0]  # type: ignore[union-attr]


def _assessed(ours: list[float], theirs: list[float]) -> Any:
    from launcher.evaluation.assessment import evaluate_predictions
    from launcher.evaluation.baselines import Baseline

    rows = len(ours)
    made = [
        Predictions(PROBLEM, np.array(sums)[:, None], np.full(rows, 10), (), ("t",) * rows, tuple(range(rows)))
        for sums in (ours, theirs)
    ]
    return evaluate_predictions(made[0], [Baseline("unigram", made[1], metrics_for(made[1]))], bootstrap=200)


def test_the_verdict_and_the_report() -> None:
    from launcher.evaluation.report import ReportFacts, render_report
    from launcher.evaluation.verdict import verdict

    generator = np.random.default_rng(0)
    ours = generator.uniform(10, 20, size=60)
    better = _assessed(ours.tolist(), (ours + 5).tolist())
    assert verdict(better).state == "better"
    assert "unigram" in verdict(better).sentence and "60 test texts" in verdict(better).sentence
    assert better.intervals["perplexity"]["low"] < better.metrics["perplexity"] < better.intervals["perplexity"]["high"]
    assert verdict(_assessed((ours + 5).tolist(), ours.tolist())).state == "worse"
    assert verdict(_assessed(ours.tolist(), ours[::-1].tolist())).state == "no_difference"
    # One text says nothing about others.
    alone = _assessed([10.0], [20.0])
    assert verdict(alone).state == "no_difference" and alone.intervals == {}
    page = render_report(ReportFacts("r", "today", "x", evaluation=better.to_json(), metric_for_best_model="eval_loss"))
    assert "perplexity" in page and "lower loss by model" in page and "accuracy" not in page
    assert "Confusions" not in page and "Calibration" not in page
    huge = _assessed([1e5] * 3, [20.0] * 3)
    assert "perplexity" not in huge.metrics and huge.omitted["perplexity"]
    assert render_report(ReportFacts("r", "today", "x", evaluation=huge.to_json()))


# --- a whole run -----------------------------------------------------------------------------------------------------


def test_trained_in_this_process(story: Path, texts: Path, tmp_path: Path) -> None:
    """The same losses with one micro-batch and with four, a better model than before, and evaluation without logits."""
    from launcher.workflows.evaluate import assess

    found = {}
    for cap in (8, 2):
        run = in_process.prepare(
            story, texts, tmp_path / str(cap), task="causal-lm",
            training={"num_train_epochs": 2, "learning_rate": 3e-3, "per_device_train_batch_size": cap},
        )  # fmt: skip
        before, _ = _evaluate(run)
        trainer, _ = run.train()
        found[cap] = tiny.losses(run.run.path)
    assert found[8] == pytest.approx(found[2], rel=1e-4)
    context = run.context
    kept, loss = trainer.logits(context.prepared.validation)
    assert kept.shape == (len(context.prepared.validation), 2) and loss < before
    evaluated = [row for row in tiny.jsonl(run.run.path / "progress.jsonl") if "eval_loss" in row]
    assert evaluated[-1]["eval_perplexity"] == pytest.approx(math.exp(evaluated[-1]["eval_loss"]), rel=1e-5)
    predictions = context.task.predictions(kept, context.prepared.validation, context.prepared)
    result = assess(context.task, context.recipe, context.prepared, predictions, split="validation")
    assert (
        result.rows == 9 and set(result.metrics) == {"loss", "perplexity"} and result.baselines[0]["name"] == "unigram"
    )


def _evaluate(run: Any) -> tuple[float, Any]:
    from launcher.engine.predicting import predict_logits

    task, split = run.context.task, run.context.prepared.validation
    kept, loss = predict_logits(
        run.model, split, task.collator(), batch_size=4, device="cpu", row_outputs=task.row_outputs,
        loss=lambda outputs, batch: (task.loss(outputs, batch), task.items(batch)),
    )  # fmt: skip
    assert loss is not None
    return loss, kept


STRATEGIES: dict[str, dict[str, Any]] = {
    "layerwise": {"type": "layerwise", "freeze_layers": 2, "prefix_cache": "off"}, "lora": {"type": "lora", "r": 2},
    "encoder": {"type": "encoder"},
}  # fmt: skip


@pytest.mark.parametrize("name", STRATEGIES)
def test_strategies_on_a_tied_model(name: str, story: Path, texts: Path, tmp_path: Path) -> None:
    before = dict(_weights(story))
    run = in_process.prepare(
        story, texts, tmp_path, task="causal-lm", strategy=STRATEGIES[name],
        training={"max_steps": 2, "learning_rate": 1e-2, "save_strategy": "no", "eval_strategy": "no"},
    )  # fmt: skip
    trainer, _ = run.train()
    after = {_plain(key): value for key, value in trainer.model.state_dict().items() if "lora_" not in key}
    changed = {key for key, value in before.items() if not torch.equal(after[key], value)}
    table = run.context.planned.phase.table
    planned = {_plain(n) for group in table.trainable for n in group.parameters if "lora_" not in n}
    assert changed == planned
    assert torch.equal(after["lm_head.weight"], after["model.embed_tokens.weight"])
    if name == "lora":
        assert changed == set() and table.trainable_numel > 0
    if name == "layerwise":
        assert not any(key.startswith(("model.layers.0.", "model.layers.1.")) for key in changed)


def _weights(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(str(folder)).named_parameters()


def _plain(name: str) -> str:
    return name.removeprefix("base_model.model.").replace(".base_layer", "")


def test_a_head_that_is_the_embeddings_too_is_refused(story: Path, texts: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="tie_word_embeddings"):
        in_process.prepare(story, texts, tmp_path, task="causal-lm", strategy={"type": "head"})
    untied = {"name_or_path": str(story), "config": {"tie_word_embeddings": False}}
    run = in_process.prepare(story, texts, tmp_path, task="causal-lm", strategy={"type": "head"}, model=untied)
    trainable = {name for group in run.context.planned.phase.table.trainable for name in group.parameters}
    assert trainable == {"lm_head.weight"}


def test_a_frozen_prefix_may_be_cached(tokenizer: Path, texts: Path, tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**{k: v for k, v in LLAMA.items() if k != "model_type"})).save_pretrained(
        tmp_path / "m"
    )
    model = {"name_or_path": str(tmp_path / "m"), "tokenizer_name_or_path": str(tokenizer)}
    found = {}
    for kind in ("off", "memory"):
        run = in_process.prepare(
            tmp_path / "m", texts, tmp_path / kind, task="causal-lm", model=model,
            strategy={"type": "head", "prefix_cache": kind}, training={"learning_rate": 1e-2},
        )  # fmt: skip
        trainer, _ = run.train()
        assert (trainer.cache is not None) == (kind == "memory")
        found[kind] = tiny.losses(run.run.path)
    assert found["memory"] == pytest.approx(found["off"], rel=1e-5)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_on_two_ranks_and_what_follows(tokenizer: Path, texts: Path, tmp_path: Path) -> None:
    """Ranks with other numbers of tokens each have the losses of one process; then the finished model is used."""
    from launcher.workflows.inference import (
        FinishedModel,
        evaluate_run,
        predict_file,
        prediction_lines,
        prediction_rows,
        write_rows,
    )

    changes: dict[str, Any] = {"training": {"learning_rate": 1e-2}, "model": from_numbers(tokenizer)}
    alone = in_process.prepare(tokenizer, texts, tmp_path / "alone", task="causal-lm", **changes)
    alone.train()
    given = values(from_numbers(tokenizer), texts, training=changes["training"], distributed={"processes_per_node": 2})
    tiny.write_recipe(tmp_path / "r.yaml", given)
    done = tiny.launcher("run", "r.yaml", cwd=tmp_path, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "not pretrained" in done.stdout and "unigram" in done.stdout
    run = tmp_path / "runs" / "tiny-001"
    assert tiny.losses(run) == pytest.approx(tiny.losses(alone.run.path), rel=1e-4)
    assert "not pretrained" in (run / "report.html").read_text()
    assert json.loads((run / "plan.json").read_text())["facts"]["model_revision"] == "random weights, not pretrained"
    before = json.loads((run / "evaluation" / "metrics.json").read_text())
    assert before["split"] == "test" and before["rows"] == 11 and before["baselines"][0]["name"] == "unigram"
    finished = FinishedModel(run)
    read = finished.predict_texts(["the apple is new", "zz"])
    first, second = prediction_rows(read)
    assert first["perplexity"] == pytest.approx(math.exp(first["loss"])) and first["tokens"] == 5 and second["loss"]
    assert "perplexity" in next(prediction_lines(read))
    predictions = predict_file(finished, str(texts / "test.txt"))
    assert metrics_for(predictions)["loss"] == pytest.approx(before["metrics"]["loss"], rel=1e-5)
    write_rows(predictions, tmp_path / "out.csv")
    assert (tmp_path / "out.csv").read_text().startswith("text,tokens,loss,perplexity")
    assert evaluate_run(run).metrics == pytest.approx(before["metrics"], rel=1e-5)
