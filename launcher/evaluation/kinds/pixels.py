"""A class for each pixel of an image."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from launcher.contracts import Predictions
from launcher.evaluation.counts import Counts
from launcher.evaluation.kinds.base import MOST_MISTAKES, Kind, Words, clean_text, require_labels, shown_row
from launcher.evaluation.segmentation import METRICS, counts_of, per_class, row_accuracies, segmentation_metrics
from launcher.evaluation.statistics import PairedTest, Statistic, sign_test, summed_rows


class Pixels(Kind):
    """A class for each pixel of an image."""

    headline = ("mean_iou", "pixel_accuracy")
    words = Words(
        unit="image",
        item="pixel",
        certainty="more pixels right in {a} images, fewer in {b}; exact sign test",
        test="exact sign test",
        better=("more pixels right by model", "more pixels right by baseline"),
        classes="Classes",
        each_class="class",
        support="pixels",
        mistakes="Images with the fewest pixels right",
        note="IoU is the intersection of what was said to be of a class and what is, over their union, counted over the pixels of all images; its mean is over the classes "
        "that occur. Images and masks are compared at the size that the model reads.",
    )  # fmt: skip

    def metrics(self, predictions: Predictions) -> dict[str, float]:
        """Return ``segmentation_metrics``. Raises DataError where there are no masks."""
        require_labels(predictions)
        return segmentation_metrics(predictions)

    def omitted(self, predictions: Predictions, found: Mapping[str, float]) -> dict[str, str]:
        """Return why there is no IoU, where there is none."""
        return {} if found else {"mean_iou": "no pixel has a class"}

    def statistics(self, predictions: Predictions) -> dict[str, Statistic]:
        """Images are drawn, each with all its pixels."""
        sums = summed_rows(predictions.scores)

        def drawn(metric: Callable[[Counts], np.ndarray]) -> Statistic:
            return lambda rows: np.asarray(metric(counts_of(sums(rows))))

        return {name: drawn(metric) for name, metric in METRICS.items()}

    def test(self, a: Predictions, b: Predictions) -> PairedTest:
        """Return the sign test on the share of each image's pixels that are wrong."""
        return sign_test(1 - row_accuracies(a), 1 - row_accuracies(b))

    def details(self, predictions: Predictions) -> dict[str, Any]:
        """Return per_class and mistakes."""
        names = tuple(map(clean_text, predictions.label_names))
        own = row_accuracies(predictions)
        counts = counts_of(predictions.scores)
        worst = [int(i) for i in np.argsort(own, kind="stable")[:MOST_MISTAKES] if own[i] < 1]
        return {
            "per_class": per_class(predictions, names),
            "mistakes": [
                {
                    **shown_row(predictions, i),
                    "label": _in_words(counts.support[i], names),
                    "predicted": _in_words(counts.predicted[i], names),
                    "score": float(own[i]),
                    "scored": f"{own[i]:.1%} of its pixels right",
                }
                for i in worst
            ],
        }

    def columns(self, predictions: Predictions) -> dict[str, Any]:
        """Return counts (as ``Predictions.scores``, a list), pixels (that count; null: unlabelled) and map (a PNG of the classes' numbers, or null)."""
        import pyarrow

        rows = len(predictions.row_ids)
        labels = [None] * rows if predictions.labels is None else predictions.labels.tolist()
        return {
            "counts": pyarrow.array(predictions.scores.astype(np.int64).tolist(), pyarrow.list_(pyarrow.int64())),
            "pixels": pyarrow.array(labels, pyarrow.int64()),
            "map": pyarrow.array(predictions.maps or [None] * rows, pyarrow.binary()),
        }

    def read(self, columns: Mapping[str, Any], facts: Mapping[str, Any]) -> dict[str, Any]:
        """Return scores, labels and maps."""
        pixels, maps = columns["pixels"].to_pylist(), columns["map"].to_pylist()
        known = bool(pixels) and pixels[0] is not None
        return {
            "scores": np.array(columns["counts"].to_pylist(), dtype=np.float64),
            "labels": np.array(pixels, dtype=np.int64) if known else None,
            "maps": tuple(maps) if maps and maps[0] is not None else (),
        }

    def rows(self, predictions: Predictions) -> list[dict[str, Any]]:
        """Return text, classes (name -> share of the image's pixels, the largest first) and mask (a PNG of the classes' numbers in base64)."""
        labelled = predictions.labels is not None
        said = counts_of(predictions.scores).predicted if labelled else predictions.scores
        maps = predictions.maps or (b"",) * len(said)
        return [
            {"text": text, "classes": _shares(row, predictions.label_names), "mask": base64.b64encode(png).decode()}
            for text, row, png in zip(predictions.texts, said, maps, strict=True)
        ]

    def line(self, row: Mapping[str, Any]) -> str:
        """Return the name of the image, and the classes in it."""
        return f"{row['text']}\t" + ", ".join(f"{name} {share:.1%}" for name, share in row["classes"].items())

    def table(self, rows: Sequence[Mapping[str, Any]]) -> Iterator[Sequence[Any]]:
        """Yield a line for each class of each image."""
        yield ["image", "class", "share"]
        for row in rows:
            yield from ([row["text"], name, share] for name, share in row["classes"].items())


def _shares(pixels: np.ndarray, names: Sequence[str]) -> dict[str, float]:
    total = max(float(pixels.sum()), 1.0)
    order = [int(i) for i in np.argsort(-pixels, kind="stable") if pixels[i]]
    return {clean_text(names[i]): round(float(pixels[i]) / total, 6) for i in order}


def _in_words(pixels: np.ndarray, names: Sequence[str]) -> str:
    return ", ".join(f"{name} {share:.0%}" for name, share in _shares(pixels, names).items()) or "(nothing)"
