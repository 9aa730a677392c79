"""How often rows are drawn in an epoch, by their label."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from launcher.contracts import Prepared

# Kang et al. 2020, "Decoupling Representation and Classifier for Long-Tailed Recognition" (arXiv:1910.09217), eq. 1: a class is drawn
# in proportion to (rows of the class)^q.
_POWERS = {"natural": 1.0, "square_root": 0.5, "balanced": 0.0}


def class_draws(chosen: str, labels: np.ndarray, *, classes: int) -> np.ndarray:
    """Return how often each row is drawn in an epoch on average, float64 [rows]; their sum is the number of rows.

    ``chosen``: a value of task.class_sampling; ``labels``: int64 [rows]. A class without rows has no share.
    """
    counts = np.bincount(labels, minlength=classes)
    shares = np.where(counts > 0, counts.astype(np.float64) ** _POWERS[chosen], 0.0)
    each = len(labels) * shares / shares.sum() / np.maximum(counts, 1)
    return np.asarray(each[labels])


def with_draws(prepared: Prepared, chosen: str) -> Prepared:
    """Return prepared rows that are drawn in training as task.class_sampling ``chosen`` says, and that in words among their facts."""
    if chosen == "natural":
        return prepared
    labels, names = np.asarray(prepared.train["labels"][:], dtype=np.int64), prepared.label_names
    draws = class_draws(chosen, labels, classes=len(names))
    told = describe_draws(chosen, draws, labels, names=names)
    return replace(prepared, draws=draws, facts={**prepared.facts, "class_sampling": told})


def drawn_shares(draws: np.ndarray, labels: np.ndarray, *, classes: int) -> np.ndarray:
    """Return the share of each class among the rows that are drawn in an epoch, float64 [classes]."""
    return np.bincount(labels, weights=draws, minlength=classes) / draws.sum()


def describe_draws(chosen: str, draws: np.ndarray, labels: np.ndarray, *, names: Sequence[str]) -> str:
    """Return what is drawn in words: the rarest and the most frequent label, before and after."""
    counts = np.bincount(labels, minlength=len(names))
    shares = drawn_shares(draws, labels, classes=len(names))
    known = np.flatnonzero(counts)
    ends = (int(known[counts[known].argmin()]), int(known[counts[known].argmax()]))
    told = [
        f"{names[k]} is {shares[k]:.2%} of what is drawn instead of {counts[k] / len(labels):.2%}, each of its rows "
        f"{shares[k] * len(labels) / counts[k]:.3g} times an epoch"
        for k in ends
    ]
    return f"{chosen}; " + "; ".join(told)
