"""Boxes around objects in images, as rows have them: their checks, and one form for all of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from launcher.data.columns import Column
from launcher.data.images import image_bytes, upright_size
from launcher.data.tables import Fault, Faults, Table

_BOXES = ("bbox", "bboxes", "boxes")
_CATEGORIES = ("category", "categories", "label", "labels", "category_id", "category_ids", "class")
_SHOWN = 80
MOST_OUTSIDE = 1.0
"""Pixels by which a box may reach over the edge of its image: what rounding does. It is then cut there."""


def object_values(table: Table, *, column: str, rows: Sequence[int], images: Sequence[Any], faults: Faults) -> Column:
    """Return the objects of ``rows`` as {bbox: [[x, y, width, height], ...], category: [text, ...]}, in pixels; None: unknown.

    The source has them in this form, with other common names (boxes, label, ...), or as a list of objects {bbox, category}. Rows whose boxes
    cannot be used are added to ``faults``; ``images``: paths or bytes, None for rows that have a fault already.
    """
    found: list[dict[str, Any] | None] = []
    for row, value, image in zip(rows, table.column(column).take(rows), images, strict=True):
        usable = row not in faults and value is not None
        objects = _objects(value, size=upright_size(image_bytes(image))) if usable else None
        if isinstance(objects, str):
            of_image = f" of {Path(image).name}" if isinstance(image, str) else ""
            faults[row] = Fault(f"column {column!r} (objects){of_image} {objects}", value)
        found.append(None if isinstance(objects, str) else objects)
    return Column.of(found)


def _objects(value: Any, *, size: tuple[int, int]) -> dict[str, Any] | str:
    """Return the objects of a row, or in words what is wrong with them."""
    boxes, categories = _lists(value)
    if boxes is None or categories is None:
        return (
            f'holds {str(value)[:_SHOWN]!r}; objects are {{"bbox": [[x, y, width, height], ...], "category": [...]}}, with empty lists where there is '
            "none; mend or remove the row"
        )
    if len(boxes) != len(categories):
        return f"holds {len(boxes)} boxes and {len(categories)} categories; give each box one category"
    whole = []
    for number, (box, category) in enumerate(zip(boxes, categories, strict=True), start=1):
        fault = _box_fault(box, size) or _category_fault(category)
        if fault:
            return f"holds, as box {number} of {len(boxes)}, {fault}; mend or remove it"
        whole.append(_cut(box, size))
    return {"bbox": whole, "category": [_name(category) for category in categories]}


def _lists(value: Any) -> tuple[list[Any] | None, list[Any] | None]:
    """Return the boxes and the categories of a row; None where there is no list of them."""
    if isinstance(value, list):
        if not all(isinstance(one, Mapping) for one in value):
            return None, None
        return [_first(one, _BOXES) for one in value], [_first(one, _CATEGORIES) for one in value]
    if not isinstance(value, Mapping):
        return None, None
    boxes, categories = _first(value, _BOXES), _first(value, _CATEGORIES)
    return (boxes if isinstance(boxes, list) else None), (categories if isinstance(categories, list) else None)


def _first(value: Mapping[str, Any], names: Sequence[str]) -> Any:
    return next((value[name] for name in names if name in value), None)


def _box_fault(box: Any, size: tuple[int, int]) -> str | None:
    if not isinstance(box, list | tuple) or len(box) != 4 or not all(map(_is_number, box)):
        return f"{str(box)[:_SHOWN]}, which is not four numbers x, y, width and height"
    x, y, width, height = box
    if width <= 0 or height <= 0:
        return f"{_plain(box)}, whose width or height is not above 0"
    if min(x, y) < -MOST_OUTSIDE or x + width > size[0] + MOST_OUTSIDE or y + height > size[1] + MOST_OUTSIDE:
        return (
            f"{_plain(box)}, which reaches out of its image of {size[0]} x {size[1]} pixels (a box is x, y, width and height in pixels, "
            "of the image as its EXIF note turns it)"
        )
    cut = _cut(box, size)
    return f"{_plain(box)}, of which nothing lies in the image" if min(cut[2:]) <= 0 else None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _cut(box: Sequence[float], size: tuple[int, int]) -> list[float]:
    x, y = max(float(box[0]), 0.0), max(float(box[1]), 0.0)
    return [x, y, min(box[0] + box[2], float(size[0])) - x, min(box[1] + box[3], float(size[1])) - y]


def _plain(box: Sequence[float]) -> str:
    return f"[{', '.join(f'{value:g}' for value in box)}]"


def _category_fault(category: Any) -> str | None:
    is_named = isinstance(category, str) and category.strip() and category.isprintable()
    is_number = _is_number(category) and float(category).is_integer()
    return None if is_named or is_number else f"the category {category!r}, which is neither a name nor a whole number"


def _name(category: Any) -> str:
    return category.strip() if isinstance(category, str) else str(int(category))
