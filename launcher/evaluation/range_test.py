"""The learning-rate range test: what the losses of a short training with a growing rate say. Pure functions.

After Smith 2017, "Cyclical Learning Rates for Training Neural Networks", section 3.3: train while the rate grows, and read off
where the loss falls and where it stops falling. Smith's rate grows linearly; here it grows exponentially, so that a few
batches cover several powers of ten.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

BETA = 0.9
"""Weight of the past in the smoothed loss."""
DELAY = round(BETA / (1 - BETA))
"""Steps by which the smoothed loss lags: the mean age of what it averages, BETA / (1 - BETA)."""
DIVERGED = 4.0
"""A smoothed loss above this many times the best one has diverged."""
LEAST_STEPS = 3 * DELAY
NOISE = 4.0
"""A fall counts when it exceeds this many standard errors of the smoothed loss."""
LEAST_FALL = 0.01
"""... and this share of the first loss."""


@dataclass(frozen=True)
class RangeTest:
    """Losses over rates, and what they say. ``suggestion`` is None where nothing can be said; ``reason`` says why."""

    rates: tuple[float, ...]
    losses: tuple[float, ...]
    smoothed: tuple[float, ...]
    steepest: float | None = None
    """Rate at which the smoothed loss falls fastest over log(rate)."""
    minimum: float | None = None
    """Rate at which the smoothed loss is least."""
    divergence: float | None = None
    """Rate at which it had risen above DIVERGED times its best, or was no longer finite; None: it never did."""
    suggestion: float | None = None
    """The smaller of ``steepest`` and a tenth of ``minimum`` (and of a tenth of ``divergence``)."""
    reason: str = ""
    """What the suggestion rests on, or why there is none."""

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)


def exponential_rates(min_lr: float, max_lr: float, steps: int) -> np.ndarray:
    """Return ``min_lr * (max_lr / min_lr) ** (i / (steps - 1))`` for i in 0..steps-1, float64 [steps]."""
    assert 0 < min_lr < max_lr and steps >= 2
    return np.asarray(min_lr * (max_lr / min_lr) ** (np.arange(steps) / (steps - 1)))


def smooth(losses: Sequence[float] | np.ndarray, *, beta: float = BETA) -> np.ndarray:
    """Return the exponential moving average, corrected for its start at 0 as Adam's is (Kingma and Ba 2015, section 3).

    m_i = beta * m_(i-1) + (1 - beta) * loss_i;  smoothed_i = m_i / (1 - beta ** (i + 1)).
    """
    average, found = 0.0, []
    for number, loss in enumerate(losses):
        average = beta * average + (1 - beta) * loss
        found.append(average / (1 - beta ** (number + 1)))
    return np.array(found, dtype=float)


def has_diverged(losses: Sequence[float]) -> bool:
    """Return whether the test can stop: the last loss is not finite, or the smoothed loss is above DIVERGED times its best."""
    if not losses:
        return False
    if not math.isfinite(losses[-1]):
        return True
    smoothed = smooth(losses)
    return bool(smoothed[-1] > DIVERGED * smoothed.min())


def read_range_test(rates: Sequence[float], losses: Sequence[float]) -> RangeTest:
    """Return what the losses say; steps from the first loss that is not finite, or that has diverged, only mark the end.

    The readings allow for the smoothing's delay: what the smoothed loss shows at step i belongs to the rate of step
    i - DELAY.

    Args:
        rates: ascending, [steps].
        losses: the training loss of each step, before its update; as many as ``rates``.
    """
    assert len(rates) == len(losses)
    end = next((i for i in range(len(losses)) if has_diverged(losses[: i + 1])), None)
    divergence = None if end is None else float(rates[end])
    kept = len(losses) if end is None else end + int(math.isfinite(losses[end]))
    xs, ys = np.asarray(rates[:kept], dtype=float), np.asarray(losses[:kept], dtype=float)
    smoothed = smooth(ys)
    found = RangeTest(tuple(xs.tolist()), tuple(ys.tolist()), tuple(smoothed.tolist()), divergence=divergence)
    if kept < LEAST_STEPS:
        until = "" if divergence is None else " before the loss diverged"
        return _without(found, f"only {kept} steps{until}; take more, or begin at a lower rate")
    return _read(found, xs, ys, smoothed)


def _read(found: RangeTest, rates: np.ndarray, losses: np.ndarray, smoothed: np.ndarray) -> RangeTest:
    # The first averages hold too few losses: neither their value nor their slope means anything.
    best = DELAY + int(smoothed[DELAY:].argmin())
    start = float(losses[:DELAY].mean())
    fall, needed = start - float(smoothed[best]), max(NOISE * _noise(losses), LEAST_FALL * abs(start))
    if not fall > needed:
        return _without(found, f"the loss never falls clearly (by {max(fall, 0):.3g}, and {needed:.3g} would count)")
    if found.divergence is None and best >= len(rates) - 1 - DELAY:
        return _without(found, "the loss still falls at the greatest rate; raise it")
    slopes = np.gradient(smoothed, np.log(rates))
    steepest = _rate_before(rates, DELAY + int(slopes[DELAY : best + 1].argmin()))
    minimum = _rate_before(rates, best)
    readings = {"the steepest descent": steepest, "a tenth of the rate of the least loss": minimum / 10}
    if found.divergence is not None:
        readings["a tenth of the rate at which it diverges"] = found.divergence / 10
    name = min(readings, key=lambda key: readings[key])
    return RangeTest(
        found.rates, found.losses, found.smoothed, steepest, minimum, found.divergence, readings[name], name
    )


def _rate_before(rates: np.ndarray, step: int) -> float:
    return float(rates[max(0, step - DELAY)])


def _noise(losses: np.ndarray) -> float:
    """Return the standard error of the smoothed loss, from the median step between neighbouring losses.

    Their median is not moved by the slope of a part of the curve; 0.6745 is the upper quartile of the normal distribution,
    and (1 - BETA) / (1 + BETA) the share of the variance that the average keeps.
    """
    deviation = float(np.median(np.abs(np.diff(losses)))) / (0.6745 * math.sqrt(2))
    return deviation * math.sqrt((1 - BETA) / (1 + BETA))


def _without(found: RangeTest, reason: str) -> RangeTest:
    return RangeTest(found.rates, found.losses, found.smoothed, divergence=found.divergence, reason=reason)
