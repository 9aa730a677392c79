"""Folders of images: a folder for each label, or a file metadata beside the images that says what they are."""

from __future__ import annotations

from pathlib import Path

from launcher.data.images import is_image_file
from launcher.data.tables import ColumnsTable, Places, Table
from launcher.errors import DataError

METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet", "_annotations.coco.json")
"""Names of the file that says, by file_name, what the images of a folder are."""


def metadata_file(folder: Path) -> Path | None:
    """Return the file of ``folder`` that says what its images are; None where there is none."""
    return next((folder / name for name in METADATA if (folder / name).is_file()), None)


def holds_images(folder: Path) -> bool:
    """Whether a folder has images, in itself or in its folders."""
    return any(map(is_image_file, folder.iterdir())) or any(
        is_image_file(path) for inner in folder.iterdir() if inner.is_dir() for path in inner.iterdir()
    )


def holds_only_images(path: Path) -> bool:
    """Whether ``path`` is a folder in which, at any depth, there are images and folders alone."""
    return path.is_dir() and all(one.is_dir() or is_image_file(one) for one in path.rglob("*"))


def read_image_folder(folder: Path) -> Table:
    """Return the images of a folder by the order of their names: image (a path below it) and, where folders are labels, label.

    Raises:
        DataError: images stand beside folders of images, so that some would have no label, or a folder has none.
    """
    loose = sorted(path.name for path in folder.iterdir() if is_image_file(path))
    labels = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if loose and labels:
        raise DataError(
            f"{folder}: {loose[0]} and {len(loose) - 1} more images stand beside the folders {', '.join(p.name for p in labels[:5])}; put "
            "each image into the folder of its label"
        )
    if not labels:
        return ColumnsTable(Places(str(folder), folder=folder), {"image": loose}, {"format": "images"})
    found = [(label.name, path.name) for label in labels for path in sorted(label.iterdir()) if is_image_file(path)]
    empty = sorted({label.name for label in labels} - {name for name, _ in found})
    if empty:
        raise DataError(
            f"{folder / empty[0]}: holds no image, so its label has no rows; add some, or remove the folder"
        )
    columns = {"image": [f"{label}/{name}" for label, name in found], "label": [label for label, _ in found]}
    return ColumnsTable(Places(str(folder), folder=folder), columns, {"format": "images"})
