"""What `launcher data` shows is what a run would use."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tiny

from launcher.data.sampling import GlobalBatches, PhaseBatches, RankBatches
from launcher.launching.batch import plan_batch
from launcher.recipe.schema import Recipe
from launcher.tasks.text_classification import TextClassification
from launcher.workflows.data_view import ORDERS, histogram, padding_share, view_data


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("place")
    tiny.save_bert(folder / "bert")
    tiny.write_data(folder / "data")
    return folder


def recipe(place: Path, **changes: object) -> Recipe:
    values = tiny.recipe_values(
        place / "bert", place / "data", **{"data": {"cache_dir": str(place / "cache")}, **changes}
    )
    return Recipe.model_validate({**values, "task": {"type": "text-classification"}})


def test_counts_are_those_of_the_rows(place, tmp_path):
    rows = [
        ("apple pear", "fruit"),
        ("  Apple   PEAR ", "fruit"),
        ("iron " * 60, "metal"),
        ("tin", "metal"),
        ("zinc", "metal"),
    ]
    for name in ("train", "validation"):
        tiny.write_csv(tmp_path / f"{name}.csv", rows)
    changed = recipe(place, data={"source": str(tmp_path), "cache_dir": str(tmp_path / "cache"), "max_length": 16})
    found = view_data(changed, base_folder=tmp_path, rows=9)
    view = found.splits["train"]
    assert (view.rows, view.cut, view.repeated, view.tokens) == (5, 1, 1, 4 + 4 + 16 + 3 + 3)
    assert view.labels == {"fruit": 2, "metal": 3}
    assert dict(view.lengths) == {"shortest": 3, "50%": 4, "90%": 16, "99%": 16, "longest": 16}
    assert sum(count for _, _, count in view.histogram) == 5
    assert any("also stand in train" in text for text in found.warnings)
    assert json.loads(json.dumps(found.to_json()))["splits"]["train"]["rows"] == 5
    assert not found.was_cached and view_data(changed, base_folder=tmp_path).was_cached


def test_texts_that_are_nearly_the_same_are_told(place, tmp_path, capsys):
    from launcher.cli.data import _show_near

    first = "the apple is near the old river and the pear is far"
    train = [(first, "fruit"), (f"{first} of iron", "fruit"), ("tin zinc gold", "metal"), ("nile volga", "river")]
    tiny.write_csv(tmp_path / "train.csv", train)
    tiny.write_csv(tmp_path / "validation.csv", [(f"{first}!", "fruit"), ("silver", "metal"), ("loire", "river")])
    changed = recipe(place, data={"source": str(tmp_path), "cache_dir": str(tmp_path / "cache")})
    found = view_data(changed, base_folder=tmp_path)
    views = {name: view.near for name, view in found.splits.items()}
    assert (views["train"].within, views["train"].in_train) == (1, 0)
    assert (views["validation"].within, views["validation"].in_train) == (0, 1)
    assert views["train"].examples == [(f"{first} of iron", first)]
    _show_near(found)
    told = capsys.readouterr().out
    assert "train: 1 texts are nearly an earlier one" in told and "validation: 0 texts" in told
    assert "1 are nearly one of train, so scores on validation flatter" in told


def test_rows_are_shown_as_the_model_reads_them(place):
    found = view_data(recipe(place), base_folder=place, split="test", rows=2)
    assert [row.row_id for row in found.rows] == [0, 29]
    assert found.rows[0].parts[0] == ("[CLS]", "special") and found.rows[0].parts[-1] == ("[SEP]", "special")
    assert (
        found.rows[0].parts[1][0] == tiny.rows(30, seed=2)[0][0] and found.rows[0].label == tiny.rows(30, seed=2)[0][1]
    )
    assert view_data(recipe(place), base_folder=place, rows=0).rows == []


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("cap", [None, 3])
def test_padding_is_that_of_the_batches(place, order, cap):
    """Counted in the batches that the collator makes of a run's own rows."""
    task = TextClassification(recipe(place), base_folder=place)
    _, prepared = task.prepare_data()
    lengths = np.asarray(prepared.train["length"])
    batch = plan_batch(global_batch_size=8, world_size=1, cap=cap)
    collate, places = task.collator(), 0
    for rows in GlobalBatches(lengths, 8, 1, order).epoch(0):
        share = RankBatches(_Only(rows), accumulation=batch.accumulation, rank=0, world_size=1, least_rows=0).share(
            rows
        )
        for numbers in share:
            if numbers:
                places += collate([prepared.train[n] for n in numbers])["input_ids"].numel()
    wanted = 1 - lengths.sum() / places
    assert padding_share(lengths, batch=batch, seed=1, order=order) == pytest.approx(wanted)


def test_what_is_drawn_by_label_is_told(place, capsys):
    from launcher.cli.data import _show_labels
    from launcher.cli.planning import _plan_lines
    from launcher.launching.launch_plan import plan_launch
    from launcher.planning.plan import preview_run
    from launcher.plans import Hardware

    task = {"task": {"type": "text-classification", "class_sampling": "balanced"}}
    balanced = Recipe.model_validate({**recipe(place).model_dump(), **task})
    found = view_data(balanced, base_folder=place, rows=0)
    train = found.splits["train"]
    assert train.labels == {"fruit": 17, "metal": 17, "river": 16}
    assert train.drawn == pytest.approx(dict.fromkeys(train.labels, 50 / 3)) and found.splits["test"].drawn == {}
    _show_labels(found)
    shown = capsys.readouterr().out
    assert "drawn in an epoch" in shown and "16.7 (33.3%)" in shown
    launch = plan_launch(balanced, Hardware((), 2, 2**33, cpu_has_fast_bf16=False))
    lines = dict(_plan_lines(SimpleNamespace(plan=preview_run(balanced, launch, base_folder=place), chosen="")))
    assert lines["sampling"].startswith(
        "balanced; river is 33.33% of what is drawn instead of 32.00%, each of its rows 1.04"
    )


class _Only(PhaseBatches):
    def __init__(self, rows: np.ndarray) -> None:
        pass


def test_bins_hold_every_length():
    for lengths in (np.array([5]), np.arange(1, 500), np.array([3, 3, 900])):
        bins = histogram(lengths)
        assert sum(count for _, _, count in bins) == len(lengths) and len(bins) <= 12
        assert bins[0][0] == lengths.min() and bins[-1][0] <= lengths.max() <= bins[-1][1]


def test_the_verbs(place):
    values = tiny.recipe_values("./bert", "./data", data={"cache_dir": "./cache-of-verbs"})
    tiny.write_recipe(place / "r.yaml", values)
    done = tiny.launcher("prepare", "r.yaml", cwd=place)
    assert done.returncode == 0 and "prepared: 50 train, 18 validation, 30 test rows in cache-of-verbs" in done.stdout
    assert tiny.launcher("prepare", "r.yaml", cwd=place).stdout.startswith("found: 50 train")
    again = json.loads(tiny.launcher("prepare", "r.yaml", "--json", cwd=place).stdout)
    assert again["was_cached"] is True and again["splits"]["test"]["rows"] == 30
    shown = tiny.launcher("data", "r.yaml", "--rows", "1", "--plot", "l.svg", cwd=place)
    assert shown.returncode == 0, shown.stderr
    for said in ("lengths of train rows", "padding of an epoch", "[CLS]", "label: ", "picture: l.svg"):
        assert said in shown.stdout, said
    assert (place / "l.svg").read_text().startswith("<")
    wrong = tiny.launcher("data", "r.yaml", "--plot", "l.gif", cwd=place)
    assert wrong.returncode != 0 and "its ending must be .svg or .png" in wrong.stderr
    missing = tiny.launcher("prepare", "r.yaml", "data.source=./nothing", cwd=place)
    assert missing.returncode == 2 and "./nothing" in missing.stderr
