"""Texts that a model writes: translations and summaries."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np

from launcher.contracts import Predictions
from launcher.evaluation.generation import CorpusScore, bleu, chrf, cut_share, rouge_of_each, worst_texts
from launcher.evaluation.kinds.base import (
    MOST_MISTAKES,
    Kind,
    Words,
    answer_columns,
    clean_record,
    clean_text,
    read_answers,
    require_labels,
    shown_row,
)
from launcher.evaluation.statistics import PairedTest, Statistic, mean_statistic, sign_test


class Generated(Kind):
    """Texts that a model writes; a subclass says how they are scored."""

    score: ClassVar[str]
    """The metric by which single rows are compared."""
    best: ClassVar[float]
    """What a text gets that is the same as its reference."""

    def of_each(self, predictions: Predictions) -> np.ndarray:
        """Return ``score`` of each row, float64 [rows]."""
        raise NotImplementedError

    def test(self, a: Predictions, b: Predictions) -> PairedTest:
        """Return the sign test on the score of each row."""
        return sign_test(self.best - self.of_each(a), self.best - self.of_each(b))

    def details(self, predictions: Predictions) -> dict[str, Any]:
        """Return mistakes: the rows of the lowest score."""
        worst = worst_texts(predictions, self.of_each(predictions), most=MOST_MISTAKES, name=self.score)
        return {"mistakes": [{**shown_row(predictions, i), **clean_record(mistake)} for i, mistake in worst]}

    def columns(self, predictions: Predictions) -> dict[str, Any]:
        """Return label (a list of right texts), predicted and ended (whether the text ended by itself)."""
        import pyarrow

        return {**answer_columns(predictions), "ended": pyarrow.array(predictions.scores > 0)}

    def read(self, columns: Mapping[str, Any], facts: Mapping[str, Any]) -> dict[str, Any]:
        """Return scores, labels, answers and references."""
        return {
            "scores": np.array(columns["ended"].to_pylist(), dtype=np.float64),
            **read_answers(columns),
        }

    def rows(self, predictions: Predictions) -> list[dict[str, Any]]:
        """Return text, prediction, and ended (whether it ended by itself)."""
        found = zip(predictions.texts, predictions.answers, predictions.scores, strict=True)
        return [{"text": text, "prediction": answer, "ended": bool(ended)} for text, answer, ended in found]

    def line(self, row: Mapping[str, Any]) -> str:
        """Return what was written, on one line."""
        return " ".join(str(row["prediction"]).split()) + ("" if row["ended"] else " …")


class Translation(Generated):
    """Texts in another language."""

    headline = ("bleu", "chrf")
    score, best = "chrf", 100.0
    words = Words(
        unit="text",
        certainty="a higher chrF on {a} texts, a lower one on {b}; exact sign test",
        test="exact sign test",
        better=("higher chrF by model", "higher chrF by baseline"),
        mistakes="Texts with the lowest chrF",
        note="BLEU and chrF2 are sacreBLEU's, from 0 to 100, of the whole split at once.",
    )

    def of_each(self, predictions: Predictions) -> np.ndarray:
        """Return chrF of each row, float64 [rows]."""
        return chrf(predictions).of_each()

    def metrics(self, predictions: Predictions) -> dict[str, float]:
        """Return bleu, chrf and cut_off."""
        require_labels(predictions)
        found = {name: score.of_all() for name, score in _corpus_scores(predictions).items()}
        return {**found, "cut_off": cut_share(predictions)}

    def statistics(self, predictions: Predictions) -> dict[str, Statistic]:
        """Rows are drawn, and their counts added up."""
        return {name: score.drawn for name, score in _corpus_scores(predictions).items()}


class Summarization(Generated):
    """Shorter texts."""

    headline = ("rougeL", "rouge1", "rouge2")
    score, best = "rougeL", 1.0
    words = Words(
        unit="text",
        certainty="a higher ROUGE-L on {a} texts, a lower one on {b}; exact sign test",
        test="exact sign test",
        better=("higher ROUGE-L by model", "higher ROUGE-L by baseline"),
        mistakes="Texts with the lowest ROUGE-L",
        note="ROUGE is rouge-score's F-measure with stems, from 0 to 1: the mean over texts, each held to the reference that suits it best.",
    )

    def of_each(self, predictions: Predictions) -> np.ndarray:
        """Return ROUGE-L of each row, float64 [rows]."""
        return rouge_of_each(predictions)["rougeL"]

    def metrics(self, predictions: Predictions) -> dict[str, float]:
        """Return rougeL, rouge1, rouge2, rougeLsum and cut_off."""
        require_labels(predictions)
        found = {name: float(rows.mean()) for name, rows in rouge_of_each(predictions).items()}
        return {**found, "cut_off": cut_share(predictions)}

    def statistics(self, predictions: Predictions) -> dict[str, Statistic]:
        """Rows are drawn."""
        return {name: mean_statistic(rows) for name, rows in rouge_of_each(predictions).items()}


def _corpus_scores(predictions: Predictions) -> dict[str, CorpusScore]:
    # A lone surrogate is no text to sacreBLEU's tokenizers either.
    whole = replace(predictions, answers=tuple(map(clean_text, predictions.answers)))
    return {"bleu": bleu(whole), "chrf": chrf(whole)}
