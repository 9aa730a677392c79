"""What can be told of two answers without reading them: which is the longer one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from launcher.contracts import Baseline, Predictions
from launcher.evaluation.kinds import metrics_for


def longer_baseline(lengths: np.ndarray, predictions: Predictions) -> Baseline:
    """Return the baseline that prefers the longer answer of each pair, as people and models that judge answers often do.

    Args:
        lengths: int [rows, 2], tokens of the chosen and of the rejected answer of the pairs of ``predictions``.
    """
    assert len(lengths) == len(predictions.row_ids)
    # Lengths are an order, no rewards: there is no loss of them.
    scores = np.column_stack([lengths.astype(np.float64), np.full(len(lengths), np.nan)])
    own = replace(predictions, scores=scores)
    return Baseline("longer", own, metrics_for(own))
