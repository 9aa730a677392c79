"""Pairs of answers, of which one was chosen: a number for each answer, which is to be larger for the chosen one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from launcher.contracts import Predictions
from launcher.errors import DataError
from launcher.evaluation.kinds.base import MOST_MISTAKES, Kind, Words, shown_row
from launcher.evaluation.statistics import PairedTest, Statistic, mean_statistic, sign_test


def _words(reward: str) -> Words:
    """Return how pairs are spoken of; ``reward``: what a reward is."""
    return Words(
        unit="pair",
        certainty="right on {a} pairs where the baseline is wrong, wrong on {b} where it is right; exact sign test",
        test="exact sign test",
        mistakes="Pairs whose rejected answer has the largest lead",
        note="Accuracy is the share of pairs whose chosen answer has the higher reward, pairs with equal ones counting half; the margin is "
        f"the mean difference of the two. {reward}",
    )


class Preferences(Kind):
    """Pairs of answers; ``scores`` are [rows, 3]: reward of the chosen answer, of the rejected one, and the pair's loss.

    A loss that is not a number says that the scores are no rewards, only an order, as a baseline's are. Rewards of single conversations, which
    can only be predicted, are [rows, 1], and have no labels.
    """

    headline: ClassVar[tuple[str, ...]] = ("accuracy", "margin")
    words: ClassVar[Words] = _words(
        "A reward is beta times how many nats more likely an answer is to the model than to the model before training; with cpo, simpo and orpo "
        "beta times its log-probability, with the last two of a token on average."
    )

    def metrics(self, predictions: Predictions) -> dict[str, float]:
        """Return accuracy and, where the scores are rewards, margin and loss."""
        scores = _pairs(predictions)
        found = {"accuracy": right(scores).mean(), "margin": _margins(scores).mean(), "loss": scores[:, 2].mean()}
        return {name: float(value) for name, value in found.items() if np.isfinite(value)}

    def omitted(self, predictions: Predictions, found: Mapping[str, float]) -> dict[str, str]:
        """Return loss and margin where they are beyond any number."""
        return {name: "it is too large for a number" for name in ("margin", "loss") if name not in found}

    def statistics(self, predictions: Predictions) -> dict[str, Statistic]:
        """Return the metrics as statistics; NaN where there is none."""
        scores = _pairs(predictions)
        columns = {"accuracy": right(scores), "margin": _margins(scores), "loss": scores[:, 2]}
        return {name: mean_statistic(values) for name, values in columns.items()}

    def test(self, a: Predictions, b: Predictions) -> PairedTest:
        """Return the sign test on whether a pair is right; where no rewards are equal, it is McNemar's exact test."""
        return sign_test(1 - right(_pairs(a)), 1 - right(_pairs(b)))

    def details(self, predictions: Predictions) -> dict[str, Any]:
        """Return mistakes: wrong pairs, those with the largest lead of the rejected answer first."""
        scores = _pairs(predictions)
        lead = scores[:, 1] - scores[:, 0]
        worst = [int(i) for i in np.argsort(-lead, kind="stable")[:MOST_MISTAKES] if lead[i] > 0]
        return {
            "mistakes": [
                {**shown_row(predictions, i), "chosen": float(scores[i, 0]), "rejected": float(scores[i, 1])}
                for i in worst
            ]
        }

    def columns(self, predictions: Predictions) -> dict[str, Any]:
        """Return chosen, rejected and loss of pairs, or reward of single conversations."""
        import pyarrow

        scores = np.asarray(predictions.scores, dtype=np.float64)
        names = ("reward",) if scores.shape[1] == 1 else ("chosen", "rejected", "loss")
        return {name: pyarrow.array(scores[:, number]) for number, name in enumerate(names)}

    def read(self, columns: Mapping[str, Any], facts: Mapping[str, Any]) -> dict[str, Any]:
        """Return scores and labels."""
        names = ("reward",) if "reward" in columns else ("chosen", "rejected", "loss")
        scores = np.column_stack([np.asarray(columns[name].to_numpy(), dtype=np.float64) for name in names])
        return {"scores": scores, "labels": None if "reward" in columns else np.zeros(len(scores), dtype=np.int64)}

    def rows(self, predictions: Predictions) -> list[dict[str, Any]]:
        """Return text and reward, or for pairs text, the rewards of both answers, and which is preferred (equal: neither)."""
        scores = np.asarray(predictions.scores, dtype=np.float64)
        if scores.shape[1] == 1:
            return [{"text": t, "reward": float(r)} for t, r in zip(predictions.texts, scores[:, 0], strict=True)]
        found = zip(predictions.texts, scores[:, 0].tolist(), scores[:, 1].tolist(), strict=True)
        return [
            {"text": text, "preferred": _preferred(chosen, rejected), "chosen": chosen, "rejected": rejected}
            for text, chosen, rejected in found
        ]

    def line(self, row: Mapping[str, Any]) -> str:
        """Return the reward, or which answer is preferred and by how much, and the text on one line."""
        text = " ".join(str(row["text"]).split())
        if "reward" in row:
            return f"{row['reward']:.4f}\t{text}"
        return f"{row['preferred']}\t{row['chosen']:.4f} against {row['rejected']:.4f}\t{text}"


class Rewards(Preferences):
    """Pairs of answers whose rewards are numbers that the model gives to conversations."""

    words: ClassVar[Words] = _words("A reward is the number that the model gives to a conversation.")


def _pairs(predictions: Predictions) -> np.ndarray:
    """Return the scores of pairs, float64 [rows, 3].

    Raises:
        DataError: there are no rows, they are no pairs, or a reward is not finite.
    """
    scores = np.asarray(predictions.scores, dtype=np.float64)
    if len(scores) == 0:
        raise DataError("there are no pairs to evaluate")
    if predictions.labels is None or scores.shape[1] != 3:
        raise DataError("the rows are single conversations, so no metric can be computed; use predict for them")
    finite = np.isfinite(scores[:, :2]).all(axis=1)
    if not finite.all():
        bad = predictions.row_ids[int(np.flatnonzero(~finite)[0])]
        raise DataError(f"the reward of row {bad} is not a finite number; the model's weights are broken")
    return scores


def right(scores: np.ndarray) -> np.ndarray:
    """Return 1 where the chosen answer has the higher score, 0 where it has the lower one, and one half where they are equal; float64 [rows]."""
    return np.asarray((np.sign(scores[:, 0] - scores[:, 1]) + 1) / 2)


def _margins(scores: np.ndarray) -> np.ndarray:
    """Return the difference of each pair's rewards, float64 [rows]; NaN where the scores are none."""
    return np.where(np.isnan(scores[:, 2]), np.nan, scores[:, 0] - scores[:, 1])


def _preferred(chosen: float, rejected: float) -> str:
    return "neither" if chosen == rejected else "chosen" if chosen > rejected else "rejected"
