"""Schedules against their closed forms, and against torch's and transformers' own schedulers."""

from __future__ import annotations

import inspect
import math

import pytest
import tiny
import torch
from torch.optim.lr_scheduler import CyclicLR, OneCycleLR, ReduceLROnPlateau
from transformers import optimization
from transformers.trainer_utils import SchedulerType

from launcher.recipe.option import REQUIRED
from launcher.recipe.schedule_keys import FOLLOW_METRIC, KWARGS, OURS, WITHOUT_WARMUP
from launcher.recipe.schema import Recipe
from launcher.strategies.schedules import schedule_factor

# Options for the schedules that need some.
NEEDED = {
    "step": {"step_size": 7},
    "exponential": {"gamma": 0.97},
    "cyclic": {"cycle_steps": 20},
    "cosine_with_min_lr": {"min_lr_rate": 0.1},
    "cosine_warmup_with_min_lr": {"min_lr_rate": 0.1},
    "warmup_stable_decay": {"num_decay_steps": 20},
}


def recipe(schedule: str, *, learning_rate: float = 1e-3, **options) -> Recipe:
    training = {"lr_scheduler_type": schedule, "learning_rate": learning_rate}
    if options:
        training["lr_scheduler_kwargs"] = options
    return tiny.recipe(training=training)


def factors(schedule: str, total: int, *, warmup: int = 0, learning_rate: float = 1e-3, **options) -> list[float]:
    """f(0), ..., f(total)."""
    f = schedule_factor(
        recipe(schedule, learning_rate=learning_rate, **options), total_steps=total, warmup_steps=warmup
    )
    return [f(step) for step in range(total + 1)]


def stepped(scheduler_class, total: int, *, peak: float, **options) -> list[float]:
    """The rates of a torch scheduler at each step, over the peak."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=peak)
    scheduler = scheduler_class(optimizer, **options)
    found = []
    for _ in range(total):
        found.append(optimizer.param_groups[0]["lr"] / peak)
        optimizer.step()
        scheduler.step()
    return found


# --- closed forms ----------------------------------------------------------------------------------------------------


def test_step() -> None:
    assert factors("step", 30, step_size=7, gamma=0.5) == [0.5 ** (t // 7) for t in range(31)]


def test_step_size_as_a_share_of_all_steps_and_the_default_gamma() -> None:
    assert factors("step", 30, step_size=0.5) == factors("step", 30, step_size=15, gamma=0.1)


def test_exponential() -> None:
    assert factors("exponential", 50, gamma=0.97) == pytest.approx([0.97**t for t in range(51)])


def test_exponential_to_a_scale_at_the_end_of_the_run() -> None:
    found = factors("exponential", 40, final_scale=0.01)
    assert found[-1] == pytest.approx(0.01) and found[20] == pytest.approx(0.1)


def test_cosine_with_floor() -> None:
    total, warmup, floor = 100, 10, 0.1
    found = factors("cosine_with_min_lr", total, warmup=warmup, min_lr_rate=floor)
    assert found[:warmup] == pytest.approx([t / warmup for t in range(warmup)])
    wanted = [
        floor + (1 - floor) * (1 + math.cos(math.pi * (t - warmup) / (total - warmup))) / 2
        for t in range(warmup, total + 1)
    ]
    assert found[warmup:] == pytest.approx(wanted)
    assert found[-1] == pytest.approx(floor)


def test_a_floor_given_as_a_rate_is_a_share_of_the_recipes_rate() -> None:
    shares = factors("cosine_with_min_lr", 20, learning_rate=2e-4, min_lr_rate=0.1)
    assert factors("cosine_with_min_lr", 20, learning_rate=2e-4, min_lr=2e-5) == pytest.approx(shares)


def test_linear_and_polynomial() -> None:
    wanted = [t / 5 for t in range(5)] + [(25 - t) / 20 for t in range(5, 26)]
    assert factors("linear", 25, warmup=5) == pytest.approx(wanted)
    squared = [t / 5 for t in range(5)] + [((25 - t) / 20) ** 2 for t in range(5, 26)]
    assert factors("polynomial", 25, warmup=5, power=2.0, lr_end=0.0) == pytest.approx(squared)


def test_a_run_that_is_all_warmup() -> None:
    for schedule in ("linear", "polynomial", "cosine"):
        assert factors(schedule, 4, warmup=4)[:4] == pytest.approx([0, 0.25, 0.5, 0.75])


def test_cyclic_at_its_corners() -> None:
    found = factors("cyclic", 60, cycle_steps=20, min_scale=0.25)
    assert [found[t] for t in (0, 10, 20, 30, 40)] == pytest.approx([0.25, 1, 0.25, 1, 0.25])
    assert [found[t] for t in (5, 15, 25)] == pytest.approx([0.625] * 3)


def test_cyclic_that_decays() -> None:
    found = factors("cyclic", 60, cycle_steps=20, min_scale=0.2, cycle_decay=0.5)
    assert [found[t] for t in (10, 30, 50, 60)] == pytest.approx([1, 0.6, 0.4, 0.2])


@pytest.mark.parametrize(("decay", "mode"), [(1.0, "triangular"), (0.5, "triangular2")])
def test_cyclic_is_torchs_at_every_step(decay: float, mode: str) -> None:
    wanted = stepped(CyclicLR, 50, peak=1.0, base_lr=0.25, max_lr=1.0, step_size_up=6, mode=mode, cycle_momentum=False)
    assert factors("cyclic", 50, cycle_steps=12, cycle_decay=decay)[:50] == pytest.approx(wanted)


@pytest.mark.parametrize("anneal", ["cos", "linear"])
@pytest.mark.parametrize(("total", "share"), [(100, 0.3), (37, 0.25), (10, 0.45), (3, 0.5), (8, 0.9)])
def test_one_cycle_is_torchs_at_every_step(anneal: str, total: int, share: float) -> None:
    options = {"pct_start": share, "div_factor": 10.0, "final_div_factor": 100.0, "anneal_strategy": anneal}
    wanted = stepped(OneCycleLR, total, peak=3e-4, max_lr=3e-4, total_steps=total, cycle_momentum=False, **options)
    assert factors("one_cycle", total, **options)[:total] == pytest.approx(wanted)


def test_one_cycle_of_a_run_with_a_rise_of_one_step() -> None:
    found = factors("one_cycle", 10, pct_start=0.1)
    assert found[0] == 1 and found[9] == pytest.approx(1 / 25 / 1e4)
    assert factors("one_cycle", 1) and factors("one_cycle", 2)


def ulmfit(t: int, *, steps: int, cut_frac: float, ratio: float) -> float:
    """Howard & Ruder 2018, equation 3, written out."""
    cut = math.floor(steps * cut_frac)
    p = t / cut if t < cut else 1 - (t - cut) / (cut * (1 / cut_frac - 1))
    return (1 + p * (ratio - 1)) / ratio


@pytest.mark.parametrize(("steps", "cut_frac", "ratio"), [(200, 0.1, 32.0), (50, 0.2, 8.0), (8, 0.5, 4.0)])
def test_slanted_triangular(steps: int, cut_frac: float, ratio: float) -> None:
    wanted = [ulmfit(t, steps=steps, cut_frac=cut_frac, ratio=ratio) for t in range(steps + 1)]
    assert factors("slanted_triangular", steps, cut_frac=cut_frac, ratio=ratio) == pytest.approx(wanted)


def test_slanted_triangular_by_default_and_at_odd_lengths() -> None:
    assert factors("slanted_triangular", 200) == factors("slanted_triangular", 200, cut_frac=0.1, ratio=32.0)
    for steps in (1, 2, 5, 19, 199):
        assert min(factors("slanted_triangular", steps)) >= 1 / 32 - 1e-12


# --- what holds for all ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("warmup", [0, 12])
@pytest.mark.parametrize("schedule", sorted(KWARGS))
def test_factors_lie_between_0_and_1(schedule: str, warmup: int) -> None:
    found = factors(schedule, 100, warmup=warmup, **NEEDED.get(schedule, {}))
    assert all(-1e-12 <= value <= 1 + 1e-12 for value in found)
    assert max(found) > 0.3


@pytest.mark.parametrize(
    "schedule", sorted(set(KWARGS) - set(WITHOUT_WARMUP) - {"cosine_warmup_with_min_lr", "cyclic"})
)
def test_warmup_is_a_line_from_0(schedule: str) -> None:
    options = {**NEEDED.get(schedule, {}), **({"step_size": 50} if schedule == "step" else {})}
    found = factors(schedule, 100, warmup=10, **options)
    assert found[0] == 0 and found[:11] == sorted(found[:11])
    if schedule != "exponential":
        assert found[:11] == pytest.approx([t / 10 for t in range(11)])


def test_warmup_multiplies_the_schedules_of_ours() -> None:
    for schedule in ("exponential", "cyclic", "step"):
        bare = factors(schedule, 40, **NEEDED[schedule])
        wanted = [value * min(1, t / 8) for t, value in enumerate(bare)]
        assert factors(schedule, 40, warmup=8, **NEEDED[schedule]) == pytest.approx(wanted)


@pytest.mark.parametrize("schedule", sorted(WITHOUT_WARMUP))
def test_schedules_without_warmup_ignore_its_length(schedule: str) -> None:
    assert factors(schedule, 40, warmup=8) == factors(schedule, 40)


@pytest.mark.parametrize("schedule", ["linear", "cosine", "polynomial", "one_cycle", "slanted_triangular"])
def test_the_length_is_that_of_the_run_in_steps(schedule: str) -> None:
    for total in (10, 1000):
        found = factors(schedule, total)
        assert found[-1] <= 1 / 32 + 1e-12 and found[total // 2] > 0.3


@pytest.mark.parametrize("schedule", FOLLOW_METRIC)
def test_schedules_that_follow_a_metric_only_warm_up(schedule: str) -> None:
    assert factors(schedule, 8, warmup=4) == pytest.approx([0, 0.25, 0.5, 0.75, 1, 1, 1, 1, 1])


# --- the table of options ----------------------------------------------------------------------------------------------

_THEIRS = {name: optimization.TYPE_TO_SCHEDULER_FUNCTION[SchedulerType(name)] for name in set(KWARGS) - set(OURS)}
_THEIRS |= {"reduce_lr_on_plateau": ReduceLROnPlateau, "greedy": optimization.GreedyLR}
_RENAMED = {"min_scale": "min_lr", "max_scale": "max_lr"}
_LEFT_OUT = {
    "optimizer", "num_warmup_steps", "num_training_steps", "last_epoch", "num_stable_steps", "mode", "eps", "verbose",
}  # fmt: skip


def test_the_names_are_transformers_and_ours() -> None:
    assert set(KWARGS) == {kind.value for kind in SchedulerType} | set(OURS)


@pytest.mark.parametrize("schedule", sorted(_THEIRS))
def test_options_and_defaults_are_the_installed_versions(schedule: str) -> None:
    parameters = inspect.signature(_THEIRS[schedule]).parameters
    follows = schedule in FOLLOW_METRIC
    ours = {_RENAMED.get(name, name) if follows else name: option for name, option in KWARGS[schedule].items()}
    assert set(ours) == set(parameters) - _LEFT_OUT
    for name, option in ours.items():
        wanted = parameters[name].default
        assert option.default == (REQUIRED if wanted is inspect.Parameter.empty else wanted), name


def test_one_cycles_defaults_are_torchs() -> None:
    parameters = inspect.signature(OneCycleLR).parameters
    for name, option in KWARGS["one_cycle"].items():
        assert option.default == parameters[name].default
