"""Answers that a model writes to prompts, without a score."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from launcher.contracts import Predictions
from launcher.evaluation.kinds.base import Kind, Words, answer_columns, read_answers


class Written(Kind):
    """Answers to prompts, for people to read."""

    headline = ()
    words = Words(unit="prompt", certainty="", test="", better=("", ""), note="")

    def columns(self, predictions: Predictions) -> dict[str, Any]:
        """Return predicted and ended (whether the answer ended by itself)."""
        import pyarrow

        return {**answer_columns(predictions), "ended": pyarrow.array(predictions.scores > 0)}

    def read(self, columns: Mapping[str, Any], facts: Mapping[str, Any]) -> dict[str, Any]:
        """Return scores, answers and references."""
        return {"scores": np.array(columns["ended"].to_pylist(), dtype=np.float64), **read_answers(columns)}

    def rows(self, predictions: Predictions) -> list[dict[str, Any]]:
        """Return text, prediction, ended, and the reference where there is one."""
        found = []
        references = predictions.references or ((),) * len(predictions.texts)
        for text, answer, ended, right in zip(
            predictions.texts, predictions.answers, predictions.scores, references, strict=True
        ):
            known = {"reference": right[0] if right else None} if any(references) else {}
            found.append({"text": text, "prediction": answer, "ended": bool(ended), **known})
        return found

    def line(self, row: Mapping[str, Any]) -> str:
        """Return what was written, on one line."""
        return " ".join(str(row["prediction"]).split()) + ("" if row["ended"] else " …")
