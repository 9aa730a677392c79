"""The range test's readings on curves whose answers are known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from launcher.evaluation.range_test import BETA, DELAY, exponential_rates, has_diverged, read_range_test, smooth

RATES = exponential_rates(1e-7, 1.0, 100)


def valley(*, fall_at: float = -4.0, rise_at: float = -1.5, noise: float = 0.0, seed: int = 0) -> list[float]:
    """A logistic fall by 1.5 around 10^fall_at, then an exponential rise."""
    rng = np.random.default_rng(seed)
    x = np.log10(RATES)
    losses = 2.5 - 1.5 / (1 + np.exp(-3 * (x - fall_at))) + np.exp(3 * (x - rise_at))
    return (losses + noise * rng.normal(size=len(x))).tolist()


def test_rates_grow_by_equal_factors():
    assert RATES[0] == 1e-7 and RATES[-1] == pytest.approx(1.0)
    assert np.ptp(np.diff(np.log(RATES))) < 1e-12


def test_the_average_is_corrected_for_its_start():
    assert smooth([3.0] * 20) == pytest.approx(np.full(20, 3.0))
    losses = [1.0, 2.0, 4.0]
    by_hand = (1 - BETA) * (4 + BETA * 2 + BETA**2 * 1) / (1 - BETA**3)
    assert smooth(losses)[-1] == pytest.approx(by_hand)


def test_the_delay_is_that_of_a_straight_line():
    line = np.arange(200.0)
    assert line[-1] - smooth(line)[-1] == pytest.approx(DELAY, rel=1e-6)


def test_it_diverges_above_four_times_its_best_and_where_it_is_not_finite():
    assert not has_diverged([]) and not has_diverged([1.0] * 30 + [20.0])
    assert has_diverged([1.0] * 30 + [20.0, 20.0]), "smoothed: 1 + 19 * (1 - 0.9^2) = 4.6"
    assert has_diverged([1.0, math.nan]) and has_diverged([1.0, math.inf])


@pytest.mark.parametrize("fall_at", [-5.0, -4.0, -3.0])
def test_the_steepest_descent_is_found_where_it_is(fall_at):
    found = read_range_test(RATES.tolist(), valley(fall_at=fall_at))
    assert found.steepest is not None and math.log10(found.steepest) == pytest.approx(fall_at, abs=0.4)
    true_minimum = RATES[int(np.argmin(valley(fall_at=fall_at)))]
    assert found.minimum is not None and math.log10(found.minimum / true_minimum) == pytest.approx(0, abs=0.4)


@pytest.mark.parametrize("seed", range(10))
def test_noise_moves_the_suggestion_by_less_than_a_power_of_ten(seed):
    clean, noisy = (read_range_test(RATES.tolist(), valley(noise=noise, seed=seed)) for noise in (0.0, 0.15))
    assert noisy.suggestion is not None and clean.suggestion is not None
    assert abs(math.log10(noisy.suggestion / clean.suggestion)) < 1


def test_the_suggestion_is_the_smallest_reading_and_says_which():
    found = read_range_test(RATES.tolist(), valley(fall_at=-4.0))
    assert found.steepest and found.minimum and found.divergence
    assert found.suggestion == min(found.steepest, found.minimum / 10, found.divergence / 10)
    assert found.reason == "the steepest descent"
    late = read_range_test(RATES.tolist(), valley(fall_at=-3.0, rise_at=-2.5))
    assert late.minimum and late.suggestion == late.minimum / 10 and "least loss" in late.reason


def test_what_follows_the_divergence_is_not_read():
    losses = valley()
    end = next(i for i in range(len(losses)) if has_diverged(losses[: i + 1]))
    once = read_range_test(RATES[: end + 1].tolist(), losses[: end + 1])
    assert once == read_range_test(RATES.tolist(), losses) and once.divergence == RATES[end]
    broken = [*losses[:70], math.nan, *losses[71:]]
    assert read_range_test(RATES.tolist(), broken).divergence == RATES[70]
    assert len(read_range_test(RATES.tolist(), broken).losses) == 70


@pytest.mark.parametrize(
    "losses, word",
    [
        ([2.0] * 100, "never falls"),
        ((2.0 + 0.2 * np.random.default_rng(3).normal(size=100)).tolist(), "never falls"),
        (np.linspace(1.0, 3.0, 100).tolist(), "never falls"),
        (np.linspace(3.0, 1.0, 100).tolist(), "still falls"),
        ([2.0] * 5 + [math.nan] * 95, "only 5 steps"),
        ([0.0] * 100, "never falls"),
    ],
    ids=["flat", "noise", "rising", "falling", "broken at once", "zero"],
)
def test_where_nothing_can_be_said_it_says_so(losses, word):
    found = read_range_test(RATES.tolist(), losses)
    assert found.suggestion is None and found.steepest is None and word in found.reason


@pytest.mark.parametrize("seed", range(30))
def test_noise_alone_is_never_a_fall(seed):
    losses = 2.0 + 0.3 * np.random.default_rng([7, seed]).normal(size=100)
    assert read_range_test(RATES.tolist(), losses.tolist()).suggestion is None


def test_the_record_is_plain_and_repeatable():
    import json

    found = read_range_test(RATES.tolist(), valley(noise=0.1))
    assert found == read_range_test(RATES.tolist(), valley(noise=0.1))
    assert json.loads(json.dumps(found.to_json(), allow_nan=False))["suggestion"] == found.suggestion
