"""What all tasks on images share: the image processor, and rows that are checked and kept once."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from launcher.contracts import Prepared
from launcher.data.image_folders import holds_only_images
from launcher.data.images import checked_bytes, image_bytes, open_image
from launcher.data.pieces import Origin
from launcher.data.sources import SplitSet, load_rows, load_splits
from launcher.errors import DataError, ModelError
from launcher.tasks.image_processors import load_image_processor
from launcher.tasks.models import LoadedModel, load_config, load_model
from launcher.tasks.prepared_task import PreparedTask

_OPTIONAL = ("id",)


class ImageTask(PreparedTask):
    """A task whose rows are images, with a model that has a head for classes; a subclass says what is learned from them."""

    padding_side = "right"
    problem: str
    """The problem type of its predictions."""
    truth: str
    """Our column of what is learned; new images come without it."""
    model_class: str
    """Name of transformers' class that builds its models."""

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

    def load_splits(self) -> SplitSet:
        """Return the images of every split. Raises DataError."""
        return load_splits(
            self.recipe.data, base_folder=self.base_folder, needs=("image", self.truth), optional=_OPTIONAL,
            problem_type=self.problem,
        )  # fmt: skip

    def read_rows(self, source: str) -> dict[str, list[Any]]:
        """Return the images of a folder or a file; what is learned of others is not needed. Raises DataError."""
        kept = {ours: theirs for ours, theirs in self.recipe.data.columns.items() if ours != self.truth}
        reading = self.recipe.data.model_copy(update={"columns": kept})
        return load_rows(source, data=reading, base_folder=Path(), needs=("image",), optional=_OPTIONAL).lists()

    def prepare_rows(self, columns: Mapping[str, list[Any]], facts: Mapping[str, Any]) -> tuple[Any, Prepared]:
        """Return rows of images: those that were read, or the files that ``text`` names. Raises DataError where one is none."""
        from datasets import Dataset

        found = dict(columns) if "image" in columns else named_images(columns["text"])
        found["row_id"] = list(range(len(found["image"])))
        rows = Dataset.from_dict(self.new_features(found))
        return rows, Prepared(rows, rows, rows, "", tuple(facts["label_names"]), self.problem)

    def new_features(self, columns: Mapping[str, list[Any]]) -> dict[str, Any]:
        """Return features of new images, of which nothing else is known."""
        return image_features(columns)[0]

    def in_words(self, row: Mapping[str, Any]) -> str:
        """Return an image's name, its size, and what the model gets of it."""
        (image,) = self.images_of([row])
        channels, height, width = self.pixels([image]).shape[1:]
        return f"{row['text']}: {image.width} x {image.height} pixels, resized to {width} x {height} of {channels} channels"

    # --- model -----------------------------------------------------------------------------------------------------

    def build_model(
        self, prepared: Prepared | None, *, skeleton: bool = False, quantization: Any = None
    ) -> LoadedModel:
        """Return the model with a head for these classes; without data, for those of the recipe, or two. Raises ModelError."""
        declared = self.recipe.data.labels
        names = list(prepared.label_names) if prepared else declared if isinstance(declared, list) else ["0", "1"]
        labels = {"id2label": dict(enumerate(names)), "label2id": {name: number for number, name in enumerate(names)}}
        config = load_config(self.recipe.model, skeleton=skeleton, **labels, **self.config_fields())
        loaded = load_model(self._auto_class(), self.recipe.model, config, skeleton=skeleton, quantization=quantization)
        # As of texts: Trainer must not scale their loss by a count of items that they ignore.
        loaded.model.accepts_loss_kwargs = False
        return loaded

    def config_fields(self) -> dict[str, Any]:
        """Return what the task sets in a model's configuration beside the classes. Raises ModelError for a model that does not fit."""
        return {}

    def _auto_class(self) -> Any:
        import transformers

        return getattr(transformers, self.model_class)

    def load_trained(self, folder: Path, facts: Mapping[str, Any]) -> Any:
        """Return a saved model in evaluation mode."""
        config = load_config(self.recipe.model.model_copy(update={"config": None}))
        return load_model(self._auto_class(), self.recipe.model, config).model.eval()

    def model_facts(self, prepared: Prepared) -> dict[str, Any]:
        """Return what has to be known to use the saved model without its run."""
        return {"task": self.options.type, "problem_type": self.problem, "label_names": list(prepared.label_names)}

    # --- rows ------------------------------------------------------------------------------------------------------

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
