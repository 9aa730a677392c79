"""Texts whose tokens are predicted: a loss per token and its exponential."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from launcher.contracts import Predictions
from launcher.evaluation.kinds.base import Kind, Words, require_labels
from launcher.evaluation.language import language_metrics, text_losses, token_counts
from launcher.evaluation.statistics import PairedTest, Statistic, sign_test

# Beyond it, exp() is beyond any float.
_LARGEST_EXPONENT = 709.0


class Language(Kind):
    """Texts whose tokens are predicted."""

    headline: ClassVar[tuple[str, ...]] = ("perplexity", "loss")
    words = Words(
        unit="text",
        certainty="a lower loss on {a} texts, a higher one on {b}; exact sign test",
        test="exact sign test",
        better=("lower loss by model", "lower loss by baseline"),
        note="Loss is the mean negative log-likelihood per token, in nats; perplexity is its exponential.",
    )

    def metrics(self, predictions: Predictions) -> dict[str, float]:
        """Return ``language_metrics``."""
        return language_metrics(predictions.scores[:, 0], require_labels(predictions))

    def omitted(self, predictions: Predictions, found: Mapping[str, float]) -> dict[str, str]:
        """Return perplexity where it is beyond any number."""
        return {} if "perplexity" in found or not found else {"perplexity": "it is too large for a number"}

    def statistics(self, predictions: Predictions) -> dict[str, Statistic]:
        """Texts are drawn, and each token of those drawn counts the same; a single text says nothing about other texts."""
        tokens = require_labels(predictions).astype(np.float64)
        if len(tokens) < 2 or not tokens.any():
            return {}
        loss = per_token(predictions.scores[:, 0], tokens)

        def perplexity(rows: np.ndarray) -> np.ndarray:
            with np.errstate(over="ignore"):
                return np.asarray(np.exp(loss(rows)))

        return {"loss": loss, "perplexity": perplexity}

    def test(self, a: Predictions, b: Predictions) -> PairedTest:
        """Return the sign test on the texts' losses per token."""
        has_tokens = require_labels(a) > 0
        return sign_test(text_losses(a)[has_tokens], text_losses(b)[has_tokens])

    def columns(self, predictions: Predictions) -> dict[str, Any]:
        """Return tokens (that were predicted), summed_loss and loss (its mean per token; null where none was predicted), in nats."""
        import pyarrow

        losses = text_losses(predictions)
        return {
            "tokens": pyarrow.array(token_counts(predictions).astype(np.int64)),
            "summed_loss": pyarrow.array(np.asarray(predictions.scores, dtype=np.float64)[:, 0]),
            "loss": pyarrow.array(losses, mask=np.isnan(losses)),
        }

    def read(self, columns: Mapping[str, Any], facts: Mapping[str, Any]) -> dict[str, Any]:
        """Return scores and labels."""
        return {
            "scores": np.asarray(columns["summed_loss"].to_numpy(), dtype=np.float64).reshape(-1, 1),
            "labels": np.asarray(columns["tokens"].to_numpy(), dtype=np.int64),
        }

    def rows(self, predictions: Predictions) -> list[dict[str, Any]]:
        """Return text, tokens (that were predicted), loss (per token, nats) and perplexity; null without a predicted token."""
        found = []
        counts, losses = token_counts(predictions), text_losses(predictions)
        for text, tokens, loss in zip(predictions.texts, counts, losses, strict=True):
            is_known = math.isfinite(loss)
            found.append(
                {
                    "text": text,
                    "tokens": int(tokens),
                    "loss": float(loss) if is_known else None,
                    "perplexity": math.exp(min(loss, _LARGEST_EXPONENT)) if is_known else None,
                }
            )
        return found

    def line(self, row: Mapping[str, Any]) -> str:
        """Return loss, perplexity and text."""
        loss = "–" if row["loss"] is None else f"loss {row['loss']:.4f}  perplexity {row['perplexity']:,.2f}"
        return f"{loss}\t{row['text']}"


class AnswerLanguage(Language):
    """Conversations of which the answers are predicted."""

    words = Words(
        unit="conversation",
        certainty="a lower loss on {a} conversations, a higher one on {b}; exact sign test",
        test="exact sign test",
        better=("lower loss by model", "lower loss by baseline"),
        note="Loss is the mean negative log-likelihood per token that is learned (of answers), in nats; perplexity is its exponential.",
    )


def per_token(summed: np.ndarray, tokens: np.ndarray) -> Statistic:
    """Return what adds a number of each drawn text up and divides it by their tokens; float64 [rows] both."""

    def statistic(rows: np.ndarray) -> np.ndarray:
        drawn, total = tokens[rows].sum(axis=1), summed[rows].sum(axis=1)
        return np.asarray(np.divide(total, drawn, out=np.full(len(rows), np.nan), where=drawn > 0))

    return statistic
