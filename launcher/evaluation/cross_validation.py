"""Probabilities of the labels of texts by a model that is cheap to train, none of them from a model that has seen the row."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from launcher.evaluation.baselines import fit_features, one_label_model
from launcher.evaluation.label_errors import stratified_folds

FOLDS = 5
_STRENGTH = 10.0


def text_probabilities(
    texts: Sequence[str], labels: np.ndarray, *, classes: int, seed: int, folds: int = FOLDS
) -> np.ndarray | None:
    """Return the probability of each class for each text, float64 [rows, classes]; None where no text has a word or character.

    A linear model on TF-IDF weights (those of the baseline), trained on the other folds: a logistic regression of each class against the
    rest, whose probabilities are divided by their sum. That costs a tenth of the multinomial model with many classes. The weights of
    the n-grams are taken from all texts, which tells nothing of their labels. Each class should have two rows: a single one is
    not known when its row is judged, and has probability 0 there.

    Args:
        texts: of the rows.
        labels: int64 [rows].
    """
    fitted = fit_features(texts)
    if fitted is None:
        return None
    features = fitted[1].tocsr()
    found = np.zeros((len(texts), classes))
    fold_of = stratified_folds(labels, folds=folds, seed=seed)
    for fold in range(folds):
        trained, judged = np.flatnonzero(fold_of != fold), np.flatnonzero(fold_of == fold)
        for number in np.unique(labels[trained]).tolist() if len(judged) else ():
            predict = one_label_model(features[trained], labels[trained] == number, _STRENGTH)
            found[judged, number] = predict(features[judged])
    return np.asarray(found / np.maximum(found.sum(axis=1, keepdims=True), np.finfo(np.float64).tiny))
