"""How sure a number is: bootstrap intervals over rows, and exact tests of two systems on the same rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from launcher.evaluation.counts import Counts
from launcher.evaluation.metrics import average_ranks, correlation

Statistic = Callable[[np.ndarray], np.ndarray]
"""Row indices int64 [resamples, n] -> the metric of each resample, float64 [resamples]; NaN where it is undefined."""

# Memory of one block of resamples: 2e6 indices of 8 bytes, and a few arrays of that size beside them.
_BLOCK = 2_000_000


@dataclass(frozen=True)
class Interval:
    """A confidence interval, in the metric's unit."""

    low: float
    high: float


@dataclass(frozen=True)
class PairedTest:
    """An exact two-sided test of two systems on the same rows.

    ``a_only`` and ``b_only`` count the rows on which only one of them is right (or the closer one); the other rows say
    nothing about a difference.
    """

    a_only: int
    b_only: int
    p_value: float


# --- the bootstrap -------------------------------------------------------------------------------------------------


def resample(statistic: Statistic, n: int, *, resamples: int, seed: int) -> np.ndarray:
    """Return ``statistic`` on ``resamples`` draws of n rows with replacement, float64 [resamples].

    Equal n, resamples and seed give the same draws, so two systems' results can be subtracted: they are paired.
    """
    generator = np.random.default_rng(seed)
    block = max(1, _BLOCK // max(n, 1))
    sizes = [min(block, resamples - start) for start in range(0, resamples, block)]
    return np.concatenate([statistic(generator.integers(n, size=(size, n))) for size in sizes] or [np.zeros(0)])


def percentile_interval(draws: np.ndarray, *, confidence: float) -> Interval | None:
    """Return the interval between the percentiles of ``draws``; None where most draws are undefined.

    Source: Efron and Tibshirani 1993, "An Introduction to the Bootstrap", section 13.3.
    """
    finite = draws[np.isfinite(draws)]
    if len(finite) < max(1, len(draws) / 2):
        return None
    tail = (1 - confidence) / 2
    low, high = np.quantile(finite, [tail, 1 - tail])
    return Interval(float(low), float(high))


def bootstrap_interval(
    statistic: Statistic, n: int, *, resamples: int = 1000, confidence: float = 0.95, seed: int = 0
) -> Interval | None:
    """Return the percentile bootstrap interval of ``statistic`` over n rows; None where it is undefined or resamples
    is 0.

    It covers the chance of drawing these test rows, not that of training with another seed.
    """
    return percentile_interval(resample(statistic, n, resamples=resamples, seed=seed), confidence=confidence)


def paired_bootstrap_difference(
    statistic_a: Statistic,
    statistic_b: Statistic,
    n: int,
    *,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Interval | None:
    """Return the interval of ``statistic_a - statistic_b`` with both computed on the same resamples of n rows."""

    def difference(rows: np.ndarray) -> np.ndarray:
        return np.asarray(statistic_a(rows) - statistic_b(rows))

    return bootstrap_interval(difference, n, resamples=resamples, confidence=confidence, seed=seed)


# --- metrics as functions of resampled rows ------------------------------------------------------------------------


def mean_statistic(values: np.ndarray) -> Statistic:
    """Return the mean of ``values`` [n] (accuracy: of right or wrong; mse: of squared errors) as a Statistic."""
    values = np.asarray(values, dtype=np.float64)
    return lambda rows: np.asarray(values[rows].mean(axis=1))


def f1_statistic(predicted: np.ndarray, labels: np.ndarray, *, classes: int, average: str = "macro") -> Statistic:
    """Return macro or micro F1 as a Statistic; ``predicted`` and ``labels`` are int [n], or 0/1 [n, c]."""
    count = (
        _multilabel_counts(predicted, labels) if labels.ndim == 2 else _label_counts(predicted, labels, classes=classes)
    )

    def statistic(rows: np.ndarray) -> np.ndarray:
        counts = count(rows)
        return counts.macro(counts.f1) if average == "macro" else counts.micro_f1()

    return statistic


def _label_counts(predicted: np.ndarray, labels: np.ndarray, *, classes: int) -> Callable[[np.ndarray], Counts]:
    # A wrong row's hit is counted in one spare class, so that all three counts come from a plain bincount.
    hits = np.where(predicted == labels, labels, classes)

    def count(rows: np.ndarray) -> Counts:
        offsets = (np.arange(len(rows)) * (classes + 1))[:, None]
        size = len(rows) * (classes + 1)
        tallies = (
            np.bincount((values[rows] + offsets).ravel(), minlength=size) for values in (hits, predicted, labels)
        )
        return Counts(*(tally.reshape(len(rows), classes + 1)[:, :classes].astype(float) for tally in tallies))

    return count


def _multilabel_counts(predicted: np.ndarray, labels: np.ndarray) -> Callable[[np.ndarray], Counts]:
    sums = summed_rows(np.concatenate([predicted * labels, predicted, labels], axis=1))
    return lambda rows: Counts(*np.split(sums(rows), 3, axis=1))


def summed_rows(table: np.ndarray) -> Statistic:
    """Return a function: row indices int64 [resamples, n] -> sums of those rows of ``table`` [n, k], float64 [resamples, k].

    ``table`` holds whole numbers; where their sums may reach 2**24, up to which float32 keeps them exactly, it is done in float64.
    """
    largest = len(table) * float(np.abs(table).max(initial=0))
    exact = np.asarray(table, dtype=np.float32 if largest < 2**24 else np.float64)

    def sums(rows: np.ndarray) -> np.ndarray:
        n, offsets = len(exact), (np.arange(len(rows)) * len(exact))[:, None]
        times = np.bincount((rows + offsets).ravel(), minlength=len(rows) * n).reshape(len(rows), n)
        return np.asarray((times.astype(exact.dtype) @ exact).astype(np.float64))

    return sums


def correlation_statistic(predicted: np.ndarray, labels: np.ndarray, *, ranks: bool) -> Statistic:
    """Return Pearson's correlation of two arrays [n], or with ``ranks`` Spearman's, as a Statistic.

    Spearman's ranks are taken anew in each resample, as its definition asks.
    """
    predicted, labels = np.asarray(predicted, dtype=np.float64), np.asarray(labels, dtype=np.float64)

    def one(rows: np.ndarray) -> float:
        a, b = predicted[rows], labels[rows]
        return correlation(average_ranks(a), average_ranks(b)) if ranks else correlation(a, b)

    return lambda rows: np.array([one(row) for row in rows])


# --- exact tests ---------------------------------------------------------------------------------------------------


def exact_paired_test(correct_a: np.ndarray, correct_b: np.ndarray) -> PairedTest:
    """Return McNemar's test in its exact form; ``correct_a`` and ``correct_b`` are bool [n], the same rows in order.

    Given the rows on which only one system is right, their split is binomial with one half if the systems are equally
    good. Source: McNemar 1947, Psychometrika 12; exact form: Dietterich 1998, Neural Computation 10(7), section 3.1,
    and Conover 1999, "Practical Nonparametric Statistics", section 3.5.
    """
    correct_a, correct_b = np.asarray(correct_a, dtype=bool), np.asarray(correct_b, dtype=bool)
    assert correct_a.shape == correct_b.shape
    return _binomial_test(int((correct_a & ~correct_b).sum()), int((correct_b & ~correct_a).sum()))


def sign_test(errors_a: np.ndarray, errors_b: np.ndarray) -> PairedTest:
    """Return the exact two-sided sign test on which system's absolute error is smaller; equal ones are left out.

    ``errors_a`` and ``errors_b``: float [n], the same rows in order. Source: Conover 1999, section 3.4.
    """
    a, b = np.abs(np.asarray(errors_a, dtype=np.float64)), np.abs(np.asarray(errors_b, dtype=np.float64))
    assert a.shape == b.shape
    return _binomial_test(int((a < b).sum()), int((b < a).sum()))


def _binomial_test(a_only: int, b_only: int) -> PairedTest:
    from scipy.special import bdtr

    total = a_only + b_only
    p_value = min(1.0, 2 * float(bdtr(min(a_only, b_only), total, 0.5))) if total else 1.0
    return PairedTest(a_only, b_only, p_value)
