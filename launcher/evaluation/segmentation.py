"""How well the pixels of images are told apart: intersection over union of classes, from counts that add up over images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from launcher.contracts import Predictions
from launcher.evaluation.counts import Counts, ratio

SEGMENTATION = "semantic_segmentation"


def pixel_counts(found: np.ndarray, true: np.ndarray, *, classes: int, ignored: int) -> np.ndarray:
    """Return of each class the pixels that are rightly of it, those that were said to be, and those that are; int64 [classes, 3].

    ``found`` and ``true``: the classes' numbers, of the same shape; where ``true`` is ``ignored`` nothing counts.
    """
    counted = true != ignored
    found, true = found[counted], true[counted]
    tallies = (np.bincount(values, minlength=classes) for values in (true[found == true], found, true))
    return np.stack(list(tallies), axis=1)


def counts_of(table: np.ndarray) -> Counts:
    """Return the counts in ``table`` [..., classes * 3], as ``Predictions.scores`` has them, each [..., classes]."""
    hits, said, real = np.moveaxis(table.reshape(*table.shape[:-1], -1, 3), -1, 0)
    return Counts(hits, said, real)


def iou(counts: Counts) -> np.ndarray:
    """Return intersection over union of each class, [..., classes]; 0 for a class that is neither there nor said to be.

    Source: Everingham et al. 2010, "The PASCAL Visual Object Classes (VOC) Challenge", section 4.3 (Int. J. Comput. Vis. 88).
    """
    return ratio(counts.hits, counts.predicted + counts.support - counts.hits)


def mean_iou(counts: Counts) -> np.ndarray:
    """Return the mean over the classes that occur, [...]."""
    return counts.macro(iou(counts))


def mean_accuracy(counts: Counts) -> np.ndarray:
    """Return the mean over the classes that are there of the share of their pixels that is found, [...]."""
    there = counts.support > 0
    return ratio((counts.recall * there).sum(axis=-1), there.sum(axis=-1))


def pixel_accuracy(counts: Counts) -> np.ndarray:
    """Return the share of right pixels, [...]."""
    return ratio(counts.hits.sum(axis=-1), counts.support.sum(axis=-1))


METRICS = {"mean_iou": mean_iou, "pixel_accuracy": pixel_accuracy, "mean_accuracy": mean_accuracy}
"""Name -> function of counts."""


def segmentation_metrics(predictions: Predictions) -> dict[str, float]:
    """Return ``METRICS`` over all rows; none where no pixel counts."""
    counts = counts_of(predictions.scores.sum(axis=0))
    return {name: float(of(counts)) for name, of in METRICS.items()} if counts.support.any() else {}


def row_accuracies(predictions: Predictions) -> np.ndarray:
    """Return the share of each row's pixels that are right, float64 [rows]; 1 where none counts."""
    counts = counts_of(predictions.scores)
    return np.where(counts.support.any(axis=-1), pixel_accuracy(counts), 1.0)


def per_class(predictions: Predictions, names: Sequence[str]) -> list[dict[str, Any]]:
    """Return name, support and predicted (in pixels), precision, recall, f1 and iou of each class that occurs."""
    counts = counts_of(predictions.scores.sum(axis=0))
    records = zip(counts.records(names), iou(counts), counts.present, strict=True)
    return [{**record, "iou": float(overlap)} for record, overlap, occurs in records if occurs]


def nearest(mask: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return a mask at another size, each pixel with the number of the nearest one; int64 [height, width]."""
    down = ((np.arange(height) + 0.5) * mask.shape[0] / height).astype(int)
    across = ((np.arange(width) + 0.5) * mask.shape[1] / width).astype(int)
    return np.asarray(mask[down[:, None], across[None]])
