"""Steps that are bounded by tokens, planned: passes, memory, what is shown, and rows that are too long."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tiny

from launcher.contracts import Phase, TuningTable
from launcher.data.token_batches import TokenBatches, padded
from launcher.errors import DataError
from launcher.launching.launch_plan import plan_launch
from launcher.planning.fitting import changed_keys, describe_setting, with_micro_batch
from launcher.planning.forecast import memory_setting
from launcher.planning.plan import plan_run, preview, unknown_rows
from launcher.planning.token_budget import with_settled_batch
from launcher.plans import Hardware
from launcher.recipe.schema import Recipe

CPU = Hardware((), 2, 2**33, cpu_has_fast_bf16=False)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("budget")
    tiny.save_bert(folder / "bert")
    tiny.write_data(folder / "data", train=60, validation=9, test=6)
    return folder


def recipe(place: Path, *, ranks: int = 1, **training: Any) -> Recipe:
    values = tiny.recipe_values(
        place / "bert", place / "data", task={"type": "text-classification"}, data={"cache_dir": str(place / "cache")},
        distributed={"processes_per_node": ranks}, training={"global_batch_size": None, "tokens_per_batch": 200, **training},
    )  # fmt: skip
    return Recipe.model_validate(values)


def seen(place: Path, **changes: Any) -> Any:
    wanted = recipe(place, **changes)
    return preview(wanted, plan_launch(wanted, CPU), base_folder=place)


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("cap", [None, 48])
def test_the_plan_says_what_the_batches_are(place, ranks, cap):
    found = seen(place, ranks=ranks, per_device_train_tokens=cap)
    batches = TokenBatches(np.asarray(found.prepared.train["length"]), 200)
    budget = found.plan.launch.batch.budget
    sizes = [len(rows) for rows in batches.epoch(0)]
    assert (budget.batches, budget.least_rows, budget.most_rows) == (len(batches), min(sizes), max(sizes))
    assert budget.longest == int(padded(batches.lengths.max()))
    assert found.plan.train_rows == 60 and found.plan.steps_per_epoch == len(batches)
    assert found.plan.total_steps == 2 * len(batches) and found.plan.phases[0].batch == found.plan.launch.batch
    assert budget.held_tokens <= (cap or 200 // ranks + budget.longest)


def test_what_is_shown_of_a_step_is_true(place, capsys):
    from launcher.cli.data import _show_padding
    from launcher.cli.planning import _plan_lines
    from launcher.workflows.data_view import padding_share, view_data
    from launcher.workflows.plan_view import table_views

    found = seen(place)
    budget = found.plan.launch.batch.budget
    lines = dict(_plan_lines(SimpleNamespace(plan=found.plan, chosen="")))
    assert lines["batch"] == (
        f"up to 200 tokens a step = 1 process(es) x up to {budget.most_rows} rows x 1 pass(es); "
        f"{budget.least_rows} to {budget.most_rows} rows a step, {budget.batches} steps an epoch"
    )
    assert lines["steps"].startswith(f"{2 * budget.batches} = 2 epochs of {budget.batches}")
    assert "up to 200 tokens a step" in table_views(found.plan)[0].headings[0]
    view = view_data(recipe(place), base_folder=place)
    lengths = np.asarray(found.prepared.train["length"])
    batches = TokenBatches(lengths, 200, 1).epoch(0)
    places = sum(len(rows) * int(padded(lengths[rows].max())) for rows in batches)
    assert (
        view.padding["tokens_per_batch"] == pytest.approx(1 - lengths.sum() / places) and view.tokens_per_batch == 200
    )
    assert view.global_batch_size == round(60 / len(batches)) and view.order == "tokens_per_batch"
    _show_padding(view)
    told = capsys.readouterr().out
    assert (
        f"steps of about {view.global_batch_size} rows" in told
        and "training.tokens_per_batch 200, as the recipe" in told
    )
    rows = view_data(recipe(place, tokens_per_batch=None, global_batch_size=8), base_folder=place)
    assert rows.order == "group_by_length" and rows.padding["tokens_per_batch"] < rows.padding["group_by_length"]
    # As many tokens a step as steps of eight rows have, so the two are compared fairly.
    mean = lengths.sum() / (1 - padding_share(lengths, batch=plan_launch(recipe(place, tokens_per_batch=None, global_batch_size=8), CPU).batch, seed=1)) / 8  # fmt: skip
    assert rows.tokens_per_batch == round(mean)
    _show_padding(rows)
    assert f"training.tokens_per_batch {rows.tokens_per_batch}, instead of global_batch_size" in capsys.readouterr().out


def test_memory_is_planned_for_the_worst_batch_and_the_remedy_is_in_tokens(place):
    found = seen(place)
    setting = memory_setting(recipe(place), plan_launch(recipe(place), CPU), found.prepared)
    shapes = TokenBatches(np.asarray(found.prepared.train["length"]), 200).shapes
    assert setting.length == shapes[0, 1] and setting.is_by_tokens
    assert setting.micro_batch_size * setting.length >= shapes.prod(axis=1).max()
    assert (setting.micro_batch_size - 1) * setting.length < 200
    half = with_micro_batch(setting, setting.micro_batch_size // 2)
    (key,) = changed_keys(setting, half)
    tokens = half.micro_batch_size * half.length
    assert key == f"training.per_device_train_tokens={tokens}" and f"at most {tokens} tokens" in describe_setting(half)
    smaller = recipe(place, per_device_train_tokens=tokens)
    again = memory_setting(smaller, plan_launch(smaller, CPU), found.prepared)
    assert again.micro_batch_size <= half.micro_batch_size and again.accumulation >= 2, (
        "the key does what it was named for"
    )


def test_tokens_and_steps_of_a_run_are_counted_in_rows_that_there_are(place):
    from launcher.planning.forecast import _flops_and_tokens

    found = seen(place)
    config = found.built.model.config
    setting = memory_setting(recipe(place), found.plan.launch, found.prepared)
    _, tokens = _flops_and_tokens(found.plan, setting, config=config, parameters=found.parameters)
    assert tokens == 2 * sum(found.prepared.train["length"])


@pytest.mark.parametrize("key", ["tokens_per_batch", "per_device_train_tokens"])
def test_a_row_that_fits_into_no_batch_is_named(place, key):
    lengths = np.asarray(seen(place).prepared.train["length"])
    longest, row = int(lengths.max()), int(lengths.argmax())
    with pytest.raises(DataError) as caught:
        seen(place, **{key: 16})
    assert str(caught.value).startswith(f"training.{key} is 16, but row {row} of train has {longest} tokens")
    assert f"write at least {int(padded(np.array(longest)))}" in str(caught.value) and "at most 16" in str(caught.value)


@pytest.mark.parametrize("max_steps", [None, 7])
def test_rows_that_cannot_be_read_count_as_long_as_they_may_be(place, max_steps):
    from launcher.planning.token_budget import made_up_rows

    wanted = recipe(place, max_steps=max_steps, tokens_per_batch=100)
    prepared = unknown_rows(wanted, reason="r")
    launch = with_settled_batch(wanted, plan_launch(wanted, CPU), prepared)
    rows = made_up_rows(wanted, row_tokens=prepared.facts["row_tokens"])
    plan = plan_run(wanted, launch, (Phase("main", TuningTable(())),), train_rows=rows, facts=prepared.facts)
    assert launch.batch.micro_batch_size == 3, "rows of 32 tokens"
    assert plan.steps_per_epoch == (max_steps or 1000) and rows == 3 * plan.steps_per_epoch
    assert launch.batch.mean_rows(rows) == 3


def test_advice_against_a_lack_of_memory_is_in_tokens(place):
    from launcher.workflows.in_job import _smaller_batch

    batch = seen(place).plan.launch.batch
    budget = batch.budget
    assert _smaller_batch(batch) == f"training.per_device_train_tokens={budget.held_tokens // 2}"
    assert _smaller_batch(replace(batch, budget=replace(budget, held_tokens=budget.longest))) == ""
    assert _smaller_batch(plan_launch(tiny.recipe(), CPU).batch) == "training.per_device_train_batch_size=16"


def test_an_early_guess_of_memory_is_not_below_what_a_rank_holds(place):
    from launcher.workflows.room import _most_tokens

    for ranks in (1, 2, 3):
        wanted = recipe(place, ranks=ranks)
        held = seen(place, ranks=ranks).plan.launch.batch.budget.held_tokens
        assert _most_tokens(wanted, plan_launch(wanted, CPU), length=32) >= held
