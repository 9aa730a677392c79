"""Schedules: one factor f(t) on every group's peak rate, t optimizer steps after the run began.

The step numbered t+1 uses f(t). Steps are optimizer steps, never rows or micro-batches.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from launcher.launching.batch import share_of_steps
from launcher.recipe.schedule_keys import FOLLOW_METRIC, WITHOUT_WARMUP, schedule_options
from launcher.recipe.schema import Recipe

Factor = Callable[[int], float]


def schedule_factor(recipe: Recipe, *, total_steps: int, warmup_steps: int) -> Factor:
    """Return f of the recipe's schedule; values lie in [0, 1].

    Schedules that follow a metric give their warm-up alone: what the metric does is a second factor.

    Args:
        recipe: a checked recipe.
        total_steps: optimizer steps of the whole run, all phases.
        warmup_steps: steps over which the rate rises; without effect for schedules that have no warm-up.
    """
    name = recipe.training.lr_scheduler_type
    if name in FOLLOW_METRIC:
        return _after_warmup(lambda step: 1.0, warmup_steps)
    if name not in _SHAPES:
        return _of_transformers(recipe, total_steps=total_steps, warmup_steps=warmup_steps)
    shape = _SHAPES[name](schedule_options(recipe.training), total_steps)
    return shape if name in WITHOUT_WARMUP else _after_warmup(shape, warmup_steps)


def _after_warmup(shape: Factor, warmup_steps: int) -> Factor:
    """Multiply by a line from 0 at step 0 to 1 after ``warmup_steps``, as transformers' schedules rise."""
    return lambda step: shape(step) * (min(1.0, step / warmup_steps) if warmup_steps else 1.0)


def _of_transformers(recipe: Recipe, *, total_steps: int, warmup_steps: int) -> Factor:
    """Return the function that transformers' own scheduler multiplies rates by."""
    import torch
    from transformers import get_scheduler

    training = recipe.training
    # Some turn a rate (min_lr, lr_end) into a share of the rate that this optimizer has.
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=training.learning_rate)
    scheduler = get_scheduler(
        training.lr_scheduler_type,
        optimizer,
        num_warmup_steps=warmup_steps,
        # A run that is all warm-up has no length to decay over, by which polynomial would divide.
        num_training_steps=max(total_steps, warmup_steps + 1),
        scheduler_specific_kwargs=dict(training.lr_scheduler_kwargs or {}),
    )
    factor: Factor = scheduler.lr_lambdas[0]
    return factor


# --- shapes: (options, steps of the run) -> f -------------------------------------------------------------------------


def _step(options: Mapping[str, Any], total_steps: int) -> Factor:
    """gamma^floor(t / s)."""
    size, gamma = share_of_steps(options["step_size"], total_steps), options["gamma"]
    return lambda step: float(gamma ** (step // size))


def _exponential(options: Mapping[str, Any], total_steps: int) -> Factor:
    """gamma^t; with final_scale that gamma which leads there at the end of the run."""
    if options["gamma"] is not None:
        gamma = options["gamma"]
        return lambda step: float(gamma**step)
    final = options["final_scale"]
    return lambda step: float(final ** (step / max(1, total_steps)))


def _cyclic(options: Mapping[str, Any], total_steps: int) -> Factor:
    """Triangles between min_scale and 1 (Smith 2017, Cyclical Learning Rates for Training Neural Networks, section 3.1).

    A cycle is twice the paper's stepsize. Its height above min_scale falls by cycle_decay from one cycle to the next
    (0.5: the paper's triangular2).
    """
    half, low = share_of_steps(options["cycle_steps"], total_steps) / 2, options["min_scale"]
    decay = options["cycle_decay"]

    def factor(step: int) -> float:
        cycle = math.floor(1 + step / (2 * half))
        x = abs(step / half - 2 * cycle + 1)
        return float(low + (1 - low) * decay ** (cycle - 1) * max(0.0, 1 - x))

    return factor


def _one_cycle(options: Mapping[str, Any], total_steps: int) -> Factor:
    """Up from 1 / div_factor to 1 and down to 1 / (div_factor * final_div_factor) at the last step.

    Smith & Topin 2018, Super-Convergence; the two-phase form of torch.optim.lr_scheduler.OneCycleLR, but as a factor of
    every group's own peak.
    """
    start = 1 / options["div_factor"]
    end = start / options["final_div_factor"]
    top, last = options["pct_start"] * total_steps - 1, total_steps - 1
    anneal = _cosine if options["anneal_strategy"] == "cos" else _line

    def factor(step: int) -> float:
        if step <= top:
            return anneal(start, 1.0, step / top if top else 1.0)
        return anneal(1.0, end, min(1.0, (step - top) / (last - top)))

    return factor


def _line(start: float, end: float, share: float) -> float:
    return start + (end - start) * share


def _cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) / 2 * (1 + math.cos(math.pi * share))


def _slanted_triangular(options: Mapping[str, Any], total_steps: int) -> Factor:
    """A short rise and a long fall (Howard & Ruder 2018, ULMFiT, equation 3).

    The equation falls below 0 at the end of a run whose steps times cut_frac are no whole number; here it stays at
    1 / ratio.
    """
    share, ratio = options["cut_frac"], options["ratio"]
    cut = max(1, math.floor(total_steps * share))

    def factor(step: int) -> float:
        p = step / cut if step < cut else 1 - (step - cut) / (cut * (1 / share - 1))
        return float((1 + max(0.0, p) * (ratio - 1)) / ratio)

    return factor


_SHAPES: dict[str, Callable[[Mapping[str, Any], int], Factor]] = {
    "step": _step,
    "exponential": _exponential,
    "cyclic": _cyclic,
    "one_cycle": _one_cycle,
    "slanted_triangular": _slanted_triangular,
}
