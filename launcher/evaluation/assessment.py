"""A model's predictions and its baselines' on the same rows, turned into one record of what is known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from launcher.contracts import Predictions
from launcher.evaluation.baselines import TITLES, Baseline
from launcher.evaluation.kinds import kind_of
from launcher.evaluation.kinds.base import clean_text
from launcher.evaluation.statistics import Interval, percentile_interval, resample

Draws = dict[str, np.ndarray]


@dataclass(frozen=True)
class Evaluation:
    """What is known about predictions on one split; plain values only, so that it goes to JSON and back.

    Empty parts stand for what does not apply: without labels only ``rows`` and ``label_names`` are filled.
    """

    problem_type: str
    split: str
    """Name of the split that the rows come from."""
    rows: int
    labelled: bool
    label_names: list[str]
    headline: list[str]
    """Names of the metrics that the verdict is about, the first one first."""
    metrics: dict[str, float] = field(default_factory=dict)
    intervals: dict[str, dict[str, float]] = field(default_factory=dict)
    """Metric -> {low, high}."""
    omitted: dict[str, str] = field(default_factory=dict)
    """Metric that is undefined on these rows -> why."""
    per_class: list[dict[str, Any]] = field(default_factory=list)
    confusion: list[list[int]] = field(default_factory=list)
    """[label, predicted, rows] for each pair that occurs; indices into label_names; one label per row only."""
    confused_pairs: list[dict[str, Any]] = field(default_factory=list)
    """Most frequent confusions: label, predicted, rows, share (of the label's rows)."""
    reliability: list[dict[str, float]] = field(default_factory=list)
    """Bins of the calibration error: low, high, rows, confidence, accuracy."""
    scatter: list[list[float]] = field(default_factory=list)
    """[label, predicted] of a sample of rows; regression only."""
    mistakes: list[dict[str, Any]] = field(default_factory=list)
    """Most confident mistakes: row_id, text, label, predicted, score, label_score (regression: error; tagged words: errors)."""
    baselines: list[dict[str, Any]] = field(default_factory=list)
    """name, title, metrics, intervals, chosen, note."""
    comparisons: list[dict[str, Any]] = field(default_factory=list)
    """Model against each baseline: name, test {a_only, b_only, p_value}, differences {metric: {estimate, low,
    high}}."""
    confidence: float = 0.95
    bootstrap: int = 0

    def to_json(self) -> dict[str, Any]:
        """Return plain values without NaN, for evaluation/metrics.json."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Evaluation:
        """Return what ``to_json`` gave."""
        return cls(**values)


def evaluate_predictions(
    predictions: Predictions, baselines: Sequence[Baseline] = (), *,
    bootstrap: int = 1000, confidence: float = 0.95, seed: int = 0, split: str = "test",
) -> Evaluation:  # fmt: skip
    """Compare a model's predictions with baselines' on the same rows in the same order.

    ``bootstrap``: resamples for the intervals, 0 for none; ``confidence``: their coverage; ``split``: what the rows
    are.

    Raises:
        DataError: there are no rows, or scores that are not finite.
    """
    start = _outline(predictions, split=split, confidence=confidence, bootstrap=bootstrap)
    if predictions.labels is None:
        return Evaluation(**start)
    draws = _draws(predictions, bootstrap=bootstrap, seed=seed)
    records, comparisons = [], []
    for baseline in baselines:
        assert baseline.predictions.row_ids == predictions.row_ids, "a baseline must be evaluated on the model's rows"
        other = _draws(baseline.predictions, bootstrap=bootstrap, seed=seed)
        records.append(_baseline_record(baseline, other, confidence=confidence))
        comparisons.append(_comparison(predictions, baseline, draws, other, confidence=confidence))
    kind = kind_of(predictions)
    metrics = kind.metrics(predictions)
    return Evaluation(
        **start,
        **kind.details(predictions),
        metrics=metrics,
        intervals=_intervals(draws, confidence=confidence),
        omitted=kind.omitted(predictions, metrics),
        baselines=records,
        comparisons=comparisons,
    )


def _outline(predictions: Predictions, **given: Any) -> dict[str, Any]:
    return {
        "problem_type": predictions.problem_type,
        "rows": len(predictions.row_ids),
        "labelled": predictions.labels is not None,
        "label_names": [clean_text(name) for name in predictions.label_names],
        "headline": list(kind_of(predictions).headline),
        **given,
    }


# --- intervals and comparisons -------------------------------------------------------------------------------------


def _draws(predictions: Predictions, *, bootstrap: int, seed: int) -> Draws:
    if not bootstrap:
        return {}
    n = len(predictions.row_ids)
    statistics = kind_of(predictions).statistics(predictions)
    return {name: resample(statistic, n, resamples=bootstrap, seed=seed) for name, statistic in statistics.items()}


def _intervals(draws: Draws, *, confidence: float) -> dict[str, dict[str, float]]:
    found: dict[str, Interval | None] = {
        name: percentile_interval(d, confidence=confidence) for name, d in draws.items()
    }
    return {name: asdict(interval) for name, interval in found.items() if interval is not None}


def _baseline_record(baseline: Baseline, draws: Draws, *, confidence: float) -> dict[str, Any]:
    title = TITLES.get(baseline.name, baseline.name)
    if baseline.name == "majority" and baseline.predictions.problem_type == "regression":
        title = "mean label"
    return {
        "name": baseline.name, "title": title, "metrics": dict(baseline.metrics),
        "intervals": _intervals(draws, confidence=confidence), "chosen": dict(baseline.chosen), "note": baseline.note,
    }  # fmt: skip


def _comparison(
    predictions: Predictions, baseline: Baseline, draws: Draws, other: Draws, *, confidence: float
) -> dict[str, Any]:
    """Equal seeds gave equal resamples, so the draws are paired and their difference is the difference's own
    bootstrap.
    """
    kind = kind_of(predictions)
    ours, theirs = kind.metrics(predictions), baseline.metrics
    intervals = _intervals({name: draws[name] - other[name] for name in draws}, confidence=confidence)
    return {
        "name": baseline.name,
        "test": asdict(kind.test(predictions, baseline.predictions)),
        "differences": {
            name: {"estimate": ours[name] - theirs[name], **intervals.get(name, {})} for name in ours if name in theirs
        },
    }
