"""Scores from statistics, and budgets shared by scores: against closed forms, dynamic programming, and each other."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from launcher.errors import DataError, ModelError
from launcher.strategies.importance import (
    RATE_BOUNDS,
    Allocation,
    allocate_freeze,
    allocate_ranks,
    effective_share,
    gradient_scores,
    module_scores,
    rate_scales,
    shares,
    variance_scores,
)
from launcher.strategies.importance_file import Importance, ModuleImportance, importance_key, read_importance

SCORE = st.floats(1e-6, 1e6)
MODULES = st.lists(
    st.tuples(st.lists(SCORE, min_size=4, max_size=4).map(lambda s: sorted(s, reverse=True)), st.integers(1, 9)),
    min_size=1,
    max_size=6,
)


def ranks_for(scores: dict, costs: dict, mean_rank: float, **options: float) -> Allocation:
    values = {"rank_min": 0, "rank_max": 4, "uniform_above": 1.0} | options
    return allocate_ranks(scores, costs, mean_rank=mean_rank, **values)


def made(modules: list) -> tuple[dict[str, np.ndarray], dict[str, int]]:
    scores = {f"m{i}": np.array(values) for i, (values, _) in enumerate(modules)}
    return scores, {f"m{i}": cost for i, (_, cost) in enumerate(modules)}


def value_of(scores: dict, ranks: dict) -> float:
    return math.fsum(float(score) for name, rank in ranks.items() for score in scores[name][:rank])


def best_value(scores: dict, costs: dict, budget: int) -> float:
    """The knapsack's optimum by dynamic programming over whole parameters; ranks of a module are taken in order."""
    best = [0.0] * (budget + 1)
    for name, values in scores.items():
        gains = np.concatenate([[0.0], np.cumsum(values)])
        best = [
            max(
                best[spent - rank * costs[name]] + float(gain)
                for rank, gain in enumerate(gains)
                if rank * costs[name] <= spent
            )
            for spent in range(budget + 1)
        ]
    return best[budget]


# --- scores --------------------------------------------------------------------------------------------------------


def test_scores_are_the_means_of_importance_times_uncertainty_over_a_ranks_row_and_column() -> None:
    a, ua = np.array([[1.0, 3.0, 5.0], [2.0, 2.0, 2.0]]), np.array([[1.0, 1.0, 2.0], [10.0, 10.0, 10.0]])
    b, ub = np.array([[4.0, 1.0], [6.0, 3.0]]), np.array([[0.5, 1.0], [0.5, 2.0]])
    statistics = {"m": {"importance_a": a, "uncertainty_a": ua, "importance_b": b, "uncertainty_b": ub}}
    found = module_scores(statistics)["m"]
    assert found.dtype == np.float64
    # rank 0: (1 + 3 + 10) / 3 + (2 + 3) / 2; rank 1: 20 + (1 + 6) / 2
    np.testing.assert_allclose(found, [23.5, 14 / 3 + 2.5])


def test_scores_of_a_probe_that_diverged_are_an_error_that_names_the_module() -> None:
    ones = np.ones((2, 2))
    statistics = {
        "layer.1": {"importance_a": ones, "uncertainty_a": ones, "importance_b": ones * np.nan, "uncertainty_b": ones}
    }
    with pytest.raises(ModelError, match=r"layer\.1 is not finite.*lower training\.learning_rate"):
        module_scores(statistics)


def test_gradient_scores_are_squared_singular_values() -> None:
    u, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(5, 3)))
    v, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(4, 3)))
    found = gradient_scores({"m": u @ np.diag([1.0, 3.0, 2.0]) @ v.T})["m"]
    np.testing.assert_allclose(found, [9, 4, 1, 0], atol=1e-12)


def test_variance_scores_are_shares_of_the_variance() -> None:
    found = variance_scores({"m": np.diag([1.0, 6.0, 3.0]), "constant": np.zeros((2, 2))})
    np.testing.assert_allclose(found["m"], [0.6, 0.3, 0.1])
    np.testing.assert_array_equal(found["constant"], [0, 0])


def test_effective_share_is_1_for_equal_importance_and_one_module_where_one_has_all() -> None:
    assert effective_share({"a": np.ones(2), "b": np.ones(2), "c": np.ones(2)}) == pytest.approx(1)
    assert effective_share({"a": np.ones(2), "b": np.zeros(2), "c": np.zeros(2)}) == pytest.approx(1 / 3)
    assert effective_share({"a": np.zeros(2), "b": np.zeros(2)}) == pytest.approx(1), "nothing known: all alike"
    assert shares({"a": np.array([3.0]), "b": np.array([0.5, 0.5])}) == {"a": 0.75, "b": 0.25}


# --- ranks ---------------------------------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(modules=MODULES, mean_rank=st.integers(1, 4))
def test_greedy_equals_the_optimum_at_equal_costs(modules: list, mean_rank: int) -> None:
    scores, _ = made(modules)
    costs = dict.fromkeys(scores, 3)
    found = ranks_for(scores, costs, mean_rank)
    assert value_of(scores, found.ranks) == pytest.approx(best_value(scores, costs, int(found.budget)))


@settings(max_examples=150, deadline=None)
@given(modules=MODULES, mean_rank=st.integers(1, 4))
def test_greedy_is_within_one_rank_of_the_optimum_at_any_costs(modules: list, mean_rank: int) -> None:
    scores, costs = made(modules)
    found = ranks_for(scores, costs, mean_rank)
    # Greedy by density stops at one rank; with that rank it would be at least the fractional optimum.
    following = {name: float(scores[name][rank]) for name, rank in found.ranks.items() if rank < 4}
    stopped_at = max(following, key=lambda name: following[name] / costs[name], default=None)
    slack = following[stopped_at] if stopped_at else 0.0
    assert value_of(scores, found.ranks) + slack >= best_value(scores, costs, int(found.budget)) * (1 - 1e-9)


@settings(max_examples=100, deadline=None)
@given(modules=MODULES, mean_rank=st.floats(1, 4), rank_min=st.integers(0, 1))
def test_the_budget_is_kept_and_nearly_used(modules: list, mean_rank: float, rank_min: int) -> None:
    scores, costs = made(modules)
    found = ranks_for(scores, costs, mean_rank, rank_min=rank_min)
    assert found.used == sum(rank * costs[name] for name, rank in found.ranks.items())
    assert found.used <= found.budget * (1 + 1e-8)
    assert all(rank_min <= rank <= 4 for rank in found.ranks.values())
    is_full = all(rank == 4 for rank in found.ranks.values())
    assert is_full or found.used + max(costs.values()) > found.budget * (1 - 1e-8)


@settings(max_examples=100, deadline=None)
@given(modules=MODULES, first=st.floats(1, 4), more=st.floats(0, 2))
def test_a_larger_budget_takes_no_rank_away(modules: list, first: float, more: float) -> None:
    scores, costs = made(modules)
    small, large = (ranks_for(scores, costs, mean).ranks for mean in (first, first + more))
    assert all(small[name] <= large[name] for name in small)


@settings(max_examples=100, deadline=None)
@given(modules=MODULES, mean_rank=st.integers(1, 4), power=st.integers(-20, 20))
def test_the_unit_of_the_scores_does_not_count(modules: list, mean_rank: int, power: int) -> None:
    scores, costs = made(modules)
    scaled = {name: values * 2.0**power for name, values in scores.items()}
    options = {"uniform_above": 0.8}
    assert ranks_for(scaled, costs, mean_rank, **options).ranks == ranks_for(scores, costs, mean_rank, **options).ranks


@settings(max_examples=100, deadline=None)
@given(modules=MODULES, mean_rank=st.integers(1, 4), data=st.data())
def test_the_order_of_modules_does_not_count(modules: list, mean_rank: int, data: st.DataObject) -> None:
    scores, costs = made(modules)
    order = data.draw(st.permutations(sorted(scores)))
    again = ranks_for({name: scores[name] for name in order}, {name: costs[name] for name in order}, mean_rank)
    assert list(again.ranks.items()) == list(ranks_for(scores, costs, mean_rank).ranks.items())


@settings(max_examples=100, deadline=None)
@given(
    values=st.lists(st.integers(1, 10**6), min_size=12, max_size=12, unique=True),
    mean_rank=st.integers(1, 3),
    data=st.data(),
)
def test_ranks_follow_scores_when_modules_change_names(values: list, mean_rank: int, data: st.DataObject) -> None:
    scores = {f"m{i}": np.sort(np.array(values[i * 4 : i * 4 + 4], dtype=float))[::-1] for i in range(3)}
    costs = dict.fromkeys(scores, 5)
    renamed = dict(zip(scores, data.draw(st.permutations(sorted(scores))), strict=True))
    found = ranks_for(scores, costs, mean_rank)
    again = ranks_for({renamed[name]: scores[name] for name in scores}, costs, mean_rank)
    assert {renamed[name]: rank for name, rank in found.ranks.items()} == again.ranks


def test_ties_go_by_name() -> None:
    scores = {name: np.array([1.0, 1.0]) for name in "cab"}
    assert ranks_for(scores, dict.fromkeys(scores, 1), 4 / 3, rank_max=2).ranks == {"a": 2, "b": 2, "c": 0}


def test_even_importance_gives_uniform_ranks_and_says_so() -> None:
    scores = {"a": np.array([1.0, 0.9, 0.8, 0.7]), "b": np.array([1.1, 0.8, 0.7, 0.6]), "c": np.array([1.2, 1, 1, 1])}
    costs = {"a": 1, "b": 2, "c": 4}
    found = ranks_for(scores, costs, 2, rank_min=1, uniform_above=0.82)
    assert found.is_uniform and found.effective_share > 0.82
    assert found.ranks == {"a": 2, "b": 2, "c": 2} and found.used == found.budget == 14
    assert not ranks_for(scores, costs, 2, rank_min=1, uniform_above=1.0).is_uniform


def test_a_fraction_of_a_uniform_rank_goes_to_the_most_important() -> None:
    scores = {name: np.array([value, value, value]) for name, value in zip("abcd", (1.0, 1.1, 1.2, 1.3), strict=True)}
    found = ranks_for(scores, dict.fromkeys(scores, 10), 1.5, rank_min=1, uniform_above=0.5)
    assert found.ranks == {"a": 1, "b": 1, "c": 2, "d": 2}


def test_a_rank_never_exceeds_the_number_of_scores() -> None:
    found = ranks_for({"a": np.array([9.0, 8.0]), "b": np.array([1.0, 1.0, 1.0, 1.0])}, {"a": 1, "b": 1}, 3)
    assert found.ranks == {"a": 2, "b": 4}


def test_least_ranks_beyond_the_budget_are_an_error() -> None:
    with pytest.raises(ModelError, match=r"rank_min is 3, which needs 30 parameters.*mean_rank 2 allows 20"):
        ranks_for({"a": np.ones(4), "b": np.arange(4.0)[::-1]}, {"a": 5, "b": 5}, 2, rank_min=3)


def test_a_budget_below_one_rank_is_an_error() -> None:
    with pytest.raises(ModelError, match=r"mean_rank is 0\.1.*not one rank"):
        ranks_for({"a": np.array([9.0, 0.0]), "b": np.array([1.0, 0.0])}, {"a": 5, "b": 5}, 0.1)


# --- where the answer is exact -------------------------------------------------------------------------------------


def test_parallel_linear_model_ranks_are_the_best_approximation() -> None:
    """y = sum of (W_i + D_i) x_i, x isotropic: the error of ranks r is the sum of D's dropped squared singular values.

    The gradient of the mean squared error at D = 0 is -2 D in expectation, so its squared singular values are D's, times 4,
    and the greedy's ranks have to equal the best of all allocations.
    """
    rng = np.random.default_rng(0)
    spectra = {"a": [5.0, 4.0, 3.0], "b": [3.5, 0.5, 0.1], "c": [0.3, 0.2, 0.1]}
    changes = {name: _with_spectrum(rng, values) for name, values in spectra.items()}
    x = {name: rng.normal(size=(20000, 6)) for name in changes}
    residual = sum(x[name] @ change.T for name, change in changes.items())
    gradients = {name: -2 * residual.T @ x[name] / len(x[name]) for name in changes}
    found = ranks_for(gradient_scores(gradients), dict.fromkeys(changes, 12), 4 / 3, rank_max=3)
    assert found.ranks == {"a": 3, "b": 1, "c": 0}

    def error(ranks: dict[str, int]) -> float:
        return sum(float(np.sum(np.square(spectra[name][rank:]))) for name, rank in ranks.items())

    every = [{"a": a, "b": b, "c": c} for a in range(4) for b in range(4) for c in range(4) if a + b + c <= 4]
    assert error(dict(found.ranks)) == min(error(ranks) for ranks in every)


def _with_spectrum(rng: np.random.Generator, values: list[float]) -> np.ndarray:
    u, _ = np.linalg.qr(rng.normal(size=(6, 3)))
    v, _ = np.linalg.qr(rng.normal(size=(6, 3)))
    return u @ np.diag(values) @ v.T


# --- freeze and rates ----------------------------------------------------------------------------------------------


def test_the_most_important_per_parameter_train_within_the_share() -> None:
    scores = {"big": np.array([6.0]), "small": np.array([3.0]), "tiny": np.array([0.1]), "mid": np.array([2.0])}
    numels = {"big": 100, "small": 10, "tiny": 10, "mid": 30}
    # per parameter: small .3, mid .067, big .06, tiny .01; 75 parameters
    assert allocate_freeze(scores, numels, share=0.5) == ("mid", "small", "tiny")
    assert allocate_freeze(scores, numels, share=1.0) == ("big", "mid", "small", "tiny")
    with pytest.raises(ModelError, match=r"trainable_share is 0\.01.*raise it to 0\.067"):
        allocate_freeze(scores, numels, share=0.01)


def test_rates_scale_with_importance_within_bounds() -> None:
    scores = {"a": np.array([1.0, 1.0]), "b": np.array([5.0, 3.0]), "c": np.array([2.0])}
    assert rate_scales(scores, power=0.5) == pytest.approx({"a": 0.5**0.5, "b": 2**0.5, "c": 0.5**0.5})
    assert rate_scales({"a": np.zeros(1), "b": np.zeros(1)}, power=1) == {"a": 1.0, "b": 1.0}
    extreme = {f"m{i:02}": np.array([0.0]) for i in range(50)} | {"all": np.array([1.0])}
    found = rate_scales(extreme, power=2)
    assert (found["m00"], found["all"]) == RATE_BOUNDS


# --- the file ------------------------------------------------------------------------------------------------------


def importance(**changes: object) -> Importance:
    parts = {"seed": 42, "options": {"probe_rank": 2}}
    values = {
        "key": importance_key(parts),
        "key_parts": parts,
        "score": "sensitivity",
        "modules": {
            "b": ModuleImportance(depth=1, cost=5, numel=6, scores=(0.1 + 0.2, 1e-17)),
            "a": ModuleImportance(depth=2, cost=5, numel=6, scores=(2.0, 1 / 3)),
        },
        "allocation": {"apply": "ranks", "ranks": {"a": 2, "b": 1}},
    }
    return Importance(**(values | changes))


def test_the_file_comes_back_as_it_was_with_every_digit(tmp_path: Path) -> None:
    path = tmp_path / "importance.json"
    path.write_text(importance().to_text(), encoding="utf-8")
    again = read_importance(path)
    assert again == importance()
    assert again.to_text() == importance().to_text()
    np.testing.assert_array_equal(again.scores["b"], [0.1 + 0.2, 1e-17])


def test_the_same_measurements_give_the_same_bytes_whatever_their_order() -> None:
    modules = importance().modules
    assert importance(modules=dict(reversed(modules.items()))).to_text() == importance().to_text()
    assert importance_key({"a": 1, "b": {"c": 2, "d": 3}}) == importance_key({"b": {"d": 3, "c": 2}, "a": 1})
    assert importance_key({"a": 1}) != importance_key({"a": 2})


def test_a_file_from_elsewhere_needs_only_scores() -> None:
    found = Importance.from_json({"modules": {"m": {"scores": [1, 3.5, 2]}}})
    np.testing.assert_array_equal(found.scores["m"], [3.5, 2, 1])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "this is not JSON"),
        ("[]", "'modules' is missing or empty"),
        ('{"modules": {}}', "'modules' is missing or empty"),
        ('{"modules": {"m": {}}}', "needs 'scores'"),
        ('{"modules": {"m": {"scores": [-1.0]}}}', "not negative"),
        ('{"modules": {"m": {"scores": [NaN]}}}', "finite"),
        ('{"modules": {"m": {"scores": [true]}}}', "numbers"),
        ('{"format": 7, "modules": {"m": {"scores": [1]}}}', "'format' is 7; this version reads 1"),
    ],
)
def test_a_file_that_does_not_fit_is_an_error_that_names_it(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "importance.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=message) as error:
        read_importance(path)
    assert str(path) in str(error.value)


def test_a_file_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"importance_file is .*nowhere.json.*No such file"):
        read_importance(tmp_path / "nowhere.json")


def test_the_text_is_plain_json_without_times() -> None:
    values = json.loads(importance().to_text())
    assert sorted(values) == ["allocation", "effective_share", "format", "key", "key_parts", "modules", "score"]
    assert values["modules"]["a"] == {"depth": 2, "cost": 5, "numel": 6, "scores": [2.0, 1 / 3]}
