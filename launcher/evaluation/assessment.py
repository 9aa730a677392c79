"""A model's predictions and its baselines' on the same rows, turned into one record of what is known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from launcher.contracts import Predictions
from launcher.evaluation.answers import is_answering, worst_answers
from launcher.evaluation.baselines import TITLES, Baseline
from launcher.evaluation.metrics import (
    HEADLINE,
    decide,
    is_language,
    is_multilabel,
    is_regression,
    metrics_for,
    omitted_metrics,
    per_class,
    reliability_bins,
)
from launcher.evaluation.predictions_io import clean_text
from launcher.evaluation.statistics import (
    Interval,
    paired_test_for,
    percentile_interval,
    resample,
    right_rows,
    statistics_for,
)
from launcher.evaluation.tagging import ENTITIES, differences_in_words, is_tagging, row_errors

MOST_MISTAKES = 25
MOST_PAIRS = 20
MOST_POINTS = 2000
MOST_CHARACTERS = 600

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
    """[label, predicted] of up to MOST_POINTS rows; regression only."""
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
    return Evaluation(
        **start,
        **_details(predictions),
        metrics=metrics_for(predictions),
        intervals=_intervals(draws, confidence=confidence),
        omitted=omitted_metrics(predictions),
        baselines=records,
        comparisons=comparisons,
    )


def _outline(predictions: Predictions, **given: Any) -> dict[str, Any]:
    return {
        "problem_type": predictions.problem_type,
        "rows": len(predictions.row_ids),
        "labelled": predictions.labels is not None,
        "label_names": [clean_text(name) for name in predictions.label_names],
        "headline": list(HEADLINE[predictions.problem_type]),
        **given,
    }


# --- intervals and comparisons -------------------------------------------------------------------------------------


def _draws(predictions: Predictions, *, bootstrap: int, seed: int) -> Draws:
    if not bootstrap:
        return {}
    n = len(predictions.row_ids)
    return {name: resample(s, n, resamples=bootstrap, seed=seed) for name, s in statistics_for(predictions).items()}


def _intervals(draws: Draws, *, confidence: float) -> dict[str, dict[str, float]]:
    found: dict[str, Interval | None] = {
        name: percentile_interval(d, confidence=confidence) for name, d in draws.items()
    }
    return {name: asdict(interval) for name, interval in found.items() if interval is not None}


def _baseline_record(baseline: Baseline, draws: Draws, *, confidence: float) -> dict[str, Any]:
    title = TITLES.get(baseline.name, baseline.name)
    if baseline.name == "majority" and is_regression(baseline.predictions.problem_type):
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
    ours, theirs = metrics_for(predictions), baseline.metrics
    intervals = _intervals({name: draws[name] - other[name] for name in draws}, confidence=confidence)
    return {
        "name": baseline.name,
        "test": asdict(paired_test_for(predictions, baseline.predictions)),
        "differences": {
            name: {"estimate": ours[name] - theirs[name], **intervals.get(name, {})} for name in ours if name in theirs
        },
    }


# --- details -------------------------------------------------------------------------------------------------------


def _details(predictions: Predictions) -> dict[str, Any]:
    if is_language(predictions.problem_type):
        return {}
    if is_tagging(predictions.problem_type):
        return _tagging_details(predictions)
    if is_answering(predictions.problem_type):
        wrong = worst_answers(predictions, most=MOST_MISTAKES)
        return {"mistakes": [{**_row(predictions, i), **_clean_values(mistake)} for i, mistake in wrong]}
    if is_regression(predictions.problem_type):
        return {"scatter": _scatter(predictions), "mistakes": _largest_errors(predictions)}
    details = {"per_class": per_class(predictions), "reliability": _reliability(predictions)}
    for record in details["per_class"]:
        record["name"] = clean_text(record["name"])
    if is_multilabel(predictions.problem_type):
        return details | {"mistakes": _worst_label_sets(predictions)}
    confusion = _confusion(predictions)
    pairs = _confused_pairs(confusion, predictions)
    return details | {"confusion": confusion, "confused_pairs": pairs, "mistakes": _confident_mistakes(predictions)}


def _clean_values(record: Mapping[str, Any]) -> dict[str, Any]:
    return {key: clean_text(value) if isinstance(value, str) else value for key, value in record.items()}


def _tagging_details(predictions: Predictions) -> dict[str, Any]:
    assert predictions.labels is not None
    details: dict[str, Any] = {
        "per_class": [{**record, "name": clean_text(record["name"])} for record in per_class(predictions)],
        "reliability": reliability_bins(predictions.scores, decide(predictions) == predictions.labels),
        "mistakes": _worst_sentences(predictions),
    }
    if predictions.problem_type == ENTITIES:
        return details
    confusion = _confusion(predictions)
    return details | {"confusion": confusion, "confused_pairs": _confused_pairs(confusion, predictions)}


def _worst_sentences(predictions: Predictions) -> list[dict[str, Any]]:
    """Return the sentences with the most errors: what is wrong or made up in them, and what should have been found."""
    errors = row_errors(predictions)
    worst = [int(i) for i in np.argsort(-errors, kind="stable")[:MOST_MISTAKES] if errors[i]]
    found = []
    for i in worst:
        wrong, missed = differences_in_words(predictions, i)
        found.append({**_row(predictions, i), "label": missed, "predicted": wrong, "errors": int(errors[i])})
    return found


def _reliability(predictions: Predictions) -> list[dict[str, float]]:
    scores, labels = predictions.scores, predictions.labels
    assert labels is not None
    if is_multilabel(predictions.problem_type):
        return reliability_bins(scores.ravel(), labels.ravel().astype(bool))
    return reliability_bins(scores.max(axis=1), right_rows(predictions))


def _confusion(predictions: Predictions) -> list[list[int]]:
    pairs = np.stack([np.asarray(predictions.labels), decide(predictions)], axis=1)
    kinds, rows = np.unique(pairs, axis=0, return_counts=True)
    return [[int(a), int(b), int(count)] for (a, b), count in zip(kinds, rows, strict=True)]


def _confused_pairs(confusion: list[list[int]], predictions: Predictions) -> list[dict[str, Any]]:
    names, support = (
        predictions.label_names,
        np.bincount(np.asarray(predictions.labels), minlength=len(predictions.label_names)),
    )
    wrong = sorted((cell for cell in confusion if cell[0] != cell[1]), key=lambda cell: (-cell[2], cell[0], cell[1]))
    return [
        {
            "label": clean_text(names[a]),
            "predicted": clean_text(names[b]),
            "rows": rows,
            "share": rows / int(support[a]),
        }
        for a, b, rows in wrong[:MOST_PAIRS]
    ]


def _row(predictions: Predictions, i: int) -> dict[str, Any]:
    text = clean_text(predictions.texts[i])
    short = text if len(text) <= MOST_CHARACTERS else text[:MOST_CHARACTERS].rstrip() + " …"
    return {"row_id": int(predictions.row_ids[i]), "text": short}


def _confident_mistakes(predictions: Predictions) -> list[dict[str, Any]]:
    scores, predicted, labels = predictions.scores, decide(predictions), np.asarray(predictions.labels)
    names = [clean_text(name) for name in predictions.label_names]
    wrong = np.flatnonzero(predicted != labels)
    worst = wrong[np.argsort(-scores[wrong].max(axis=1), kind="stable")][:MOST_MISTAKES]
    return [
        {**_row(predictions, i), "label": names[labels[i]], "predicted": names[predicted[i]],
         "score": float(scores[i, predicted[i]]), "label_score": float(scores[i, labels[i]])}
        for i in worst
    ]  # fmt: skip


def _worst_label_sets(predictions: Predictions) -> list[dict[str, Any]]:
    """Rank rows by the one label on which the model is most confidently wrong."""
    labels, predicted = np.asarray(predictions.labels), decide(predictions)
    names = [clean_text(name) for name in predictions.label_names]
    gaps = np.where(predicted != labels, np.abs(predictions.scores - labels), 0)
    worst = [i for i in np.argsort(-gaps.max(axis=1), kind="stable")[:MOST_MISTAKES] if gaps[i].any()]

    def named(row: np.ndarray) -> str:
        return ", ".join(names[k] for k in np.flatnonzero(row)) or "(none)"

    return [
        {**_row(predictions, i), "label": named(labels[i]), "predicted": named(predicted[i]),
         "about": names[int(gaps[i].argmax())], "score": float(predictions.scores[i, gaps[i].argmax()])}
        for i in worst
    ]  # fmt: skip


def _largest_errors(predictions: Predictions) -> list[dict[str, Any]]:
    labels, predicted = np.asarray(predictions.labels, dtype=float), decide(predictions)
    errors = predicted - labels
    worst = np.argsort(-np.abs(errors), kind="stable")[:MOST_MISTAKES]
    return [
        {**_row(predictions, i), "label": float(labels[i]), "predicted": float(predicted[i]), "error": float(errors[i])}
        for i in worst
    ]


def _scatter(predictions: Predictions) -> list[list[float]]:
    points = np.stack([np.asarray(predictions.labels, dtype=float), decide(predictions)], axis=1)
    if len(points) > MOST_POINTS:
        points = points[np.sort(np.random.default_rng(0).choice(len(points), size=MOST_POINTS, replace=False))]
    return [[round(float(a), 6), round(float(b), 6)] for a, b in points]
