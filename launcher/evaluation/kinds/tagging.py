"""A tag for each word: named entities, or the tags themselves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np

from launcher.contracts import Predictions
from launcher.evaluation.counts import Counts
from launcher.evaluation.kinds.base import (
    MOST_MISTAKES,
    Kind,
    Words,
    clean_lists,
    clean_text,
    require_labels,
    shown_row,
)
from launcher.evaluation.kinds.labels import confused_pairs, confusion_of
from launcher.evaluation.metrics import reliability_bins
from launcher.evaluation.statistics import PairedTest, Statistic, sign_test, summed_rows
from launcher.evaluation.tagging import (
    count_rows,
    differences_in_words,
    per_type,
    row_errors,
    spans_in_words,
    tagging_metrics,
    tags_by_row,
)


class Tags(Kind):
    """A tag for each word of a sentence."""

    headline: ClassVar[tuple[str, ...]] = ("accuracy", "macro_f1")
    words = Words(
        unit="sentence",
        item="word",
        certainty="fewer errors in {a} sentences, more in {b}; exact sign test",
        test="exact sign test",
        better=("fewer errors by model", "fewer errors by baseline"),
        support="words",
        reliability="How often the model is right among words of like confidence.",
        mistakes="Sentences with the most errors",
    )

    def decided(self, predictions: Predictions) -> np.ndarray:
        """Return the predicted tags' numbers, int64 [words of all rows]."""
        assert predictions.predicted is not None
        return predictions.predicted

    def metrics(self, predictions: Predictions) -> dict[str, float]:
        """Return ``tagging_metrics``."""
        require_labels(predictions)
        return tagging_metrics(predictions)

    def statistics(self, predictions: Predictions) -> dict[str, Statistic]:
        """Sentences are drawn, each with all its words and entities."""
        counts = count_rows(predictions)
        sums = summed_rows(np.concatenate([counts.hits, counts.predicted, counts.support], axis=1))
        words = summed_rows(np.stack([counts.right_words, counts.words], axis=1))

        def drawn(rows: np.ndarray) -> Counts:
            return Counts(*np.split(sums(rows), 3, axis=1))

        def macro(rows: np.ndarray) -> np.ndarray:
            found = drawn(rows)
            return found.macro(found.f1)

        def accuracy(rows: np.ndarray) -> np.ndarray:
            right, total = words(rows).T
            return np.asarray(right / total)

        found: dict[str, Statistic] = {"accuracy": accuracy, "macro_f1": macro}
        return {"f1": lambda rows: drawn(rows).micro_f1(), **found} if "f1" in self.headline else found

    def test(self, a: Predictions, b: Predictions) -> PairedTest:
        """Return the sign test on the errors of each sentence."""
        return sign_test(row_errors(a), row_errors(b))

    def details(self, predictions: Predictions) -> dict[str, Any]:
        """Return per_class, reliability, mistakes, confusion and confused_pairs."""
        labels = require_labels(predictions)
        confusion = confusion_of(labels, self.decided(predictions))
        return {
            "per_class": [{**record, "name": clean_text(record["name"])} for record in per_type(predictions)],
            "reliability": reliability_bins(predictions.scores, self.decided(predictions) == labels),
            "mistakes": self._worst_sentences(predictions),
            "confusion": confusion,
            "confused_pairs": confused_pairs(confusion, predictions),
        }

    def _worst_sentences(self, predictions: Predictions) -> list[dict[str, Any]]:
        """Return the sentences with the most errors: what is wrong or made up in them, and what should have been found."""
        errors = row_errors(predictions)
        worst = [int(i) for i in np.argsort(-errors, kind="stable")[:MOST_MISTAKES] if errors[i]]
        found = []
        for i in worst:
            wrong, missed = differences_in_words(predictions, i)
            found.append({**shown_row(predictions, i), "label": missed, "predicted": wrong, "errors": int(errors[i])})
        return found

    def columns(self, predictions: Predictions) -> dict[str, Any]:
        """Return words, label, predicted and confidence: lists with an item for each word."""
        import pyarrow

        ends = np.cumsum([len(words) for words in predictions.words])[:-1]
        texts, empty = pyarrow.list_(pyarrow.string()), [None] * len(predictions.words)
        labels = predictions.labels
        tags = empty if labels is None else list(clean_lists(tags_by_row(predictions, labels)))
        return {
            "words": pyarrow.array(list(clean_lists(predictions.words)), texts),
            "label": pyarrow.array(tags, texts),
            "predicted": pyarrow.array(list(clean_lists(tags_by_row(predictions, self.decided(predictions)))), texts),
            "confidence": pyarrow.array([part.tolist() for part in np.split(predictions.scores, ends)]),
        }

    def read(self, columns: Mapping[str, Any], facts: Mapping[str, Any]) -> dict[str, Any]:
        """Return scores, labels, words and predicted."""
        place = {clean_text(name): number for number, name in enumerate(facts["label_names"])}

        def numbers(rows: list[list[str]]) -> np.ndarray:
            return np.array([place[tag] for row in rows for tag in row], dtype=np.int64)

        labels = columns["label"].to_pylist()
        known = bool(labels) and labels[0] is not None
        return {
            "scores": np.array([score for row in columns["confidence"].to_pylist() for score in row]),
            "labels": numbers(labels) if known else None,
            "words": tuple(tuple(row) for row in columns["words"].to_pylist()),
            "predicted": numbers(columns["predicted"].to_pylist()),
        }

    def rows(self, predictions: Predictions) -> list[dict[str, Any]]:
        """Return text, words, and prediction (a tag for each word)."""
        tags = tags_by_row(predictions, self.decided(predictions))
        return [
            {"text": text, "words": list(words), "prediction": list(of_words)}
            for text, words, of_words in zip(predictions.texts, predictions.words, tags, strict=True)
        ]

    def line(self, row: Mapping[str, Any]) -> str:
        """Return each word with its tag."""
        return " ".join(f"{word}/{tag}" for word, tag in zip(row["words"], row["prediction"], strict=True))

    def table(self, rows: Sequence[Mapping[str, Any]]) -> Iterator[Sequence[Any]]:
        """Yield a line for each word: the number of its text from 1, word, and tag."""
        yield ["text", "word", "prediction"]
        for number, row in enumerate(rows, start=1):
            yield from ([number, *pair] for pair in zip(row["words"], row["prediction"], strict=True))


class Entities(Tags):
    """Stretches of words, told from prefixes of the tags."""

    headline = ("f1", "accuracy")
    words = replace(Tags.words, classes="Entities", each_class="type", support="entities")

    def details(self, predictions: Predictions) -> dict[str, Any]:
        """Return per_class, reliability and mistakes."""
        found = super().details(predictions)
        return {name: value for name, value in found.items() if not name.startswith("confus")}

    def rows(self, predictions: Predictions) -> list[dict[str, Any]]:
        """Return text, words, prediction, and entities: type, start, end (words, end exclusive), text."""
        numbers = self.decided(predictions)
        return [
            {**row, "entities": spans_in_words(predictions, numbers, place)}
            for place, row in enumerate(super().rows(predictions))
        ]

    def line(self, row: Mapping[str, Any]) -> str:
        """Return the entities, each with its type, and the text."""
        found = ", ".join(f"{one['text']} ({one['type']})" for one in row["entities"])
        return f"{found or '(none)'}\t{row['text']}"
