"""Masked language modelling: masks that are a pure function of seed, epoch and row; the loss against its formula; runs."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from scipy.stats import binomtest

from launcher.contracts import Phase, TuningTable
from launcher.data.masking import Masking
from launcher.data.sampling import PhaseBatches, RankBatches
from launcher.engine.loading import Rows
from launcher.errors import DataError, ModelError
from launcher.evaluation.assessment import evaluate_predictions
from launcher.evaluation.kinds.masked import MaskedLanguage
from launcher.plans import BatchPlan, PlannedPhase
from launcher.recipe.schema import Recipe
from launcher.recipe.task_checks import METRICS
from launcher.tasks.masked_lm import IGNORED, MaskedLM, mask_row, masked_tokens
from launcher.workflows.data_view import view_data

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "engine"))
import in_process

Kind = MaskedLanguage()
TASK = {"type": "masked-lm"}
WORDS = {"type": "masked-lm", "whole_word_mask": True}


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder without an output layer, as MiniLM is."""
    return tiny.save_bert(tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("texts")
    for number, (name, count) in enumerate({"train": 24, "validation": 9, "test": 11}.items()):
        lines = [text for text, _ in tiny.rows(count, seed=number)]
        (folder / f"{name}.txt").write_text("\n".join(lines) + "\n")
    return folder


def task_for(bert: Path, data: Path | str = "none", /, **changes: Any) -> MaskedLM:
    values = tiny.recipe_values(bert, data, **{"task": TASK, **changes})
    return MaskedLM(Recipe.model_validate(values))


@pytest.fixture(scope="module")
def prepared(bert: Path, texts: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    task = task_for(bert, texts, data={"cache_dir": str(tmp_path_factory.mktemp("cache"))})
    return task, task.prepare_data()[1]


# --- rows ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [4, 7, 16, 64])
def test_long_texts_are_divided_and_nothing_is_lost(bert: Path, length: int) -> None:
    task = task_for(bert)
    many = [" ".join(text for text, _ in tiny.rows(9, seed=3)), "iron", "  ", "", "the old gold"]
    blocks = task.cutter(max_length=length, to_learn=True)(many)
    ends = [task.tokenizer.cls_token_id, task.tokenizer.sep_token_id]
    assert all(len(row) <= length and [row[0], row[-1]] == ends for row in blocks.input_ids)
    for number, text in enumerate(many):
        own = [row[1:-1] for row, of in zip(blocks.input_ids, blocks.texts, strict=True) if of == number]
        assert [t for row in own for t in row] == task.tokenizer(text, add_special_tokens=False)["input_ids"]
    assert blocks.empty == 2 and blocks.divided == (2 if length == 4 else 1)


def test_a_text_of_nothing_but_special_tokens_is_left_out_and_said(bert: Path, tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("the iron\n[MASK]\n你\n" + "old gold\n" * 9)
    task = task_for(bert, tmp_path / "train.txt", data={"cache_dir": str(tmp_path)})
    blocks = task.cutter(max_length=16, to_learn=True)(["the iron", "[MASK]", "你"])
    assert blocks.texts.tolist() == [0] and blocks.empty == 2
    with pytest.raises(DataError, match="text 2 has no token"):
        task.prepare_rows({"text": ["iron", "  "]}, {"max_length": 16})


# --- masks -----------------------------------------------------------------------------------------------------------


def masks(task: MaskedLM, rows: list[Mapping[str, Any]], *, training: bool) -> dict[int, tuple[list[int], list[int]]]:
    """Number of a row -> what the model sees of it, and its labels, without padding."""
    batch = task.collator(training=training)(rows)
    found = {}
    for number, row in enumerate(rows):
        length = len(row["input_ids"])
        assert not batch["attention_mask"][number, length:].any()
        assert (batch["labels"][number, length:] == IGNORED).all()
        found[row["row_id"]] = (batch["input_ids"][number, :length].tolist(), batch["labels"][number, :length].tolist())
    return found


def planned(rows: int, batch: int, *, epochs: int) -> PlannedPhase:
    steps = epochs * -(-rows // batch)
    plan = BatchPlan(batch, 1, batch, 1)
    return PlannedPhase(
        Phase("p", TuningTable(())), first_step=0, steps=steps, batch=plan, rows=rows, epoch_batch_size=batch
    )


def drawn(task: MaskedLM, split: Any, *, batch: int, world: int, accumulation: int, after: int = 0) -> dict[Any, Any]:
    """(epoch, row) -> its mask, over all ranks and micro-batches of three epochs."""
    lengths, rows = np.asarray(split["length"]), Rows(split)
    batches = PhaseBatches(lengths, planned(len(lengths), batch, epochs=3), 5, after=after)
    found: dict[Any, Any] = {}
    for rank in range(world):
        for micro in RankBatches(batches, accumulation=accumulation, rank=rank, world_size=world):
            own = [row for row in rows.__getitems__(micro) if row["weight"]]
            if own:
                epoch = own[0]["epoch"]
                found |= {(epoch, number): mask for number, mask in masks(task, own, training=True).items()}
    return found


def test_masks_follow_from_seed_epoch_and_row_alone(bert: Path, prepared: Any) -> None:
    task, rows = prepared[0], prepared[1].train
    one = drawn(task, rows, batch=8, world=1, accumulation=1)
    assert len(one) == 3 * len(rows)
    assert drawn(task, rows, batch=8, world=3, accumulation=2) == one
    assert drawn(task, rows, batch=5, world=2, accumulation=1) == one
    late = drawn(task, rows, batch=8, world=2, accumulation=1, after=4)
    assert late and all(one[key] == mask for key, mask in late.items())
    differ = sum(one[0, number] != one[1, number] for number in range(len(rows)))
    assert differ > len(rows) / 2
    other = task_for(bert, "none", training={"seed": 2})
    assert drawn(other, rows, batch=8, world=1, accumulation=1) != one


def test_masks_of_an_evaluation_are_the_same_at_every_evaluation(bert: Path, prepared: Any) -> None:
    task, rows = prepared[0], Rows(prepared[1].validation)
    found = masks(task, rows.__getitems__(list(range(9))), training=False)
    assert masks(task, rows.__getitems__([8, 3, 5]), training=False) == {n: found[n] for n in (8, 3, 5)}
    assert masks(task_for(bert, "none", training={"seed": 2}), rows.__getitems__([3]), training=False) == {3: found[3]}
    assert len({tuple(seen) for seen, _ in found.values()}) == 9


def masking(**changes: Any) -> Masking:
    shares = {"probability": 0.15, "mask_share": 0.8, "random_share": 0.1, "mask_id": 4} | changes
    return Masking(**shares, special_ids=np.arange(5), random_ids=np.arange(5, 5000))


@pytest.mark.parametrize("shares", [(0.15, 0.8, 0.1), (0.3, 1.0, 0.0), (0.5, 0.0, 0.4)])
def test_shares_are_those_of_the_recipe(shares: tuple[float, float, float]) -> None:
    probability, mask_share, random_share = shares
    of = masking(probability=probability, mask_share=mask_share, random_share=random_share)
    ids = np.concatenate([[2], np.random.default_rng(0).integers(5, 5000, 100_000), [3]])
    seen, labels = mask_row({"input_ids": ids, "row_id": 0, "epoch": 0}, of, seed=1)
    chosen = labels != IGNORED
    assert (labels[chosen] == ids[chosen]).all() and (seen[~chosen] == ids[~chosen]).all()
    masked, kept = int((seen[chosen] == 4).sum()), int((seen[chosen] == ids[chosen]).sum())
    total = int(chosen.sum())
    for count, out_of, share in [
        (total, 100_000, probability), (masked, total, mask_share), (kept, total, 1 - mask_share - random_share),
    ]:  # fmt: skip
        assert binomtest(count, out_of, min(max(share, 0.0), 1.0)).pvalue > 1e-4, (count, out_of, share)
    assert not np.isin(seen[chosen & (seen != 4)], np.arange(5)).any(), "no special token is drawn"


def test_special_tokens_are_never_to_be_told_and_each_row_has_a_place() -> None:
    of = masking(probability=1e-9)
    for row in range(300):
        ids = np.array([2, 7, 1, 8, 4, 9, 3, 0])
        _, labels = mask_row({"input_ids": ids, "row_id": row, "epoch": 0}, of, seed=1)
        assert (labels != IGNORED).sum() == 1 and not np.isin(labels, np.arange(5)).any()
    certain = mask_row({"input_ids": ids, "row_id": 0}, masking(probability=1.0), seed=None)[1]
    assert certain.tolist() == [IGNORED, 7, IGNORED, 8, IGNORED, 9, IGNORED, IGNORED]
    nothing = mask_row({"input_ids": [2, 1, 3], "row_id": 0}, of, seed=None)
    assert nothing[0].tolist() == [2, 1, 3] and (nothing[1] == IGNORED).all()


def test_words_are_told_whole(bert: Path, tmp_path: Path) -> None:
    """Words that the tokenizer does not know are several tokens."""
    lines = [f"zinc{number} the {number}gold old platinum" for number in range(40)]
    (tmp_path / "train.txt").write_text("\n".join(lines))
    task = task_for(bert, tmp_path / "train.txt", task=WORDS, data={"cache_dir": str(tmp_path), "max_length": 16})
    rows, several = Rows(task.prepare_data()[1].train), 0
    for row in rows.__getitems__(list(range(len(rows)))):
        _, labels = mask_row(row, task.masking, seed=None)
        chosen, words = labels != IGNORED, np.asarray(row["word_ids"])
        assert len(words) == len(row["input_ids"]) and words[0] == words[-1] == -1
        told = set(words[chosen])
        assert chosen.tolist() == [word in told for word in words]
        several += max(np.bincount(words[chosen])) > 1
    assert several > 5


def test_changing_a_share_prepares_nothing_anew(bert: Path, texts: Path, tmp_path: Path) -> None:
    data = {"cache_dir": str(tmp_path)}
    task_for(bert, texts, data=data).prepare_data()
    for task, is_found in (({**TASK, "mlm_probability": 0.3}, True), (WORDS, False)):
        assert task_for(bert, texts, task=task, data=data).prepare_data()[1].facts["was_cached"] is is_found


# --- loss and evaluation ---------------------------------------------------------------------------------------------


def test_the_loss_is_the_mean_over_masked_places(prepared: Any) -> None:
    task, rows = prepared[0], Rows(prepared[1].train)
    batch = task.collator(training=False)([*rows.__getitems__([0, 1, 2]), rows[-1]])
    torch.manual_seed(0)
    logits = torch.randn(*batch["labels"].shape, 128)
    real = batch["labels"][:3]
    summed, count = 0.0, 0
    for row, place in (real != IGNORED).nonzero().tolist():
        summed -= float(torch.log_softmax(logits[row, place].double(), dim=0)[real[row, place]])
        count += 1
    assert float(task.items(batch)) == count > 3, "a padding row counts for nothing"
    assert float(task.loss({"logits": logits}, batch)) == pytest.approx(summed, rel=1e-5)
    kept = task.row_outputs({"logits": logits}, batch)
    told = int((logits[:3].argmax(dim=-1) == real).sum())
    assert kept[:3].sum(dim=0).tolist() == pytest.approx([summed, count, told], rel=1e-5)
    sure = torch.nn.functional.one_hot(batch["labels"].clamp(min=0), 128).float()
    kept = task.row_outputs({"logits": sure}, batch)
    assert kept[:, 1].tolist() == kept[:, 2].tolist(), "places that are not masked do not count as told"


def test_texts_are_scored_and_the_baseline_tells_the_same_places(prepared: Any) -> None:
    from launcher.engine.predicting import predict_logits

    task, data = prepared
    model = task.build_model(data).model
    rows, loss = predict_logits(
        model, data.validation, task.collator(), batch_size=4, device="cpu", row_outputs=task.row_outputs,
        loss=lambda outputs, batch: (task.loss(outputs, batch), task.items(batch)),
    )  # fmt: skip
    found = task.predictions(rows, data.validation, data)
    wanted = masked_tokens(data.validation, task.masking)
    assert found.problem_type == "masked_lm" and found.labels.tolist() == [len(ids) for ids in wanted.values()]
    assert task.metrics(found)["loss"] == pytest.approx(loss, rel=1e-6)
    (baseline,) = task.baselines(["unigram"], data, found, split="validation")
    assert set(baseline.metrics) == set(METRICS["masked-lm"]) == set(task.metrics(found))
    train = np.concatenate([np.asarray(ids[1:-1]) for ids in data.train["input_ids"]])
    commonest = np.bincount(train[~np.isin(train, task.masking.special_ids)]).argmax()
    flat = np.concatenate(list(wanted.values()))
    assert baseline.metrics["accuracy"] == (flat == commonest).mean()
    assert task.metrics(found)["accuracy"] == rows[:, 2].sum() / rows[:, 1].sum()
    evaluation = evaluate_predictions(found, [baseline], bootstrap=50)
    low, high = (evaluation.intervals["accuracy"][end] for end in ("low", "high"))
    assert 0 <= low <= evaluation.metrics["accuracy"] <= high <= 1
    assert evaluation.headline == ["perplexity", "loss", "accuracy"]
    assert baseline.metrics["loss"] < np.log(128) < loss + 1


# --- masks that are filled -------------------------------------------------------------------------------------------


def filled(task: MaskedLM, texts: list[str], logits_of: Any, *, max_length: int = 16, batch_size: int = 2) -> Any:
    """Predictions of a model whose logits are ``logits_of(input_ids)``."""
    from launcher.engine.predicting import predict_logits

    class Model(torch.nn.Module):
        def forward(self, input_ids: Any, **_: Any) -> dict[str, Any]:
            return {"logits": logits_of(input_ids)}

    rows, prepared = task.prepare_rows({"text": texts}, {"max_length": max_length})
    found, _ = predict_logits(
        Model(), rows, task.collator(), batch_size=batch_size, device="cpu", row_outputs=task.row_outputs
    )
    return task.predictions(found, rows, prepared)


def favouring(task: MaskedLM, *words: str) -> Any:
    """Logits by which the n-th place of a row is the n-th word, over and over."""
    ids = torch.tensor(task.tokenizer.convert_tokens_to_ids(list(words)))

    def logits(input_ids: torch.Tensor) -> torch.Tensor:
        wanted = ids[torch.arange(input_ids.shape[1]) % len(ids)]
        return 5 * torch.nn.functional.one_hot(wanted, 128).float().expand(len(input_ids), -1, -1)

    return logits


def test_mask_tokens_of_a_text_are_filled_and_other_texts_have_losses_as_before(bert: Path) -> None:
    task = task_for(bert)
    texts = ["The OLD [MASK] is   near", "the iron is far", "[MASK] gold [MASK]"]
    found = filled(task, texts, favouring(task, "gold"))
    assert found.answers == ("The OLD gold is   near", "", "gold gold gold")
    assert [len(masks) for masks in found.fills] == [1, 0, 2] and all(len(m) == 5 for row in found.fills for m in row)
    token, share = found.fills[0][0][0]
    assert token == "gold" and share == pytest.approx(np.exp(5) / (np.exp(5) + 127), rel=1e-5)
    assert found.labels.tolist()[0] == found.labels.tolist()[2] == 0 < found.labels[1]
    plain = filled(task_for(bert), texts[1:2], favouring(task, "gold"))
    assert plain.fills == () and found.scores[1].tolist() != [0, 0]
    first, second, _ = Kind.rows(found)
    assert first["filled"] == found.answers[0] and first["loss"] is None and second["filled"] is None
    assert set(Kind.rows(plain)[0]) == {"text", "tokens", "loss", "perplexity"}
    assert Kind.line(first).startswith("The OLD gold is   near\n  mask 1: gold 53.9%, ")
    assert Kind.line(second).startswith("loss ")
    (_, *lines) = Kind.table(Kind.rows(found))
    assert all(len(line) == 6 for line in lines) and lines[0][-1].startswith("gold 53.9%, ")


def test_pieces_of_words_go_on_with_the_word_before(bert: Path) -> None:
    from tokenizers import decoders

    task = task_for(bert)
    task.tokenizer.backend_tokenizer.decoder = decoders.WordPiece()
    found = filled(task, ["the iron [MASK] is", "[MASK] is"], favouring(task, "##s"))
    assert found.answers == ("the irons is", "s is") and found.fills[0][0][0][0] == "##s"


def test_masks_of_a_divided_text_are_those_of_all_its_rows(bert: Path) -> None:
    task = task_for(bert)
    text = "the old gold is [MASK] and " * 4
    words = ["iron", "gold", "zinc", "tin", "old", "new", "far"]
    found = filled(task, [text, "iron"], favouring(task, *words), max_length=7)
    assert len(found.fills[0]) == 4 and len(found.texts) == 2
    best = [masks[0][0] for masks in found.fills[0]]
    assert found.answers[
        0
    ] == "the old gold is {} and the old gold is {} and the old gold is {} and the old gold is {} and ".format(*best)
    assert len(set(best)) > 1, "each place has a word of its own"
    assert found.labels.tolist()[0] == 0, "no row of the text is masked beside them"


def test_filled_masks_are_written_and_read_back(bert: Path, tmp_path: Path) -> None:
    from launcher.evaluation.predictions_io import read_predictions, write_predictions

    task = task_for(bert)
    for texts in (["old [MASK]", "the iron"], ["the iron", "gold"]):
        found = filled(task, texts, favouring(task, "tin"))
        write_predictions(found, tmp_path / "p.parquet")
        again = read_predictions(tmp_path / "p.parquet")
        assert (again.answers, again.fills, again.texts) == (found.answers, found.fills, found.texts)
        assert again.scores.tolist() == found.scores.tolist() and again.labels.tolist() == found.labels.tolist()


def test_an_evaluation_fills_nothing_though_texts_have_masks(bert: Path, tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("".join(f"old [MASK] {word}\n" for word in tiny.FILLER))
    task = task_for(bert, tmp_path / "train.txt", data={"cache_dir": str(tmp_path)})
    rows = Rows(task.prepare_data()[1].validation)
    batch = task.collator()([rows[0]])
    assert (batch["labels"] != IGNORED).any()
    assert task.row_outputs({"logits": torch.zeros(*batch["labels"].shape, 128)}, batch).shape == (1, 3)


def test_the_view_of_the_data_shows_the_masks_of_an_evaluation(bert: Path, tmp_path: Path) -> None:
    """By the row's place in its split: texts of a drawn validation have other numbers, and divided ones several rows."""
    lines = [" ".join(text for text, _ in tiny.rows(3, seed=n)) for n in range(9)]
    (tmp_path / "train.txt").write_text("\n".join(lines))
    data = {"cache_dir": str(tmp_path), "max_length": 12, "validation_share": 0.4}
    task = task_for(bert, tmp_path / "train.txt", data=data)
    split = task.prepare_data()[1].validation
    assert split["row_id"] != list(range(len(split)))
    shown = view_data(task.recipe, base_folder=tmp_path, split="validation", rows=len(split)).rows
    for place, row in enumerate(shown):
        (ids, labels) = masks(task, [Rows(split)[place]], training=False)[place]
        assert len(ids) == row.tokens
        learned = [label for label in labels if label != IGNORED]
        told = [text for text, kind in row.parts if kind == "learned"]
        assert learned == [t for text in told for t in task.tokenizer(text, add_special_tokens=False)["input_ids"]]


# --- the model -------------------------------------------------------------------------------------------------------


def test_a_new_output_layer_is_said(bert: Path, texts: Path, tmp_path: Path) -> None:
    task = task_for(bert, texts, data={"cache_dir": str(tmp_path)})
    (said,) = task.prepare_data()[1].facts["warnings"]
    assert "no output layer for masked tokens: cls.predictions.bias" in said
    built = task.build_model(None)
    assert built.newly_initialized == task.build_model(None, skeleton=True).newly_initialized
    assert all(name.startswith("cls.predictions.") for name in built.newly_initialized)
    built.model.save_pretrained(tmp_path / "whole")
    tiny.save_tokenizer(tmp_path / "whole")
    again = task_for(tmp_path / "whole", texts, data={"cache_dir": str(tmp_path)})
    assert again.build_model(None).newly_initialized == frozenset()
    assert again.prepare_data()[1].facts["warnings"] == []


def test_models_without_masks_are_refused(tmp_path: Path, bert: Path) -> None:
    from transformers import LlamaConfig

    tiny.save_tokenizer(tmp_path)
    LlamaConfig(vocab_size=128, hidden_size=32, num_hidden_layers=1).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="a llama model does not predict masked tokens"):
        task_for(tmp_path).build_model(None, skeleton=True)
    task = task_for(bert)
    task.tokenizer.mask_token = None
    with pytest.raises(ModelError, match="no mask token"):
        task.collator()


STRATEGIES: dict[str, dict[str, Any]] = {
    "full": {"type": "full"}, "encoder": {"type": "encoder"}, "layerwise": {"type": "layerwise", "freeze_layers": 1},
    "lora": {"type": "lora", "r": 2}, "discriminative": {"type": "discriminative"},
}  # fmt: skip


@pytest.fixture(scope="module")
def whole(bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A masked language model, with its output layer."""
    folder = tmp_path_factory.mktemp("whole")
    task_for(bert).build_model(None).model.save_pretrained(folder)
    tiny.save_tokenizer(folder)
    return folder


@pytest.mark.parametrize("name", ["lora", "discriminative"])
def test_adapters_need_an_output_layer_that_is_there(bert: Path, texts: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(ModelError, match=r"cls.predictions.bias is new .* cannot train beside adapters"):
        in_process.prepare(bert, texts, tmp_path, task="masked-lm", strategy=STRATEGIES[name])


def test_adapters_leave_the_tied_output_layer_as_it_is(whole: Path, texts: Path, tmp_path: Path) -> None:
    run = in_process.prepare(
        whole, texts, tmp_path, task="masked-lm", strategy=STRATEGIES["lora"],
        training={"max_steps": 2, "learning_rate": 1e-2, "save_strategy": "no", "eval_strategy": "no"},
    )  # fmt: skip
    trained = {n for group in run.context.planned.phase.table.trainable for n in group.parameters}
    assert not any(".cls.predictions.bias" in n or "word_embeddings" in n for n in trained)
    assert any(".transform.dense.modules_to_save." in n for n in trained)
    trainer, _ = run.train()
    before = task_for(whole).build_model(None).model.state_dict()
    after = {name.removeprefix("base_model.model."): value for name, value in trainer.model.state_dict().items()}
    for name in ("cls.predictions.bias", "cls.predictions.decoder.weight", "bert.embeddings.word_embeddings.weight"):
        assert torch.equal(after[name], before[name]), name


def test_a_head_that_shares_the_embeddings_is_refused(bert: Path, texts: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="tie_word_embeddings"):
        in_process.prepare(bert, texts, tmp_path, task="masked-lm", strategy={"type": "head"})


def test_no_prefix_is_cached_because_masks_change(bert: Path, texts: Path, tmp_path: Path) -> None:
    untied = {"name_or_path": str(bert), "config": {"tie_word_embeddings": False}}
    run = in_process.prepare(
        bert, texts, tmp_path, task="masked-lm", model=untied, strategy={"type": "head", "prefix_cache": "memory"}
    )
    with pytest.raises(ModelError, match="input differs between epochs"):
        run.train()


@pytest.mark.slow
@pytest.mark.parametrize("task", [TASK, WORDS], ids=["tokens", "words"])
def test_trained_in_this_process(bert: Path, texts: Path, tmp_path: Path, task: dict[str, Any]) -> None:
    """The same losses with one micro-batch and with four; loss falls."""
    found = {}
    for cap in (8, 2):
        run = in_process.prepare(
            bert, texts, tmp_path / str(cap), task=task,
            training={"num_train_epochs": 6, "learning_rate": 1e-2, "per_device_train_batch_size": cap},
        )  # fmt: skip
        run.train()
        found[cap] = tiny.losses(run.run.path)
    assert found[8] == pytest.approx(found[2], rel=1e-3)
    evaluated = [row["eval_loss"] for row in tiny.jsonl(run.run.path / "progress.jsonl") if "eval_loss" in row]
    assert evaluated[-1] < evaluated[0] - 0.3


# --- whole runs ------------------------------------------------------------------------------------------------------


def learn(place: Path, name: str, model: Path | str, data: Path | str, /, **changes: Any) -> dict[str, Any]:
    values = tiny.recipe_values(model, data, name=name, **{"task": TASK, **changes})
    done = tiny.launcher("run", tiny.write_recipe(place / f"{name}.yaml", values), cwd=place, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads((place / "runs" / f"{name}-001" / "evaluation/metrics.json").read_text())


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_ranks_have_the_losses_of_one_and_a_classifier_takes_the_encoder(bert, texts, tmp_path):
    from safetensors.torch import load_file
    from transformers import AutoModelForSequenceClassification

    from launcher.workflows.inference import FinishedModel, evaluate_run, prediction_rows

    changes: dict[str, Any] = {"training": {"num_train_epochs": 2, "per_device_train_batch_size": 2}}
    learn(tmp_path, "one", bert, texts, **changes)
    sharded = {"processes_per_node": 2, "zero_stage": 2}
    found = learn(tmp_path, "two", bert, texts, **changes, distributed=sharded)
    one, two = (tmp_path / "runs" / f"{name}-001" for name in ("one", "two"))
    assert tiny.losses(two) == pytest.approx(tiny.losses(one), rel=1e-4) and tiny.ledger(two) == tiny.ledger(one)
    assert found["headline"] == ["perplexity", "loss", "accuracy"] and found["baselines"][0]["name"] == "unigram"
    assert "per masked token" in (two / "report.html").read_text()
    assert evaluate_run(two).metrics == pytest.approx(found["metrics"], rel=1e-5)
    (row,) = prediction_rows(FinishedModel(two).predict_texts(["the old gold is near the rhine"]))
    assert row["tokens"] >= 1 and row["perplexity"] > 1
    (row,) = prediction_rows(FinishedModel(two).predict_texts(["the old [MASK] is near"]))
    assert row["filled"].startswith("the old ") and len(row["masks"][0]) == 5
    saved = load_file(two / "model" / "model.safetensors")
    encoder = {name: tensor for name, tensor in saved.items() if name.startswith("bert.")}
    classifier = AutoModelForSequenceClassification.from_pretrained(str(two / "model"), num_labels=3)
    state = classifier.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in encoder.items())
    assert {name.split(".")[0] + "." + name.split(".")[1] for name in state.keys() - encoder.keys()} == {
        "bert.pooler", "classifier.weight", "classifier.bias",
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.soak
@pytest.mark.timeout(900)
def test_the_two_steps_of_the_guide(tmp_path):
    """As typed, with fewer steps and rows: the shipped recipe, then a classifier on what it leaves."""
    few = ["training.num_train_epochs=0.1", "evaluation.bootstrap=20", "tracking.wandb=null"]
    first = ["masked-lm/domain-adaptation", "data.test.limit=20", "data.validation.limit=20"]
    model = "model.name_or_path=./runs/domain-adaptation-001/model"
    second = [
        "quickstart/api-topics",
        model,
        "name=then-classify",
        "evaluation.baselines=[majority]",
        "data.test={source: builtin:api-topics, limit: 40}",
    ]
    for step in (first, second):
        done = tiny.launcher("run", *step, *few, cwd=tmp_path, timeout=800)
        assert done.returncode == 0, done.stdout + done.stderr
    log = (tmp_path / "runs/domain-adaptation-001/report.html").read_text()
    assert "no output layer for masked tokens" in log
    assert json.loads((tmp_path / "runs/then-classify-001/evaluation/metrics.json").read_text())["rows"] == 40


@pytest.mark.slow
@pytest.mark.soak
@pytest.mark.timeout(600)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy_trains_it_and_the_saved_model_is_the_trained_one(whole, texts, tmp_path, strategy):
    learn(
        tmp_path, "s", whole, texts, strategy=STRATEGIES[strategy], training={"learning_rate": 1e-2},
        evaluation={"bootstrap": 20, "verify_saved": True},
    )  # fmt: skip
    manifest = json.loads((tmp_path / "runs/s-001/model/MANIFEST.json").read_text())
    assert manifest["verification"]["passed"] is True


@pytest.mark.slow
@pytest.mark.soak
@pytest.mark.timeout(900)
@pytest.mark.parametrize("how", [{"engine": "ddp"}, *({"zero_stage": stage} for stage in (0, 1, 3))], ids=str)
def test_every_engine_has_the_losses_of_one_process(bert, texts, tmp_path, how):
    learn(tmp_path, "one", bert, texts)
    learn(tmp_path, "two", bert, texts, distributed={"processes_per_node": 2, **how})
    one, two = (tiny.losses(tmp_path / "runs" / f"{name}-001") for name in ("one", "two"))
    assert two == pytest.approx(one, rel=1e-4)
