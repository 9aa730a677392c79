"""The class that each place of an image has most often in train: what a segmentation has to beat."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from launcher.contracts import Baseline, Predictions
from launcher.evaluation.kinds import metrics_for
from launcher.evaluation.segmentation import nearest, pixel_counts

SIDE = 32
"""Places across and down in which train is counted."""


def usual_pixels(
    train: Iterable[np.ndarray], true: Iterable[np.ndarray], predictions: Predictions, *, ignored: int
) -> Baseline:
    """Return the baseline that says of each place, of 32 x 32, the class that it has most often in train.

    Args:
        train: masks, int64 [height, width], of any sizes.
        true: those of the rows of ``predictions``, at the size at which these were counted.
    """
    classes = len(predictions.label_names)
    counts = np.zeros((SIDE * SIDE, classes))
    for mask in train:
        small = nearest(mask, SIDE, SIDE).ravel()
        places = np.flatnonzero(small != ignored)
        counts[places, small[places]] += 1
    usual = counts.argmax(axis=1).reshape(SIDE, SIDE)
    found = [pixel_counts(nearest(usual, *mask.shape), mask, classes=classes, ignored=ignored).ravel() for mask in true]
    own = replace(predictions, scores=np.array(found, dtype=np.float64), maps=())
    return Baseline("usual_pixels", own, metrics_for(own))
