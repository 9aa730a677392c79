"""Where phases and batch sizes begin and end, against a run that is walked row by row."""

from __future__ import annotations

import math

import pytest
import tiny
from hypothesis import given, settings, strategies as st

from launcher.contracts import Phase, TuningTable
from launcher.errors import RecipeError
from launcher.launching.timeline import plan_timeline
from launcher.plans import BatchPlan, LaunchPlan
from launcher.recipe.schema import Recipe


def recipe(**training) -> Recipe:
    return tiny.recipe(training=training)


LAUNCH = LaunchPlan("single", None, "fp32", "cpu", 1, 1, BatchPlan(1, 1, 1, 1))


def timeline(rows: int, *, phases=(None,), **training):
    found = [Phase(f"phase {number}", TuningTable(()), epochs=epochs) for number, epochs in enumerate(phases)]
    return plan_timeline(found, recipe(**training), LAUNCH, rows=rows)


@given(rows=st.integers(1, 5000), size=st.integers(1, 300), epochs=st.floats(0.01, 20))
def test_one_phase_takes_the_steps_that_trainer_counts(rows, size, epochs):
    """Trainer: ``math.ceil(args.num_train_epochs * num_update_steps_per_epoch)``."""
    (planned,) = timeline(rows, num_train_epochs=epochs, global_batch_size=size)
    theirs = math.ceil(epochs * -(-rows // size))
    # A hair less than Trainer's where floating point adds to a whole number of steps.
    assert planned.steps == theirs or (theirs - planned.steps == 1 and planned.steps % 1 == 0)


@settings(max_examples=300)
@given(
    rows=st.integers(1, 80), size=st.integers(1, 30), stages=st.lists(st.integers(1, 3), max_size=3),
    changes=st.lists(st.tuples(st.integers(1, 9), st.integers(1, 30)), max_size=3, unique_by=lambda c: c[0]),
)  # fmt: skip
def test_phases_and_changes_at_whole_epochs_are_where_they_are_said_to_be(rows, size, stages, changes):
    epochs = sum(stages) + 10
    schedule = [{"epoch": e, "global_batch_size": b} for e, b in sorted(changes)]
    planned = timeline(
        rows, phases=(*stages, None), num_train_epochs=epochs, global_batch_size=size, batch_size_schedule=schedule
    )
    step = 0
    for part in planned:
        assert part.first_step == step and part.rows_done == 0, "every part begins with an epoch"
        wanted = [size, *(b for e, b in sorted(changes) if e <= part.epoch)][-1]
        assert part.batch.global_batch_size == wanted
        assert part.phase.name == f"phase {sum(part.epoch >= sum(stages[: i + 1]) for i in range(len(stages)))}"
        step = part.last_step
        assert part.epochs_at(step).is_integer()
    assert planned[-1].epochs_at(step) == epochs


@given(
    rows=st.integers(2, 60), sizes=st.tuples(st.integers(1, 20), st.integers(1, 20)), at=st.floats(0.05, 2.9),
)  # fmt: skip
def test_a_change_inside_an_epoch_keeps_the_count_of_rows(rows, sizes, at):
    try:
        planned = timeline(
            rows, num_train_epochs=3, global_batch_size=sizes[0],
            batch_size_schedule=[{"epoch": at, "global_batch_size": sizes[1]}],
        )  # fmt: skip
    except RecipeError:
        # The first part's last batch already ends the run.
        assert at > 2
        return
    first, second = planned
    epoch, used = first.position(first.last_step)
    assert (second.epoch, second.rows_done) == (epoch, used)
    assert abs((epoch + used / rows) - at) <= 2 * sizes[0] / rows
    assert second.position(second.last_step) == (3, 0)


def test_position_after_each_step():
    (planned,) = timeline(10, num_train_epochs=2, global_batch_size=4)
    assert [planned.position(step) for step in range(7)] == [(0, 0), (0, 4), (0, 8), (1, 0), (1, 4), (1, 8), (2, 0)]
    assert planned.epochs_at(4) == 1.4


def test_max_steps_ends_the_last_phase():
    planned = timeline(10, phases=(1, None), max_steps=8, global_batch_size=4)
    assert [(p.first_step, p.steps) for p in planned] == [(0, 3), (3, 5)]


@pytest.mark.parametrize("training", [{"num_train_epochs": 2}, {"max_steps": 6}])
def test_a_run_that_ends_before_its_last_phase_is_refused(training):
    with pytest.raises(RecipeError, match="before phase 'phase 2' begins; train longer"):
        timeline(10, phases=(1, 1, None), global_batch_size=4, **training)


def test_a_batch_size_that_comes_too_late_is_refused():
    late = [{"epoch": 3, "global_batch_size": 2}]
    with pytest.raises(RecipeError, match="before global_batch_size 2 begins"):
        timeline(10, num_train_epochs=3, global_batch_size=4, batch_size_schedule=late)
