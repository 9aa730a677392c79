"""Masks: images that hold the number of a class for each pixel of another image."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from launcher.data.columns import Column
from launcher.data.images import image_bytes, named_image, upright_size
from launcher.data.tables import Fault, Faults, Table, column_of
from launcher.errors import DataError

# Pillow's modes whose pixels are single numbers; of a palette (P) they are its places.
_NUMBERS = ("1", "L", "P", "I", "I;16", "I;16B", "I;16L")


def mask_values(
    table: Table, *, column: str, rows: Sequence[int], images: Sequence[Any], faults: Faults
) -> dict[str, Column]:
    """Return of ``rows`` the columns mask (a file's path, or bytes) and label (sha256 of the bytes); None: there is no mask.

    Rows whose mask cannot be read, or is not as large as its image, are added to ``faults``. ``images``: paths or bytes, None for rows that
    have a fault already.
    """
    masks: list[Any] = []
    hashes: list[str | None] = []
    for row, value, image in zip(rows, column_of(table, column).take(rows), images, strict=True):
        mask, known = None, None
        if value is not None and row not in faults:
            try:
                mask, _ = named_image(value, folder=table.places.folder, column=column, ours="mask")
                known = _checked_hash(mask, image)
            except DataError as error:
                faults[row] = Fault(str(error), value)
        masks.append(mask if known else None)
        hashes.append(known)
    return {"mask": Column.of(masks), "label": Column.of(hashes)}


def _checked_hash(mask: str | bytes, image: str | bytes) -> str:
    data, name = image_bytes(mask), mask if isinstance(mask, str) else "the mask"
    found, size = read_mask(data, name=name), upright_size(image_bytes(image))
    if found.shape[::-1] != size:
        of = Path(image).name if isinstance(image, str) else "its image"
        raise DataError(
            f"{name} is {found.shape[1]} x {found.shape[0]} pixels, and {of} {size[0]} x {size[1]}; make them alike, or remove the row"
        )
    return hashlib.sha256(data).hexdigest()


def read_mask(data: bytes, *, name: str = "the mask") -> np.ndarray:
    """Return the numbers of a mask, int64 [height, width]. Raises DataError where it is no image, or has colours."""
    import PIL.Image

    try:
        with PIL.Image.open(io.BytesIO(data)) as image:
            if image.mode not in _NUMBERS:
                raise DataError(
                    f"{name} is an image of colours ({image.mode}), and a mask holds the number of a class for each pixel; write it as a grey "
                    "(L) or palette (P) PNG"
                )
            return np.asarray(image).astype(np.int64)
    except (OSError, ValueError, SyntaxError, EOFError, PIL.Image.DecompressionBombError) as error:
        reason = " ".join(str(error).split())[:120]
        raise DataError(f"{name} cannot be read as an image ({reason}); mend it, or remove the row") from None


def write_mask(numbers: np.ndarray) -> bytes:
    """Return a PNG of the numbers [height, width], from 0 to 255, or up to 65,535 in 16 bits."""
    from PIL import Image

    kind = np.uint8 if numbers.max(initial=0) < 256 else np.uint16
    buffer = io.BytesIO()
    Image.fromarray(numbers.astype(kind)).save(buffer, "PNG")
    return buffer.getvalue()
