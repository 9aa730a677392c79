"""Images as they lie in files and tables: their bytes, what makes two the same, and whether they can be read at all."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launcher.data.columns import Column
from launcher.data.tables import Fault, Faults, Table
from launcher.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image

ENDINGS = frozenset((".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"))
_SHOWN = 80
# EXIF's note of how the camera was held, and its values for images that lie on their side.
_ORIENTATION, _ON_THEIR_SIDE = 0x0112, (5, 6, 7, 8)


def is_image_file(path: Path) -> bool:
    """Whether a name ends as an image's does; hidden files are none."""
    return path.suffix.lower() in ENDINGS and not path.name.startswith(".")


def image_values(table: Table, *, column: str, rows: Sequence[int], faults: Faults) -> dict[str, Column]:
    """Return of ``rows`` the columns image (a file's path, or an image's bytes), image_hash (sha256 of the bytes) and text (the name).

    A path counts from the folder of the file that names it. Rows without an image that can be read are added to ``faults``.
    """
    images: list[Any] = []
    hashes: list[str | None] = []
    names = []
    for row, value in zip(rows, table.column(column).take(rows), strict=True):
        image, name = None, None
        try:
            image, name = named_image(value, folder=table.places.folder, column=column, ours="image")
            hashes.append(hashlib.sha256(checked_bytes(image)).hexdigest())
        except DataError as error:
            faults.setdefault(row, Fault(str(error), value))
            hashes.append(None)
        images.append(image)
        names.append(name or table.places(row))
    return {"image": Column.of(images), "image_hash": Column.of(hashes), "text": Column.of(names)}


def named_image(value: Any, *, folder: Path | None, column: str, ours: str) -> tuple[str | bytes, str]:
    """Return the path or bytes of an image as a table has it, and its name; "" where it has none. Raises DataError."""
    held, name = value, ""
    if isinstance(value, Mapping):
        name = Path(value.get("path") or "").name
        held = value.get("bytes") or value.get("path")
    if isinstance(held, bytes) and held:
        return held, name
    if not isinstance(held, str) or not held:
        raise DataError(
            f"column {column!r} ({ours}) holds {str(value)[:_SHOWN]!r}, which is neither an image nor the path of one; mend or remove the "
            "row, or name another column under data.columns"
        )
    path = Path(held).expanduser() if folder is None else folder / Path(held).expanduser()
    if not path.is_file():
        raise DataError(f"there is no {ours} {path}; restore it, or remove the row")
    return str(path), held


def image_bytes(image: str | bytes) -> bytes:
    """Return the bytes of an image, from its file where ``image`` is a path."""
    return image if isinstance(image, bytes) else Path(image).read_bytes()


def open_image(data: bytes, *, mode: str = "RGB") -> Image:
    """Return an image, upright as its EXIF note says, in Pillow's ``mode`` (RGB, L).

    Raises:
        OSError: it cannot be read: no image, cut off, or of more pixels than Pillow takes for harmless.
    """
    import PIL.Image
    import PIL.ImageOps

    try:
        with PIL.Image.open(io.BytesIO(data)) as image:
            return PIL.ImageOps.exif_transpose(image).convert(mode)
    except (PIL.Image.DecompressionBombError, ValueError, SyntaxError, EOFError, IndexError) as error:
        # Pillow's readers raise these for files that are damaged in ways of their formats.
        raise OSError(str(error) or type(error).__name__) from error


def upright_size(data: bytes) -> tuple[int, int]:
    """Return width and height in pixels of an image that was checked, as ``open_image`` turns it; its pixels are not read."""
    import PIL.Image

    with PIL.Image.open(io.BytesIO(data)) as image:
        turned = image.getexif().get(_ORIENTATION, 1) in _ON_THEIR_SIDE
        return (image.height, image.width) if turned else (image.width, image.height)


def checked_bytes(image: str | bytes) -> bytes:
    """Return an image's bytes, once they were read as an image. Raises DataError where they are none."""
    data = image_bytes(image)
    try:
        open_image(data)
    except OSError as error:
        what = f"an image of {len(data):,} bytes" if isinstance(image, bytes) else image
        reason = " ".join(str(error).split())[:120]
        raise DataError(f"{what} cannot be read as an image ({reason}); mend it, or remove the row") from None
    return data
