"""How important modules are, and how a budget is shared among them: scores, ranks, frozen modules, rates.

Pure functions of numbers, in float64, with ties broken by module name: the same measurements give the same answer everywhere.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from launcher.errors import ModelError

Statistics = Mapping[str, Mapping[str, np.ndarray]]
Scores = Mapping[str, np.ndarray]

# A rate is never scaled by less or more than this: a module that a short probe saw nothing of still trains, and one that it
# saw much of does not diverge.
RATE_BOUNDS = (0.1, 10.0)
# Relative, so that a budget of mean_rank 0.1 times 10 modules holds exactly one unit although 0.1 has no exact binary form.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Allocation:
    """Ranks under a budget, and why they are what they are."""

    ranks: Mapping[str, int]
    """Module name -> rank, sorted by name; 0: no adapter."""
    is_uniform: bool
    """Whether importance was too even to tell modules apart, so that all got the same rank."""
    effective_share: float
    """exp(entropy of the shares) / modules: 1 for equal importance, 1/modules where one has all of it."""
    budget: float
    """Parameters that adapters may have."""
    used: int
    """Parameters that they have."""


# --- from statistics to scores -------------------------------------------------------------------------------------


def module_scores(statistics: Statistics) -> dict[str, np.ndarray]:
    """Return each module's scores, one per rank of the probe's adapter: float64 [probe_rank], descending.

    The sensitivity of AdaLoRA (Zhang et al. 2023, section 3.2, equations 8 to 11): an element's importance is I * U, its
    smoothed abs(parameter * gradient) times the smoothed deviation from it; a rank's is the mean over row j of A plus the mean
    over column j of B.

    Args:
        statistics: module name -> ``importance_a``, ``uncertainty_a`` [probe_rank, in] and ``importance_b``,
            ``uncertainty_b`` [out, probe_rank], all non-negative.

    Raises:
        ModelError: a statistic is not finite: the probe has diverged.
    """
    return {name: _sensitivity(name, values) for name, values in sorted(statistics.items())}


def _sensitivity(module: str, values: Mapping[str, np.ndarray]) -> np.ndarray:
    rows = _product(values, "a").mean(axis=1)
    columns = _product(values, "b").mean(axis=0)
    return _descending(module, rows + columns)


def _product(values: Mapping[str, np.ndarray], matrix: str) -> np.ndarray:
    importance = np.asarray(values[f"importance_{matrix}"], dtype=np.float64)
    return importance * np.asarray(values[f"uncertainty_{matrix}"], dtype=np.float64)


def gradient_scores(mean_gradients: Scores) -> dict[str, np.ndarray]:
    """Return the squared singular values of each module's mean gradient [out, in]: float64 [min(out, in)], descending.

    The gain in loss per rank of the best low-rank step, to first order. Raises ModelError where a gradient is not finite.
    """
    return {
        name: _descending(name, _singular_values(name, gradient) ** 2)
        for name, gradient in sorted(mean_gradients.items())
    }


def variance_scores(covariances: Scores) -> dict[str, np.ndarray]:
    """Return the share of the inputs' variance that each principal component explains: float64 [in], descending.

    As in EVA (Paischer et al. 2024, "One Initialization to Rule them All"). A module whose inputs do not vary scores 0.

    Args:
        covariances: module name -> covariance of its inputs about their mean [in, in].

    Raises:
        ModelError: a covariance is not finite.
    """
    result = {}
    for name, covariance in sorted(covariances.items()):
        values = np.clip(np.linalg.eigvalsh(_finite(name, covariance)), 0.0, None)
        result[name] = _descending(name, values / (values.sum() or 1.0))
    return result


def _singular_values(module: str, gradient: np.ndarray) -> np.ndarray:
    return np.linalg.svd(_finite(module, gradient), compute_uv=False)


def _finite(module: str, values: np.ndarray) -> np.ndarray:
    values = np.asarray(values, dtype=np.float64)
    if not np.isfinite(values).all():
        raise ModelError(
            f"the importance of {module} is not finite: the probe has diverged; lower training.learning_rate, or use "
            "precision: fp32"
        )
    return values


def _descending(module: str, values: np.ndarray) -> np.ndarray:
    return np.sort(_finite(module, values))[::-1].copy()


# --- how evenly ----------------------------------------------------------------------------------------------------


def shares(scores: Scores) -> dict[str, float]:
    """Return each module's share of all importance; equal shares where there is none."""
    totals = {name: float(np.sum(values, dtype=np.float64)) for name, values in sorted(scores.items())}
    total = math.fsum(totals.values())
    return {name: value / total if total > 0 else 1 / len(totals) for name, value in totals.items()}


def effective_share(scores: Scores) -> float:
    """Return exp(entropy of the shares) / modules, in (0, 1]: the share of modules that importance is spread over."""
    found = shares(scores).values()
    entropy = -math.fsum(share * math.log(share) for share in found if share > 0)
    return min(math.exp(entropy) / len(found), 1.0)


# --- ranks under a budget ------------------------------------------------------------------------------------------


def allocate_ranks(
    scores: Scores,
    costs: Mapping[str, int],
    *,
    mean_rank: float,
    rank_min: int,
    rank_max: int,
    uniform_above: float,
) -> Allocation:
    """Return ranks that spend at most ``mean_rank * sum(costs)`` parameters where importance is greatest.

    Ranks grow one by one, each time that of the module with the greatest next score per parameter, until the next would
    exceed the budget. Scores fall within a module, so this is optimal at equal costs and within one rank's score otherwise;
    a larger budget never takes a rank away. Where importance is spread over more than ``uniform_above`` of the modules, all
    get ``mean_rank`` (a fraction is rounded down, and the most important modules get one more).

    Args:
        scores: module name -> scores, descending; a module's rank is at most their number.
        costs: module name -> parameters of one rank (inputs + outputs).

    Raises:
        ModelError: ``rank_min`` everywhere already exceeds the budget, or not one rank fits.
    """
    assert scores.keys() == costs.keys() and scores, "scores and costs name the same modules"
    budget = mean_rank * sum(costs.values())
    even = effective_share(scores)
    is_uniform = even > uniform_above
    low, high = (math.floor(mean_rank), math.ceil(mean_rank)) if is_uniform else (rank_min, rank_max)
    # Uniform ranks do not rest on scores, so neither does their limit.
    limits = {name: high if is_uniform else min(high, len(scores[name])) for name in scores}
    ranks = {name: min(low, limits[name]) for name in sorted(scores)}
    used = sum(rank * costs[name] for name, rank in ranks.items())
    if used > budget * (1 + _ROUNDING):
        raise ModelError(
            f"strategy.rank_min is {rank_min}, which needs {used:,} parameters of adapters, but strategy.mean_rank "
            f"{mean_rank:g} allows {budget:,.0f}; lower rank_min, or raise mean_rank"
        )
    ranks, used = _grow(ranks, used, scores=scores, costs=costs, limits=limits, budget=budget * (1 + _ROUNDING))
    if not used:
        raise ModelError(
            f"strategy.mean_rank is {mean_rank:g}, which allows {budget:,.0f} parameters: not one rank; raise it"
        )
    return Allocation(ranks=ranks, is_uniform=is_uniform, effective_share=even, budget=budget, used=used)


def _grow(
    ranks: dict[str, int],
    used: int,
    *,
    scores: Scores,
    costs: Mapping[str, int],
    limits: Mapping[str, int],
    budget: float,
) -> tuple[dict[str, int], int]:
    ranks = dict(ranks)

    def entry(name: str) -> tuple[float, str]:
        rank = ranks[name]
        score = float(scores[name][rank]) if rank < len(scores[name]) else 0.0
        return -score / costs[name], name

    heap = [entry(name) for name in ranks if ranks[name] < limits[name]]
    heapq.heapify(heap)
    while heap:
        _, name = heapq.heappop(heap)
        if used + costs[name] > budget:
            # Stopping here, instead of trying cheaper modules, keeps the ranks of a smaller budget within those of a larger.
            break
        ranks[name] += 1
        used += costs[name]
        if ranks[name] < limits[name]:
            heapq.heappush(heap, entry(name))
    return ranks, used


# --- which modules train, and how fast -----------------------------------------------------------------------------


def allocate_freeze(scores: Scores, numels: Mapping[str, int], *, share: float) -> tuple[str, ...]:
    """Return the modules that train, sorted by name: the most important per parameter, within ``share`` of all parameters.

    A module that no longer fits is passed over for the next.

    Args:
        scores: module name -> scores; their sum is the module's importance.
        numels: module name -> parameters that train with it.

    Raises:
        ModelError: not even one module fits.
    """
    assert scores.keys() == numels.keys() and scores, "scores and numels name the same modules"
    importance = shares(scores)
    budget = share * sum(numels.values()) * (1 + _ROUNDING)
    chosen: list[str] = []
    used = 0
    for name in sorted(scores, key=lambda name: (-importance[name] / numels[name], name)):
        if used + numels[name] <= budget:
            chosen.append(name)
            used += numels[name]
    if not chosen:
        raise ModelError(
            f"strategy.trainable_share is {share:g}: {budget:,.0f} parameters, fewer than any module has; raise it to "
            f"{min(numels.values()) / sum(numels.values()):.3f} or more"
        )
    return tuple(sorted(chosen))


def rate_scales(scores: Scores, *, power: float) -> dict[str, float]:
    """Return the factor of each module's rate: (its importance / the mean importance) ** power, within 0.1 to 10.

    A module of mean importance trains at the recipe's own rate. Where there is no importance at all, all factors are 1.
    """
    low, high = RATE_BOUNDS
    modules = len(scores)
    return {name: min(max((share * modules) ** power, low), high) for name, share in shares(scores).items()}
