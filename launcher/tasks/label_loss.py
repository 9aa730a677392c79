"""What tasks with one label for a row compute of it: probabilities, the cross entropy, and how much each row counts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from launcher.tasks.focal import focal_factors


def probabilities(logits: np.ndarray, problem_type: str) -> np.ndarray:
    """Return scores as in ``Predictions.scores`` for float64 logits [rows, outputs]."""
    if problem_type == "regression":
        return logits
    if problem_type == "single_label_classification":
        shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
        return shifted / shifted.sum(axis=1, keepdims=True)
    positive = 0.5 * (1 + np.tanh(0.5 * logits))
    return np.hstack([1 - positive, positive]) if problem_type == "binary_classification" else positive


def label_losses(
    logits: Any, labels: Any, *, class_weights: Any = None, label_smoothing: float = 0.0, gamma: float = 0.0
) -> Any:
    """Return the cross entropy of each row, or its focal loss (``tasks/focal.py``), float32 [rows].

    ``logits`` float32 [rows, classes]; ``labels`` int64 [rows]; ``class_weights`` float32 [classes] or None.
    """
    import torch.nn.functional as F

    classes = None if class_weights is None else class_weights.to(logits.device)
    rows = F.cross_entropy(logits, labels, weight=classes, reduction="none", label_smoothing=label_smoothing)
    return rows * focal_factors(logits, labels, gamma=gamma) if gamma else rows


def label_items(batch: Mapping[str, Any], class_weights: Any) -> Any:
    """Return the total weight of a batch, a scalar tensor: its rows, or with class weights the sum of theirs."""
    weights = batch["sample_weight"]
    return (weights if class_weights is None else weights * class_weights.to(weights.device)[batch["labels"]]).sum()
