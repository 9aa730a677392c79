"""What a model, or a simple one beside it, says of rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Boxes:
    """Boxes around objects in images, one row after the other."""

    counts: np.ndarray
    """Number of each row's boxes, int64 [rows]."""
    places: np.ndarray
    """x and y of the upper left corner, width and height, in pixels of the row's image, float64 [boxes of all rows, 4]."""


@dataclass(frozen=True)
class Predictions:
    """A model's outputs on rows, in the order of the rows.

    ``scores``: float64 [rows, outputs], probabilities for classification (one column per label; two for a one-logit
    binary model), predicted values for regression (one column), and for causal_lm and masked_lm, whose rows are whole texts, the summed negative
    log-likelihood of a text's tokens in nats (one column), and for masked_lm in a second column how many of them were told right.
    ``labels``: int64 [rows], int64 [rows, labels] (0/1) for multi-label, float64 [rows] for regression, the number of predicted
    tokens for causal_lm and masked_lm; None: unlabelled.

    Where each word of a row has a tag (entity_recognition, token_classification), ``words`` are the rows' words, and ``predicted``
    (the tags' numbers), ``scores`` (their probabilities) and ``labels`` are flat: [words of all rows], one row after the other.
    Where a row has an answer (question_answering), ``answers`` are those that were predicted, ``references`` the right ones, ``scores`` float64
    [rows] the answers' probabilities, and ``labels`` int64 [rows] the number of references. Where a text is written (translation,
    summarization), ``answers`` are the texts, ``references`` the right ones, ``scores`` float64 [rows] 1 where a text ended by itself and 0 where it
    reached the greatest length, and ``labels`` int64 [rows] the number of references.
    Where a row has boxes (object_detection), ``boxes`` are those that were found and ``true_boxes`` the right ones; ``predicted`` (classes), ``scores``
    and ``labels`` (classes) are flat: [boxes of all rows], one row after the other. People are shown those with a score from ``threshold`` on.
    Where each pixel has a class (semantic_segmentation), ``scores`` are float64 [rows, classes * 3]: of each class the pixels that are rightly of it, those
    that were said to be, and those that are; ``labels`` int64 [rows] a row's pixels that count. Without labels only what was said is known, [rows, classes],
    and ``maps`` are PNGs of the classes' numbers, as large as the images.
    """

    problem_type: str
    scores: np.ndarray
    labels: np.ndarray | None
    label_names: tuple[str, ...]
    texts: tuple[str, ...]
    row_ids: tuple[int, ...]
    words: tuple[tuple[str, ...], ...] = ()
    predicted: np.ndarray | None = None
    answers: tuple[str, ...] = ()
    references: tuple[tuple[str, ...], ...] = ()
    boxes: Boxes | None = None
    true_boxes: Boxes | None = None
    threshold: float = 0.0
    maps: tuple[bytes, ...] = ()
    fills: tuple[tuple[tuple[tuple[str, float], ...], ...], ...] = ()
    """[rows][mask tokens of the text][likeliest tokens and their probabilities], for masked_lm where texts have mask tokens that are to be
    filled; ``answers`` are then the filled texts, "" for a text without one."""


@dataclass(frozen=True)
class Baseline:
    """A simple model's predictions for the rows of an evaluation, and how it came about.

    ``metrics`` is empty without labels; ``chosen`` holds what validation chose and the score there; ``note`` says in words what a
    reader should know, such as a sample of the training rows.
    """

    name: str
    predictions: Predictions
    metrics: Mapping[str, float]
    chosen: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""
