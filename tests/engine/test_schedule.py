"""RunSchedule steps like torch's own schedulers, follows a metric, and comes back from a checkpoint exactly."""

from __future__ import annotations

import io
from typing import Any

import pytest
import tiny
import torch
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau
from transformers.optimization import GreedyLR

from launcher.engine.schedule import RunSchedule, plateau_factor
from launcher.errors import PlanMismatch
from launcher.recipe.schema import Recipe

PEAKS = (1e-3, 4e-4, 1e-5)


def optimizer(lrs=PEAKS) -> torch.optim.Optimizer:
    return torch.optim.SGD([{"params": [torch.nn.Parameter(torch.zeros(2))], "lr": lr} for lr in lrs])


def rates(found) -> list[float]:
    return [group["lr"] for group in found.param_groups]


def recipe(schedule: str = "reduce_lr_on_plateau", **options) -> Recipe:
    training: dict[str, Any] = {"lr_scheduler_type": schedule}
    if options:
        training["lr_scheduler_kwargs"] = options
    return tiny.recipe(training=training)


def falling(step: int) -> float:
    return 1 / (1 + step)


def through_file(state: dict[str, Any]) -> dict[str, Any]:
    """What Trainer does with a schedule's state."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def test_every_group_keeps_its_own_peak() -> None:
    opt = optimizer()
    schedule = RunSchedule(opt, falling)
    for step in range(5):
        assert rates(opt) == pytest.approx([peak / (1 + step) for peak in PEAKS])
        assert schedule.get_last_lr() == rates(opt)
        opt.step()
        schedule.step()


def test_it_steps_like_lambda_lr() -> None:
    ours, theirs = optimizer(), optimizer()
    mine, other = RunSchedule(ours, falling), LambdaLR(theirs, falling)
    for _ in range(4):
        assert rates(ours) == rates(theirs)
        for opt, schedule in ((ours, mine), (theirs, other)):
            opt.step()
            schedule.step()


def test_a_later_phase_begins_at_its_step_of_the_run() -> None:
    opt = optimizer()
    schedule = RunSchedule(opt, falling, first_step=10)
    assert rates(opt) == pytest.approx([peak / 11 for peak in PEAKS])
    opt.step()
    schedule.step()
    assert rates(opt) == pytest.approx([peak / 12 for peak in PEAKS])


def test_trainer_takes_it_for_no_plateau_scheduler() -> None:
    assert not issubclass(RunSchedule, ReduceLROnPlateau | GreedyLR)


def test_its_state_brings_back_step_and_rates() -> None:
    opt = optimizer()
    schedule = RunSchedule(opt, falling, first_step=3)
    for _ in range(6):
        opt.step()
        schedule.step()
    state = through_file(schedule.state_dict())
    fresh = optimizer()
    resumed = RunSchedule(fresh, falling, first_step=3)
    resumed.load_state_dict(state)
    assert rates(fresh) == rates(opt) and resumed.get_last_lr() == rates(opt)
    for found, one in ((opt, schedule), (fresh, resumed)):
        found.step()
        one.step()
    assert rates(fresh) == rates(opt) == pytest.approx([peak / 11 for peak in PEAKS])
    assert resumed.state_dict() == schedule.state_dict()


def test_a_state_of_another_place_is_refused() -> None:
    state = RunSchedule(optimizer(), falling, first_step=3).state_dict()
    with pytest.raises(PlanMismatch, match="begins at step 3"):
        RunSchedule(optimizer(), falling, first_step=4).load_state_dict(state)
    plateau = plateau_factor(recipe(), greater_is_better=True)
    with pytest.raises(PlanMismatch, match="follows a metric"):
        RunSchedule(optimizer(), falling, first_step=3, plateau=plateau).load_state_dict(state)


# --- plateau -----------------------------------------------------------------------------------------------------------

METRICS = [0.5, 0.6, 0.6, 0.59, 0.61, 0.6, 0.6, 0.6, 0.6]


def test_only_schedules_that_follow_a_metric_have_a_second_factor() -> None:
    assert plateau_factor(recipe("linear"), greater_is_better=True) is None


@pytest.mark.parametrize("greater_is_better", [True, False])
def test_plateau_is_torchs_on_every_group(greater_is_better: bool) -> None:
    options = {"factor": 0.5, "patience": 1, "cooldown": 1}
    ours, theirs = optimizer(), optimizer()
    plateau = plateau_factor(recipe(**options), greater_is_better=greater_is_better)
    schedule = RunSchedule(ours, lambda step: 1.0, plateau=plateau)
    other = ReduceLROnPlateau(theirs, mode="max" if greater_is_better else "min", eps=0, **options)
    seen = set()
    for metric in METRICS:
        schedule.on_metric(metric)
        other.step(metric)
        assert rates(ours) == pytest.approx(rates(theirs))
        ours.step()
        schedule.step()
        assert rates(ours) == pytest.approx(rates(theirs))
        seen.add(rates(ours)[0])
    assert len(seen) > 1, "the rate fell"


def test_the_floor_is_a_share_of_every_groups_peak() -> None:
    opt = optimizer()
    plateau = plateau_factor(recipe(factor=0.1, patience=0, min_scale=0.25), greater_is_better=True)
    schedule = RunSchedule(opt, lambda step: 1.0, plateau=plateau)
    for _ in range(4):
        schedule.on_metric(0.5)
    assert rates(opt) == pytest.approx([peak * 0.25 for peak in PEAKS])


def test_warmup_and_plateau_multiply() -> None:
    opt = optimizer((1.0,))
    plateau = plateau_factor(recipe(factor=0.5, patience=0), greater_is_better=True)
    schedule = RunSchedule(opt, lambda step: min(1.0, step / 4), plateau=plateau)
    opt.step()
    schedule.step()
    schedule.on_metric(0.5)
    schedule.on_metric(0.5)
    assert rates(opt) == [pytest.approx(0.25 * 0.5)]


def test_greedy_raises_the_rate_again() -> None:
    opt = optimizer((1.0,))
    plateau = plateau_factor(recipe("greedy", factor=0.5, patience=0), greater_is_better=False)
    schedule = RunSchedule(opt, lambda step: 1.0, plateau=plateau)
    found = []
    for metric in (1.0, 1.0, 1.0, 0.9, 0.8, 0.7):
        schedule.on_metric(metric)
        found.append(rates(opt)[0])
    assert found == pytest.approx([1.0, 0.5, 0.25, 0.5, 1.0, 1.0])


@pytest.mark.parametrize("name", ["reduce_lr_on_plateau", "greedy"])
def test_a_plateau_goes_on_after_a_checkpoint(name: str) -> None:
    def new() -> tuple[Any, RunSchedule]:
        options = {"factor": 0.5, "patience": 1} | ({"smooth": True} if name == "greedy" else {})
        plateau = plateau_factor(recipe(name, **options), greater_is_better=True)
        opt = optimizer()
        return opt, RunSchedule(opt, falling, plateau=plateau)

    whole, first = new()
    for metric in METRICS[:4]:
        whole.step()
        first.step()
        first.on_metric(metric)
    fresh, second = new()
    second.load_state_dict(through_file(first.state_dict()))
    assert rates(fresh) == rates(whole)
    for metric in METRICS[4:]:
        for opt, schedule in ((whole, first), (fresh, second)):
            opt.step()
            schedule.step()
            schedule.on_metric(metric)
        assert rates(fresh) == rates(whole)
    assert second.state_dict() == first.state_dict()


def test_a_later_phase_goes_on_with_the_plateau_of_the_earlier_one() -> None:
    def phase(first_step: int) -> tuple[Any, RunSchedule]:
        plateau = plateau_factor(recipe(factor=0.5, patience=1), greater_is_better=True)
        opt = optimizer((1.0,))
        return opt, RunSchedule(opt, falling, first_step=first_step, plateau=plateau)

    _, first = phase(0)
    for metric in (0.6, 0.5, 0.5, 0.5):
        first.on_metric(metric)
    opt, second = phase(9)
    assert rates(opt) == pytest.approx([0.1])
    second.take_over(through_file(first.state_dict()))
    assert rates(opt) == pytest.approx([0.05]) and second.get_last_lr() == rates(opt)
    second.on_metric(0.5)
    assert rates(opt) == pytest.approx([0.025]), "bad evaluations are counted over both phases"


def test_there_is_nothing_to_take_over_without_a_plateau() -> None:
    opt = optimizer()
    RunSchedule(opt, falling).take_over(RunSchedule(optimizer(), falling, first_step=5).state_dict())
    assert rates(opt) == pytest.approx(list(PEAKS))


def test_on_metric_has_no_effect_without_a_plateau() -> None:
    opt = optimizer()
    schedule = RunSchedule(opt, falling)
    schedule.on_metric(0.1)
    assert rates(opt) == pytest.approx(list(PEAKS))


def test_accelerates_wrapper_shares_the_rates() -> None:
    from accelerate import Accelerator

    opt = optimizer()
    wrapped = Accelerator(cpu=True).prepare(opt)
    schedule = RunSchedule(wrapped, falling)
    wrapped.step()
    schedule.step()
    assert rates(opt) == pytest.approx([peak / 2 for peak in PEAKS])
