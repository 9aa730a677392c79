"""A matplotlib figure as a compact piece of SVG in the page's own text colour and font."""

from __future__ import annotations

import functools
import io
import re
import unicodedata
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from html import escape
from typing import Any

# Stands for the page's text colour while matplotlib draws, which knows no such thing; replaced in the text of the SVG.
INK = "#012345"

BLUE, VERMILLION, GREEN, ORANGE, PURPLE, SKY = "#2a83c9", "#d8632a", "#109a74", "#d99a0b", "#b8679a", "#56b4e9"
COLOURS = (BLUE, VERMILLION, GREEN, ORANGE, PURPLE, SKY)
"""After Okabe and Ito 2008 ("Color Universal Design"): told apart with every common colour vision, shifted a little so
that each has enough contrast on white and on near-black."""

CJK_FONTS = (
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "Noto Sans CJK TC",
    "Noto Sans CJK KR",
    "Noto Sans SC",
    "Source Han Sans SC",
    "Source Han Sans CN",
    "WenQuanYi Micro Hei",
    "WenQuanYi Zen Hei",
    "PingFang SC",
    "Hiragino Sans GB",
    "Heiti SC",
    "Microsoft YaHei",
    "SimHei",
    "Droid Sans Fallback",
)
"""Fonts for Chinese, Japanese and Korean, tried in this order when text is measured."""

FONT_SIZE = 11


@functools.cache
def installed_fonts() -> tuple[str, ...]:
    """Return matplotlib's own font and the CJK fonts of this machine."""
    from matplotlib import font_manager

    known = {font.name for font in font_manager.fontManager.ttflist}
    return ("DejaVu Sans", *(name for name in CJK_FONTS if name in known))


@contextmanager
def figure(width: float, height: float, *, margins: tuple[float, float, float, float]) -> Iterator[tuple[Any, Any]]:
    """Yield a figure of ``width`` x ``height`` CSS pixels and its axes; ``margins``: left, right, top, bottom in
    pixels.

    Margins are given and not found by matplotlib, because the page's font, not matplotlib's, draws the text.
    """
    import matplotlib
    from matplotlib.figure import Figure

    left, right, top, bottom = margins
    with matplotlib.rc_context(rc=_style()), warnings.catch_warnings():
        # The reader's browser has the last word on fonts: a glyph that this machine lacks is no fault of the page.
        warnings.filterwarnings("ignore", message=r"(?s).*[Gg]lyph.*missing")
        drawing = Figure(figsize=(width / 72, height / 72), dpi=72)
        box = (left / width, bottom / height, 1 - (left + right) / width, 1 - (top + bottom) / height)
        yield drawing, drawing.add_axes(box)


def _style() -> Any:
    inked = ("axes.edgecolor", "axes.labelcolor", "text.color", "xtick.color", "ytick.color", "grid.color")
    return dict.fromkeys(inked, INK) | {
        "svg.fonttype": "none",
        "svg.hashsalt": "launcher",
        "font.family": list(installed_fonts()),
        "font.size": FONT_SIZE,
        "axes.labelsize": FONT_SIZE,
        "xtick.labelsize": FONT_SIZE - 1,
        "ytick.labelsize": FONT_SIZE - 1,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.linewidth": 0.7,
        "axes.grid": True,
        "grid.alpha": 0.14,
        "grid.linewidth": 0.7,
        "axes.axisbelow": True,
        "xtick.major.size": 3,
        "ytick.major.size": 0,
        "lines.linewidth": 1.8,
        "lines.solid_capstyle": "round",
        "legend.frameon": False,
        "legend.fontsize": FONT_SIZE - 1,
        "legend.handlelength": 1.2,
        "text.parse_math": False,
        "axes.formatter.useoffset": False,
    }


def to_svg(drawing: Any, *, name: str, alt: str) -> str:
    """Return the figure as an ``<svg>`` element for an HTML page; ``name`` keeps its ids apart from other figures',
    ``alt`` describes it.
    """
    buffer = io.StringIO()
    drawing.savefig(
        buffer, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type"))
    )
    return _compact(buffer.getvalue(), name=name, alt=alt)


def _compact(text: str, *, name: str, alt: str) -> str:
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->|<style.*?</style>", "", text, flags=re.DOTALL)
    text = re.sub(r'<g id="[^"]*"', "<g", text).replace("xlink:href=", "href=")
    text = re.sub(r'(id="|href="#|url\(#)(?=[A-Za-z])', rf"\g<1>{name}-", text)
    text = re.sub(r'style="([^"]*)"', lambda match: f'style="{_plain_style(match[1])}"', text)
    # Coordinates only: between quotes of d, points, x, y, transform and the like; never the text of labels.
    text = re.sub(r'(?<==")[^"]*\d\.\d{3,}[^"]*(?=")', lambda m: re.sub(r"\d+\.\d{3,}", _short, m[0]), text)
    text = re.sub(r"\s*\n\s*", " ", text).replace("> <", "><").replace(INK, "currentColor")
    size = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', text)
    assert size
    head = f'<svg role="img" aria-label="{escape(alt)}" class="plot" {size[0]} style="--natural:{float(size[1]):.0f}px"'
    head += ' stroke-linejoin="round">'
    return head + text[text.index(">") + 1 :].strip()


def _short(match: re.Match[str]) -> str:
    return f"{float(match[0]):.2f}".rstrip("0").rstrip(".")


def _plain_style(style: str) -> str:
    style = re.sub(r"font: ?([^;]*?)([\d.]+)px [^;]*", r"font-size:\2px", style)
    style = re.sub(r"font-family:[^;]*;?", "", style)
    return re.sub(r"([;:]) ", r"\1", style).strip()


def width_of(text: str, *, size: float = FONT_SIZE) -> float:
    """Return about how wide ``text`` is in pixels at ``size`` in any common sans-serif font."""
    wide = sum(unicodedata.east_asian_width(character) in "WF" for character in text)
    return size * (1.02 * wide + 0.54 * (len(text) - wide))


def shorten(text: str, *, most: int = 26) -> str:
    """Return ``text`` cut to ``most`` columns with an ellipsis; wide characters take two."""
    kept, columns = "", 0
    for character in " ".join(text.split()):
        columns += 2 if unicodedata.east_asian_width(character) in "WF" else 1
        if columns > most:
            return kept.rstrip() + "…"
        kept += character
    return kept or "(empty)"


def to_png(drawing: Any, *, scale: float = 2.0) -> bytes:
    """Return the figure as a PNG on white, with ``scale`` pixels for each CSS pixel."""
    buffer = io.BytesIO()
    drawing.savefig(buffer, format="png", dpi=72 * scale, facecolor="white", metadata={"Software": None})
    return buffer.getvalue()


def standalone(svg: str) -> str:
    """Return what ``to_svg`` made as a file of its own: with its size, a font, dark ink, and a white ground."""
    size = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg)
    assert size
    head, _, rest = svg.partition(">")
    head = re.sub(r' (class|style)="[^"]*"', "", head)
    head = head.replace("<svg ", f'<svg xmlns="http://www.w3.org/2000/svg" width="{size[1]}" height="{size[2]}" ', 1)
    look = "color:#1b2028;font-family:'DejaVu Sans',Verdana,Arial,sans-serif"
    return f'{head} style="{look}"><rect width="100%" height="100%" fill="#ffffff"/>{rest}\n'
