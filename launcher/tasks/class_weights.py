"""Weights of classes in the loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from launcher.errors import DataError


def class_weights(chosen: str | Mapping[str, float], *, names: Sequence[str], counts: Sequence[int]) -> Any:
    """Return a float32 tensor [classes], or None for ``none``.

    ``chosen``: ``none``; ``balanced``, n / (classes * n of the class), with a class that does not occur counted once; or weights by
    name, 1 for the others. ``counts``: how often each class occurs in train.

    Raises:
        DataError: a name is no class.
    """
    if chosen == "none":
        return None
    import torch

    if isinstance(chosen, str):
        known = np.asarray(counts, dtype=float)
        weights = known.sum() / (len(known) * np.maximum(known, 1))
    else:
        unknown = sorted(set(chosen) - set(names))
        if unknown:
            raise DataError(f"task.class_weights names {unknown[0]!r}, which is no label; labels: {', '.join(names)}")
        weights = np.asarray([chosen.get(name, 1.0) for name in names])
    return torch.tensor(weights, dtype=torch.float32)
