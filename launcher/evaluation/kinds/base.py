"""What a kind of problem decides in an evaluation: scores, tests, what is shown of rows, and how predictions are written and read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from launcher.contracts import Predictions
from launcher.errors import DataError
from launcher.evaluation.statistics import PairedTest, Statistic

MOST_MISTAKES = 25
MOST_CHARACTERS = 600


@dataclass(frozen=True)
class Words:
    """How an evaluation of a kind is spoken of."""

    unit: str = "row"
    """What its rows are called."""
    item: str = "row"
    """What is counted for each label."""
    certainty: str = "exact McNemar test"
    """The paired test in a sentence; ``{a}`` and ``{b}`` are the rows on which one of the two is better."""
    test: str = "exact McNemar test"
    better: tuple[str, str] = ("only model right", "only baseline right")
    """What the two counts of the test are."""
    classes: str = "Labels"
    """Heading of the table of labels."""
    each_class: str = "label"
    support: str = "rows"
    reliability: str = "How often the model is right among rows of like confidence."
    mistakes: str = "Most confident mistakes"
    note: str = ""
    """What a reader has to know of the metrics."""


class Kind:
    """One kind of problem; what it does not override does not apply to it."""

    headline: ClassVar[tuple[str, ...]]
    """Metrics that get intervals and tests first; the verdict is about the first of them."""
    words: ClassVar[Words] = Words()

    def metrics(self, predictions: Predictions) -> dict[str, float]:
        """Return the metrics of labelled predictions: finite floats; one that is undefined for the rows is left out."""
        raise NotImplementedError

    def omitted(self, predictions: Predictions, found: Mapping[str, float]) -> dict[str, str]:
        """Return the metrics that are not among ``found``, each with the reason in words."""
        return {}

    def statistics(self, predictions: Predictions) -> dict[str, Statistic]:
        """Return the metrics that get intervals, as functions of resampled rows; each agrees with ``metrics`` on all rows."""
        raise NotImplementedError

    def test(self, a: Predictions, b: Predictions) -> PairedTest:
        """Return the exact paired test of two systems' labelled predictions for the same rows in order."""
        raise NotImplementedError

    def details(self, predictions: Predictions) -> dict[str, Any]:
        """Return fields of ``assessment.Evaluation`` beside the metrics, such as per_class and mistakes."""
        return {}

    def columns(self, predictions: Predictions) -> dict[str, Any]:
        """Return the columns of a parquet file beside row_id and text, as pyarrow arrays."""
        raise NotImplementedError

    def read(self, columns: Mapping[str, Any], facts: Mapping[str, Any]) -> dict[str, Any]:
        """Return the fields of Predictions that ``columns`` (of a pyarrow table, by name) were made from: scores, labels, ...

        ``facts``: problem_type and label_names.
        """
        raise NotImplementedError

    def rows(self, predictions: Predictions) -> list[dict[str, Any]]:
        """Return a record for each row, for people and programs that predict: text, and what is predicted."""
        raise NotImplementedError

    def line(self, row: Mapping[str, Any]) -> str:
        """Return one of ``rows`` as a line of the terminal."""
        raise NotImplementedError

    def table(self, rows: Sequence[Mapping[str, Any]]) -> Iterator[Sequence[Any]]:
        """Yield ``rows`` as lines of a csv file, the header first."""
        if rows:
            yield list(rows[0])
        yield from (list(row.values()) for row in rows)


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


def shown_row(predictions: Predictions, i: int) -> dict[str, Any]:
    """Return row_id and text of a row, the text cut to what people read."""
    text = clean_text(predictions.texts[i])
    short = text if len(text) <= MOST_CHARACTERS else text[:MOST_CHARACTERS].rstrip() + " …"
    return {"row_id": int(predictions.row_ids[i]), "text": short}


def clean_text(text: str) -> str:
    """Return ``text`` with what cannot be written as UTF-8 (a lone surrogate) replaced by a question mark."""
    return text.encode("utf-8", "replace").decode()


def clean_record(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record whose texts are clean."""
    return {key: clean_text(value) if isinstance(value, str) else value for key, value in record.items()}


def answer_columns(predictions: Predictions) -> dict[str, Any]:
    """Return, for rows that have ``answers``, the columns label (a list of right ones; null: unlabelled) and predicted, as pyarrow arrays."""
    import pyarrow

    texts, empty = pyarrow.list_(pyarrow.string()), [None] * len(predictions.answers)
    right = empty if predictions.labels is None else list(clean_lists(predictions.references))
    return {
        "label": pyarrow.array(right, texts),
        "predicted": pyarrow.array([clean_text(answer) for answer in predictions.answers], pyarrow.string()),
    }


def read_answers(columns: Mapping[str, Any]) -> dict[str, Any]:
    """Return labels, answers and references from what ``answer_columns`` gave."""
    right = columns["label"].to_pylist()
    known = bool(right) and right[0] is not None
    references = tuple(tuple(row or ()) for row in right)
    return {
        "labels": np.array([len(row) for row in references]) if known else None,
        "answers": tuple(columns["predicted"].to_pylist()),
        "references": references,
    }


def clean_lists(rows: Iterable[Sequence[str]]) -> Iterator[list[str]]:
    """Yield lists of texts, each clean."""
    return ([clean_text(word) for word in row] for row in rows)
