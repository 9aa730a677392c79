"""Likely label errors: the counts by hand, probabilities that are out of sample, and labels that were changed on purpose."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from launcher.evaluation.cross_validation import text_probabilities
from launcher.evaluation.label_errors import (
    class_thresholds,
    count_label_errors,
    find_label_errors,
    likely_labels,
    stratified_folds,
)

# Thresholds: a 0.6 (mean of .9 .8 .1), b 0.7 (of .8 .9 .4), c 0.5 (of .5).
PROBABILITIES = np.array(
    [
        [0.9, 0.05, 0.05], [0.8, 0.1, 0.1], [0.1, 0.8, 0.1],
        [0.1, 0.8, 0.1], [0.05, 0.9, 0.05], [0.35, 0.4, 0.25],
        [0.25, 0.25, 0.5],
    ]
)  # fmt: skip
LABELS = np.array([0, 0, 0, 1, 1, 1, 2])


def test_by_hand():
    assert class_thresholds(PROBABILITIES, LABELS).tolist() == pytest.approx([0.6, 0.7, 0.5])
    # Row 2 is confidently b; row 5 is below every threshold.
    assert count_label_errors(PROBABILITIES, LABELS) == 1
    assert find_label_errors(PROBABILITIES, LABELS).tolist() == [2]
    assert likely_labels(PROBABILITIES, LABELS).tolist() == [1, 1, 1, 0, 0, 0, 0]


def test_the_least_probable_label_comes_first_and_the_likeliest_is_never_named():
    rng = np.random.default_rng(0)
    labels, probabilities = rng.integers(0, 4, 200), rng.dirichlet(np.ones(4), 200)
    found, own = find_label_errors(probabilities, labels), probabilities[np.arange(200), labels]
    assert len(found) == count_label_errors(probabilities, labels) > 50
    assert (np.diff(own[found]) >= 0).all() and (own[found] < probabilities[found].max(axis=1)).all()
    assert (likely_labels(probabilities, labels)[found] == probabilities[found].argmax(axis=1)).all()


def test_rows_without_a_confident_class_have_their_share():
    """Of four rows labelled a, one is confidently b; where two are in no class, one of them is taken to be wrong as well."""
    probabilities = np.array([[0.9, 0.1], [0.05, 0.95], [0.55, 0.45], [0.5, 0.5], [0.1, 0.9], [0.2, 0.8]])
    labels = np.array([0, 0, 0, 0, 1, 1])
    assert class_thresholds(probabilities, labels).tolist() == pytest.approx([0.5, 0.85])
    assert count_label_errors(probabilities, labels) == 1
    probabilities[2:4] = [[0.3, 0.7], [0.35, 0.65]]
    assert count_label_errors(probabilities, labels) == 2 and find_label_errors(probabilities, labels).tolist() == [
        1,
        2,
    ]


def test_a_class_without_rows_is_never_above_its_threshold():
    labels = np.array([0, 0, 1, 1, 1, 1, 0])
    assert class_thresholds(PROBABILITIES, labels)[2] == np.inf
    assert count_label_errors(PROBABILITIES, labels) == 0 and find_label_errors(PROBABILITIES, labels).tolist() == []


def test_no_rows():
    assert find_label_errors(np.zeros((0, 3)), np.zeros(0, dtype=np.int64)).tolist() == []


def test_folds_have_each_class_alike():
    labels = np.random.default_rng(0).permutation(np.repeat([0, 1, 2], [50, 7, 2]))
    folds = stratified_folds(labels, folds=5, seed=1)
    for label in range(3):
        counts = np.bincount(folds[labels == label], minlength=5)
        assert counts.max() - counts.min() <= 1
    assert (folds == stratified_folds(labels, folds=5, seed=1)).all()
    assert (folds != stratified_folds(labels, folds=5, seed=2)).any()


def test_no_row_is_judged_by_a_model_that_has_seen_it():
    """Texts of a word of their own and labels by chance: a model that knew the rows would be right, another cannot be."""
    rng = np.random.default_rng(0)
    texts = ["".join(rng.choice(list("abcdefghijklmnopqrstuvwxyz"), 12)) for _ in range(120)]
    labels = rng.integers(0, 3, 120)
    found = text_probabilities(texts, labels, classes=3, seed=0)
    assert found is not None and found.sum(axis=1) == pytest.approx(1)
    assert abs((found.argmax(axis=1) == labels).mean() - 1 / 3) < 0.12


def test_texts_without_a_word_cannot_be_judged():
    assert text_probabilities(["", ""], np.array([0, 1]), classes=2, seed=0) is None


def changed(shared: Path, name: str, *, classes: int | None = None) -> tuple[list[str], np.ndarray, np.ndarray, int]:
    """Return texts, labels of which one in twenty was changed by chance, the rows that were changed, and classes."""
    with (shared / "data" / name / "train.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    column = next(head for head in ("category", "label") if head in rows[0])
    names = sorted({row[column] for row in rows})[:classes]
    rows = [row for row in rows if row[column] in names][:1000]
    texts = [" ".join(value for head, value in row.items() if head != column) for row in rows]
    right = np.array([names.index(row[column]) for row in rows])
    rng = np.random.default_rng(0)
    flipped = rng.choice(len(rows), len(rows) // 20, replace=False)
    labels = right.copy()
    labels[flipped] = (labels[flipped] + rng.integers(1, len(names), len(flipped))) % len(names)
    return texts, labels, flipped, len(names)


@pytest.mark.parametrize(
    "name, classes, precision, recall", [("ag_news", None, 0.5, 0.75), ("banking77", 20, 0.8, 0.75)]
)
def test_changed_labels_of_real_texts_are_found(shared, name, classes, precision, recall):
    """One label in twenty is wrong: of a list by chance one row in twenty would be.

    Measured, precision of the first as many as were changed, and recall of all that are named: 0.54 and 0.84 (1,000 rows of ag_news, 50
    changed, 113 named), 0.87 and 0.83 (837 rows of 20 labels of banking77, 41 changed, 39 named).
    """
    texts, labels, flipped, number = changed(shared, name, classes=classes)
    probabilities = text_probabilities(texts, labels, classes=number, seed=0)
    assert probabilities is not None
    found = find_label_errors(probabilities, labels)
    assert np.isin(found[: len(flipped)], flipped).mean() >= precision and np.isin(flipped, found).mean() >= recall
