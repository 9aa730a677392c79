"""Pictures of how a run trains: each group's rate over the steps, importance by depth, a range test. Plain values in."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from launcher.evaluation.plots import series, tick_text
from launcher.evaluation.range_test import DELAY
from launcher.evaluation.svg import BLUE, FONT_SIZE, INK, ORANGE, VERMILLION, figure, shorten, to_svg, width_of

T = TypeVar("T")
Rows = Sequence[Mapping[str, Any]]
Written = Callable[[Any], T]
"""Turns a finished figure into what is kept of it, such as SVG text or the bytes of a PNG."""

PHONE = 400
"""Width in CSS pixels of a picture that a phone shows whole and of which two stand side by side on a desk."""

MOST_NAMED = 8
"""Lines that a legend names; more are told apart by their depth alone."""
LOG_FROM = 30.0
"""Peak rates that lie further apart than this get a logarithmic axis."""
_DARK = "#1b2028"


# --- rates over the run --------------------------------------------------------------------------------------------


def rates_svg(lines: Rows, bands: Rows = (), *, name: str, note: str = "") -> str:
    """Return the picture of ``draw_rates`` as SVG text for a page; "" where there are no lines."""
    alt = "Learning rate of each group over the steps of the run"
    return draw_rates(lines, bands, note=note, write=lambda d: to_svg(d, name=name, alt=alt)) if lines else ""


def draw_rates(lines: Rows, bands: Rows = (), *, write: Written[T], note: str = "", width: int = PHONE) -> T:
    """Draw one line for each group: its rate over the steps, coloured by depth; no line where it is frozen.

    Args:
        lines: records of name, depth, and steps and rates of equal length; None interrupts a line. Groups with equal rates
            at all steps share a line.
        bands: records of name, first and last: the phases, shaded in turn where there are several.
        write: makes the result from the figure.
        note: said beside the axis of steps.
        width: in CSS pixels.
    """
    shared = _share_lines(lines)
    is_named = len(shared) <= MOST_NAMED
    columns = 2 if width <= PHONE else 4
    # One row of a colour bar, or rows of names; dashed lines get a row of their own.
    rows = math.ceil(len(shared) / columns) if is_named else 1 + any(line["dashed"] for line in shared)
    below, top = 44 + 17 * rows, 20 if len(bands) > 1 else 8
    with figure(width, 230 + below + top, margins=(58, 12, top, below)) as (drawing, axes):
        _draw_bands(axes, bands, pixels=width - 70)
        for line in shared:
            dashes = {"linestyle": (0, (3, 1.5))} if line["dashed"] else {}
            alone = {"marker": "o", "markersize": 5} if len(line["steps"]) == 1 else {}
            axes.plot(line["steps"], line["rates"], color=line["colour"], label=line["name"], **dashes, **alone)
        _rate_axes(axes, shared, bands)
        axes.set_xlabel(f"step ({note})" if note else "step", labelpad=2)
        if is_named:
            _names_below(axes, shared, columns=columns, size=(width - 70, 230))
        else:
            _depths_below(drawing, shared, size=(width, 230 + below + top))
        return write(drawing)


def _share_lines(lines: Rows) -> list[dict[str, Any]]:
    """Join groups with equal rates, colour them by depth, and dash the second and later ones of a depth."""
    kinds: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for line in lines:
        key = (tuple(line["steps"]), tuple(line["rates"]))
        kinds.setdefault(key, []).append(line)
    depths = [float(same[0]["depth"]) for same in kinds.values()]
    low, high = min(depths), max(depths)
    found, seen = [], set()
    for same, depth in zip(kinds.values(), depths, strict=True):
        colour = depth_colour((depth - low) / (high - low) if high > low else 0.5)
        first = same[0]
        named = {"name": _joint_name([str(line["name"]) for line in same]), "depth": depth, "colour": colour}
        found.append(
            {**named, "steps": first["steps"], "rates": np.array(first["rates"], dtype=float), "dashed": depth in seen}
        )
        seen.add(depth)
    return found


def depth_colour(place: float) -> Any:
    """Return the colour of a depth between 0 (input) and 1 (output), from a scale that is ordered for every colour vision."""
    import matplotlib

    # The ends of the map are too dark for a dark page and too light for a white one.
    return matplotlib.colormaps["viridis"](0.25 + 0.57 * place)


def _joint_name(names: list[str]) -> str:
    """Name a line that several groups share; biases and norms are a part of their group to a reader."""
    names = list(dict.fromkeys(name.removesuffix(".no_decay") for name in names))
    if len(names) <= 2:
        return ", ".join(names)
    return f"{names[0]} … {names[-1]}"


def _draw_bands(axes: Any, bands: Rows, *, pixels: int) -> None:
    if len(bands) < 2:
        return
    whole = bands[-1]["last"] - bands[0]["first"]
    rooms = [pixels * (band["last"] - band["first"]) / whole - 4 for band in bands]
    names = _short_names([str(band["name"]) for band in bands], rooms)
    for number, (band, name, room) in enumerate(zip(bands, names, rooms, strict=True)):
        # Step s is drawn at s, and belongs to the band that begins after the step before.
        first, last = band["first"] + 0.5, band["last"] + 0.5
        if number % 2 == 0:
            axes.axvspan(first, last, color=INK, alpha=0.07, linewidth=0)
        text = name if width_of(name, size=FONT_SIZE - 1.5) <= room else ""
        place = {"xycoords": ("data", "axes fraction"), "xytext": (0, 4), "textcoords": "offset points"}
        axes.annotate(text, ((first + last) / 2, 1.0), ha="center", va="bottom", fontsize=FONT_SIZE - 1.5, **place)


def _short_names(names: list[str], rooms: list[float]) -> list[str]:
    """Return the names, or what follows their colon, or their last words: the longest kind that fits; or else numbers."""
    kinds = (names, [name.rpartition(": ")[2] for name in names], [re.split(r"[.\-_ ]", name)[-1] for name in names])
    for kind in kinds:
        fits = all(width_of(name, size=FONT_SIZE - 1.5) <= room for name, room in zip(kind, rooms, strict=True))
        if fits and len(set(kind)) == len(set(names)):
            return kind
    return [str(number + 1) for number in range(len(names))]


def _rate_axes(axes: Any, lines: Rows, bands: Rows) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    peaks = [float(np.nanmax(line["rates"])) for line in lines]
    if min(peaks) > 0 and max(peaks) > LOG_FROM * min(peaks):
        # A rate of 0 (the start of a warm-up, the end of a decay) has no place on this axis.
        axes.set_yscale("log")
        axes.set_ylim(min(peaks) / 20, max(peaks) * 1.5)
        axes.yaxis.set_major_locator(LogLocator(numticks=6))
        axes.yaxis.set_minor_formatter(NullFormatter())
    else:
        axes.set_ylim(0, 1.06 * max(peaks) or 1)
        axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: tick_text(y)))
    if bands:
        axes.set_xlim(bands[0]["first"] + 0.5, bands[-1]["last"] + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
    axes.grid(visible=False, axis="x")


def _names_below(axes: Any, lines: Rows, *, columns: int, size: tuple[int, int]) -> None:
    handles, names = axes.get_legend_handles_labels()
    if len(lines) == 1:
        names = ["all groups that train" if re.search("[,…]", names[0]) else names[0]]
    axes.legend(
        handles, [shorten(name, most=24) for name in names], loc="upper left", ncols=columns, handlelength=1.8,
        bbox_to_anchor=(-48 / size[0], -38 / size[1]), borderpad=0, borderaxespad=0, columnspacing=1.2, handletextpad=0.5,
        labelspacing=0.35,
    )  # fmt: skip


def _depths_below(drawing: Any, lines: Rows, *, size: tuple[int, int]) -> None:
    """Draw the scale of depths, and what the dashed lines are."""
    width, height = size
    depths = [line["depth"] for line in lines]
    low, high = min(depths), max(depths)
    dashed = [str(line["name"]) for line in lines if line["dashed"]]
    scale = drawing.add_axes(((width - 190) / 2 / width, (28 if dashed else 10) / height, 160 / width, 9 / height))
    scale.imshow([[depth_colour(i / 63)[:3] for i in range(64)]], aspect="auto", extent=(0, 1, 0, 1))
    scale.set_axis_off()
    say = {"va": "center", "fontsize": FONT_SIZE - 1}
    scale.text(-0.04, 0.5, f"depth {low:g}", ha="right", **say)
    scale.text(1.04, 0.5, f"{high:g}", ha="left", **say)
    if dashed:
        drawing.text(0.5, 11 / height, shorten(f"dashed: {_joint_name(dashed)}", most=60), ha="center", **say)


def used_rates(progress: Rows, depths: Mapping[str, float]) -> list[dict[str, Any]]:
    """Return the lines of the rates that ``lr/GROUP`` in progress.jsonl says were used, in order of depth.

    ``depths``: group -> depth; a group without one is left out.
    """
    lines = []
    for name, depth in depths.items():
        steps, rates = series(progress, f"lr/{name}")
        if len(steps):
            lines.append({"name": name, "depth": depth, "steps": list(steps), "rates": list(rates)})
    return sorted(lines, key=lambda line: float(line["depth"]))


# --- importance ----------------------------------------------------------------------------------------------------


def module_grid(cells: Rows, *, what: str, name: str = "modules") -> str:
    """Return modules by depth as SVG: a row for each kind of module, a column for each block, colour and number for a value.

    Args:
        cells: records of kind, depth and value, and where the number says nothing a text; a value of None stays empty.
        what: what the value is, such as "rank".
        name: keeps the picture's ids apart from other pictures'.
    """
    known = [cell for cell in cells if cell["value"] is not None]
    if not known:
        return ""
    kinds = list(dict.fromkeys(str(cell["kind"]) for cell in cells))
    depths = sorted({int(cell["depth"]) for cell in cells})
    labels = [shorten(kind, most=28) for kind in kinds]
    top = max(float(cell["value"]) for cell in known)
    texts = {id(cell): str(cell.get("text") or _cell_text(float(cell["value"]), top=top)) for cell in known}
    widest = max(width_of(text, size=FONT_SIZE - 1) for text in texts.values())
    wide = max(18 if len(depths) > 40 else 24, math.ceil(widest) + 6 if len(depths) <= 40 else 0)
    left = 12 + max(width_of(label) for label in labels)
    size = (max(left + wide * len(depths) + 10, left + 200), 40 + 24 * len(kinds) + 40)
    with figure(*size, margins=(left, size[0] - left - wide * len(depths), 40, 40)) as (drawing, axes):
        _draw_grid(axes, known, kinds, depths, texts if widest <= wide - 2 else {})
        axes.set_yticks(range(len(kinds)), labels)
        step = 1 if wide >= 22 else 5
        axes.set_xticks(range(0, len(depths), step), [str(depth) for depth in depths[::step]])
        axes.set_xlabel("depth of the block", labelpad=3)
        if not any(cell.get("text") for cell in known):
            _value_scale(drawing, [float(cell["value"]) for cell in known], what=what, left=left, size=size)
        return to_svg(drawing, name=name, alt=f"{what} of each module by depth")


def _cell_text(value: float, *, top: float) -> str:
    """Return a number for a cell; beside values up to ``top`` more digits would say nothing."""
    if value == 0 or abs(value) >= 10 or float(value).is_integer():
        return f"{value:,.0f}"
    return f"{value:.1f}" if top >= 1 or abs(value) >= 0.095 else f"{value:.0e}".replace("e-0", "e−")


def _draw_grid(axes: Any, cells: Rows, kinds: list[str], depths: list[int], texts: Mapping[int, str]) -> None:
    from matplotlib.patches import Rectangle

    values = [float(cell["value"]) for cell in cells]
    for cell in cells:
        x, y = depths.index(int(cell["depth"])), kinds.index(str(cell["kind"]))
        colour = _value_colour(float(cell["value"]), values)
        axes.add_patch(Rectangle((x - 0.47, y - 0.46), 0.94, 0.92, facecolor=colour, linewidth=0))
        if text := texts.get(id(cell)):
            ink = "#ffffff" if _luminance(colour) < 0.3 else _DARK
            axes.text(x, y, text, ha="center", va="center_baseline", fontsize=FONT_SIZE - 1, color=ink)
    axes.set_xlim(-0.5, len(depths) - 0.5)
    axes.set_ylim(len(kinds) - 0.5, -0.5)
    axes.tick_params(length=0)
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)


def _value_colour(value: float, values: Sequence[float]) -> Any:
    """Light for the least, dark for the greatest; opaque, so that it is the same on a light and on a dark page."""
    low, high = min(values), max(values)
    return _blues((value - low) / (high - low) if high > low else 0.35)


def _blues(place: float) -> Any:
    import matplotlib

    return matplotlib.colormaps["Blues"](0.12 + 0.83 * place)


def _luminance(colour: Any) -> float:
    """Return the relative luminance of an sRGB colour (WCAG 2.2)."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour[:3]]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _value_scale(drawing: Any, values: Sequence[float], *, what: str, left: float, size: tuple[float, float]) -> None:
    width, height = size
    low, high = min(values), max(values)
    title = f"{what} {_cell_text(low, top=high)}"
    begin = left + width_of(title, size=FONT_SIZE - 1) + 6
    say = {"va": "center", "fontsize": FONT_SIZE - 1}
    drawing.text(left / width, 1 - 14 / height, title if high > low else f"{title} everywhere", ha="left", **say)
    if high > low:
        scale = drawing.add_axes((begin / width, 1 - 19 / height, 80 / width, 10 / height))
        scale.imshow([[_blues(i / 31)[:3] for i in range(32)]], aspect="auto", extent=(0, 1, 0, 1))
        scale.set_axis_off()
        scale.text(1.06, 0.5, _cell_text(high, top=high), ha="left", **say)


# --- range test ----------------------------------------------------------------------------------------------------


def draw_range_test(test: Mapping[str, Any], *, write: Written[T], width: int = 560) -> T:
    """Draw the loss of a range test over the rate, on a logarithmic axis, with its readings.

    ``test``: rates, losses and smoothed of equal length; suggestion, steepest, minimum, divergence: rates or None.
    """
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    rates, losses, smoothed = (np.asarray(test[name], dtype=float) for name in ("rates", "losses", "smoothed"))
    with figure(width, 340, margins=(52, 16, 46, 44)) as (drawing, axes):
        axes.set_xscale("log")
        axes.plot(rates, losses, color=INK, alpha=0.28, linewidth=1)
        # What is smoothed lags; drawn at the rates that it tells of, it agrees with the marks.
        axes.plot(rates[:-DELAY], smoothed[DELAY:], color=BLUE)
        axes.set_ylim(*_loss_limits(losses, smoothed))
        _mark_rates(axes, test, pixels=width - 68)
        axes.xaxis.set_major_locator(LogLocator(numticks=9))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: tick_text(x) if x < 0.001 else f"{x:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel("learning rate")
        axes.set_ylabel("training loss: each step, and smoothed")
        return write(drawing)


def _loss_limits(losses: np.ndarray, smoothed: np.ndarray) -> tuple[float, float]:
    """Keep the fall in view: what diverges is cut off above."""
    best, start = float(smoothed.min()), float(smoothed[0])
    top = max(start + 0.8 * (start - best), float(np.median(losses)) * 1.1)
    low = min(best, float(np.percentile(losses, 2)))
    pad = 0.08 * (top - low) or 0.1
    return low - pad, top + pad


def _mark_rates(axes: Any, test: Mapping[str, Any], *, pixels: float) -> None:
    marks = (("steepest", "steepest", BLUE, ":"), ("minimum", "minimum", ORANGE, ":"),
             ("divergence", "diverges", INK, ":"), ("suggestion", "suggestion", VERMILLION, "-"))  # fmt: skip
    low, high = (math.log(limit) for limit in axes.get_xlim())
    taken: list[tuple[float, float, int]] = []
    for key, word, colour, style in marks:
        rate = test.get(key)
        if rate is None:
            continue
        chosen = key == "suggestion"
        axes.axvline(rate, color=colour, linestyle=style, linewidth=1.6 if chosen else 1.2)
        text = f"{word} {tick_text(float(f'{rate:.1e}'))}" if chosen else word
        middle, half = pixels * (math.log(rate) - low) / (high - low), width_of(text) / 2 + 4
        clashes = {level for begin, end, level in taken if begin < middle + half and middle - half < end}
        level = next(level for level in range(len(marks)) if level not in clashes)
        taken.append((middle - half, middle + half, level))
        place = {"xycoords": ("data", "axes fraction"), "xytext": (0, 3 + 13 * level), "textcoords": "offset points"}
        weight = "bold" if chosen else "normal"
        axes.annotate(text, (rate, 1.0), ha="center", va="bottom", fontsize=FONT_SIZE - 1, fontweight=weight, **place)
