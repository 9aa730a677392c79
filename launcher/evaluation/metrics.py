"""Metrics of classes and numbers: plain dictionaries of finite floats. A metric that is undefined for the rows is left out.

Only numpy is imported: the worker computes these at every evaluation during training.
"""

from __future__ import annotations

import numpy as np

from launcher.evaluation.counts import Counts, ratio

CALIBRATION_BINS = 15


# --- classification ------------------------------------------------------------------------------------------------


def count_classes(predicted: np.ndarray, labels: np.ndarray, *, classes: int) -> Counts:
    """Count per class; ``predicted`` and ``labels`` are int [n], or 0/1 [n, c] for multi-label."""
    if labels.ndim == 2:
        hits = (predicted * labels).sum(axis=0)
        return Counts(hits.astype(float), predicted.sum(axis=0).astype(float), labels.sum(axis=0).astype(float))
    hits = np.bincount(labels[predicted == labels], minlength=classes)
    totals = (np.bincount(values, minlength=classes).astype(float) for values in (predicted, labels))
    return Counts(hits.astype(float), *totals)


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
    if varies(labels):
        metrics["r2"] = 1 - mse / float(labels.var())
    if varies(labels) and varies(predicted):
        metrics["pearson"] = correlation(predicted, labels)
        metrics["spearman"] = correlation(average_ranks(predicted), average_ranks(labels))
    return _finite(metrics)


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Return Pearson's correlation of ``a`` and ``b`` [n]; NaN where one of them does not vary."""
    if not (varies(a) and varies(b)):
        return float("nan")
    a, b = a - a.mean(), b - b.mean()
    return float(np.clip(a @ b / np.sqrt((a @ a) * (b @ b)), -1, 1))


def varies(values: np.ndarray) -> bool:
    """Whether not all values [n] are the same, rounding aside."""
    return bool(len(values) > 1 and np.ptp(values) > 1e-12 * max(1.0, float(np.abs(values).max())))


def _finite(metrics: dict[str, float]) -> dict[str, float]:
    return {name: float(value) for name, value in metrics.items() if np.isfinite(value)}
