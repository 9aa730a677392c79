"""Rows whose label is likely wrong, told from the probabilities of a model that has not learned from them.

Northcutt, Jiang and Chuang 2021, "Confident Learning: Estimating Uncertainty in Dataset Labels", J. Artif. Intell. Res. 70, 1373-1411.
"""

from __future__ import annotations

import numpy as np


def class_thresholds(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return how probable each class is on average to the rows that have its label, float64 [classes]; eq. 2.

    A class without rows has the threshold infinity: no row can be counted as one of its own.
    """
    classes = probabilities.shape[1]
    rows = np.bincount(labels, minlength=classes)
    sums = np.bincount(labels, weights=_self_confidence(probabilities, labels), minlength=classes)
    return np.where(rows > 0, sums / np.maximum(rows, 1), np.inf)


def count_label_errors(probabilities: np.ndarray, labels: np.ndarray) -> int:
    """Return how many labels are likely wrong: the rows of the calibrated joint whose class is not their label; eq. 1 and 3.

    Each row is counted in the likeliest of the classes that are at least as probable as their thresholds, if there is one (the confident
    joint). The counts of a label are then scaled to all of its rows, so that those without such a class have their share.
    """
    above = np.where(probabilities >= class_thresholds(probabilities, labels), probabilities, -1.0)
    counted = above.max(axis=1) >= 0
    classes, rows = probabilities.shape[1], np.bincount(labels, minlength=probabilities.shape[1])
    known = np.bincount(labels[counted], minlength=classes)
    other = np.bincount(labels[counted & (above.argmax(axis=1) != labels)], minlength=classes)
    return round(float((other / np.maximum(known, 1) * rows).sum()))


def find_label_errors(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the rows whose label is likely wrong, int64 [found], the least probable label first.

    The joint says how many there are (``count_label_errors``); which ones, the probability of the given label, self-confidence, by which
    the paper ranks and prunes: the least probable ones, unless they are the likeliest all the same. The rows that the confident joint
    itself counts were worse: with many classes it leaves out each row without a class above its threshold, and where labels of
    banking77 were changed on purpose it had two thirds of them, this order nearly all.

    Args:
        probabilities: float64 [rows, classes], of a model that has not been trained on the row.
        labels: int64 [rows], the given ones.
    """
    assert probabilities.ndim == 2 and labels.shape == probabilities.shape[:1], (
        "one label for each row of probabilities"
    )
    if not len(labels):
        return np.zeros(0, dtype=np.int64)
    own = _self_confidence(probabilities, labels)
    order = np.argsort(own, kind="stable")
    suspects = order[own[order] < probabilities.max(axis=1)[order]]
    return np.asarray(suspects[: count_label_errors(probabilities, labels)], dtype=np.int64)


def likely_labels(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the likeliest class beside the given one, int64 [rows]; two classes or more."""
    others = probabilities.copy()
    others[np.arange(len(labels)), labels] = -1.0
    return np.asarray(others.argmax(axis=1), dtype=np.int64)


def stratified_folds(labels: np.ndarray, *, folds: int, seed: int) -> np.ndarray:
    """Return the fold of each row, int64 [rows], by chance; each class is spread over the folds as evenly as it can be."""
    order = np.random.default_rng(seed).permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    found = np.empty(len(labels), dtype=np.int64)
    found[order] = np.arange(len(labels)) % folds
    return found


def _self_confidence(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    return np.asarray(probabilities[np.arange(len(labels)), labels], dtype=np.float64)
