"""What texts can be written without a model that learned to write: the text itself, that of the most similar training row, the first sentences."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from launcher.contracts import Baseline, Predictions
from launcher.evaluation.kinds import metrics_for

_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|(?<=[。！？])|\n+")
# Of training texts that are compared at the same time, so that memory stays small.
_ROWS_AT_ONCE = 500


def generated_baseline(name: str, texts: Sequence[str], targets: Sequence[str], predictions: Predictions) -> Baseline:
    """Return a baseline for the rows of ``predictions``; ``texts`` and ``targets`` are those of train."""
    note = ""
    if name == "copy":
        answers = list(predictions.texts)
    elif name == "nearest":
        answers = nearest_targets(texts, targets, predictions.texts)
    else:
        number = usual_sentences(targets)
        answers = [first_sentences(text, number) for text in predictions.texts]
        note = (
            f"The first {number} sentences of each text, as many as the median summary of train has."
            if number > 1
            else ""
        )
    own = replace(predictions, answers=tuple(answers), scores=np.ones(len(answers)))
    return Baseline(name, own, {} if own.labels is None else metrics_for(own), note=note)


def nearest_targets(texts: Sequence[str], targets: Sequence[str], wanted: Sequence[str]) -> list[str]:
    """Return for each wanted text the target of the training text that is most alike: a translation memory.

    Alike: the cosine of TF-IDF weights of characters in runs of 2 to 4 (scikit-learn's char_wb); of equals the first.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 4), sublinear_tf=True)
    try:
        train = vectorizer.fit_transform(texts)
    except ValueError:
        # No text has two characters.
        return [targets[0]] * len(wanted)
    found: list[str] = []
    for first in range(0, len(wanted), _ROWS_AT_ONCE):
        alike = vectorizer.transform(wanted[first : first + _ROWS_AT_ONCE]) @ train.T
        found += [targets[int(place)] for place in np.asarray(alike.argmax(axis=1)).ravel()]
    return found


def usual_sentences(targets: Sequence[str]) -> int:
    """Return how many sentences the median target has, at least 1."""
    return max(1, int(np.median([len(_sentences(target)) for target in targets])))


def first_sentences(text: str, number: int) -> str:
    """Return the first sentences of a text."""
    return " ".join(_sentences(text)[:number])


def _sentences(text: str) -> list[str]:
    return [part.strip() for part in _SENTENCE_END.split(text) if part.strip()]
