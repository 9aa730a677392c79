"""Sources that are drawn from by weight: exact shares, whole sources, and nothing that is prepared anew."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from hypothesis import given, settings, strategies as st

from launcher.contracts import epoch_rows
from launcher.data.mixtures import rows_of_sources
from launcher.data.sampling import GlobalBatches
from launcher.errors import DataError
from launcher.recipe.schema import Recipe
from launcher.tasks.causal_lm import CausalLM
from launcher.tasks.text_classification import TextClassification


@pytest.mark.parametrize(
    "rows, weights, stopping_strategy, wanted",
    [
        # 10 rows are half of 20, of which 60 rows give 10.
        ([10, 60], [1, 1], "first_exhausted", [10, 10]),
        ([10, 60], [1, 1], "all_exhausted", [60, 60]),
        # 20 rows are a fifth of 100; 30 rows are three tenths of 100; 90 rows are a half of 180.
        ([20, 30, 90], [0.2, 0.3, 0.5], "first_exhausted", [20, 30, 50]),
        ([20, 30, 90], [0.2, 0.3, 0.5], "all_exhausted", [36, 54, 90]),
        # 10 rows are 3 of 10 parts: 33.3 rows, or 7 of 10 of the other: 14.3 rows.
        ([10, 10], [3, 7], "first_exhausted", [4, 10]),
        ([10, 10], [3, 7], "all_exhausted", [10, 24]),
        ([7], [1], "first_exhausted", [7]),
    ],
)
def test_rows_of_an_epoch_by_hand(rows, weights, stopping_strategy, wanted):
    assert rows_of_sources(rows, weights, stopping_strategy=stopping_strategy) == wanted


@settings(max_examples=300)
@given(
    sources=st.lists(st.tuples(st.integers(1, 500), st.integers(1, 50)), min_size=1, max_size=6),
    stopping_strategy=st.sampled_from(["first_exhausted", "all_exhausted"]),
)
def test_shares_are_those_of_the_weights_to_a_row(sources, stopping_strategy):
    rows, weights = zip(*sources, strict=True)
    found = rows_of_sources(rows, [weight / 10 for weight in weights], stopping_strategy=stopping_strategy)
    bound = all(a <= b for a, b in zip(found, rows, strict=True))
    if stopping_strategy == "all_exhausted":
        bound = all(a >= b for a, b in zip(found, rows, strict=True))
    assert bound and any(a == b for a, b in zip(found, rows, strict=True))
    for count, weight in zip(found, weights, strict=True):
        assert abs(count - sum(found) * weight / sum(weights)) < 1 + 1e-9


def place_of(folder: Path, *numbers: int) -> Path:
    """Files source-0.csv, ... of so many rows each, with texts that no other row has, and rows to validate on."""
    tiny.save_bert(folder / "bert")
    for source, number in enumerate(numbers):
        rows = [(f"{text} {source} {row}", label) for row, (text, label) in enumerate(tiny.rows(number, seed=source))]
        tiny.write_csv(folder / f"source-{source}.csv", rows)
    tiny.write_csv(folder / "validation.csv", tiny.rows(9, seed=99))
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return place_of(tmp_path_factory.mktemp("mixture"), 12, 30, 57)


def recipe(place: Path, weights: dict[int, float], /, *, more: dict[str, Any] | None = None, **changes: Any) -> Recipe:
    train = [{"source": str(place / f"source-{number}.csv"), "weight": weight} for number, weight in weights.items()]
    data = {"train": train, "validation": str(place / "validation.csv"), "cache_dir": str(place / "cache")}
    values = tiny.recipe_values(place / "bert", "", **changes)
    return Recipe.model_validate(
        {**values, "data": {"max_length": 32, **data, **(more or {})}, "task": {"type": "text-classification"}}
    )


def epochs(prepared: Any, count: int, order: str = "group_by_length") -> list[list[int]]:
    lengths = np.asarray(prepared.train["length"])
    batches = GlobalBatches(lengths, 8, 1, order, prepared.draws)  # type: ignore[arg-type]
    found = [batches.epoch(number) for number in range(count)]
    assert all(len(epoch) == len(batches) for epoch in found)
    return [np.concatenate(epoch).tolist() for epoch in found]


@pytest.mark.parametrize("order", ["group_by_length", "random"])
def test_each_row_of_the_smallest_source_once_and_others_in_their_shares(place, order):
    _, prepared = TextClassification(recipe(place, {0: 0.3, 1: 0.3, 2: 0.6}), base_folder=place).prepare_data()
    # 12 rows are a quarter of 48: as many of the second source, and 24 of the third.
    assert prepared.epoch_rows == epoch_rows(99, prepared.draws) == 48 and len(prepared.train) == 99
    found = epochs(prepared, 40, order)
    for epoch in found:
        counts = Counter(epoch)
        assert max(counts.values()) == 1 and set(range(12)) <= set(counts)
        assert [sum(low <= row < high for row in epoch) for low, high in ((0, 12), (12, 42), (42, 99))] == [12, 12, 24]
    # Another part in each epoch, and none that never comes.
    assert {row for epoch in found for row in epoch} == set(range(99))
    assert sorted(found[0]) != sorted(found[1])


def test_sources_whose_rows_come_equally_often_keep_their_shares(tmp_path):
    place = place_of(tmp_path, 4, 40, 80)
    _, prepared = TextClassification(recipe(place, {0: 1, 1: 1, 2: 2}), base_folder=place).prepare_data()
    for epoch in epochs(prepared, 40):
        # Each row of both large sources comes a tenth of a time.
        assert [sum(low <= row < high for row in epoch) for low, high in ((0, 4), (4, 44), (44, 124))] == [4, 4, 8]


def test_each_source_is_seen_whole(place):
    more = {"stopping_strategy": "all_exhausted"}
    _, prepared = TextClassification(recipe(place, {0: 1, 2: 1}, more=more), base_folder=place).prepare_data()
    assert prepared.epoch_rows == 114
    for epoch in epochs(prepared, 10):
        counts = Counter(epoch)
        assert all(counts[row] == 1 for row in range(12, 69))
        assert sorted({counts[row] for row in range(12)}) == [4, 5] and sum(counts[row] for row in range(12)) == 57


def test_other_weights_prepare_nothing_anew(place, monkeypatch):
    first, _ = TextClassification(recipe(place, {0: 1, 1: 2}), base_folder=place).prepare_data()
    task = TextClassification(recipe(place, {0: 5, 1: 2}), base_folder=place)
    monkeypatch.setattr(task, "write_splits", None)
    again, prepared = task.prepare_data()
    assert again == first and [one["drawn"] for one in prepared.facts["mixture"]["sources"]] == [12, 4]
    # What other ranks are told of is the folder alone.
    assert np.array_equal(task.load_data(again).draws, prepared.draws)


def test_equal_rows_of_other_sources_have_their_own_bounds(place, tmp_path):
    whole = (place / "source-0.csv").read_text() + (place / "source-1.csv").read_text().partition("\n")[2]
    lines = whole.splitlines(keepends=True)
    for number, part in enumerate((lines[1:21], lines[21:])):
        (tmp_path / f"source-{number}.csv").write_text(lines[0] + "".join(part))
    (tmp_path / "validation.csv").write_bytes((place / "validation.csv").read_bytes())
    (tmp_path / "bert").symlink_to(place / "bert")
    more = {"cache_dir": str(place / "cache")}
    _, one = TextClassification(recipe(place, {0: 1, 1: 1}), base_folder=place).prepare_data()
    _, other = TextClassification(recipe(tmp_path, {0: 1, 1: 1}, more=more), base_folder=place).prepare_data()
    assert one.fingerprint == other.fingerprint
    assert [[s["rows"] for s in p.facts["mixture"]["sources"]] for p in (one, other)] == [[12, 30], [20, 22]]


def test_weights_count_the_rows_of_the_model_where_texts_are_divided(tmp_path):
    tiny.save_bert(tmp_path / "bert")
    texts = {"short": ["apple pear plum"] * 6, "long": ["iron tin " * 15] * 2}
    for name, lines in texts.items():
        (tmp_path / f"{name}.txt").write_text("".join(f"{line}\n" for line in lines))
    train = [{"source": str(tmp_path / f"{name}.txt"), "weight": 1} for name in texts]
    values = tiny.recipe_values(tmp_path / "bert", "", task="causal-lm")
    data = {"train": train, "validation": str(tmp_path / "short.txt"), "cache_dir": str(tmp_path), "max_length": 8}
    made = Recipe.model_validate({**values, "task": {"type": "causal-lm"}, "data": data})
    _, prepared = CausalLM(made, base_folder=tmp_path).prepare_data()
    sources = prepared.facts["mixture"]["sources"]
    # 30 words and two special tokens in blocks of 8 that share one token: 5 blocks a text.
    assert [source["rows"] for source in sources] == [6, 10] and [source["drawn"] for source in sources] == [6, 6]


def test_rows_that_were_set_aside_or_left_out_are_of_no_source(tmp_path):
    place = place_of(tmp_path, 20, 20)
    text = (place / "source-0.csv").read_text().splitlines()
    (place / "source-0.csv").write_text("\n".join([*text[:5], ",fruit", *text[5:]]) + "\n")
    made = recipe(place, {0: 1, 1: 1}, more={"validation": None, "on_bad_row": "skip", "validation_share": 0.25})
    _, prepared = TextClassification(made, base_folder=place).prepare_data()
    held = [source["rows"] for source in prepared.facts["mixture"]["sources"]]
    assert sum(held) == len(prepared.train) == 40 - len(prepared.validation)
    row_ids = np.asarray(prepared.train["row_id"])
    assert held == [int((row_ids < 21).sum()), int((row_ids >= 21).sum())]


def test_a_source_that_would_give_nothing_is_named(place):
    with pytest.raises(DataError, match=r"data.train\[1\].weight is 0.001, so an epoch of 12 rows would have none of"):
        TextClassification(recipe(place, {0: 1, 1: 0.001}), base_folder=place).prepare_data()


def test_data_and_plan_tell_the_mixture(place, capsys):
    from launcher.cli.data import _show_mixture
    from launcher.launching.launch_plan import plan_launch
    from launcher.planning.forecast import mean_length
    from launcher.planning.plan import preview_run
    from launcher.plans import Hardware
    from launcher.workflows.data_view import view_data

    made = recipe(place, {0: 1, 2: 3})
    found = view_data(made, base_folder=place, rows=0)
    assert [one["drawn"] for one in found.mixture["sources"]] == [12, 36] and found.mixture["rows"] == 48
    assert json.loads(json.dumps(found.to_json()))["mixture"]["sources"][1]["share"] == 0.75
    _show_mixture(found)
    shown = capsys.readouterr().out
    assert "an epoch: 48 rows" in shown and "(first_exhausted)" in shown and "75.0%" in shown
    plan = preview_run(made, plan_launch(made, Hardware((), 2, 2**33, cpu_has_fast_bf16=False)), base_folder=place)
    assert (plan.train_rows, plan.steps_per_epoch, plan.total_steps) == (48, 6, 12)
    assert mean_length(plan, None) == found.mixture["tokens"] / 48  # type: ignore[arg-type]
