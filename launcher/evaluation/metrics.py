"""Metrics of predictions: plain dictionaries of finite floats. A metric that is undefined for the rows is left out.

Only numpy is imported: the worker computes these at every evaluation during training.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from launcher.contracts import Predictions
from launcher.errors import DataError, LauncherError
from launcher.evaluation.answers import answer_metrics, is_answering
from launcher.evaluation.counts import Counts, ratio
from launcher.evaluation.language import language_metrics
from launcher.evaluation.tagging import is_tagging, per_type, tagging_metrics
from launcher.registry import suggest

HIGHER_IS_BETTER: dict[str, bool] = {
    "accuracy": True,
    "macro_f1": True,
    "micro_f1": True,
    "weighted_f1": True,
    "f1": True,
    "macro_precision": True,
    "micro_precision": True,
    "precision": True,
    "macro_recall": True,
    "micro_recall": True,
    "recall": True,
    "mcc": True,
    "auroc": True,
    "log_loss": False,
    "calibration_error": False,
    "brier": False,
    "hamming_loss": False,
    "spearman": True,
    "pearson": True,
    "r2": True,
    "mse": False,
    "rmse": False,
    "mae": False,
    "exact_match": True,
    "loss": False,
    "perplexity": False,
}
"""Every metric's name, and whether more of it is better; ``loss`` is the training objective, for causal-lm per token."""

HEADLINE: dict[str, tuple[str, ...]] = {
    "single_label_classification": ("accuracy", "macro_f1"),
    "binary_classification": ("accuracy", "macro_f1"),
    "multi_label_classification": ("micro_f1", "macro_f1"),
    "regression": ("spearman", "mse"),
    "causal_lm": ("perplexity", "loss"),
    "question_answering": ("f1", "exact_match"),
    "entity_recognition": ("f1", "accuracy"),
    "token_classification": ("accuracy", "macro_f1"),
}
"""The metrics of each problem type that get intervals and tests first; the verdict is about the first of them."""

CALIBRATION_BINS = 15


def greater_is_better(name: str) -> bool:
    """Return whether more of the metric ``name`` is better; a leading ``eval_`` is allowed.

    Raises:
        LauncherError: no such metric; the text names a near one.
    """
    plain = name.removeprefix("eval_")
    if plain in HIGHER_IS_BETTER:
        return HIGHER_IS_BETTER[plain]
    near = suggest(plain, HIGHER_IS_BETTER)
    hint = f"did you mean {near!r}?" if near else f"known are {', '.join(HIGHER_IS_BETTER)}"
    raise LauncherError(f"{name!r} is not a metric; {hint}")


# --- what the problem types share ----------------------------------------------------------------------------------


def is_multilabel(problem_type: str) -> bool:
    """Return whether a row may have several labels."""
    return problem_type == "multi_label_classification"


def is_regression(problem_type: str) -> bool:
    """Return whether the label is a number."""
    return problem_type == "regression"


def is_language(problem_type: str) -> bool:
    """Return whether the tokens of a text are predicted."""
    return problem_type == "causal_lm"


def decide(predictions: Predictions, *, threshold: float = 0.5) -> np.ndarray:
    """Return what is predicted, in the form of the labels: int64 [n], int64 0/1 [n, c], or float64 [n]."""
    scores = np.asarray(predictions.scores, dtype=np.float64)
    if is_regression(predictions.problem_type):
        return np.asarray(scores.reshape(len(scores), -1)[:, 0])
    if predictions.predicted is not None:
        return predictions.predicted
    if is_multilabel(predictions.problem_type):
        return np.asarray(scores > threshold, dtype=np.int64)
    return np.asarray(scores.argmax(axis=1), dtype=np.int64)


def require_labels(predictions: Predictions) -> np.ndarray:
    """Return the labels.

    Raises:
        DataError: there are no rows, no labels, or scores that are not finite.
    """
    if len(predictions.scores) == 0:
        raise DataError("there are no rows to evaluate")
    if predictions.labels is None:
        raise DataError("the rows have no labels, so no metric can be computed; use predict for unlabelled rows")
    if not np.isfinite(predictions.scores).all():
        bad = int(np.flatnonzero(~np.isfinite(predictions.scores).reshape(len(predictions.scores), -1).all(axis=1))[0])
        what = f"word {bad}" if predictions.words else f"row {predictions.row_ids[bad]}"
        raise DataError(f"the model's output for {what} is not a finite number; its weights are broken")
    return np.asarray(predictions.labels)


def count_classes(predicted: np.ndarray, labels: np.ndarray, *, classes: int) -> Counts:
    """Count per class; ``predicted`` and ``labels`` are int [n], or 0/1 [n, c] for multi-label."""
    if labels.ndim == 2:
        hits = (predicted * labels).sum(axis=0)
        return Counts(hits.astype(float), predicted.sum(axis=0).astype(float), labels.sum(axis=0).astype(float))
    hits = np.bincount(labels[predicted == labels], minlength=classes)
    totals = (np.bincount(values, minlength=classes).astype(float) for values in (predicted, labels))
    return Counts(hits.astype(float), *totals)


# --- classification ------------------------------------------------------------------------------------------------


def classification_metrics(scores: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Return the metrics of one label per row.

    ``scores``: probabilities [n, c]; ``labels``: int [n]. The predicted class is the one with the highest probability.
    Macro averages run over the classes that occur in labels or predictions. With two classes ``f1``, ``precision`` and
    ``recall`` are those of the second one. ``auroc`` is the mean over classes of one against the rest, and is left out
    when a class has no rows. ``mcc`` is 0 where it is undefined (Gorodkin 2004, Comput. Biol. Chem. 28, eq. 8).
    """
    scores, labels = np.asarray(scores, dtype=np.float64), np.asarray(labels, dtype=np.int64)
    classes = scores.shape[1]
    predicted = scores.argmax(axis=1)
    counts = count_classes(predicted, labels, classes=classes)
    metrics = {"accuracy": float((predicted == labels).mean()), **_averages(counts)}
    if classes == 2:
        metrics |= {"f1": counts.f1[1], "precision": counts.precision[1], "recall": counts.recall[1]}
    metrics["mcc"] = _matthews(counts)
    metrics |= _one_against_rest(scores, labels[:, None] == np.arange(classes))
    metrics["log_loss"] = float(row_log_loss(scores, labels).mean())
    metrics["calibration_error"] = calibration_error(scores.max(axis=1), predicted == labels)
    metrics["brier"] = float(row_brier(scores, labels).mean())
    return _finite(metrics)


def multilabel_metrics(scores: np.ndarray, labels: np.ndarray, threshold: float = 0.5) -> dict[str, float]:
    """Return the metrics of several labels per row.

    ``scores``: probabilities [n, c]; ``labels``: 0/1 [n, c]; a label is predicted above ``threshold``. ``accuracy`` is
    the share of rows whose whole set of labels is right; log loss, Brier score and calibration error are over all n *
    c decisions; ``auroc`` is the mean over labels, left out when a label has only one value.
    """
    scores, labels = np.asarray(scores, dtype=np.float64), np.asarray(labels, dtype=np.int64)
    predicted = (scores > threshold).astype(np.int64)
    counts = count_classes(predicted, labels, classes=scores.shape[1])
    metrics = {"accuracy": float((predicted == labels).all(axis=1).mean()), **_averages(counts)}
    metrics["hamming_loss"] = float((predicted != labels).mean())
    metrics |= _one_against_rest(scores, labels.astype(bool))
    metrics["log_loss"] = float(row_log_loss(scores, labels).mean())
    metrics["calibration_error"] = calibration_error(scores.ravel(), labels.ravel().astype(bool))
    metrics["brier"] = float(row_brier(scores, labels).mean())
    return _finite(metrics)


def _averages(counts: Counts) -> dict[str, float]:
    return {
        "macro_f1": float(counts.macro(counts.f1)),
        "micro_f1": float(counts.micro_f1()),
        "weighted_f1": float(ratio((counts.f1 * counts.support).sum(), counts.support.sum())),
        "macro_precision": float(counts.macro(counts.precision)),
        "micro_precision": float(ratio(counts.hits.sum(), counts.predicted.sum())),
        "macro_recall": float(counts.macro(counts.recall)),
        "micro_recall": float(ratio(counts.hits.sum(), counts.support.sum())),
    }


def _matthews(counts: Counts) -> float:
    rows = counts.support.sum()
    covariance = counts.hits.sum() * rows - counts.predicted @ counts.support
    spread = (rows**2 - counts.predicted @ counts.predicted) * (rows**2 - counts.support @ counts.support)
    return float(covariance / np.sqrt(spread)) if spread > 0 else 0.0


def _one_against_rest(scores: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    if scores.shape[1] < 2 or not (truth.any(axis=0) & ~truth.all(axis=0)).all():
        return {}
    return {"auroc": float(np.mean([_auroc(scores[:, k], truth[:, k]) for k in range(scores.shape[1])]))}


def _auroc(scores: np.ndarray, truth: np.ndarray) -> float:
    """Area under the ROC curve as a rank sum (Hanley and McNeil 1982, Radiology 143, section 3); ties count half."""
    positives = int(truth.sum())
    negatives = len(truth) - positives
    return float((average_ranks(scores)[truth].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def average_ranks(values: np.ndarray) -> np.ndarray:
    """Return the ranks of ``values`` [n] from 1 on, float64 [n]; equal values share the mean of their ranks."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return np.asarray((last - (counts - 1) / 2)[inverse])


def row_log_loss(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return each row's negative log-likelihood in nats [n]; probabilities are clipped to [eps, 1 - eps] of float64.

    For multi-label (``labels`` [n, c]) it is the mean over the row's decisions.
    """
    tiny = np.finfo(np.float64).eps
    clipped = np.clip(scores, tiny, 1 - tiny)
    if labels.ndim == 2:
        return np.asarray(-np.where(labels == 1, np.log(clipped), np.log1p(-clipped)).mean(axis=1))
    return np.asarray(-np.log(clipped[np.arange(len(labels)), labels]))


def row_brier(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return each row's Brier score [n] (Brier 1950, Mon. Weather Rev. 78, eq. 2).

    For one label per row it is the squared distance to the one-hot label, from 0 to 2; with two classes half of that,
    as is usual; for multi-label the mean over the row's decisions.
    """
    if labels.ndim == 2:
        return np.asarray(((scores - labels) ** 2).mean(axis=1))
    distance = ((scores - (labels[:, None] == np.arange(scores.shape[1]))) ** 2).sum(axis=1)
    return np.asarray(distance / 2 if scores.shape[1] == 2 else distance)


def reliability_bins(
    confidence: np.ndarray, right: np.ndarray, *, bins: int = CALIBRATION_BINS
) -> list[dict[str, float]]:
    """Return one record per non-empty bin of equal width over [0, 1]: low, high, rows, confidence and accuracy
    (means).

    ``confidence``: [n] in [0, 1]; ``right``: bool [n]. Bins are (low, high], the first one includes 0.
    """
    place = np.clip(np.ceil(np.asarray(confidence) * bins).astype(int) - 1, 0, bins - 1)
    rows = np.bincount(place, minlength=bins)
    sums = [
        np.bincount(place, weights=values, minlength=bins) for values in (confidence, np.asarray(right, dtype=float))
    ]
    return [
        {"low": k / bins, "high": (k + 1) / bins, "rows": int(rows[k]),
         "confidence": float(sums[0][k] / rows[k]), "accuracy": float(sums[1][k] / rows[k])}
        for k in np.flatnonzero(rows)
    ]  # fmt: skip


def calibration_error(confidence: np.ndarray, right: np.ndarray, *, bins: int = CALIBRATION_BINS) -> float:
    """Return the expected calibration error: mean over rows of |accuracy - confidence| of their bin.

    Source: Guo, Pleiss, Sun and Weinberger 2017, "On Calibration of Modern Neural Networks", section 2, eq. 3.
    """
    records = reliability_bins(confidence, right, bins=bins)
    return sum(r["rows"] * abs(r["accuracy"] - r["confidence"]) for r in records) / len(confidence)


# --- regression ----------------------------------------------------------------------------------------------------


def regression_metrics(predicted: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Return the metrics of predicted numbers [n] against labels [n], in the labels' own unit (mse: its square).

    Correlations are left out when predictions or labels are all equal, and r2 when labels are.
    """
    predicted, labels = np.asarray(predicted, dtype=np.float64).ravel(), np.asarray(labels, dtype=np.float64).ravel()
    errors = predicted - labels
    mse = float((errors**2).mean())
    metrics = {"mse": mse, "rmse": mse**0.5, "mae": float(np.abs(errors).mean())}
    if _varies(labels):
        metrics["r2"] = 1 - mse / float(labels.var())
    if _varies(labels) and _varies(predicted):
        metrics["pearson"] = correlation(predicted, labels)
        metrics["spearman"] = correlation(average_ranks(predicted), average_ranks(labels))
    return _finite(metrics)


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Return Pearson's correlation of ``a`` and ``b`` [n]; NaN where one of them does not vary."""
    if not (_varies(a) and _varies(b)):
        return float("nan")
    a, b = a - a.mean(), b - b.mean()
    return float(np.clip(a @ b / np.sqrt((a @ a) * (b @ b)), -1, 1))


def _varies(values: np.ndarray) -> bool:
    return bool(len(values) > 1 and np.ptp(values) > 1e-12 * max(1.0, float(np.abs(values).max())))


# --- by problem type -----------------------------------------------------------------------------------------------


def metrics_for(predictions: Predictions) -> dict[str, float]:
    """Return the metrics that fit the predictions' problem type.

    Raises:
        DataError: there are no rows, no labels, or scores that are not finite.
    """
    labels = require_labels(predictions)
    if is_language(predictions.problem_type):
        return language_metrics(predictions.scores[:, 0], labels)
    if is_tagging(predictions.problem_type):
        return tagging_metrics(predictions)
    if is_answering(predictions.problem_type):
        return answer_metrics(predictions)
    if is_regression(predictions.problem_type):
        return regression_metrics(decide(predictions), labels)
    if is_multilabel(predictions.problem_type):
        return multilabel_metrics(predictions.scores, labels)
    return classification_metrics(predictions.scores, labels)


def omitted_metrics(predictions: Predictions) -> dict[str, str]:
    """Return the metrics that ``metrics_for`` leaves out for these rows, each with the reason in words."""
    labels, found = require_labels(predictions), metrics_for(predictions)
    if is_language(predictions.problem_type):
        return {} if "perplexity" in found or not found else {"perplexity": "it is too large for a number"}
    if is_tagging(predictions.problem_type) or is_answering(predictions.problem_type):
        return {}
    if is_regression(predictions.problem_type):
        what = "labels" if not _varies(np.asarray(labels, dtype=float)) else "predictions"
        return {name: f"all {what} are equal" for name in ("spearman", "pearson", "r2") if name not in found}
    if "auroc" in found or len(predictions.label_names) < 2:
        return {}
    truth = labels == 1 if labels.ndim == 2 else labels[:, None] == np.arange(len(predictions.label_names))
    lacking = [
        name for name, column in zip(predictions.label_names, truth.T, strict=True) if column.all() or not column.any()
    ]
    return {"auroc": f"it needs rows with and without each label, which fails for {_some(lacking)}"}


def _some(names: Iterable[str], most: int = 3) -> str:
    names = list(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def per_class(predictions: Predictions) -> list[dict[str, Any]]:
    """Return one record per label, in the order of the names: name, support, predicted, precision, recall, f1.

    Empty for regression. Raises DataError as ``metrics_for`` does.
    """
    labels = require_labels(predictions)
    if is_regression(predictions.problem_type):
        return []
    if is_tagging(predictions.problem_type):
        return per_type(predictions)
    counts = count_classes(decide(predictions), labels, classes=len(predictions.label_names))
    return [
        {"name": name, "support": int(counts.support[k]), "predicted": int(counts.predicted[k]),
         "precision": float(counts.precision[k]), "recall": float(counts.recall[k]), "f1": float(counts.f1[k])}
        for k, name in enumerate(predictions.label_names)
    ]  # fmt: skip


def _finite(metrics: dict[str, float]) -> dict[str, float]:
    return {name: float(value) for name, value in metrics.items() if np.isfinite(value)}
