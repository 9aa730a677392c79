"""``builtin:digits``: handwritten digits of 8 x 8 pixels, which scikit-learn brings along."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import numpy as np

from launcher.data.builtin import BuiltinData

TRAIN, VALIDATION = 1000, 300
_LEVELS = 16


def make_digits(*, cache_dir: Path | None = None) -> BuiltinData:
    """Return rows of train (1,000), validation (300) and test (497): image (a PNG of 8 x 8 pixels) and label (0 to 9).

    Their order follows from a hash of the pixels. They are made at once, and not kept in ``cache_dir``.
    """
    from sklearn.datasets import load_digits

    found = load_digits()
    order = sorted(range(len(found.images)), key=lambda i: hashlib.sha256(found.images[i].tobytes()).digest())
    rows = [
        {"image": {"bytes": _png(found.images[i]), "path": f"digit_{i:04d}.png"}, "label": str(found.target[i])}
        for i in order
    ]
    ends = (0, TRAIN, TRAIN + VALIDATION, len(rows))
    splits = {name: rows[a:b] for name, a, b in zip(("train", "validation", "test"), ends, ends[1:], strict=False)}
    return BuiltinData(
        splits, {"format": "builtin", "rows": "handwritten digits of scikit-learn (UCI, Alpaydin and Kaynak 1998)"}
    )


def _png(pixels: np.ndarray) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(np.round(pixels * 255 / _LEVELS).astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()
