"""The pure parts of benchmarks/strategies: the grid and its file, the arms' recipes, permuted ranks, statistics, tables, pictures."""

from __future__ import annotations

import itertools
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from launcher.recipe.examine import examine

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

import strategies_cells as cells
import strategies_report as report

SETTINGS = cells.Settings(
    sets=(
        cells.DataSet("one", 2, {"train": 40, "validation": 20, "test": 30}, "accuracy"),
        cells.DataSet("several", 2, {"train": 40, "validation": 20, "test": 25}, "micro_f1", (1e-4, 1e-3, 1e-2), 30.0),
    )
)


def made_row(cell: cells.Cell, *, right: float = 0.5, validation: float = 0.5, **more: Any) -> dict[str, Any]:
    rows = SETTINGS.data(cell.data).rows["test"]
    found = np.random.default_rng(cell.seed).random(rows) < right
    counts = np.stack([found, np.ones(rows), np.ones(rows)], axis=1).astype(int)
    return {
        "settings": SETTINGS.key(cell.data), **vars(cell), "validation": validation, "test": cells.micro_f1(counts),
        "counts": cells.pack_counts(counts), "test_log_loss": 1.0, "trainable": 1000, "steps": 6, "cpu_seconds": 3.0,
        "seconds": 4.0, "probe_cpu_seconds": 0.0, **more,
    }  # fmt: skip


def train_all(settings: cells.Settings, *, best: float = 1e-3) -> list[dict[str, Any]]:
    """Walk the grid as the benchmark does: ask for the next cell until there is none."""
    rows: list[dict[str, Any]] = []
    while (cell := next(cells.next_cells(settings, rows), None)) is not None:
        better = 0.02 * list(cells.ARMS).index(cell.arm)
        rows.append(made_row(cell, right=0.4 + better, validation=0.9 if cell.rate == best else 0.3))
    return rows


# --- the grid --------------------------------------------------------------------------------------------------------


def test_each_rate_is_tried_and_only_the_best_one_trains_with_the_other_seeds():
    rows = train_all(SETTINGS)
    assert len(rows) == cells.total_cells(SETTINGS) == len({cells.cell_of(row) for row in rows})
    for data, arm in itertools.product(("one", "several"), cells.ARMS):
        mine = [row for row in rows if (row["data"], row["arm"]) == (data, arm)]
        assert sorted(row["rate"] for row in mine if row["seed"] == cells.TUNING_SEED) == sorted(
            SETTINGS.rates_for(data)
        )
        assert {(row["rate"], row["seed"]) for row in mine if row["seed"]} == {(1e-3, seed) for seed in SETTINGS.seeds}


def test_what_permuted_needs_comes_before_it_and_the_first_set_comes_first():
    order = [cells.cell_of(row) for row in train_all(SETTINGS)]
    assert [cell.data for cell in order] == sorted((cell.data for cell in order), key=["one", "several"].index)
    for cell in order:
        if cell.arm == "permuted":
            rate = 1e-3 if cell.seed or cell.rate == 1e-3 else cell.rate
            assert order.index(cells.Cell(cell.data, "discriminative", rate, cell.seed)) < order.index(cell)


def test_a_run_that_diverged_is_not_chosen():
    tried = [made_row(cells.Cell("one", "full", rate, 0), validation=0.1) for rate in SETTINGS.rates[:2]]
    diverged = {"data": "one", "arm": "full", "rate": SETTINGS.rates[2], "seed": 0, "error": "the loss is not finite"}
    assert cells.chosen_rate(SETTINGS, tried, data="one", arm="full") is None
    assert cells.chosen_rate(SETTINGS, [*tried, diverged], data="one", arm="full") == SETTINGS.rates[0]


def test_a_killed_grid_goes_on_and_half_a_line_is_trained_again(tmp_path: Path):
    path = tmp_path / "results" / "cells.jsonl"
    first, second = itertools.islice(cells.next_cells(SETTINGS, []), 2)
    cells.append_cell(path, made_row(first))
    cells.append_cell(path, made_row(second))
    path.write_bytes(path.read_bytes()[:-20])
    rows = cells.read_cells(path, SETTINGS)
    assert next(cells.next_cells(SETTINGS, rows)) == second
    cells.append_cell(path, made_row(second))
    assert [cells.cell_of(row) for row in cells.read_cells(path, SETTINGS)] == [first, second]


def test_results_of_other_settings_are_refused_but_other_sets_may_change(tmp_path: Path):
    path = tmp_path / "cells.jsonl"
    cells.append_cell(path, made_row(cells.Cell("one", "full", 1e-3, 0)))
    with pytest.raises(cells.OtherSettings, match="one"):
        cells.read_cells(path, replace(SETTINGS, probe_steps=7))
    changed = replace(SETTINGS.sets[1], epochs=9)
    assert len(cells.read_cells(path, replace(SETTINGS, sets=(SETTINGS.sets[0], changed)))) == 1


# --- arms ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arm", cells.ARMS)
@pytest.mark.parametrize("data", ["one", "several"])
def test_every_arm_is_a_sound_recipe_with_the_same_rows_and_seed(arm: str, data: str, tmp_path: Path):
    for name in ("train", "validation", "test"):
        (tmp_path / f"{name}.jsonl").write_text('{"text": "a", "label": "x"}\n{"text": "b", "label": "y"}\n')
    (tmp_path / "importance.json").write_text("{}")
    cell = cells.Cell(data, arm, 1e-3, 3)
    values = cells.recipe_values(
        SETTINGS, cell, source=tmp_path, cache=tmp_path / "cache", importance=tmp_path / "importance.json"
    )
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(values))
    loaded, problems = examine(str(path), [])
    assert loaded is not None and not problems, problems
    training, strategy = loaded.recipe.training, loaded.recipe.strategy
    assert (training.seed, training.global_batch_size) == (3, SETTINGS.batch)
    rate = 1e-3 * SETTINGS.head_factor_for(data) if arm == "head" else 1e-3
    assert training.learning_rate == pytest.approx(rate)
    head = getattr(strategy, "head_lr", None) or training.learning_rate * getattr(strategy, "head_lr_mult", 1.0)
    assert head == pytest.approx(SETTINGS.head_rate)


def test_the_longer_arm_has_the_steps_of_the_probe_on_top():
    cell = cells.Cell("one", "lora-longer", 1e-3, 1)
    values = cells.recipe_values(SETTINGS, cell, source=Path("d"), cache=Path("c"))
    assert values["training"]["max_steps"] == SETTINGS.steps(SETTINGS.sets[0]) + SETTINGS.probe_steps


def test_permuted_scores_stay_among_modules_of_equal_cost():
    modules = {f"m{i:02d}": {"cost": 10 + 5 * (i % 2), "scores": [float(i), 0.5]} for i in range(24)}
    shuffled = cells.permuted_scores(modules, seed=1)
    assert shuffled == cells.permuted_scores(modules, seed=1) != cells.permuted_scores(modules, seed=2)
    assert shuffled != modules
    for cost in (10, 15):
        before, after = (
            sorted(m["scores"] for m in found.values() if m["cost"] == cost) for found in (modules, shuffled)
        )
        assert before == after
    assert all(shuffled[name]["cost"] == module["cost"] for name, module in modules.items())


def test_permuted_ranks_are_the_same_ranks_and_use_the_same_budget():
    from launcher.strategies.importance import allocate_ranks

    generator = np.random.default_rng(0)
    modules = {
        f"m{i:02d}": {"cost": 10 + 5 * (i % 2), "scores": sorted((generator.random(8) * 3.0 ** -(i % 5)).tolist(), reverse=True)}
        for i in range(12)
    }  # fmt: skip
    costs = {name: module["cost"] for name, module in modules.items()}

    def allocated(found: dict[str, Any]) -> Any:
        scores = {name: np.array(module["scores"]) for name, module in found.items()}
        return allocate_ranks(scores, costs, mean_rank=3, rank_min=1, rank_max=8, uniform_above=1.0)

    one, other = allocated(modules), allocated(cells.permuted_scores(modules, seed=3))
    assert one.ranks != other.ranks
    assert sorted(one.ranks.values()) == sorted(other.ranks.values())
    assert one.used == other.used


def test_rows_are_taken_evenly_by_label_and_in_their_order():
    rows = [{"text": str(i), "label": "ab"[i % 5 == 0]} for i in range(40)]
    taken = cells.take_rows(rows, 10)
    assert sorted(row["label"] for row in taken) == ["a"] * 5 + ["b"] * 5
    assert [int(row["text"]) for row in taken] == sorted(int(row["text"]) for row in taken)
    # Eight rows have the label b: others fill up.
    assert len(cells.take_rows(rows, 30)) == 30
    several = [{"text": str(i), "label": ["a", "b"][: 1 + i % 2]} for i in range(9)]
    assert cells.take_rows(several, 4) == several[:4]


# --- statistics ------------------------------------------------------------------------------------------------------


def test_counts_survive_packing_and_give_accuracy_and_micro_f1():
    from sklearn.metrics import f1_score

    generator = np.random.default_rng(0)
    labels, decided = generator.integers(2, size=(2, 50, 12))
    counts = np.stack([(labels * decided).sum(1), decided.sum(1), labels.sum(1)], axis=1)
    assert cells.micro_f1(counts) == pytest.approx(f1_score(labels, decided, average="micro"))
    assert (cells.unpack_counts(cells.pack_counts(counts)) == counts).all()
    one = np.array([[1, 1, 1], [0, 1, 1], [1, 1, 1], [1, 1, 1]])
    assert cells.micro_f1(one) == 0.75


def test_sign_flip_test_is_exact():
    from scipy.stats import permutation_test

    assert report.sign_flip_test([1, 2, 3, 4, 5, 6]) == 2 / 64
    assert report.sign_flip_test([1, -1, 1, -1]) == 1.0
    values = np.array([0.3, -0.1, 0.4, 0.2, 0.15, 0.05])
    known = permutation_test((values,), np.mean, permutation_type="samples", n_resamples=np.inf)
    assert report.sign_flip_test(values) == pytest.approx(known.pvalue)


def test_holm_is_the_known_correction():
    assert report.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert report.holm([0.5, 0.9]) == [1.0, 1.0]


def test_resampled_means_are_paired_and_cover_runs_and_rows():
    generator = np.random.default_rng(1)
    right = (generator.random((6, 400)) < 0.6).astype(int)
    counts = np.stack([right, np.ones_like(right), np.ones_like(right)], axis=2)
    draws = report.resampled_means(counts)
    assert draws.mean() == pytest.approx(right.mean(), abs=0.003)
    assert (report.resampled_means(counts) == draws).all()
    # Rows are drawn alike for all runs, which here are independent: the variance is that of the mean of 2400, once from rows, once from runs.
    assert draws.std() == pytest.approx(np.sqrt(0.24 / 2400 + right.mean(1).std() ** 2 / 6), rel=0.25)


# --- the report ------------------------------------------------------------------------------------------------------


def summary_of(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return report.summarize(report.Results(SETTINGS, rows))


def test_summary_of_a_whole_grid_is_plain_and_says_what_the_rows_say():
    rows = train_all(SETTINGS)
    summary = json.loads(json.dumps(summary_of(rows)))
    full = summary["sets"]["one"]["arms"]["full"]
    tests = [row["test"] for row in rows if (row["data"], row["arm"]) == ("one", "full") and row["seed"]]
    assert full["mean"] == pytest.approx(np.mean(tests)) and full["rate"] == 1e-3 and not full["rate_is_at_border"]
    assert full["interval"][0] < full["mean"] < full["interval"][1]
    assert len(summary["both"]["about-ranks"]) == 4 and summary["both"]["about-ranks"][0]["pairs"] == 12
    against = summary["sets"]["one"]["comparisons"]["against-full"]
    adalora = next(found for found in against if found["a"] == "adalora")
    assert adalora["mean"] > 0.05 and adalora["p"] <= 0.1 and adalora["p_holm"] >= adalora["p"]
    assert report.progress_line(summary).startswith("180 of 180")


@pytest.mark.parametrize("done", [0, 7, 45, 100, 131])
def test_a_part_of_the_grid_has_a_report_too(done: int):
    summary = summary_of(train_all(SETTINGS)[:done])
    for make in report.parts(summary, SETTINGS).values():
        assert make()
    assert "part of the grid" in report.progress_line(summary)
    assert report.arms_picture(summary, "several") and report.size_picture(summary, "several")


def test_a_rate_at_the_border_is_marked():
    summary = summary_of(train_all(SETTINGS, best=max(SETTINGS.rates_for("one"))))
    assert "0.003 (border)" in report.arms_table(summary, "one")


def test_pictures_name_every_arm():
    summary = summary_of(train_all(SETTINGS))
    for draw in (report.arms_picture, report.size_picture):
        picture = draw(summary, "several")
        assert picture.startswith("<svg") and "<rect" in picture
        assert all(f">{arm}<" in picture for arm in cells.ARMS)


def test_only_marked_parts_of_the_page_are_written():
    text = "before\n<!-- measured: progress -->\nold\n<!-- end of measured -->\nafter\n"
    made = report.renewed(text, {"progress": lambda: "new"})
    assert made == "before\n<!-- measured: progress -->\n\nnew\n\n<!-- end of measured -->\nafter\n"
    assert report.renewed(made, {"progress": lambda: "new"}) == made
