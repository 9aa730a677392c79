"""Chance that belongs to a row: what a collator draws for it, the same wherever and whenever that is done."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

# numpy takes [a, b] and [a, b, 0] for one seed; these are of a length and a beginning of their own.
_TRAINING, _EVALUATION = 1, 2


def row_generator(row: Mapping[str, Any], *, seed: int | None) -> np.random.Generator:
    """Return the generator of what is drawn for a row.

    In training it is a pure function of the seed, the row's epoch and its number, and of how often the row was drawn in that epoch
    before, so that neither ranks, micro-batches, workers nor a resume change what is drawn. In evaluation the number alone decides: each evaluation, also that of a run with another seed, is
    of the same places.

    Args:
        row: with ``row_id`` and, in training, ``epoch`` and, where it was drawn before in it, ``copy``.
        seed: training.seed; None: in evaluation.
    """
    if seed is None:
        return np.random.default_rng([_EVALUATION, 0, 0, row["row_id"]])
    copy = row.get("copy", 0)
    return np.random.default_rng([_TRAINING, seed, row["epoch"], row["row_id"], *([copy] if copy else [])])
