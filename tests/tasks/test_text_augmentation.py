"""Augmentation of texts: a pure function of seed, epoch and row; shares as asked for; never in an evaluation; faults of the list."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from scipy.stats import binomtest

from launcher.contracts import Phase, TuningTable
from launcher.data.sampling import PhaseBatches, RankBatches
from launcher.data.text_augmentation import kept_tokens, with_synonyms
from launcher.engine.loading import Rows
from launcher.errors import DataError
from launcher.plans import BatchPlan, PlannedPhase
from launcher.recipe.examine import examine
from launcher.recipe.schema import Recipe
from launcher.recipe.synonyms_file import BadSynonyms, read_synonyms
from launcher.registry import TASKS, load
from launcher.workflows.data_view import view_data

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "engine"))
import in_process

LIST = "apple, pear, plum\niron\tcopper\n\nold,new,\n"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, rows and a list of synonyms."""
    folder = tmp_path_factory.mktemp("augmented")
    tiny.save_bert(folder / "bert")
    tiny.write_data(folder / "data", train=24, validation=9, test=9)
    (folder / "synonyms.txt").write_text(LIST)
    return folder


def task_for(place: Path, augmentation: Mapping[str, Any] | None, /, **changes: Any) -> Any:
    options = {"type": "text-classification", **changes.pop("task", {}), "augmentation": augmentation}
    data = {"cache_dir": str(place / "cache"), **changes.pop("data", {})}
    source = changes.pop("source", place / "data")
    recipe = Recipe.model_validate(tiny.recipe_values(place / "bert", source, task=options, data=data, **changes))
    return load(TASKS, recipe.task.type)(recipe, base_folder=place)


BOTH = {"token_dropout": 0.3, "synonyms": "synonyms.txt", "synonym_probability": 0.5}


# --- what is drawn ---------------------------------------------------------------------------------------------------


def inputs(task: Any, rows: list[Mapping[str, Any]], *, training: bool) -> dict[int, list[int]]:
    """Number of a row -> the tokens that the model reads, without padding."""
    batch = task.collator(training=training)(rows)
    lengths = batch["attention_mask"].sum(dim=1).tolist()
    return {
        row["row_id"]: ids[:length].tolist() for row, ids, length in zip(rows, batch["input_ids"], lengths, strict=True)
    }


def drawn(task: Any, split: Any, *, batch: int, world: int, accumulation: int, after: int = 0) -> dict[Any, Any]:
    """(epoch, row) -> its tokens, over all ranks and micro-batches of three epochs."""
    lengths, rows = np.asarray(split["length"]), Rows(split, also=task.read_in_training)
    planned = PlannedPhase(
        Phase("p", TuningTable(())), first_step=0, steps=3 * -(-len(lengths) // batch), batch=BatchPlan(batch, 1, batch, 1),
        rows=len(lengths), epoch_batch_size=batch,
    )  # fmt: skip
    found: dict[Any, Any] = {}
    for rank in range(world):
        batches = PhaseBatches(lengths, planned, 5, after=after)
        for micro in RankBatches(batches, accumulation=accumulation, rank=rank, world_size=world):
            own = [row for row in rows.__getitems__(micro) if row["weight"]]
            if own:
                epoch = own[0]["epoch"]
                found |= {(epoch, number): ids for number, ids in inputs(task, own, training=True).items()}
    return found


@pytest.mark.parametrize(
    "wanted", [{"token_dropout": 0.3}, {"synonyms": "synonyms.txt"}, BOTH], ids=["drop", "words", "both"]
)
def test_changes_follow_from_seed_epoch_and_row_alone(place: Path, wanted: dict[str, Any]) -> None:
    task = task_for(place, {"synonym_probability": 0.5, **wanted} if "synonyms" in wanted else wanted)
    rows = task.prepare_data()[1].train
    one = drawn(task, rows, batch=8, world=1, accumulation=1)
    assert len(one) == 3 * len(rows)
    assert drawn(task, rows, batch=8, world=3, accumulation=2) == one
    assert drawn(task, rows, batch=5, world=2, accumulation=1) == one
    late = drawn(task, rows, batch=8, world=2, accumulation=1, after=4)
    assert late and all(one[key] == ids for key, ids in late.items())
    assert sum(one[0, number] != one[1, number] for number in range(len(rows))) > len(rows) / 3
    other = task_for(place, task.options.augmentation.model_dump(), training={"seed": 2})
    assert drawn(other, rows, batch=8, world=1, accumulation=1) != one


def test_a_copy_of_a_row_in_an_epoch_is_changed_in_its_own_way(place: Path) -> None:
    task = task_for(place, {"token_dropout": 0.5})
    row = {**Rows(task.prepare_data()[1].train)[1], "epoch": 0}
    batch = task.collator(training=True)([{**row, "copy": copy} for copy in (0, 0, 1)])["input_ids"].tolist()
    assert batch[0] == batch[1] != batch[2]


def test_an_evaluation_reads_the_rows_as_they_are_and_the_prepared_rows_are_the_same(place: Path) -> None:
    changed, plain = task_for(place, BOTH), task_for(place, None)
    assert changed.inputs_vary and not plain.inputs_vary
    folder, prepared = plain.prepare_data()
    again = changed.prepare_data()
    assert again[0] == folder and again[1].facts["was_cached"]
    rows = Rows(prepared.validation).__getitems__(list(range(9)))
    assert inputs(changed, rows, training=False) == inputs(plain, rows, training=True)
    assert inputs(plain, rows, training=False) == {row["row_id"]: row["input_ids"] for row in rows}


# --- token dropout ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("probability", [0.05, 0.3, 0.9])
def test_the_share_of_tokens_is_the_one_asked_for(probability: float) -> None:
    units = np.concatenate([[-1], np.arange(50_000), [-1]])
    kept = kept_tokens(units, probability=probability, generator=np.random.default_rng(4))
    assert kept[0] and kept[-1]
    assert binomtest(int((~kept).sum()), 50_000, probability).pvalue > 1e-4
    for seed in range(50):
        few = kept_tokens(np.array([-1, 0, 1, -1]), probability=0.999, generator=np.random.default_rng(seed))
        assert few[[0, 3]].all() and few[1:3].any()


def test_special_tokens_stay_and_unknown_ones_are_tokens_of_the_text(place: Path) -> None:
    task = task_for(place, {"token_dropout": 0.95})
    tokenizer = task.tokenizer
    ids = tokenizer("old 你 gold 你 [MASK] zinc")["input_ids"]
    row = {"input_ids": ids, "token_type_ids": [0] * len(ids), "epoch": 0}
    read = [inputs(task, [{**row, "row_id": n}], training=True)[n] for n in range(200)]
    special = [tokenizer.cls_token_id, tokenizer.mask_token_id, tokenizer.sep_token_id]
    assert all([token for token in found if token in special] == special and len(found) > 3 for found in read)
    counts = [found.count(tokenizer.unk_token_id) for found in read]
    assert min(counts) == 0 < max(counts)


def test_labels_of_a_row_are_not_taken_for_tokens(place: Path, tmp_path: Path) -> None:
    """A row may have as many labels as tokens."""
    names = ["a", "b", "c", "d", "e"]
    lines = [(f"old gold {tiny.FILLER[n]}", ",".join(names[: 1 + n % 5])) for n in range(12)]
    tiny.write_csv(tmp_path / "train.csv", lines)
    kind = {"problem_type": "multi_label_classification"}
    task = task_for(
        place, {"token_dropout": 0.9}, source=tmp_path / "train.csv", task=kind, data={"cache_dir": str(tmp_path)}
    )
    rows = Rows(task.prepare_data()[1].train).__getitems__([0, 1, 2])
    assert len(rows[0]["input_ids"]) == 5
    batch = task.collator(training=True)([{**row, "epoch": 0} for row in rows])
    assert batch["labels"].tolist() == [row["labels"] for row in rows]


def test_words_of_sentences_are_left_out_whole_with_their_tags(place: Path, tmp_path: Path) -> None:
    lines = [f"{word}{n}\tB-X\nthe\tO\ngold\tB-Y\n" for n in range(30) for word in ("zinc",)]
    (tmp_path / "train.conll").write_text("\n".join(lines))
    task = task_for(
        place, {"token_dropout": 0.4}, source=tmp_path / "train.conll", task={"type": "token-classification"},
        data={"cache_dir": str(tmp_path)},
    )  # fmt: skip
    _, prepared = task.prepare_data()
    rows = Rows(prepared.train)
    lengths = set()
    for row in rows.__getitems__(list(range(len(rows)))):
        batch = task.collator(training=True)([{**row, "epoch": 0}])
        ids = batch["input_ids"][0].tolist()
        ids = ids[: int(batch["attention_mask"].sum())]
        labels = batch["labels"][0, : len(ids)].tolist()
        starts = [place for place, label in enumerate(row["labels"]) if label >= 0]
        words = [row["input_ids"][a:b] for a, b in zip(starts, [*starts[1:], len(row["input_ids"]) - 1], strict=True)]
        tagged = {tuple(word): row["labels"][start] for word, start in zip(words, starts, strict=True)}
        begins = [*(place for place, label in enumerate(labels) if label >= 0), len(ids) - 1]
        left = [tuple(ids[a:b]) for a, b in itertools.pairwise(begins)]
        assert left and all(word in tagged for word in left)
        assert [label for label in labels if label >= 0] == [tagged[word] for word in left]
        lengths.add(len(left))
    assert lengths == {1, 2, 3}


# --- synonyms --------------------------------------------------------------------------------------------------------


def test_the_list_and_the_words_that_it_replaces(place: Path) -> None:
    synonyms = read_synonyms(place / "synonyms.txt")
    assert synonyms["apple"] == ("pear", "plum") and synonyms["copper"] == ("iron",) and synonyms["new"] == ("old",)

    def replaced(text: str, probability: float = 1.0) -> str:
        return with_synonyms(text, synonyms, probability=probability, generator=np.random.default_rng(1))

    assert replaced("Iron, (copper) IRON-clad irons New.") == "Copper, (iron) IRON-clad irons Old."
    assert replaced("iron old", 0.0) == "iron old" and replaced("", 1.0) == ""
    text = " ".join(["iron"] * 20_000)
    assert binomtest(replaced(text, 0.3).count("copper"), 20_000, 0.3).pvalue > 1e-4
    fruit = replaced(" ".join(["apple"] * 20_000))
    assert binomtest(fruit.count("pear"), 20_000, 0.5).pvalue > 1e-4 and "apple" not in fruit


def test_replaced_rows_are_tokenized_cut_and_keep_both_texts_of_a_pair(place: Path, tmp_path: Path) -> None:
    (tmp_path / "long.txt").write_text("gold, platinum79x\n")
    rows = [("old ⏎ gold " * 2 + word, "near gold far", "ab"[n % 2]) for n, word in enumerate(tiny.FILLER)]
    tiny.write_csv(tmp_path / "train.csv", rows, head=("text", "text_pair", "label"))
    wanted = {"synonyms": str(tmp_path / "long.txt"), "synonym_probability": 1.0}
    for most in (60, 16):
        data = {"cache_dir": str(tmp_path), "max_length": most}
        task = task_for(place, wanted, source=tmp_path / "train.csv", data=data)
        rows_of = Rows(task.prepare_data()[1].train, also=task.read_in_training)
        batch = task.collator(training=True)([{**rows_of[0], "epoch": 0}])
        changed = [text.replace("gold", "platinum79x") for text in rows[0][:2]]
        expected = task.tokenizer(*changed, truncation=True, max_length=most)
        length = len(expected["input_ids"])
        for name in ("input_ids", "token_type_ids"):
            assert batch[name][0, :length].tolist() == expected[name]
        assert int(batch["attention_mask"].sum()) == length and (most == 60 or length == 16)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "has no words"),
        (b" \n,\n", "has no words"),
        (b"a, b\niron,\n", r":2: 'iron' stands alone"),
        (b"iron, copper, Iron\n", r":1: 'Iron' stands twice in the line"),
        (b"film, moving picture\n", r":1: 'moving picture' is not one word"),
        (b"a, b\n\xff\xfe, c\n", r":2: is not UTF-8"),
    ],
)  # fmt: skip
def test_faults_of_a_list_are_found_with_the_recipe(place: Path, tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "list.txt"
    path.write_bytes(content)
    with pytest.raises(BadSynonyms, match=said):
        read_synonyms(path)
    task = {"type": "text-classification", "augmentation": {"synonyms": str(path)}}
    recipe = tiny.write_recipe(tmp_path / "r.yaml", tiny.recipe_values(place / "bert", place / "data", task=task))
    (problem,) = examine(recipe)[1]
    assert problem.key == "task.augmentation.synonyms" and str(path) in problem.message and problem.remedy
    with pytest.raises(DataError, match="task.augmentation.synonyms: "):
        task_for(place, {"synonyms": str(path)}).collator(training=True)


def test_a_missing_list_is_found_with_the_recipe(place: Path, tmp_path: Path) -> None:
    (tmp_path / "synonyms.txt").write_text(LIST)
    task = {"type": "text-classification", "augmentation": {"synonyms": str(tmp_path / "synonims.txt")}}
    recipe = tiny.write_recipe(tmp_path / "r.yaml", tiny.recipe_values(place / "bert", place / "data", task=task))
    (problem,) = examine(recipe)[1]
    assert "there is no such file" in problem.message and problem.remedy == "did you mean synonyms.txt?"


# --- to be seen, and to train with -----------------------------------------------------------------------------------


def test_the_view_of_the_data_shows_each_row_as_the_first_epoch_has_it(place: Path) -> None:
    task = task_for(place, {"token_dropout": 0.5})
    shown = view_data(task.recipe, base_folder=place, rows=3).rows
    assert [row.is_augmented for row in shown] == [False, True] * 3
    assert all(
        one.row_id == two.row_id and one.label == two.label for one, two in zip(shown[::2], shown[1::2], strict=True)
    )
    assert sum(two.tokens for two in shown[1::2]) < sum(one.tokens for one in shown[::2])
    split = task.prepare_data()[1].train
    first = inputs(task, [{**Rows(split)[0], "epoch": 0}], training=True)[0]
    assert shown[1].tokens == len(first)
    held = view_data(task.recipe, base_folder=place, split="validation", rows=3).rows
    assert [row.is_augmented for row in held] == [False] * 3


def test_a_stopped_run_goes_on_with_the_same_changes(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {**BOTH, "synonyms": str(place / "synonyms.txt")}

    def ready(name: str, augmentation: Any = options, run: Any = None, **training: Any) -> Any:
        task = {"type": "text-classification", "augmentation": augmentation}
        training = {
            "num_train_epochs": 3,
            "learning_rate": 1e-2,
            "eval_strategy": "no",
            "save_strategy": "no",
            **training,
        }
        return in_process.prepare(
            place / "bert", place / "data", tmp_path / name, run=run, task=task, training=training
        )

    whole, plain, halves = ready("whole"), ready("plain", None), ready("halves", per_device_train_batch_size=3)
    for run in (whole, plain, halves):
        run.train()
    wanted = tiny.losses(whole.run.path)
    assert wanted != pytest.approx(tiny.losses(plain.run.path), rel=1e-3), "the model reads something else"
    assert tiny.losses(halves.run.path) == pytest.approx(wanted, rel=1e-4)
    first = ready("cut")
    on_step = first.context.progress.on_step

    def stop(step: int, **facts: Any) -> None:
        on_step(step, **facts)
        if step == 4:
            first.run.stop_request(first.context.attempt).touch()

    monkeypatch.setattr(first.context.progress, "on_step", stop)
    assert first.train()[1]
    second = ready("cut", run=first.run)
    assert not second.train(resume=True)[1]
    assert tiny.losses(second.run.path) == wanted and tiny.ledger(second.run.path) == tiny.ledger(whole.run.path)


def test_rows_of_a_stream_are_changed_too(place: Path, tmp_path: Path) -> None:
    """Their text is read for it, and what they become does not depend on the micro-batch."""
    tiny.write_csv(tmp_path / "train.csv", tiny.rows(24, seed=0))
    data = {
        "source": None, "train": str(tmp_path / "train.csv"), "validation": str(place / "data/validation.csv"), "streaming": True,
        "labels": list(tiny.TOPICS), "cache_dir": str(tmp_path),
    }  # fmt: skip

    def losses(name: str, augmentation: Any, cap: int) -> dict[int, float]:
        training = {
            "num_train_epochs": None, "max_steps": 6, "learning_rate": 1e-2, "per_device_train_batch_size": cap,
            "eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": False,
        }  # fmt: skip
        training.pop("num_train_epochs")
        task = {"type": "text-classification", "augmentation": augmentation}
        run = in_process.prepare(place / "bert", place, tmp_path / name, task=task, data=data, training=training)
        run.train()
        return tiny.losses(run.run.path)

    words = {"synonyms": str(place / "synonyms.txt"), "synonym_probability": 0.9}
    whole = losses("whole", words, 8)
    assert losses("halves", words, 3) == pytest.approx(whole, rel=1e-5)
    assert losses("plain", None, 8) != pytest.approx(whole, rel=3e-5)
