"""Questions that are answered with a stretch of a text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from launcher.contracts import Predictions
from launcher.evaluation.answers import answer_metrics, row_scores, worst_answers
from launcher.evaluation.kinds.base import (
    MOST_MISTAKES,
    Kind,
    Words,
    answer_columns,
    clean_record,
    read_answers,
    require_labels,
    shown_row,
)
from launcher.evaluation.statistics import PairedTest, Statistic, exact_paired_test, mean_statistic


class Answers(Kind):
    """Questions that are answered with a stretch of a text, or not at all."""

    headline = ("f1", "exact_match")
    words = Words(unit="question", certainty="exact McNemar test on exact matches")

    def metrics(self, predictions: Predictions) -> dict[str, float]:
        """Return ``answer_metrics``."""
        require_labels(predictions)
        return answer_metrics(predictions)

    def statistics(self, predictions: Predictions) -> dict[str, Statistic]:
        """Return F1 and exact match as statistics."""
        exact, f1 = row_scores(predictions)
        return {"f1": mean_statistic(f1), "exact_match": mean_statistic(exact)}

    def test(self, a: Predictions, b: Predictions) -> PairedTest:
        """Return McNemar's exact test on exact matches."""
        return exact_paired_test(row_scores(a)[0], row_scores(b)[0])

    def details(self, predictions: Predictions) -> dict[str, Any]:
        """Return mistakes."""
        wrong = worst_answers(predictions, most=MOST_MISTAKES)
        return {"mistakes": [{**shown_row(predictions, i), **clean_record(mistake)} for i, mistake in wrong]}

    def columns(self, predictions: Predictions) -> dict[str, Any]:
        """Return label (a list of right answers), predicted and confidence."""
        import pyarrow

        return {**answer_columns(predictions), "confidence": pyarrow.array(predictions.scores)}

    def read(self, columns: Mapping[str, Any], facts: Mapping[str, Any]) -> dict[str, Any]:
        """Return scores, labels, answers and references."""
        return {
            "scores": np.array(columns["confidence"].to_pylist(), dtype=np.float64),
            **read_answers(columns),
        }

    def rows(self, predictions: Predictions) -> list[dict[str, Any]]:
        """Return text, answer ("" for none) and score."""
        found = zip(predictions.texts, predictions.answers, predictions.scores, strict=True)
        return [{"text": text, "answer": answer, "score": round(float(score), 6)} for text, answer, score in found]

    def line(self, row: Mapping[str, Any]) -> str:
        """Return answer, score and text."""
        return f"{row['answer'] or '(no answer)'}\t{row['score']:.3f}\t{row['text']}"
