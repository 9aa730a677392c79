"""Boxes around objects in images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from launcher.contracts import Boxes, Predictions
from launcher.evaluation.detection import (
    ClassMatches,
    detection_metrics,
    image_precisions,
    match_classes,
    per_class,
    precision_statistic,
)
from launcher.evaluation.kinds.base import MOST_MISTAKES, Kind, Words, clean_lists, clean_text, shown_row
from launcher.evaluation.statistics import PairedTest, Statistic, sign_test

_EMPTY = "no box"


class Objects(Kind):
    """Boxes around objects, each with a class."""

    headline = ("map", "map_50")
    words = Words(
        unit="image",
        item="box",
        certainty="a higher AP on {a} images, a lower one on {b}; exact sign test",
        test="exact sign test",
        better=("higher AP by model", "higher AP by baseline"),
        classes="Classes",
        each_class="class",
        support="boxes",
        mistakes="Images with the lowest average precision",
        note="mAP is the mean average precision over classes and intersections over union of 0.50 to 0.95, as COCO counts it; mAP at 50 counts a box "
        "as right from 0.50 on. Precision, recall and F1 of a class are at 0.50, from the score on where F1 is best.",
    )

    def metrics(self, predictions: Predictions) -> dict[str, float]:
        """Return ``detection_metrics``."""
        return detection_metrics(match_classes(predictions))

    def omitted(self, predictions: Predictions, found: Mapping[str, float]) -> dict[str, str]:
        """Return why there is no average precision, where there is none."""
        return {} if found else {"map": "no row has a box"}

    def statistics(self, predictions: Predictions) -> dict[str, Statistic]:
        """Images are drawn, each with all its boxes."""
        matches = match_classes(predictions)
        if not detection_metrics(matches):
            return {}
        parts = {"map": slice(None), "map_50": slice(0, 1), "map_75": slice(5, 6)}
        return {name: precision_statistic(matches, part) for name, part in parts.items()}

    def test(self, a: Predictions, b: Predictions) -> PairedTest:
        """Return the sign test on each image's own average precision; images without boxes say nothing."""
        return sign_test(1 - image_precisions(match_classes(a)), 1 - image_precisions(match_classes(b)))

    def details(self, predictions: Predictions) -> dict[str, Any]:
        """Return per_class and mistakes."""
        matches = match_classes(predictions)
        return {
            "per_class": per_class(matches, tuple(map(clean_text, predictions.label_names))),
            "mistakes": self._worst_images(predictions, matches),
        }

    def _worst_images(self, predictions: Predictions, matches: list[ClassMatches]) -> list[dict[str, Any]]:
        """Return the images with the lowest average precision: which classes were found, and which are there."""
        own = image_precisions(matches)
        worst = [int(i) for i in np.argsort(own, kind="stable")[:MOST_MISTAKES] if own[i] < 1]
        found = list(map(_shown, self.rows(predictions)))
        true = _names_by_row(predictions, predictions.true_boxes, predictions.labels)
        return [
            {
                **shown_row(predictions, i),
                "label": _counted(true[i]),
                "predicted": _counted(found[i]),
                "average_precision": float(own[i]),
            }
            for i in worst
        ]

    def columns(self, predictions: Predictions) -> dict[str, Any]:
        """Return predicted, confidence and boxes ([x, y, width, height] in pixels), label and label_boxes: lists with an item for each box; the
        threshold.
        """
        import pyarrow

        boxes, true = predictions.boxes, predictions.true_boxes
        assert boxes is not None
        texts, places = pyarrow.list_(pyarrow.string()), pyarrow.list_(pyarrow.list_(pyarrow.float64()))
        empty = [None] * len(boxes.counts)
        names = _names_by_row(predictions, boxes, predictions.predicted)
        right = empty if true is None else list(clean_lists(_names_by_row(predictions, true, predictions.labels)))
        return {
            "label": pyarrow.array(right, texts),
            "label_boxes": pyarrow.array(empty if true is None else _by_row(true, true.places), places),
            "predicted": pyarrow.array(list(clean_lists(names)), texts),
            "confidence": pyarrow.array(_by_row(boxes, predictions.scores), pyarrow.list_(pyarrow.float64())),
            "boxes": pyarrow.array(_by_row(boxes, boxes.places), places),
            "threshold": pyarrow.array([predictions.threshold] * len(boxes.counts), pyarrow.float64()),
        }

    def read(self, columns: Mapping[str, Any], facts: Mapping[str, Any]) -> dict[str, Any]:
        """Return scores, labels, predicted, boxes, true_boxes and threshold."""
        number = {clean_text(name): number for number, name in enumerate(facts["label_names"])}
        kept = {
            name: columns[name].to_pylist() for name in ("label", "label_boxes", "predicted", "confidence", "boxes")
        }
        known = bool(kept["label"]) and kept["label"][0] is not None

        def numbers(rows: list[list[str]]) -> np.ndarray:
            return np.array([number[name] for row in rows for name in row], dtype=np.int64)

        thresholds = columns["threshold"].to_pylist()
        return {
            "scores": np.array([score for row in kept["confidence"] for score in row], dtype=np.float64),
            "labels": numbers(kept["label"]) if known else None,
            "predicted": numbers(kept["predicted"]),
            "boxes": _boxes(kept["boxes"]),
            "true_boxes": _boxes(kept["label_boxes"]) if known else None,
            "threshold": thresholds[0] if thresholds else 0.0,
        }

    def rows(self, predictions: Predictions) -> list[dict[str, Any]]:
        """Return text, and objects (label, score, box: x, y, width and height in pixels) with a score from the threshold on, best first."""
        boxes = predictions.boxes
        assert boxes is not None
        names = _names_by_row(predictions, boxes, predictions.predicted)
        scores, places = _by_row(boxes, predictions.scores), _by_row(boxes, boxes.places)
        return [
            {
                "text": text,
                "objects": [
                    {"label": name, "score": round(score, 6), "box": [round(value, 2) for value in place]}
                    for name, score, place in sorted(zip(*found, strict=True), key=lambda one: -one[1])
                    if score >= predictions.threshold
                ],
            }
            for text, *found in zip(predictions.texts, names, scores, places, strict=True)
        ]

    def line(self, row: Mapping[str, Any]) -> str:
        """Return the name of the image, and its objects."""
        found = ", ".join(
            f"{one['label']} {one['score']:.3f} [{', '.join(f'{value:.0f}' for value in one['box'])}]"
            for one in row["objects"]
        )
        return f"{row['text']}\t{found or _EMPTY}"

    def table(self, rows: Sequence[Mapping[str, Any]]) -> Iterator[Sequence[Any]]:
        """Yield a line for each object; an image without any has none."""
        yield ["image", "label", "score", "x", "y", "width", "height"]
        for row in rows:
            yield from ([row["text"], one["label"], one["score"], *one["box"]] for one in row["objects"])


def _by_row(boxes: Boxes, values: np.ndarray) -> list[list[Any]]:
    """Return a list for each row of what ``values`` [boxes of all rows, ...] holds for its boxes."""
    return [part.tolist() for part in np.split(values, np.cumsum(boxes.counts)[:-1])] if len(boxes.counts) else []


def _names_by_row(predictions: Predictions, boxes: Boxes | None, classes: np.ndarray | None) -> list[list[str]]:
    assert boxes is not None and classes is not None
    return [[predictions.label_names[number] for number in row] for row in _by_row(boxes, classes)]


def _boxes(rows: list[list[list[float]]]) -> Boxes:
    places = np.array([place for row in rows for place in row], dtype=np.float64).reshape(-1, 4)
    return Boxes(np.array([len(row) for row in rows], dtype=np.int64), places)


def _shown(row: Mapping[str, Any]) -> list[str]:
    return [one["label"] for one in row["objects"]]


def _counted(names: Sequence[str]) -> str:
    """Return names with how often they occur: 2 circle, 1 square."""
    return ", ".join(f"{list(names).count(name)} {clean_text(name)}" for name in sorted(set(names))) or _EMPTY
