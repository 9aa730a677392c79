"""A linear model on the pixels of small copies: what an image model has to beat."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from launcher.contracts import Baseline, Predictions
from launcher.evaluation.baselines import REGULARIZATION_GRID, logistic_models
from launcher.evaluation.kinds import metrics_for
from launcher.evaluation.metrics import classification_metrics

MOST_ROWS = 5000
"""Above this many training rows the baseline learns from a seeded sample of that size, and says so."""

# Pixels have less to tell apart than counts of n-grams, and need the stronger regularisation.
_GRID = tuple(c / 100 for c in REGULARIZATION_GRID)


def pixels_baseline(
    train: np.ndarray, train_labels: np.ndarray, validation: np.ndarray, validation_labels: np.ndarray,
    test: np.ndarray, predictions: Predictions,
) -> Baseline:  # fmt: skip
    """Return logistic regression on standardised pixels, its regularisation chosen by the accuracy on validation.

    Args:
        train: float [rows, pixels]; validation and test likewise, test for the rows of ``predictions``.
        train_labels: int64 [rows].
    """
    note = ""
    if len(train) > MOST_ROWS:
        rows = np.sort(np.random.default_rng(0).choice(len(train), size=MOST_ROWS, replace=False))
        note = f"It learned from a sample of {MOST_ROWS:,} of {len(train):,} training rows."
        train, train_labels = train[rows], train_labels[rows]
    mean, spread = train.mean(axis=0), train.std(axis=0) + 1e-3
    train, validation, test = ((part - mean) / spread for part in (train, validation, test))
    classes = len(predictions.label_names)
    if len(np.unique(train_labels)) < 2:
        shares = np.bincount(train_labels, minlength=classes) / len(train_labels)
        own = replace(predictions, scores=np.tile(shares, (len(test), 1)))
        return _finished(own, {}, "It predicts the same for every row: all training rows have one label.")
    best, chosen, scores = (-1.0, 0.0), {}, np.zeros((0, classes))
    for c, predict in logistic_models(train, train_labels, classes, _GRID):
        found = classification_metrics(predict(validation), validation_labels)
        value = (found["accuracy"], -found["log_loss"])
        if value > best:
            best, scores = value, predict(test)
            chosen = {"C": c, "validation_metric": "accuracy", "validation_score": value[0]}
    return _finished(replace(predictions, scores=scores), chosen, note)


def _finished(predictions: Predictions, chosen: dict[str, object], note: str) -> Baseline:
    metrics = {} if predictions.labels is None else metrics_for(predictions)
    return Baseline("pixels", predictions, metrics, chosen, note)
