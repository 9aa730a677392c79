"""How well questions are answered with stretches of a text: exact match and F1 by the rules of SQuAD.

Predictions of problem type ``question_answering`` have ``answers`` (what is predicted, "" for none), ``references`` (the right answers of each
question, none where it has no answer), and as ``labels`` the number of references.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from launcher.contracts import Predictions

ANSWERS = "question_answering"

_PUNCTUATION = frozenset(string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")


def normalized(answer: str) -> str:
    """Return an answer in lower case, without punctuation, English articles and superfluous space.

    Source: the official evaluation of SQuAD 1.1 and 2.0 (Rajpurkar et al. 2016, "SQuAD: 100,000+ Questions for Machine Comprehension of
    Text", section 6.1).
    """
    plain = "".join(letter for letter in answer.lower() if letter not in _PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", plain).split())


def exact_match(answer: str, reference: str) -> float:
    """Return 1 where two answers are the same when normalized, else 0."""
    return float(normalized(answer) == normalized(reference))


def overlap_f1(answer: str, reference: str) -> float:
    """Return the harmonic mean of precision and recall of an answer's words, normalized, against a reference's.

    Where one of the two has no word, 1 if both have none, else 0, as in SQuAD 2.0.
    """
    ours, theirs = normalized(answer).split(), normalized(reference).split()
    if not ours or not theirs:
        return float(ours == theirs)
    same = sum((Counter(ours) & Counter(theirs)).values())
    return 2 * same / (len(ours) + len(theirs))


def row_scores(predictions: Predictions) -> tuple[np.ndarray, np.ndarray]:
    """Return exact match and F1 of each question, float64 [rows] each: the best over its references."""
    exact, f1 = [], []
    for answer, references in zip(predictions.answers, predictions.references, strict=True):
        # As the official evaluation does: a reference of articles alone is none, and no reference means no answer.
        known = [reference for reference in references if normalized(reference)] or [""]
        exact.append(max(exact_match(answer, reference) for reference in known))
        f1.append(max(overlap_f1(answer, reference) for reference in known))
    return np.array(exact), np.array(f1)


def answer_metrics(predictions: Predictions) -> dict[str, float]:
    """Return exact_match and f1, means over the questions."""
    exact, f1 = row_scores(predictions)
    return {"f1": float(f1.mean()), "exact_match": float(exact.mean())}


def worst_answers(predictions: Predictions, *, most: int) -> list[tuple[int, dict[str, Any]]]:
    """Return (row, {label, predicted, score, f1}) of wrong answers, those first of which the model is surest."""
    exact, f1 = row_scores(predictions)
    wrong = np.flatnonzero(exact == 0)
    chosen = wrong[np.lexsort((-predictions.scores[wrong], f1[wrong]))][:most]
    return [
        (
            int(row),
            {
                "label": _shown(predictions.references[row]),
                "predicted": predictions.answers[row] or "(no answer)",
                "score": float(predictions.scores[row]),
                "f1": float(f1[row]),
            },
        )
        for row in chosen
    ]


def _shown(references: Sequence[str]) -> str:
    return " / ".join(dict.fromkeys(references)) or "(no answer)"
