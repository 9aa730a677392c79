"""How well words are tagged: entities as seqeval finds them in the tags, or the tags themselves.

Predictions of problem type ``entity_recognition`` and ``token_classification`` have a tag for each word; ``words`` says how many
words a row (a sentence) has, and ``predicted`` and ``labels`` hold the tags of all of them, one row after the other.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from launcher.contracts import Predictions
from launcher.evaluation.counts import Counts

ENTITIES = "entity_recognition"
TAGS = "token_classification"

_ENTITY_TAG = re.compile(r"O|[BIESLU]-.+", re.DOTALL)


@dataclass(frozen=True)
class Entity:
    """A stretch of words: ``type``, and its words from ``start`` to ``end`` (exclusive)."""

    type: str
    start: int
    end: int


def are_entity_tags(names: Sequence[str]) -> bool:
    """Whether all tags are O or a prefix (B, I, E, S; L, U) with a type, such as B-PER, and one of them has a type."""
    return all(_ENTITY_TAG.fullmatch(name) for name in names) and any(name != "O" for name in names)


def entities_of(tags: Sequence[str]) -> list[Entity]:
    """Return the entities of one sentence, as seqeval reads any scheme of prefixes in its default mode (that of conlleval)."""
    from seqeval.metrics.sequence_labeling import get_entities

    # BILOU's L and U are another scheme's E and S.
    same = [{"L": "E", "U": "S"}.get(tag[0], tag[0]) + tag[1:] if tag[1:2] == "-" else tag for tag in tags]
    return [Entity(kind, start, last + 1) for kind, start, last in get_entities(same)]


def tags_by_row(predictions: Predictions, numbers: np.ndarray) -> Iterator[list[str]]:
    """Yield the tags of each sentence; ``numbers``: ``predictions.predicted`` or ``predictions.labels``."""
    names = predictions.label_names
    for first, last in _bounds(predictions):
        yield [names[int(number)] for number in numbers[first:last]]


def _bounds(predictions: Predictions) -> list[tuple[int, int]]:
    ends = np.cumsum([len(words) for words in predictions.words]).tolist()
    return list(zip([0, *ends[:-1]], ends, strict=True))


@dataclass(frozen=True)
class RowCounts:
    """What each sentence adds to the counts."""

    types: tuple[str, ...]
    """What is counted: types of entities, or tags."""
    hits: np.ndarray
    """Right ones of each type, float64 [rows, types]."""
    predicted: np.ndarray
    support: np.ndarray
    right_words: np.ndarray
    """Words whose tag is right, float64 [rows]."""
    words: np.ndarray

    @property
    def total(self) -> Counts:
        """The counts over all sentences."""
        return Counts(self.hits.sum(axis=0), self.predicted.sum(axis=0), self.support.sum(axis=0))


def count_rows(predictions: Predictions) -> RowCounts:
    """Count by sentence; the predictions have labels."""
    assert predictions.labels is not None and predictions.predicted is not None
    wanted, found = np.asarray(predictions.labels), predictions.predicted
    rows = np.repeat(np.arange(len(predictions.words)), [len(words) for words in predictions.words])
    words = np.bincount(rows, minlength=len(predictions.words)).astype(np.float64)
    right = np.bincount(rows, weights=wanted == found, minlength=len(predictions.words))
    if predictions.problem_type == TAGS:
        types: tuple[str, ...] = predictions.label_names
        items = [(rows[wanted == found], wanted[wanted == found]), (rows, found), (rows, wanted)]
    else:
        ours, theirs = (
            {(row, one) for row, tags in enumerate(tags_by_row(predictions, n)) for one in entities_of(tags)}
            for n in (found, wanted)
        )
        types = tuple(sorted({one.type for _, one in ours | theirs}))
        number = {name: place for place, name in enumerate(types)}
        pairs = ([(row, number[one.type]) for row, one in some] for some in (ours & theirs, ours, theirs))
        items = [(array[:, 0], array[:, 1]) for array in (np.array(p, dtype=np.int64).reshape(-1, 2) for p in pairs)]
    hits, predicted, support = (_table(*item, shape=(len(words), len(types))) for item in items)
    return RowCounts(types, hits, predicted, support, right, words)


def _table(rows: np.ndarray, types: np.ndarray, *, shape: tuple[int, int]) -> np.ndarray:
    table = np.zeros(shape)
    np.add.at(table, (rows, types), 1.0)
    return table


def tagging_metrics(predictions: Predictions) -> dict[str, float]:
    """Return f1, precision and recall of entities (micro averages; not for tags), macro_f1 over types or tags, and accuracy.

    An entity is right where type, first and last word are. ``accuracy`` is the share of words whose tag is right. Source: Tjong Kim
    Sang and De Meulder 2003, "Introduction to the CoNLL-2003 shared task", section 2.3.
    """
    rows = count_rows(predictions)
    counts = rows.total
    found = {"accuracy": float(rows.right_words.sum() / rows.words.sum()), "macro_f1": float(counts.macro(counts.f1))}
    if predictions.problem_type == TAGS:
        return found
    totals = Counts(counts.hits.sum(), counts.predicted.sum(), counts.support.sum())
    return {"f1": float(totals.f1), "precision": float(totals.precision), "recall": float(totals.recall), **found}


def row_errors(predictions: Predictions) -> np.ndarray:
    """Return the errors of each sentence, float64 [rows]: entities that were missed or made up, or words with another tag."""
    rows = count_rows(predictions)
    if predictions.problem_type == TAGS:
        return rows.words - rows.right_words
    return np.asarray((rows.support + rows.predicted - 2 * rows.hits).sum(axis=1))


def per_type(predictions: Predictions) -> list[dict[str, Any]]:
    """Return one record for each type of entity or tag: name, support, predicted, precision, recall, f1."""
    rows = count_rows(predictions)
    return rows.total.records(rows.types)


def spans_in_words(predictions: Predictions, numbers: np.ndarray, row: int) -> list[dict[str, Any]]:
    """Return the entities of a sentence: type, start, end (words, end exclusive), text."""
    first, last = _bounds(predictions)[row]
    words = predictions.words[row]
    tags = [predictions.label_names[int(number)] for number in numbers[first:last]]
    return [
        {"type": one.type, "start": one.start, "end": one.end, "text": " ".join(words[one.start : one.end])}
        for one in entities_of(tags)
    ]


def differences_in_words(predictions: Predictions, row: int) -> tuple[str, str]:
    """Return what was predicted wrongly in a sentence, and what should have been predicted, each as one line: ``words (type)``."""
    assert predictions.labels is not None and predictions.predicted is not None
    if predictions.problem_type == TAGS:
        first, last = _bounds(predictions)[row]
        names, words = predictions.label_names, predictions.words[row]
        pairs = zip(words, predictions.predicted[first:last], predictions.labels[first:last], strict=True)
        wrong = [(word, names[int(ours)], names[int(theirs)]) for word, ours, theirs in pairs if ours != theirs]
        return _listed((word, ours) for word, ours, _ in wrong), _listed((word, theirs) for word, _, theirs in wrong)
    ours, theirs = (spans_in_words(predictions, n, row) for n in (predictions.predicted, predictions.labels))
    return tuple(  # type: ignore[return-value]
        _listed((one["text"], one["type"]) for one in some if one not in others) or "(nothing)"
        for some, others in ((ours, theirs), (theirs, ours))
    )


def _listed(items: Iterable[tuple[str, str]]) -> str:
    return ", ".join(f"{text} ({kind})" for text, kind in items)
