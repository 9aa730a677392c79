"""Texts of which some tokens are hidden and predicted: how many are told right, and what stands for a mask token."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from launcher.contracts import Predictions
from launcher.evaluation.kinds.base import clean_text, require_labels
from launcher.evaluation.kinds.language import Language, per_token
from launcher.evaluation.language import masked_accuracy
from launcher.evaluation.statistics import Statistic


class MaskedLanguage(Language):
    """Texts of which some tokens are hidden and predicted, or texts with mask tokens that are filled."""

    headline = ("perplexity", "loss", "accuracy")
    words = dataclasses.replace(
        Language.words,
        note="Loss is the mean negative log-likelihood per masked token, in nats, over masks that are the same at every evaluation; "
        "perplexity is its exponential, and accuracy the share of masked tokens whose likeliest token is the right one.",
    )

    def metrics(self, predictions: Predictions) -> dict[str, float]:
        """Return ``language_metrics`` and ``masked_accuracy``."""
        tokens = require_labels(predictions)
        return {**super().metrics(predictions), **masked_accuracy(predictions.scores[:, 1], tokens)}

    def statistics(self, predictions: Predictions) -> dict[str, Statistic]:
        """Also accuracy, over the tokens of the texts that are drawn."""
        found = super().statistics(predictions)
        tokens = require_labels(predictions).astype(np.float64)
        return {**found, "accuracy": per_token(predictions.scores[:, 1], tokens)} if found else {}

    def columns(self, predictions: Predictions) -> dict[str, Any]:
        """Also right (tokens that were told so), and where masks were filled the filled text and each mask's likeliest tokens."""
        import pyarrow

        found = {
            **super().columns(predictions),
            "right": pyarrow.array(np.asarray(predictions.scores, dtype=np.float64)[:, 1].astype(np.int64)),
        }
        if predictions.fills:
            likely = pyarrow.list_(pyarrow.struct([("token", pyarrow.string()), ("probability", pyarrow.float64())]))
            found["filled"] = pyarrow.array([clean_text(text) for text in predictions.answers], pyarrow.string())
            found["masks"] = pyarrow.array([_records(masks) for masks in predictions.fills], pyarrow.list_(likely))
        return found

    def read(self, columns: Mapping[str, Any], facts: Mapping[str, Any]) -> dict[str, Any]:
        """Return scores, labels, and what was filled."""
        found = super().read(columns, facts)
        right = np.asarray(columns["right"].to_numpy(), dtype=np.float64)
        found["scores"] = np.column_stack([found["scores"], right])
        if "masks" in columns:
            found["answers"] = tuple(columns["filled"].to_pylist())
            found["fills"] = tuple(
                tuple(tuple((one["token"], one["probability"]) for one in likely) for likely in masks)
                for masks in columns["masks"].to_pylist()
            )
        return found

    def rows(self, predictions: Predictions) -> list[dict[str, Any]]:
        """Return a language model's rows; where a text has mask tokens, all rows have filled and masks (the likeliest of each)."""
        found = super().rows(predictions)
        if not predictions.fills:
            return found
        filled = zip(found, predictions.answers, predictions.fills, strict=True)
        return [{**row, "filled": text or None, "masks": _records(masks)} for row, text, masks in filled]

    def line(self, row: Mapping[str, Any]) -> str:
        """Return the filled text and, below it, the likeliest tokens of each mask; loss, perplexity and text where there is none."""
        if not row.get("masks"):
            return super().line(row)
        return "\n".join(
            [row["filled"], *(f"  mask {n}: {_told(masks)}" for n, masks in enumerate(row["masks"], start=1))]
        )

    def table(self, rows: Sequence[Mapping[str, Any]]) -> Iterator[Sequence[Any]]:
        """Yield ``rows`` as lines of a csv file, each mask's likeliest tokens as text."""
        told = ({**row, "masks": "; ".join(map(_told, row["masks"]))} if "masks" in row else row for row in rows)
        return super().table(list(told))


def _records(masks: Sequence[Sequence[tuple[str, float]]]) -> list[list[dict[str, Any]]]:
    return [[{"token": clean_text(token), "probability": share} for token, share in likely] for likely in masks]


def _told(likely: Sequence[Mapping[str, Any]]) -> str:
    return ", ".join(f"{one['token']} {one['probability']:.1%}" for one in likely)
