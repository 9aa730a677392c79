"""Average precision of boxes, as COCO counts it: found boxes are matched with true ones image by image, once; everything else follows from the matches.

Source: Lin et al. 2014, "Microsoft COCO: Common Objects in Context", and the rules of its evaluation code: found boxes of a class and an image, best
score first, each take the free true box that they overlap most, if their intersection over union reaches the threshold; precision is interpolated
at 101 recalls and averaged over them, over thresholds 0.50, 0.55, ..., 0.95, and over the classes that have true boxes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from launcher.contracts import Boxes, Predictions
from launcher.errors import DataError
from launcher.evaluation.statistics import Statistic

THRESHOLDS = np.linspace(0.5, 0.95, 10)
"""Intersections over union."""
RECALLS = np.linspace(0.0, 1.0, 101)
MOST_PER_IMAGE = 100
"""Found boxes of a class in an image that count, those with the best scores."""
# Entries of one block of resamples: as much memory as the bootstrap's own blocks.
_BLOCK = 2_000_000


@dataclass(frozen=True)
class ClassMatches:
    """What became of the found boxes of one class, best score first; equal scores in the order of rows."""

    rows: np.ndarray
    """Image of each, int64 [found]."""
    scores: np.ndarray
    """float64 [found]."""
    hits: np.ndarray
    """Whether each took a true box, bool [thresholds, found]."""
    true: np.ndarray
    """Number of true boxes by image, int64 [images]."""


def rows_of(boxes: Boxes) -> np.ndarray:
    """Return the row of each box, from 0, int64 [boxes of all rows]."""
    return np.repeat(np.arange(len(boxes.counts)), boxes.counts)


def box_overlaps(found: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Return intersections over union [found, true] of boxes [n, 4]: x, y, width, height."""
    low = np.maximum(found[:, None, :2], true[None, :, :2])
    high = np.minimum(found[:, None, :2] + found[:, None, 2:], true[None, :, :2] + true[None, :, 2:])
    shared = np.clip(high - low, 0, None).prod(axis=2)
    union = found[:, 2:].prod(axis=1)[:, None] + true[:, 2:].prod(axis=1)[None] - shared
    return np.asarray(np.divide(shared, union, out=np.zeros_like(shared), where=union > 0))


def match_classes(predictions: Predictions) -> list[ClassMatches]:
    """Return the matches of each class, in the order of their numbers. Raises DataError where there are no rows, no labels, or no finite scores."""
    boxes, true_boxes = predictions.boxes, predictions.true_boxes
    assert boxes is not None and predictions.predicted is not None
    if not len(boxes.counts):
        raise DataError("there are no rows to evaluate")
    if predictions.labels is None or true_boxes is None:
        raise DataError("the rows have no labels, so no metric can be computed; use predict for unlabelled rows")
    bad = ~(np.isfinite(predictions.scores) & np.isfinite(boxes.places).all(axis=1))
    if bad.any():
        row = predictions.row_ids[int(rows_of(boxes)[bad][0])]
        raise DataError(f"the model's output for row {row} is not a finite number; its weights are broken")
    return [_match_class(predictions, number) for number in range(len(predictions.label_names))]


def _match_class(predictions: Predictions, number: int) -> ClassMatches:
    boxes, true_boxes = predictions.boxes, predictions.true_boxes
    assert boxes is not None and true_boxes is not None
    mine, theirs = np.flatnonzero(predictions.predicted == number), np.flatnonzero(predictions.labels == number)
    images = len(boxes.counts)
    by_image = _places_by_row(rows_of(boxes)[mine], images)
    true_by_image = _places_by_row(rows_of(true_boxes)[theirs], images)
    kept, hits = [], []
    for found, true in zip(by_image, true_by_image, strict=True):
        own = mine[found]
        best = own[np.argsort(-predictions.scores[own], kind="stable")[:MOST_PER_IMAGE]]
        kept.append(best)
        hits.append(_hits(box_overlaps(boxes.places[best], true_boxes.places[theirs[true]])))
    places, taken = np.concatenate(kept), np.concatenate(hits, axis=1)
    order = np.argsort(-predictions.scores[places], kind="stable")
    counts = np.array([len(true) for true in true_by_image])
    return ClassMatches(rows_of(boxes)[places[order]], predictions.scores[places[order]], taken[:, order], counts)


def _places_by_row(rows: np.ndarray, images: int) -> list[np.ndarray]:
    """Return for each image the places of ``rows``, which ascend, that are its number."""
    return np.split(np.arange(len(rows)), np.searchsorted(rows, np.arange(1, images)))


def _hits(overlaps: np.ndarray) -> np.ndarray:
    """Return whether each found box takes a true one, bool [thresholds, found]; ``overlaps`` [found, true], best score first."""
    hits = np.zeros((len(THRESHOLDS), len(overlaps)), dtype=bool)
    if not overlaps.size:
        return hits
    free = np.ones((len(THRESHOLDS), overlaps.shape[1]), dtype=bool)
    for place in np.flatnonzero(overlaps.max(axis=1) >= THRESHOLDS[0] - 1e-10):
        open_to = np.where(free & (overlaps[place] >= THRESHOLDS[:, None] - 1e-10), overlaps[place], -1.0)
        # Among equals the last one is taken, as COCO's code does.
        chosen = open_to.shape[1] - 1 - open_to[:, ::-1].argmax(axis=1)
        takes = open_to[np.arange(len(THRESHOLDS)), chosen] >= 0
        hits[takes, place] = True
        free[takes, chosen[takes]] = False
    return hits


def average_precisions(matches: ClassMatches, times: np.ndarray | None = None) -> np.ndarray:
    """Return the average precision at each threshold, float64 [resamples, thresholds]; NaN where a class has no true box.

    ``times``: how often each image counts, int64 [resamples, images]; None: each once, one resample. Copies of an image take what
    it takes; boxes of equal score that lie in one image stay together, copies of each.
    """
    times = np.ones((1, len(matches.true)), dtype=np.int64) if times is None else times
    true = times @ matches.true
    weights = times[:, matches.rows].astype(np.float64)
    found = np.cumsum(weights, axis=1)
    result = np.zeros((len(times), len(matches.hits)))
    for number, hits in enumerate(matches.hits):
        places = np.flatnonzero(hits)
        right = np.cumsum(weights[:, places], axis=1)
        if right.size:
            result[:, number] = _interpolated(right, found[:, places], true)
    result[true == 0] = np.nan
    return result


def _interpolated(right: np.ndarray, found: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Return the mean over RECALLS of the best precision at that recall or above it, [resamples].

    ``right``, ``found``: true and all found boxes up to each right one, [resamples, right ones]; between these, precision only falls.
    """
    precision = np.divide(right, found, out=np.zeros_like(right), where=found > 0)
    best = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    recall = right / np.maximum(true, 1)[:, None]
    reached = np.searchsorted(RECALLS, recall, side="right")
    more = np.diff(reached, axis=1, prepend=0)
    return np.asarray((best * more).sum(axis=1) / len(RECALLS))


def detection_metrics(matches: list[ClassMatches]) -> dict[str, float]:
    """Return map, map_50, map_75 and mar_100 (recall with up to 100 boxes of a class an image, over thresholds); empty without a true box."""
    with_true = [one for one in matches if one.true.sum()]
    if not with_true:
        return {}
    precisions = np.concatenate([average_precisions(one) for one in with_true])
    recalls = [one.hits.sum(axis=1).mean() / one.true.sum() for one in with_true]
    return {
        "map": float(precisions.mean()),
        "map_50": float(precisions[:, 0].mean()),
        "map_75": float(precisions[:, 5].mean()),
        "mar_100": float(np.mean(recalls)),
    }


def precision_statistic(matches: list[ClassMatches], thresholds: slice) -> Statistic:
    """Return the mean average precision over ``thresholds`` and classes as a function of resampled images."""
    wide = max((len(one.rows) for one in matches), default=1)

    def statistic(rows: np.ndarray) -> np.ndarray:
        images = len(matches[0].true)
        offsets = (np.arange(len(rows)) * images)[:, None]
        times = np.bincount((rows + offsets).ravel(), minlength=len(rows) * images).reshape(len(rows), images)
        block = max(1, _BLOCK // max(wide, images, 1))
        parts = [_mean_precision(matches, times[at : at + block], thresholds) for at in range(0, len(times), block)]
        return np.concatenate(parts)

    return statistic


def _mean_precision(matches: list[ClassMatches], times: np.ndarray, thresholds: slice) -> np.ndarray:
    cut = [ClassMatches(one.rows, one.scores, one.hits[thresholds], one.true) for one in matches]
    found = np.stack([average_precisions(one, times).mean(axis=1) for one in cut])
    known = np.isfinite(found)
    summed, number = np.where(known, found, 0).sum(axis=0), known.sum(axis=0)
    return np.asarray(np.divide(summed, number, out=np.full(len(summed), np.nan), where=number > 0))


def per_class(
    matches: list[ClassMatches], names: Mapping[int, str] | tuple[str, ...]
) -> list[dict[str, float | str | int]]:
    """Return a record for each class: name, support, ap, ap_50, and predicted, precision, recall and f1 at IoU 0.5 from the score on where F1 is best."""
    return [_class_record(one, names[number]) for number, one in enumerate(matches)]


def _class_record(one: ClassMatches, name: str) -> dict[str, float | str | int]:
    support = int(one.true.sum())
    record: dict[str, float | str | int] = {"name": name, "support": support, "predicted": 0}
    record |= {"precision": 0.0, "recall": 0.0, "f1": 0.0, "ap": 0.0, "ap_50": 0.0}
    if not support:
        return record
    found = average_precisions(one)[0]
    record |= {"ap": float(found.mean()), "ap_50": float(found[0])}
    right = np.cumsum(one.hits[0])
    if len(right) and right[-1]:
        f1 = 2 * right / (np.arange(1, len(right) + 1) + support)
        best = int(f1.argmax())
        record |= {
            "predicted": best + 1,
            "precision": float(right[best] / (best + 1)),
            "recall": float(right[best] / support),
            "f1": float(f1[best]),
            "score": float(one.scores[best]),
        }
    return record


def image_precisions(matches: list[ClassMatches]) -> np.ndarray:
    """Return each image's own mean average precision over its classes, float64 [images]; NaN for one without a true box."""
    images = len(matches[0].true)
    summed, classes = np.zeros(images), np.zeros(images)
    for one in matches:
        order = np.argsort(one.rows, kind="stable")
        ends = np.searchsorted(one.rows[order], np.arange(images + 1))
        for image in np.flatnonzero(one.true):
            mine = order[ends[image] : ends[image + 1]]
            alone = ClassMatches(np.zeros_like(mine), one.scores[mine], one.hits[:, mine], one.true[[image]])
            summed[image] += average_precisions(alone).mean()
            classes[image] += 1
    return np.asarray(np.divide(summed, classes, out=np.full(images, np.nan), where=classes > 0))
