"""When which phase runs, on which rows, with which batch: pure arithmetic over epochs, rows and steps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from launcher.contracts import Phase
from launcher.errors import Problem, RecipeError
from launcher.launching.batch import plan_batch
from launcher.plans import BatchPlan, LaunchPlan, PlannedPhase
from launcher.recipe.schema import Recipe

# 0.1 * 30 steps are 3 steps, not 4.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class _Stretch:
    """A phase with one batch size, up to ``end`` epochs."""

    phase: Phase
    batch: BatchPlan
    end: float


@dataclass(frozen=True)
class _Place:
    """How far the rows are used: epochs begun before this one, rows of this one, and the batch size that it began with."""

    step: int = 0
    epoch: int = 0
    rows: int = 0
    epoch_batch_size: int = 0


def plan_timeline(
    phases: Sequence[Phase], recipe: Recipe, launch: LaunchPlan, *, rows: int
) -> tuple[PlannedPhase, ...]:
    """Return the phases with their places in a run over epochs of ``rows`` training rows.

    A phase is cut where the batch size changes; its parts have the same tuning table.

    Raises:
        RecipeError: the run ends before a phase or a batch size would begin.
    """
    training = recipe.training
    end = training.num_train_epochs if training.max_steps is None else float("inf")
    planned: list[PlannedPhase] = []
    place = _Place()
    for stretch in _stretches(phases, recipe, launch, end=end):
        steps = _steps_until(place, stretch, rows=rows, limit=training.max_steps)
        if steps <= 0:
            raise RecipeError([_too_short(stretch, planned, recipe)])
        part = PlannedPhase(
            phase=stretch.phase,
            first_step=place.step,
            steps=steps,
            batch=stretch.batch,
            rows=rows,
            epoch=place.epoch,
            rows_done=place.rows,
            epoch_batch_size=place.epoch_batch_size if place.rows else stretch.batch.global_batch_size,
        )
        planned.append(part)
        epoch, used = part.position(part.last_step)
        # An epoch that began inside this part has its size; one that it only continued keeps the older one.
        began = part.epoch_batch_size if epoch == part.epoch else stretch.batch.global_batch_size
        place = _Place(part.last_step, epoch, used, began)
    return tuple(planned)


def _stretches(phases: Sequence[Phase], recipe: Recipe, launch: LaunchPlan, *, end: float) -> Iterator[_Stretch]:
    """Yield the phases, cut where the batch size changes; what lies behind the run's end is yielded too, to be refused."""
    changes = recipe.training.batch_size_schedule or []
    since = [0.0, *(change.epoch for change in changes), float("inf")]
    sizes = [recipe.training.step_size, *(change.global_batch_size for change in changes)]
    begin = 0.0
    for number, phase in enumerate(phases):
        is_last = number == len(phases) - 1
        assert is_last or phase.epochs is not None, "only the last phase takes the rest of the run"
        stop = end if is_last or phase.epochs is None else begin + phase.epochs
        for position, size in enumerate(sizes):
            first, last = since[position], since[position + 1]
            # The last phase takes the changes that come too late, or nothing would be said about them.
            if first <= begin < last or (begin < first and (first < stop or is_last)):
                yield _Stretch(phase, _batch(recipe, launch, size), min(stop, last))
        begin = stop


def _batch(recipe: Recipe, launch: LaunchPlan, size: int) -> BatchPlan:
    if size == launch.batch.global_batch_size:
        return launch.batch
    return plan_batch(
        global_batch_size=size,
        world_size=launch.batch.world_size,
        cap=recipe.training.per_device_train_batch_size,
        multiple_of=launch.sequence_parallel_size,
    )


def _steps_until(place: _Place, stretch: _Stretch, *, rows: int, limit: int | None) -> int:
    """Return the steps from ``place`` to the end of ``stretch``; never more than ``limit`` in all."""
    size = stretch.batch.global_batch_size
    left = float("inf") if limit is None else limit - place.step
    if stretch.end == float("inf"):
        assert limit is not None
        return int(left)
    epoch = int(stretch.end + _ROUNDING)
    in_epoch = max(0.0, stretch.end - epoch)
    per_epoch = -(-rows // size)
    last_rows = min(rows, -int(-(in_epoch * per_epoch - _ROUNDING) // 1) * size) if in_epoch > _ROUNDING else 0
    if epoch == place.epoch:
        steps = -(-(last_rows - place.rows) // size)
    else:
        steps = -(-(rows - place.rows) // size) + (epoch - place.epoch - 1) * per_epoch + -(-last_rows // size)
    return int(min(steps, left))


def _too_short(stretch: _Stretch, planned: Sequence[PlannedPhase], recipe: Recipe) -> Problem:
    steps = sum(part.steps for part in planned)
    has_schedule = bool(recipe.training.batch_size_schedule)
    what = f"global_batch_size {stretch.batch.global_batch_size}" if has_schedule else f"phase {stretch.phase.name!r}"
    length = (
        f"{recipe.training.max_steps} steps"
        if recipe.training.max_steps is not None
        else f"{recipe.training.num_train_epochs:g} epochs"
    )
    key = "training.max_steps" if recipe.training.max_steps is not None else "training.num_train_epochs"
    return Problem(
        place=key,
        key=key,
        message=f"the run ends after {length} ({steps} steps), before {what} begins",
        remedy="train longer, or let the phases before it be shorter or fewer",
    )
