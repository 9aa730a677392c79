"""Pictures of data: how long rows are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from launcher.evaluation.svg import BLUE, INK, figure


def draw_lengths(
    histograms: Mapping[str, Sequence[tuple[int, int, int]]], *, max_length: int, write: Callable[[Any], Any]
) -> Any:
    """Draw a histogram for each split, one below the other, on one axis of tokens; ``write`` gets the figure.

    ``histograms``: split -> (first, last, rows) of each bin. The dashed line is ``max_length``.
    """
    height = 110 * len(histograms)
    with figure(560, height + 50, margins=(64, 16, 18, 44)) as (drawing, axes):
        axes.remove()
        drawing.subplots_adjust(left=0.14, right=0.97, top=0.97, bottom=44 / (height + 50), hspace=0.2)
        rows = drawing.subplots(len(histograms), 1, sharex=True, squeeze=False)[:, 0]
        for axis, (split, bins) in zip(rows, histograms.items(), strict=True):
            axis.bar(
                [first for first, _, _ in bins], [count for _, _, count in bins],
                width=[last - first + 1 for first, last, _ in bins], align="edge", color=BLUE, linewidth=0.5, edgecolor="white",
            )  # fmt: skip
            axis.axvline(max_length, color=INK, linestyle="--", linewidth=1)
            axis.set_ylabel(f"{split}\nrows")
        rows[-1].set_xlabel("tokens of a row; dashed: max_length")
        return write(drawing)
