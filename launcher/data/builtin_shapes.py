"""``builtin:shapes``: drawings of circles, squares and triangles on noise, with a box around each, and a mask of what each pixel belongs to."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np

from launcher.data.builtin import BuiltinData

SIDE = 64
ROWS = {"train": 1200, "validation": 200, "test": 300}
NAMES = ("circle", "square", "triangle")
_SIZES = (12, 30)
_MOST = 4
_TRIES = 20


def make_shapes(*, cache_dir: Path | None = None) -> BuiltinData:
    """Return rows of train (1,200), validation (200) and test (300): image (a PNG of 64 x 64 pixels) and objects (bbox [x, y, width, height]
    in pixels, category), one to four of them, which hardly overlap, and mask (a PNG of numbers: 0 background, 1 circle, 2 square, 3 triangle).

    They are drawn by a seeded generator, at once, and not kept in ``cache_dir``.
    """
    splits = {}
    for number, (split, rows) in enumerate(ROWS.items()):
        generator = np.random.default_rng([20240607, number])
        splits[split] = [_row(f"{split}_{row:04d}.png", generator) for row in range(rows)]
    return BuiltinData(splits, {"format": "builtin", "rows": "shapes on noise, drawn by launcher"})


def _row(name: str, generator: np.random.Generator) -> dict[str, Any]:
    from PIL import Image

    noise = generator.integers(60, 140, size=(SIDE // 4, SIDE // 4, 3), dtype=np.uint8)
    image, mask = Image.fromarray(noise).resize((SIDE, SIDE)), Image.new("L", (SIDE, SIDE))
    boxes: list[tuple[int, int, int, int]] = []
    categories: list[str] = []
    for _ in range(int(generator.integers(1, _MOST + 1))):
        box = _free_place(boxes, generator)
        if box is not None:
            categories.append(NAMES[int(generator.integers(len(NAMES)))])
            _draw(image, categories[-1], box, _colour(generator))
            _draw(mask, categories[-1], box, NAMES.index(categories[-1]) + 1)
            boxes.append(box)
    objects = {"bbox": [list(map(float, box)) for box in boxes], "category": categories}
    found = {"image": image, "mask": mask}
    return {**{key: {"bytes": _png(one), "path": name} for key, one in found.items()}, "objects": objects}


def _png(image: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def _free_place(
    boxes: list[tuple[int, int, int, int]], generator: np.random.Generator
) -> tuple[int, int, int, int] | None:
    """Return x, y, width and height of a square that lies beside the others; None where none was found."""
    for _ in range(_TRIES):
        side = int(generator.integers(*_SIZES))
        x, y = (int(generator.integers(0, SIDE - side + 1)) for _ in range(2))
        if all(x >= a + w or a >= x + side or y >= b + h or b >= y + side for a, b, w, h in boxes):
            return x, y, side, side
    return None


def _colour(generator: np.random.Generator) -> tuple[int, ...]:
    """Return a dark or a bright colour."""
    dark = generator.random() < 0.5
    return tuple(int(value) for value in generator.integers(*((0, 50) if dark else (170, 256)), size=3))


def _draw(image: Any, name: str, box: tuple[int, int, int, int], colour: Any) -> None:
    from PIL import ImageDraw

    x, y, side, _ = box
    right, bottom = x + side - 1, y + side - 1
    pen = ImageDraw.Draw(image)
    if name == "circle":
        pen.ellipse((x, y, right, bottom), fill=colour)
    elif name == "square":
        pen.rectangle((x, y, right, bottom), fill=colour)
    else:
        pen.polygon([(x + (side - 1) / 2, y), (x, bottom), (right, bottom)], fill=colour)
