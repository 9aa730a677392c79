"""A number for each row."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from launcher.contracts import Predictions
from launcher.evaluation.kinds.base import MOST_MISTAKES, Kind, Words, require_labels, shown_row
from launcher.evaluation.metrics import regression_metrics, varies
from launcher.evaluation.statistics import (
    PairedTest,
    Statistic,
    correlation_statistic,
    mean_statistic,
    sign_test,
)

MOST_POINTS = 2000


class Regression(Kind):
    """A number for each row."""

    headline = ("spearman", "mse")
    words = Words(
        certainty="closer on {a} rows, further off on {b}; exact sign test",
        test="exact sign test",
        better=("model closer", "baseline closer"),
        mistakes="Largest errors",
    )

    def decided(self, predictions: Predictions) -> np.ndarray:
        """Return the predicted numbers, float64 [rows]."""
        return np.asarray(np.asarray(predictions.scores, dtype=np.float64).reshape(len(predictions.scores), -1)[:, 0])

    def _errors(self, predictions: Predictions) -> np.ndarray:
        return np.asarray(self.decided(predictions) - require_labels(predictions).astype(np.float64))

    def metrics(self, predictions: Predictions) -> dict[str, float]:
        """Return ``regression_metrics``."""
        return regression_metrics(self.decided(predictions), require_labels(predictions))

    def omitted(self, predictions: Predictions, found: Mapping[str, float]) -> dict[str, str]:
        """Return why there is no correlation, where there is none."""
        what = "labels" if not varies(np.asarray(predictions.labels, dtype=float)) else "predictions"
        return {name: f"all {what} are equal" for name in ("spearman", "pearson", "r2") if name not in found}

    def statistics(self, predictions: Predictions) -> dict[str, Statistic]:
        """Return correlations and errors as statistics."""
        predicted, errors = self.decided(predictions), self._errors(predictions)
        labels = np.asarray(predictions.labels, dtype=np.float64)
        squared = mean_statistic(errors**2)
        return {
            "spearman": correlation_statistic(predicted, labels, ranks=True),
            "pearson": correlation_statistic(predicted, labels, ranks=False),
            "mse": squared,
            "rmse": lambda rows: np.sqrt(squared(rows)),
            "mae": mean_statistic(np.abs(errors)),
        }

    def test(self, a: Predictions, b: Predictions) -> PairedTest:
        """Return the sign test on absolute errors."""
        return sign_test(self._errors(a), self._errors(b))

    def details(self, predictions: Predictions) -> dict[str, Any]:
        """Return scatter and mistakes."""
        return {"scatter": self._scatter(predictions), "mistakes": self._largest_errors(predictions)}

    def _largest_errors(self, predictions: Predictions) -> list[dict[str, Any]]:
        labels, predicted = np.asarray(predictions.labels, dtype=float), self.decided(predictions)
        errors = self._errors(predictions)
        worst = np.argsort(-np.abs(errors), kind="stable")[:MOST_MISTAKES]
        numbers = [
            {"label": float(labels[i]), "predicted": float(predicted[i]), "error": float(errors[i])} for i in worst
        ]
        return [{**shown_row(predictions, i), **found} for i, found in zip(worst, numbers, strict=True)]

    def _scatter(self, predictions: Predictions) -> list[list[float]]:
        points = np.stack([np.asarray(predictions.labels, dtype=float), self.decided(predictions)], axis=1)
        if len(points) > MOST_POINTS:
            points = points[np.sort(np.random.default_rng(0).choice(len(points), size=MOST_POINTS, replace=False))]
        return [[round(float(a), 6), round(float(b), 6)] for a, b in points]

    def columns(self, predictions: Predictions) -> dict[str, Any]:
        """Return label (null where unknown) and predicted."""
        import pyarrow

        labels = [None] * len(predictions.row_ids) if predictions.labels is None else predictions.labels.tolist()
        return {
            "label": pyarrow.array(labels, pyarrow.float64()),
            "predicted": pyarrow.array(self.decided(predictions)),
        }

    def read(self, columns: Mapping[str, Any], facts: Mapping[str, Any]) -> dict[str, Any]:
        """Return scores and labels."""
        labels = columns["label"].to_pylist()
        known = bool(labels) and labels[0] is not None
        return {
            "scores": np.asarray(columns["predicted"].to_numpy(), dtype=np.float64).reshape(-1, 1),
            "labels": np.asarray(labels, dtype=np.float64) if known else None,
        }

    def rows(self, predictions: Predictions) -> list[dict[str, Any]]:
        """Return text and prediction."""
        numbers = self.decided(predictions)
        return [{"text": t, "prediction": float(n)} for t, n in zip(predictions.texts, numbers, strict=True)]

    def line(self, row: Mapping[str, Any]) -> str:
        """Return prediction and text."""
        return f"{row['prediction']:.4f}\t{row['text']}"

    def table(self, rows: Sequence[Mapping[str, Any]]) -> Iterator[Sequence[Any]]:
        """Yield text, prediction, and no score."""
        yield ["text", "prediction", "score"]
        yield from ([row["text"], row["prediction"], ""] for row in rows)
