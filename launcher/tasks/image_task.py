"""What all tasks on images share: the image processor, and rows that are checked and kept once."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from launcher.data.image_folders import holds_only_images
from launcher.data.images import checked_bytes, image_bytes, open_image
from launcher.data.pieces import Origin
from launcher.errors import DataError, ModelError
from launcher.tasks.models import load_config, load_image_processor
from launcher.tasks.prepared_task import PreparedTask


class ImageTask(PreparedTask):
    """A task whose rows are images; a subclass says what is learned from them."""

    padding_side = "right"

    @property
    def options(self) -> Any:
        """The recipe's options of the task."""
        return self.recipe.task

    @cached_property
    def processor(self) -> Any:
        """The model's image processor, with the recipe's size. Raises ModelError where its images would differ in size."""
        processor = load_image_processor(self.recipe.model, size=self.options.image_size)
        shapes = {tuple(self.pixels([_blank(*size, mode=self.mode)], processor).shape) for size in ((40, 20), (20, 40))}
        if len(shapes) > 1:
            raise ModelError(
                "the image processor of this model keeps the ratio of an image's sides, so that images would differ in size; write "
                "task.image_size, such as 224"
            )
        return processor

    @cached_property
    def mode(self) -> str:
        """Pillow's mode of what the model takes: RGB, or L where it has one channel."""
        channels = getattr(load_config(self.recipe.model, skeleton=True), "num_channels", 3)
        return "L" if channels == 1 else "RGB"

    def pixels(self, images: Sequence[Any], processor: Any = None) -> Any:
        """Return float32 [images, channels, height, width] of Pillow images."""
        return (processor or self.processor)(images=list(images), return_tensors="pt")["pixel_values"]

    def model_files(self) -> list[Path] | None:
        """Return no file: prepared images do not depend on the model."""
        return []

    def read_from(self) -> list[Path] | None:
        """Return the folders of images; None where a file names images, which may lie anywhere and change without it."""
        found = super().read_from()
        return found if found is not None and all(map(holds_only_images, found)) else None

    def example_row(self) -> dict[str, Any]:
        """Return a row like the prepared ones, for plans without data."""
        buffer = io.BytesIO()
        _blank(32, 32).save(buffer, "PNG")
        return {"image": buffer.getvalue(), "labels": 0, "row_id": 0, "length": 1}

    def images_of(self, rows: Sequence[Mapping[str, Any]]) -> list[Any]:
        """Return the Pillow images of prepared rows, as the model's channels want them."""
        return [open_image(row["image"], mode=self.mode) for row in rows]


def image_features(
    columns: Mapping[str, Sequence[Any]], *, origin: Origin = str
) -> tuple[dict[str, Any], dict[str, int]]:
    """Return features of images that were checked: their bytes, text, row_id, image_hash, length, labels where there are any; and counts."""
    images = [image_bytes(image) for image in columns["image"]]
    kept = {name: list(columns[name]) for name in ("row_id", "text", "image_hash", "labels") if name in columns}
    return {"image": images, "length": [1] * len(images), **kept}, {"rows": len(images), "cut": 0}


def named_images(paths: Sequence[str]) -> dict[str, list[Any]]:
    """Return the columns image and text of image files. Raises DataError where one is missing, or is no image."""
    missing = next((path for path in paths if not Path(path).expanduser().is_file()), None)
    if missing is not None:
        raise DataError(
            f"there is no image {missing}; give paths of image files, or --file with a folder or a file of rows"
        )
    images = [checked_bytes(str(Path(path).expanduser())) for path in paths]
    return {"image": images, "text": list(paths)}


def _blank(width: int, height: int, *, mode: str = "RGB") -> Any:
    from PIL import Image

    return Image.new(mode, (width, height))
