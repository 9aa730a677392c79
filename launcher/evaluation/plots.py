"""Plots of a report: pure functions from plain values to SVG text, or "" where there is nothing to show."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from launcher.evaluation.svg import (
    BLUE,
    COLOURS,
    FONT_SIZE,
    INK,
    ORANGE,
    VERMILLION,
    figure,
    shorten,
    to_svg,
    width_of,
)

Rows = Sequence[Mapping[str, Any]]

CURVE = (400, 250)
"""Size of a curve in CSS pixels: three stand side by side on a desk, one fills a phone."""

MOST_POINTS = 300
MOST_ANNOTATED = 25
MOST_OVERVIEW = 200
BLOCK = 14
MOST_BARS = 30


# --- curves over steps ---------------------------------------------------------------------------------------------


def series(progress: Rows, key: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the steps and values of ``key``, sorted; of a step that was run twice (after resume) the later row
    counts.
    """
    found = {int(row["step"]): float(row[key]) for row in progress if "step" in row and _is_number(row.get(key))}
    steps = sorted(found)
    return np.array(steps, dtype=float), np.array([found[step] for step in steps])


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _thinned(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Average neighbouring points so that a long run stays readable and small."""
    if len(steps) <= MOST_POINTS:
        return steps, values
    parts = np.array_split(np.arange(len(steps)), MOST_POINTS)
    return np.array([steps[p].mean() for p in parts]), np.array([values[p].mean() for p in parts])


def loss_curve(progress: Rows) -> str:
    """Return the training loss (``loss``) and the validation loss (``eval_loss``) over steps."""
    lines = [("training", *series(progress, "loss"), BLUE), ("validation", *series(progress, "eval_loss"), VERMILLION)]
    return _lines(
        [line for line in lines if len(line[1])], name="loss", alt="Training and validation loss over steps", floor=0
    )


def metric_curve(progress: Rows, metrics: Sequence[str], *, titles: Mapping[str, str] | None = None) -> str:
    """Return the validation metrics ``eval_NAME`` over steps."""
    titles = titles or {}
    found = [(titles.get(name, name), *series(progress, f"eval_{name}")) for name in metrics]
    lines = [(*line, colour) for line, colour in zip((f for f in found if len(f[1])), COLOURS, strict=False)]
    return _lines(lines, name="metric", alt="Validation metrics over steps")


def gradient_norm_curve(progress: Rows) -> str:
    """Return the gradient norm over steps, before clipping."""
    steps, values = series(progress, "grad_norm")
    lines = [("", steps, values, BLUE)] if len(steps) else []
    return _lines(lines, name="norm", alt="Gradient norm over steps", floor=0)


def rate_curve(progress: Rows) -> str:
    """Return the learning rate over steps: one line for each ``lr/GROUP``, or ``learning_rate`` where there are
    none.
    """
    names = list(dict.fromkeys(key for row in progress for key in row if key.startswith("lr/")))
    found = [(name.removeprefix("lr/"), *series(progress, name)) for name in names]
    found = [line for line in found if len(line[1])] or [("", *series(progress, "learning_rate"))]
    lines = _same_lines_once([line for line in found if len(line[1])])
    colours = COLOURS if len(lines) <= len(COLOURS) else _ramp(len(lines))
    return _lines(
        [(*line, colour) for line, colour in zip(lines, colours, strict=False)],
        name="rate", alt="Learning rate of each group over steps", floor=0,
    )  # fmt: skip


def _same_lines_once(lines: list[tuple[str, np.ndarray, np.ndarray]]) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """Join groups with equal rates at all steps: drawn on top of each other, only the last would be seen."""
    kinds: dict[bytes, list[tuple[str, np.ndarray, np.ndarray]]] = {}
    for line in lines:
        kinds.setdefault(line[1].tobytes() + line[2].tobytes(), []).append(line)
    if len(kinds) == 1:
        return [("all groups" if len(lines) > 1 else lines[0][0], lines[0][1], lines[0][2])] if lines else []
    names = {key: [name for name, *_ in same] for key, same in kinds.items()}
    return [(_span(names[key]), same[0][1], same[0][2]) for key, same in kinds.items()]


def _span(names: list[str]) -> str:
    return (
        names[0] if len(names) == 1 else f"{names[0]}, {names[1]}" if len(names) == 2 else f"{names[0]} … {names[-1]}"
    )


def _ramp(count: int) -> list[Any]:
    """Return colours in order of depth, from a map that is ordered for every colour vision."""
    import matplotlib

    return list(matplotlib.colormaps["viridis"](np.linspace(0.28, 0.8, count)))


def _lines(
    lines: Sequence[tuple[str, np.ndarray, np.ndarray, Any]], *, name: str, alt: str, floor: float | None = None
) -> str:
    if not lines:
        return ""
    labels = [label for label, *_ in lines]
    with figure(*CURVE, margins=(52, 12, 30 if any(labels) else 12, 40)) as (drawing, axes):
        for label, steps, values, colour in lines:
            steps, values = _thinned(steps, values)
            axes.plot(
                steps, values, color=colour, label=shorten(label, most=22) if label else None, **_marker(len(steps))
            )
        _finish_axes(axes, floor=floor, lowest=min(float(line[2].min()) for line in lines))
        _legend(axes, labels)
        return to_svg(drawing, name=name, alt=alt)


def _marker(points: int) -> dict[str, Any]:
    return {"marker": "o", "markersize": 4 if points > 1 else 7} if points <= 25 else {}


def _finish_axes(axes: Any, *, floor: float | None, lowest: float) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axes.set_xlabel("step")
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: tick_text(y)))
    axes.grid(visible=False, axis="x")
    if floor is not None and lowest >= floor:
        axes.set_ylim(bottom=floor)


def tick_text(value: float) -> str:
    """Return a number for an axis: 0.25, 1,200, 2.4e−4."""
    if value == 0:
        return "0"
    if 0.001 <= abs(value) < 1e6:
        return (f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}").replace("-", "−")
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}".replace("-", "−")


def _legend(axes: Any, labels: Sequence[str]) -> None:
    if not any(labels):
        return
    handles, names = axes.get_legend_handles_labels()
    # Names of many groups do not fit; in order of depth the ends say enough, and the tuning table has all.
    if len(handles) > 3:
        handles, names = [handles[0], handles[-1]], [names[0], names[-1]]
    axes.legend(
        handles,
        names,
        loc="lower left",
        bbox_to_anchor=(-0.12, 1.0),
        ncols=3,
        borderpad=0.1,
        columnspacing=1.2,
        handletextpad=0.5,
        borderaxespad=0.2,
    )


# --- comparison ----------------------------------------------------------------------------------------------------


def comparison_plot(systems: Rows, *, title: str) -> str:
    """Return a dot and an interval for each system.

    ``systems``: records of name, value, and low and high where they are known; the model comes first.
    """
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    if not systems:
        return ""
    left = min(190, 12 + max(width_of(shorten(str(s["name"]))) for s in systems))
    with figure(400, 50 + 30 * len(systems), margins=(left, 52, 4, 42)) as (drawing, axes):
        for y, system in enumerate(systems):
            colour = BLUE if y == 0 else INK
            low, high = system.get("low", system["value"]), system.get("high", system["value"])
            axes.plot([low, high], [y, y], color=colour, linewidth=3 if y == 0 else 2, alpha=0.55)
            axes.plot([system["value"]], [y], "o", color=colour, markersize=9 if y == 0 else 7)
            axes.annotate(_three(system["value"]), (high, y), xytext=(8, 0), textcoords="offset points", va="center",
                          fontsize=FONT_SIZE, fontweight="bold" if y == 0 else "normal")  # fmt: skip
        axes.set_yticks(range(len(systems)), [shorten(str(s["name"])) for s in systems])
        axes.set_ylim(len(systems) - 0.4, -0.6)
        axes.margins(x=0.06)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: tick_text(x)))
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.spines["left"].set_visible(False)
        axes.grid(visible=False, axis="y")
        axes.set_xlabel(title)
        return to_svg(
            drawing,
            name="comparison-" + "".join(filter(str.isalnum, title)),
            alt=f"{title} of the model and of the baselines",
        )


def _three(value: float) -> str:
    return (f"{value:.3f}" if abs(value) < 100 else f"{value:,.0f}").replace("-", "−")


# --- confusion -----------------------------------------------------------------------------------------------------


def confusion_matrix(confusion: Sequence[Sequence[int]], names: Sequence[str]) -> str:
    """Return the confusion matrix; with more than MOST_ANNOTATED labels the block of those most often confused.

    ``confusion``: [label, predicted, rows] for each pair that occurs. A cell says rows and is coloured by its share of
    the label's rows: blue right, orange wrong.
    """
    if not confusion:
        return ""
    kept = list(range(len(names))) if len(names) <= MOST_ANNOTATED else most_confused(confusion)
    totals = _totals(confusion, len(names))
    place = {label: k for k, label in enumerate(kept)}
    cells = [(place[a], place[b], rows, rows / totals[a]) for a, b, rows in confusion if a in place and b in place]
    labels = [shorten(names[k], most=24) for k in kept]
    few = len(kept) <= 6
    cell = 62 if few else 36 if len(kept) <= 14 else 28
    side = 14 + max(width_of(label, size=FONT_SIZE - 1) for label in labels)
    turned = max(width_of(label, size=FONT_SIZE - 1) for label in labels) > cell - 6
    below = side if turned else 24
    size = cell * len(kept)
    right = 12 if turned else 24
    with figure(side + 18 + size + right, size + below + 24, margins=(side + 18, right, 24, below)) as (drawing, axes):
        _draw_cells(axes, cells, len(kept), gap=0.04)
        for a, b, rows, share in cells:
            strong = share > 0.55
            axes.text(
                b,
                a,
                f"{rows:,}\n{share:.0%}" if few else f"{rows}",
                ha="center",
                va="center",
                fontsize=FONT_SIZE - 1 if rows < 1000 else FONT_SIZE - 3,
                color="#ffffff" if strong else INK,
            )
        axes.set_xticks(range(len(kept)), labels, rotation=90 if turned else 0)
        axes.set_yticks(range(len(kept)), labels)
        axes.set_xlabel("predicted", labelpad=7)
        axes.xaxis.set_label_position("top")
        axes.set_ylabel("label")
        # Beside the names, whose width the page's font decides, not matplotlib's.
        axes.yaxis.set_label_coords(-(side + 4) / size, 0.5)
        return to_svg(drawing, name="confusion", alt="Confusion matrix: rows of each label by predicted label")


def confusion_overview(confusion: Sequence[Sequence[int]], names: Sequence[str]) -> str:
    """Return the whole matrix as colours without names, for more labels than can be written out; "" for fewer."""
    if not MOST_ANNOTATED < len(names) <= MOST_OVERVIEW or not confusion:
        return ""
    totals = _totals(confusion, len(names))
    with figure(400, 400, margins=(24, 8, 8, 24)) as (drawing, axes):
        _draw_cells(axes, [(a, b, rows, rows / totals[a]) for a, b, rows in confusion], len(names))
        axes.set_xticks([])
        axes.set_yticks([])
        axes.set_xlabel(f"predicted, all {len(names)} labels in order")
        axes.set_ylabel("label")
        return to_svg(drawing, name="overview", alt=f"Confusion matrix of all {len(names)} labels")


def most_confused(confusion: Sequence[Sequence[int]], *, most: int = BLOCK) -> list[int]:
    """Return up to ``most`` labels, in order, that take part in the most frequent confusions."""
    kept: list[int] = []
    for a, b, _ in sorted((c for c in confusion if c[0] != c[1]), key=lambda c: (-c[2], c[0], c[1])):
        new = [k for k in (a, b) if k not in kept]
        if len(kept) + len(new) > most:
            break
        kept += new
    return sorted(kept) or sorted({c[0] for c in confusion})[:most]


def _totals(confusion: Sequence[Sequence[int]], count: int) -> np.ndarray:
    totals = np.zeros(count)
    for a, _, rows in confusion:
        totals[a] += rows
    return totals


def _draw_cells(axes: Any, cells: Sequence[tuple[int, int, int, float]], count: int, *, gap: float = 0) -> None:
    from matplotlib.collections import PatchCollection
    from matplotlib.colors import to_rgba
    from matplotlib.patches import Rectangle

    # A square root lets a confusion of a few percent be seen beside a diagonal near one.
    colours = [
        to_rgba(BLUE if a == b else VERMILLION, 0.07 + 0.9 * (share if a == b else share**0.6))
        for a, b, _, share in cells
    ]
    patches = [Rectangle((b - 0.5 + gap / 2, a - 0.5 + gap / 2), 1 - gap, 1 - gap) for a, b, *_ in cells]
    axes.add_collection(PatchCollection(patches, facecolors=colours, linewidths=0))
    axes.set_xlim(-0.5, count - 0.5)
    axes.set_ylim(count - 0.5, -0.5)
    axes.tick_params(length=0)
    axes.grid(visible=False)
    for side in axes.spines.values():
        side.set(visible=True, alpha=0.3)


# --- calibration, regression, classes ------------------------------------------------------------------------------


def reliability_diagram(bins: Rows) -> str:
    """Return accuracy over confidence for each bin, and below it how many rows each bin has."""
    if not bins:
        return ""
    with figure(400, 320, margins=(52, 12, 10, 42)) as (drawing, axes):
        axes.plot([0, 1], [0, 1], color=INK, alpha=0.45, linewidth=1, linestyle=(0, (4, 3)))
        most = max(b["rows"] for b in bins)
        for b in bins:
            axes.bar(
                b["low"],
                0.16 * b["rows"] / most,
                width=b["high"] - b["low"],
                align="edge",
                color=INK,
                alpha=0.16,
                linewidth=0,
            )
        axes.plot([b["confidence"] for b in bins], [b["accuracy"] for b in bins], color=BLUE, alpha=0.5, linewidth=1.2)
        sizes = [18 + 90 * (b["rows"] / most) ** 0.5 for b in bins]
        axes.scatter(
            [b["confidence"] for b in bins], [b["accuracy"] for b in bins], s=sizes, color=BLUE, linewidths=0, zorder=3
        )
        axes.set(xlim=(-0.02, 1.03), ylim=(-0.02, 1.05), xlabel="confidence", ylabel="share that is right")
        return to_svg(drawing, name="reliability", alt="Reliability diagram: accuracy over confidence")


def regression_scatter(points: Sequence[Sequence[float]]) -> str:
    """Return predicted values over labels; ``points``: [label, predicted]."""
    if not points:
        return ""
    values = np.asarray(points, dtype=float)
    low, high = float(values.min()), float(values.max())
    pad = 0.04 * (high - low or 1)
    with figure(460, 400, margins=(58, 12, 10, 42)) as (drawing, axes):
        axes.plot([low, high], [low, high], color=INK, alpha=0.45, linewidth=1, linestyle=(0, (4, 3)))
        size, alpha = (16, 0.45) if len(values) <= 500 else (9, 0.3)
        axes.scatter(values[:, 0], values[:, 1], s=size, color=BLUE, alpha=alpha, linewidths=0)
        axes.set(xlim=(low - pad, high + pad), ylim=(low - pad, high + pad), xlabel="label", ylabel="predicted")
        return to_svg(drawing, name="scatter", alt="Predicted values over labels")


def class_f1_bars(records: Rows) -> str:
    """Return F1 of each label with its rows, lowest first; with more than MOST_BARS labels only the lowest ones."""
    with_rows = [r for r in records if r["support"] or r["predicted"]]
    if not with_rows:
        return ""
    shown = sorted(with_rows, key=lambda r: (r["f1"], r["name"]))[:MOST_BARS]
    labels = [shorten(str(r["name"]), most=28) for r in shown]
    left = 12 + max(width_of(label) for label in labels)
    height = 17 * len(shown)
    with figure(left + 290, height + 46, margins=(left, 78, 4, 42)) as (drawing, axes):
        axes.barh(range(len(shown)), [r["f1"] for r in shown], color=BLUE, height=0.68, linewidth=0)
        for y, r in enumerate(shown):
            axes.annotate(
                f"{r['f1']:.2f}  (n = {r['support']:,})",
                (r["f1"], y),
                xytext=(5, 0),
                textcoords="offset points",
                va="center",
                fontsize=FONT_SIZE - 1.5,
                color=ORANGE if r["support"] == 0 else INK,
            )
        axes.set_yticks(range(len(shown)), labels)
        axes.set(xlim=(0, 1), ylim=(len(shown) - 0.4, -0.6), xlabel="F1")
        axes.grid(visible=False, axis="y")
        return to_svg(drawing, name="classes", alt="F1 of each label")
