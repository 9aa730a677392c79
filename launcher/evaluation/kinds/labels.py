"""Classified rows: one label of several, or any number of labels."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from launcher.contracts import Predictions
from launcher.evaluation.kinds.base import MOST_MISTAKES, Kind, Words, clean_text, require_labels, shown_row
from launcher.evaluation.metrics import (
    classification_metrics,
    count_classes,
    multilabel_metrics,
    reliability_bins,
    row_brier,
    row_log_loss,
)
from launcher.evaluation.statistics import (
    PairedTest,
    Statistic,
    exact_paired_test,
    f1_statistic,
    mean_statistic,
)

MOST_PAIRS = 20

MOST_SCORE_COLUMNS = 100
"""With more labels than this a single-label file keeps each row's TOP_LABELS best labels instead of a column per
label."""

TOP_LABELS = 20


class SingleLabel(Kind):
    """One label for each row; also of a model with one output for two labels."""

    headline = ("accuracy", "macro_f1")

    def decided(self, predictions: Predictions) -> np.ndarray:
        """Return the predicted labels' numbers, int64 [rows]."""
        return np.asarray(np.asarray(predictions.scores).argmax(axis=1), dtype=np.int64)

    def right(self, predictions: Predictions) -> np.ndarray:
        """Return which rows are right, bool [rows]."""
        return np.asarray(self.decided(predictions) == require_labels(predictions))

    def metrics(self, predictions: Predictions) -> dict[str, float]:
        """Return ``classification_metrics``."""
        return classification_metrics(predictions.scores, require_labels(predictions))

    def omitted(self, predictions: Predictions, found: Mapping[str, float]) -> dict[str, str]:
        """Return why there is no AUROC, where there is none."""
        if "auroc" in found or len(predictions.label_names) < 2:
            return {}
        lacking = [
            name
            for name, column in zip(predictions.label_names, self._truth(predictions).T, strict=True)
            if column.all() or not column.any()
        ]
        return {"auroc": f"it needs rows with and without each label, which fails for {_some(lacking)}"}

    def _truth(self, predictions: Predictions) -> np.ndarray:
        return np.asarray(require_labels(predictions)[:, None] == np.arange(len(predictions.label_names)))

    def statistics(self, predictions: Predictions) -> dict[str, Statistic]:
        """Return accuracy, F1, log loss and Brier score as statistics."""
        labels, scores = require_labels(predictions), np.asarray(predictions.scores, dtype=np.float64)
        return {
            "accuracy": mean_statistic(self.right(predictions)),
            **self._f1(self.decided(predictions), labels, classes=scores.shape[1]),
            "log_loss": mean_statistic(row_log_loss(scores, labels)),
            "brier": mean_statistic(row_brier(scores, labels)),
        }

    def _f1(self, predicted: np.ndarray, labels: np.ndarray, *, classes: int) -> dict[str, Statistic]:
        return {"macro_f1": f1_statistic(predicted, labels, classes=classes)}

    def test(self, a: Predictions, b: Predictions) -> PairedTest:
        """Return McNemar's exact test on right rows."""
        return exact_paired_test(self.right(a), self.right(b))

    # --- what is shown ---------------------------------------------------------------------------------------------

    def details(self, predictions: Predictions) -> dict[str, Any]:
        """Return per_class, reliability, confusion, confused_pairs and mistakes."""
        confusion = confusion_of(require_labels(predictions), self.decided(predictions))
        return {
            "per_class": self.per_class(predictions),
            "reliability": reliability_bins(predictions.scores.max(axis=1), self.right(predictions)),
            "confusion": confusion,
            "confused_pairs": confused_pairs(confusion, predictions),
            "mistakes": self._mistakes(predictions),
        }

    def per_class(self, predictions: Predictions) -> list[dict[str, Any]]:
        """Return one record per label, in the order of the names: name, support, predicted, precision, recall, f1."""
        labels, names = require_labels(predictions), predictions.label_names
        counts = count_classes(self.decided(predictions), labels, classes=len(names))
        return counts.records([clean_text(name) for name in names])

    def _mistakes(self, predictions: Predictions) -> list[dict[str, Any]]:
        scores, predicted, labels = predictions.scores, self.decided(predictions), np.asarray(predictions.labels)
        names = [clean_text(name) for name in predictions.label_names]
        wrong = np.flatnonzero(predicted != labels)
        worst = wrong[np.argsort(-scores[wrong].max(axis=1), kind="stable")][:MOST_MISTAKES]
        return [
            {**shown_row(predictions, i), "label": names[labels[i]], "predicted": names[predicted[i]],
             "score": float(scores[i, predicted[i]]), "label_score": float(scores[i, labels[i]])}
            for i in worst
        ]  # fmt: skip

    # --- files -----------------------------------------------------------------------------------------------------

    def columns(self, predictions: Predictions) -> dict[str, Any]:
        """Return label, predicted, confidence, correct, and ``score: NAME`` for each label or top_labels and top_scores."""
        import pyarrow

        scores, texts = np.asarray(predictions.scores, dtype=np.float64), pyarrow.string()
        names, empty = [clean_text(name) for name in predictions.label_names], [None] * len(scores)
        labels = predictions.labels
        predicted, right = self.decided(predictions), None if labels is None else self.decided(predictions) == labels
        columns: dict[str, Any] = {
            "label": pyarrow.array(empty if labels is None else _names_of(labels, names), texts),
            "predicted": pyarrow.array(_names_of(predicted, names), texts),
            "confidence": pyarrow.array(scores.max(axis=1) if len(scores) else np.zeros(0)),
            "correct": pyarrow.array(empty if right is None else right.tolist(), pyarrow.bool_()),
        }
        return columns | (score_columns(scores, names) if len(names) <= MOST_SCORE_COLUMNS else _best(scores, names))

    def read(self, columns: Mapping[str, Any], facts: Mapping[str, Any]) -> dict[str, Any]:
        """Return scores and labels. Exact, except where only the best labels' scores were kept: the other labels then share the
        rest evenly.
        """
        names = [clean_text(name) for name in facts["label_names"]]
        values = columns["label"].to_pylist()
        place = {name: number for number, name in enumerate(names)}
        known = bool(values) and values[0] is not None
        labels = np.array([place[value] for value in values], dtype=np.int64) if known else None
        scores = _read_best(columns, place) if "top_labels" in columns else read_scores(columns, names)
        return {"scores": scores, "labels": labels}

    def rows(self, predictions: Predictions) -> list[dict[str, Any]]:
        """Return text, prediction (a label's name), and scores by label."""
        names = predictions.label_names
        return [
            {"text": text, "prediction": names[int(number)], "scores": _by_name(names, scores)}
            for text, number, scores in zip(
                predictions.texts, self.decided(predictions), predictions.scores, strict=True
            )
        ]

    def line(self, row: Mapping[str, Any]) -> str:
        """Return prediction, score and text."""
        return f"{row['prediction']}\t{max(row['scores'].values()):.3f}\t{row['text']}"

    def table(self, rows: Sequence[Mapping[str, Any]]) -> Iterator[Sequence[Any]]:
        """Yield text, prediction and its score."""
        yield ["text", "prediction", "score"]
        for row in rows:
            yield [row["text"], row["prediction"], max(row["scores"].values())]


class MultiLabel(SingleLabel):
    """Any number of labels for each row; one is predicted above a probability of one half."""

    headline = ("micro_f1", "macro_f1")
    words = Words(
        certainty="exact McNemar test on whole label sets",
        reliability="How often a label applies among decisions of like score.",
    )

    def decided(self, predictions: Predictions) -> np.ndarray:
        """Return the predicted labels, int64 0/1 [rows, labels]."""
        return np.asarray(np.asarray(predictions.scores) > 0.5, dtype=np.int64)

    def right(self, predictions: Predictions) -> np.ndarray:
        """Return which rows have their whole set of labels right, bool [rows]."""
        return np.asarray((self.decided(predictions) == require_labels(predictions)).all(axis=1))

    def metrics(self, predictions: Predictions) -> dict[str, float]:
        """Return ``multilabel_metrics``."""
        return multilabel_metrics(predictions.scores, require_labels(predictions))

    def _truth(self, predictions: Predictions) -> np.ndarray:
        return require_labels(predictions) == 1

    def _f1(self, predicted: np.ndarray, labels: np.ndarray, *, classes: int) -> dict[str, Statistic]:
        micro = f1_statistic(predicted, labels, classes=classes, average="micro")
        return {**super()._f1(predicted, labels, classes=classes), "micro_f1": micro}

    def details(self, predictions: Predictions) -> dict[str, Any]:
        """Return per_class, reliability and mistakes."""
        labels = require_labels(predictions)
        return {
            "per_class": self.per_class(predictions),
            "reliability": reliability_bins(predictions.scores.ravel(), labels.ravel().astype(bool)),
            "mistakes": self._mistakes(predictions),
        }

    def _mistakes(self, predictions: Predictions) -> list[dict[str, Any]]:
        """Rank rows by the one label on which the model is most confidently wrong."""
        labels, predicted = np.asarray(predictions.labels), self.decided(predictions)
        names = [clean_text(name) for name in predictions.label_names]
        gaps = np.where(predicted != labels, np.abs(predictions.scores - labels), 0)
        worst = [i for i in np.argsort(-gaps.max(axis=1), kind="stable")[:MOST_MISTAKES] if gaps[i].any()]
        return [
            {**shown_row(predictions, i), "label": _joined(_chosen(labels[i], names)),
             "predicted": _joined(_chosen(predicted[i], names)),
             "about": names[int(gaps[i].argmax())], "score": float(predictions.scores[i, gaps[i].argmax()])}
            for i in worst
        ]  # fmt: skip

    def columns(self, predictions: Predictions) -> dict[str, Any]:
        """Return label and predicted, lists of names, correct, and ``score: NAME`` for each label."""
        import pyarrow

        names, lists = [clean_text(name) for name in predictions.label_names], pyarrow.list_(pyarrow.string())
        scores, labels = np.asarray(predictions.scores, dtype=np.float64), predictions.labels
        empty = [None] * len(scores)
        return {
            "label": pyarrow.array(empty if labels is None else [_chosen(row, names) for row in labels], lists),
            "predicted": pyarrow.array([_chosen(row, names) for row in self.decided(predictions)], lists),
            "correct": pyarrow.array(empty if labels is None else self.right(predictions).tolist(), pyarrow.bool_()),
            **score_columns(scores, names),
        }

    def read(self, columns: Mapping[str, Any], facts: Mapping[str, Any]) -> dict[str, Any]:
        """Return scores and labels."""
        names, values = [clean_text(name) for name in facts["label_names"]], columns["label"].to_pylist()
        place = {name: number for number, name in enumerate(names)}
        if not values or values[0] is None:
            return {"scores": read_scores(columns, names), "labels": None}
        labels = np.zeros((len(values), len(names)), dtype=np.int64)
        for row, row_names in zip(labels, values, strict=True):
            row[[place[name] for name in row_names]] = 1
        return {"scores": read_scores(columns, names), "labels": labels}

    def rows(self, predictions: Predictions) -> list[dict[str, Any]]:
        """Return text, prediction (a list of names), and scores by label."""
        names = predictions.label_names
        return [
            {"text": text, "prediction": _chosen(decided, names), "scores": _by_name(names, scores)}
            for text, decided, scores in zip(
                predictions.texts, self.decided(predictions), predictions.scores, strict=True
            )
        ]

    def line(self, row: Mapping[str, Any]) -> str:
        """Return prediction, best score and text."""
        return super().line({**row, "prediction": _joined(row["prediction"])})

    def table(self, rows: Sequence[Mapping[str, Any]]) -> Iterator[Sequence[Any]]:
        """Yield text, predictions with commas between them, and the best score."""
        return super().table([{**row, "prediction": ",".join(row["prediction"])} for row in rows])


# --- shared --------------------------------------------------------------------------------------------------------


def confusion_of(labels: np.ndarray, predicted: np.ndarray) -> list[list[int]]:
    """Return [label, predicted, count] for each pair that occurs in two int arrays [n]."""
    kinds, rows = np.unique(np.stack([labels, predicted], axis=1), axis=0, return_counts=True)
    return [[int(a), int(b), int(count)] for (a, b), count in zip(kinds, rows, strict=True)]


def confused_pairs(confusion: list[list[int]], predictions: Predictions) -> list[dict[str, Any]]:
    """Return the most frequent confusions: label, predicted, rows, share (of the label's rows)."""
    names = [clean_text(name) for name in predictions.label_names]
    support = np.bincount(np.asarray(predictions.labels), minlength=len(names))
    wrong = sorted((cell for cell in confusion if cell[0] != cell[1]), key=lambda cell: (-cell[2], cell[0], cell[1]))
    return [
        {"label": names[a], "predicted": names[b], "rows": rows, "share": rows / int(support[a])}
        for a, b, rows in wrong[:MOST_PAIRS]
    ]


def score_columns(scores: np.ndarray, names: Sequence[str]) -> dict[str, Any]:
    """Return a column of scores for each name."""
    import pyarrow

    return {f"score: {name}": pyarrow.array(scores[:, k]) for k, name in enumerate(names)}


def read_scores(columns: Mapping[str, Any], names: Sequence[str]) -> np.ndarray:
    """Return float64 [rows, names] of what ``score_columns`` gave."""
    if not names:
        return np.zeros((len(columns["label"]), 0))
    return np.stack([columns[f"score: {name}"].to_numpy() for name in names], axis=1)


def _best(scores: np.ndarray, names: Sequence[str]) -> dict[str, Any]:
    import pyarrow

    top = np.argsort(-scores, axis=1, kind="stable")[:, :TOP_LABELS]
    kept = np.take_along_axis(scores, top, axis=1).tolist()
    return {
        "top_labels": pyarrow.array([[names[k] for k in row] for row in top], pyarrow.list_(pyarrow.string())),
        "top_scores": pyarrow.array(kept, pyarrow.list_(pyarrow.float64())),
    }


def _read_best(columns: Mapping[str, Any], place: Mapping[str, int]) -> np.ndarray:
    kept = np.array(columns["top_scores"].to_pylist())
    rest = np.clip(1 - kept.sum(axis=1, keepdims=True), 0, None) / max(len(place) - kept.shape[1], 1)
    scores = np.repeat(np.minimum(rest, kept[:, -1:]), len(place), axis=1)
    best = np.array([[place[name] for name in row] for row in columns["top_labels"].to_pylist()])
    np.put_along_axis(scores, best, kept, axis=1)
    return scores


def _names_of(numbers: np.ndarray, names: Sequence[str]) -> list[str]:
    return [names[int(number)] for number in numbers]


def _chosen(row: np.ndarray, names: Sequence[str]) -> list[str]:
    return [names[int(number)] for number in np.flatnonzero(row)]


def _joined(names: Sequence[str]) -> str:
    return ", ".join(names) or "(none)"


def _by_name(names: Sequence[str], scores: np.ndarray) -> dict[str, float]:
    return {name: round(float(score), 6) for name, score in zip(names, scores, strict=True)}


def _some(names: Iterable[str], most: int = 3) -> str:
    names = list(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
