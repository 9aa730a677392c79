"""The boxes that are usual in train, the same for every image: what a detector has to beat."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from launcher.contracts import Baseline, Boxes, Predictions
from launcher.evaluation.detection import box_overlaps, rows_of
from launcher.evaluation.kinds import metrics_for

MOST_BOXES = 10
"""Usual boxes of a class."""
MOST_ROWS = 20_000
"""Above this many training boxes of a class its usual ones come from a seeded sample of that size."""
_RIGHT = 0.5


def typical_boxes(
    true: Boxes, classes: np.ndarray, sizes: np.ndarray, *, new_sizes: np.ndarray, predictions: Predictions
) -> Baseline:
    """Return the centres of clusters (k-means) of each class's boxes in train as what every image holds.

    A box's score is the share of train's images in which it overlaps one of its class by half or more.

    Args:
        true: the boxes of train; ``classes``: their classes, int64 [boxes]; ``sizes``: widths and heights of train's images, [images, 2].
        new_sizes: those of the rows of ``predictions``.
    """
    rows_of_train = rows_of(true)
    shares = true.places / np.tile(sizes[rows_of_train], 2)
    usual = [
        _usual(shares[classes == number], rows_of_train[classes == number], len(sizes))
        for number in range(len(predictions.label_names))
    ]
    places = np.concatenate([boxes for boxes, _ in usual])
    scores = np.concatenate([found for _, found in usual])
    numbers = np.repeat(np.arange(len(usual)), [len(boxes) for boxes, _ in usual])
    rows = len(new_sizes)
    found = replace(
        predictions,
        scores=np.tile(scores, rows),
        predicted=np.tile(numbers, rows),
        boxes=Boxes(
            np.full(rows, len(places)),
            (places[None] * np.tile(new_sizes, 2)[:, None]).reshape(-1, 4).astype(np.float64),
        ),
    )
    metrics = {} if predictions.labels is None else metrics_for(found)
    return Baseline("typical_boxes", found, metrics, {"boxes": len(places)})


def _usual(shares: np.ndarray, rows: np.ndarray, images: int) -> tuple[np.ndarray, np.ndarray]:
    """Return boxes [k, 4], in shares of width and height, and the share of images that each fits, [k]."""
    from sklearn.cluster import KMeans

    if not len(shares):
        return np.zeros((0, 4)), np.zeros(0)
    if len(shares) > MOST_ROWS:
        drawn = np.sort(np.random.default_rng(0).choice(len(shares), size=MOST_ROWS, replace=False))
        shares, rows = shares[drawn], rows[drawn]
    number = min(MOST_BOXES, len(np.unique(shares, axis=0)))
    centres = KMeans(number, n_init=3, random_state=0).fit(shares).cluster_centers_
    fits = box_overlaps(centres, shares) >= _RIGHT
    return centres, np.array([len(np.unique(rows[fit])) / images for fit in fits])
