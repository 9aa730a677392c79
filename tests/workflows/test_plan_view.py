"""What a plan shows: tables, rows for machines, and rates that are peak times schedule."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import pytest
import tiny

from launcher.contracts import AdapterPlan, Phase, Probe, TuningGroup, TuningTable
from launcher.launching.timeline import plan_timeline
from launcher.plans import BatchPlan, LaunchPlan, RunPlan
from launcher.recipe.schema import Recipe
from launcher.workflows.plan_view import plan_from_json, planned_rates, rate_lines, table_views, tuning_rows


def group(name: str, *, lr: float = 1e-3, depth: int = 1, **more: Any) -> TuningGroup:
    return TuningGroup(name, (depth, depth), (f"{name}.weight",), 10, lr > 0, lr, 0.01 if lr else 0.0, **more)


def table(*groups: TuningGroup) -> TuningTable:
    return TuningTable(groups)


def recipe(**training: Any) -> Recipe:
    values = tiny.recipe_values("m", "d", training=training) | {"task": {"type": "text-classification"}}
    return Recipe.model_validate(values)


def plan(phases: Sequence[Phase], *, probe: Probe | None = None, warmup: int = 0, **training: Any) -> RunPlan:
    """A run over 16 rows, 8 rows a step unless the recipe says otherwise."""
    launch = LaunchPlan("single", None, "fp32", "cpu", 1, 1, BatchPlan(8, 1, 8, 1))
    planned = plan_timeline(phases, recipe(**training), launch, rows=16)
    facts = {"splits": {"train": {"rows": 16}}}
    return RunPlan(launch, planned, 16, 2, planned[-1].last_step, warmup, probe, facts)


MAIN = Phase("main", table(group("block.1"), group("head", lr=2e-3, depth=2)))
STAGES = (
    Phase("stage 1", table(group("block.1.frozen", lr=0.0), group("head", lr=2e-3, depth=2)), epochs=1),
    Phase("stage 2", table(group("block.1"), group("head", lr=2e-3, depth=2))),
)


def test_a_plan_comes_back_from_json():
    adapters = AdapterPlan({"m": 4}, {"m": 8.0}, ("classifier",))
    phase = Phase("main", table(group("a", rank=4)), adapters=adapters, dropout=(0.1, 0.2), note="n")
    given = plan([phase], probe=Probe(MAIN, 20, "sensitivity", ("a.weight",), {"probe_rank": 32}))
    assert plan_from_json(json.loads(json.dumps(given.to_json()))) == given


def test_every_phase_has_its_heading():
    views = table_views(plan(STAGES, num_train_epochs=3))
    assert [view.headings for view in views] == [
        ("stage 1 (steps 1-2, epochs 0 to 1, 8 rows a step)",),
        ("stage 2 (steps 3-6, epochs 1 to 3, 8 rows a step)",),
    ]


def test_phases_with_one_table_show_it_once():
    changed = plan([MAIN], num_train_epochs=2, batch_size_schedule=[{"epoch": 1, "global_batch_size": 4}])
    (view,) = table_views(changed)
    assert view.headings == (
        "main (steps 1-2, epochs 0 to 1, 8 rows a step)",
        "main (steps 3-6, epochs 1 to 2, 4 rows a step)",
    )
    assert [row["group"] for row in tuning_rows(changed)] == ["block.1", "head"], "once for machines too"


def test_the_probe_comes_first_and_is_no_part_of_the_run():
    probe = Probe(Phase("probe", MAIN.table), 20, "sensitivity", (), {})
    views = table_views(plan([MAIN], probe=probe))
    assert [view.is_probe for view in views] == [True, False], "also where the tables are equal"
    assert "20 steps before the run" in views[0].headings[0] and "discarded" in views[0].headings[0]
    assert [row["phase"] for row in tuning_rows(plan([MAIN], probe=probe))] == ["probe"] * 2 + ["main"] * 2


def test_rows_for_machines():
    rows = tuning_rows(plan(STAGES, num_train_epochs=3))
    wanted = {
        "phase",
        "group",
        "depth",
        "parameters",
        "trainable",
        "lr",
        "weight_decay",
        "rank",
        "l1_penalty",
        "l2_penalty",
    }
    assert all(set(row) == wanted for row in rows)
    assert [(row["phase"], row["group"], row["trainable"], row["lr"]) for row in rows] == [
        ("stage 1", "block.1.frozen", False, 0.0),
        ("stage 1", "head", True, 2e-3),
        ("stage 2", "block.1", True, 1e-3),
        ("stage 2", "head", True, 2e-3),
    ]
    assert rows[0]["depth"] == [1, 1]


# --- rates -------------------------------------------------------------------------------------------------------------


def test_a_groups_rate_is_its_peak_times_the_factor_while_it_trains():
    def factor(step: int) -> float:
        return 1 - step / 6

    lines, bands = planned_rates(plan(STAGES, num_train_epochs=3), factor)
    block, head = lines
    assert (block.name, head.name) == ("block.1", "head"), "in the order of depth"
    assert head.steps == (1, 2, 3, 4, 5, 6) and head.rates == pytest.approx([2e-3 * factor(t) for t in range(6)])
    assert block.steps == (3, 4, 5, 6) and block.rates == pytest.approx([1e-3 * factor(t) for t in range(2, 6)])
    assert bands == [{"name": "stage 1", "first": 0, "last": 2}, {"name": "stage 2", "first": 2, "last": 6}]


def test_a_group_that_rests_leaves_a_gap():
    rest = Phase("rest", table(group("a.frozen", lr=0.0), group("b")), epochs=1)
    both = Phase("both", table(group("a"), group("b")), epochs=1)
    lines, _ = planned_rates(plan([both, rest, both], num_train_epochs=3), lambda step: 1.0)
    (line,) = [line for line in lines if line.name == "a"]
    assert [(step, rate is None) for step, rate in zip(line.steps, line.rates, strict=True)] == [
        (1, False), (2, False), (4, True), (5, False), (6, False),
    ]  # fmt: skip


def test_parts_of_one_phase_are_one_band():
    changed = plan([MAIN], num_train_epochs=2, batch_size_schedule=[{"epoch": 1, "global_batch_size": 4}])
    lines, bands = planned_rates(changed, lambda step: 1.0)
    assert bands == [{"name": "main", "first": 0, "last": 6}] and lines[0].steps == (1, 2, 3, 4, 5, 6)


def test_a_long_run_is_thinned_and_keeps_its_peaks():
    def spikes(step: int) -> float:
        return 1.0 if step % 997 == 0 else 0.5 if step % 2 else 0.25

    long = plan([MAIN], max_steps=50_000, num_train_epochs=3)
    lines, _ = planned_rates(long, spikes, buckets=50)
    assert len(lines[0].steps) <= 102 and lines[0].steps[0] == 1 and lines[0].steps[-1] == 50_000
    assert {round(rate / 1e-3, 3) for rate in lines[0].rates if rate} >= {0.25, 0.5}


def test_the_recipes_schedule_is_what_is_drawn():
    wanted = {"lr_scheduler_type": "exponential", "lr_scheduler_kwargs": {"gamma": 0.5}, "num_train_epochs": 3}
    picture = rate_lines(plan([MAIN], **wanted), recipe(**wanted))
    assert picture["lines"][0]["rates"] == pytest.approx([1e-3 * 0.5**t for t in range(6)]) and picture["note"] == ""
    plateau = {"lr_scheduler_type": "reduce_lr_on_plateau"}
    picture = rate_lines(plan([MAIN], warmup=2, **plateau), recipe(**plateau))
    assert picture["lines"][0]["rates"][:3] == pytest.approx([0, 0.5e-3, 1e-3]) and "plateau" in picture["note"]
    assert all(math.isfinite(rate) for rate in picture["lines"][0]["rates"])
