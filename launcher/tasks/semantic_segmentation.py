"""Semantic segmentation: a class for each pixel of an image."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from launcher.contracts import Baseline, Predictions, Prepared, ShownRow
from launcher.data.augmentation import augmented_with_mask
from launcher.data.chance import row_generator
from launcher.data.images import image_bytes, upright_size
from launcher.data.labels import declared_names
from launcher.data.masks import read_mask, write_mask
from launcher.data.pieces import Origin
from launcher.data.sources import SplitSet
from launcher.data.tables import Fault, Faults
from launcher.evaluation.segmentation import SEGMENTATION, nearest, pixel_counts
from launcher.recipe.schema import Recipe
from launcher.tasks.class_weights import class_weights
from launcher.tasks.image_task import ImageTask, image_features
from launcher.tasks.prepared_task import SPLITS, write_features


class SemanticSegmentation(ImageTask):
    """A class for each pixel, by an AutoModelForSemanticSegmentation."""

    problem, truth, model_class = SEGMENTATION, "mask", "AutoModelForSemanticSegmentation"

    def __init__(self, recipe: Recipe, *, base_folder: Path = Path()) -> None:
        super().__init__(recipe, base_folder=base_folder)
        self.class_weights: Any = None

    # --- data ------------------------------------------------------------------------------------------------------

    def load_data(self, folder: Path) -> Prepared:
        """Return the prepared data in ``folder``: what every rank does after rank 0 has prepared them."""
        prepared = super().load_data(folder)
        if self.options.class_weights != "none":
            self.class_weights = class_weights(
                self.options.class_weights, names=prepared.label_names, counts=prepared.facts["splits"]["train"]["labels"]
            )  # fmt: skip
        return prepared

    def label_faults(self, splits: SplitSet) -> dict[str, Faults]:
        """Return split -> rows whose mask has a number that is no class."""
        return self._faults(splits, self._names(splits))

    def _names(self, splits: SplitSet) -> list[str]:
        """Return the classes' names: those of the recipe, or the numbers up to the largest one of train."""
        declared = declared_names(self.recipe.data.labels, base_folder=self.base_folder)
        if declared is not None:
            return list(declared)
        largest = max((int(numbers.max(initial=0)) for numbers in self._counted(splits.train)), default=0)
        return [str(number) for number in range(largest + 1)]

    def _counted(self, split: Any) -> Iterator[np.ndarray]:
        """Yield of each mask the numbers of the pixels that count."""
        for mask in split["mask"]:
            numbers = read_mask(image_bytes(mask))
            yield numbers[numbers != self.options.ignore_index]

    def _faults(self, splits: SplitSet, names: Sequence[str]) -> dict[str, Faults]:
        found: dict[str, Faults] = {}
        for name in SPLITS:
            split = getattr(splits, name)
            if split is None or "mask" not in split.column_names:
                continue
            for row, numbers in enumerate(self._counted(split)):
                wrong = numbers[(numbers < 0) | (numbers >= len(names))]
                if len(wrong):
                    reason = (
                        f"its mask has the number {int(wrong[0])} in {len(wrong):,} pixels, and there are {len(names)} classes (0 to {len(names) - 1}: "
                        f"{', '.join(names[:6])}{', ...' if len(names) > 6 else ''}); name all classes in data.labels, or say with task.ignore_index "
                        "which number stands for none"
                    )
                    found.setdefault(name, {})[row] = Fault(reason, int(wrong[0]))
        return found

    def write_splits(self, splits: SplitSet, folder: Path) -> dict[str, Any]:
        """Write the images and masks of each split into ``folder``; return facts."""
        names = self._names(splits)
        splits.without(self._faults(splits, names), on_bad_row="error")
        make = functools.partial(mask_features, classes=len(names), ignored=self.options.ignore_index)
        present = [name for name in SPLITS if getattr(splits, name) is not None]
        return {
            "fingerprint": splits.fingerprint,
            "problem_type": SEGMENTATION,
            "label_names": names,
            "max_length": 1,
            "splits": {name: _write(splits, name, folder, make, classes=len(names)) for name in present},
        }

    def key_parts(self, splits: SplitSet) -> dict[str, Any]:
        """Return what prepared rows depend on: the classes; not how images are resized, or changed in training."""
        return {"labels": self.declared_labels(), "task": [self.options.type, self.options.ignore_index]}

    def show_row(self, row: Mapping[str, Any], prepared: Prepared) -> ShownRow:
        """Return an image's name, its size, what the model gets of it, and the classes of its pixels."""
        label = ""
        if "mask" in row:
            numbers = read_mask(row["mask"])
            counts = np.bincount(numbers[numbers != self.options.ignore_index], minlength=len(prepared.label_names))
            shares = counts / max(1, counts.sum())
            label = ", ".join(
                f"{name} {share:.0%}" for name, share in zip(prepared.label_names, shares, strict=True) if share
            )
        return ShownRow(row["row_id"], 1, ((self.in_words(row), "read"),), label)

    def new_features(self, columns: Mapping[str, list[Any]]) -> dict[str, Any]:
        """Return features of new images, of which nothing else is known."""
        return mask_features(columns, classes=0, ignored=self.options.ignore_index)[0]

    def example_row(self) -> dict[str, Any]:
        """Return a row like the prepared ones, for plans without data."""
        row = super().example_row()
        del row["labels"]
        return {**row, "size": [32, 32], "mask": write_mask(np.zeros((32, 32), dtype=np.int64))}

    # --- loss ------------------------------------------------------------------------------------------------------

    def collator(self, *, training: bool = False) -> Any:
        """Return a callable: list of rows -> pixel_values [rows, channels, height, width], labels, and sample_weight.

        ``labels``: int64 [rows, height, width], the classes' numbers, ``task.ignore_index`` where none counts.
        """
        return Collator(self, training=training)

    def items(self, batch: Mapping[str, Any]) -> Any:
        """Return the number of pixels that count, with class weights the sum of theirs; a float32 scalar tensor."""
        import torch

        labels = batch["labels"]
        counted = labels != self.options.ignore_index
        weights = counted.float()
        if self.class_weights is not None:
            known = self.class_weights.to(labels.device)[labels.masked_fill(~counted, 0)]
            weights = torch.where(counted, known, 0.0)
        return (weights.sum(dim=(1, 2)) * batch["sample_weight"]).sum()

    def loss(self, outputs: Any, batch: Mapping[str, Any], *, label_smoothing: float = 0.0) -> Any:
        """Return the summed cross entropy of the pixels that count, a float32 scalar tensor; the model's smaller maps are enlarged bilinearly."""
        import torch.nn.functional as F

        labels = batch["labels"]
        weights = None if self.class_weights is None else self.class_weights.to(labels.device)
        pixels = F.cross_entropy(
            enlarged(outputs["logits"], labels.shape[-2:]), labels, weight=weights, reduction="none",
            ignore_index=self.options.ignore_index, label_smoothing=label_smoothing,
        )  # fmt: skip
        return (pixels.sum(dim=(1, 2)) * batch["sample_weight"]).sum()

    def row_outputs(self, outputs: Any, batch: Mapping[str, Any]) -> Any:
        """Return ``pixel_counts`` of each row, [rows, classes, 3]; without labels the classes' numbers, [rows, height, width]."""
        import torch

        logits = enlarged(outputs["logits"], batch["pixel_values"].shape[-2:])
        found = logits.argmax(dim=1)
        if "labels" not in batch:
            return found
        pairs = zip(found.cpu().numpy(), batch["labels"].cpu().numpy(), strict=True)
        counts = [
            pixel_counts(one, true, classes=logits.shape[1], ignored=self.options.ignore_index) for one, true in pairs
        ]
        return torch.from_numpy(np.stack(counts))

    # --- evaluation ------------------------------------------------------------------------------------------------

    @property
    def default_metric(self) -> str:
        """The validation metric that chooses the best checkpoint unless the recipe names one."""
        return "mean_iou"

    def predictions(self, logits: np.ndarray, split: Any, prepared: Prepared) -> Predictions:
        """Turn ``row_outputs`` into Predictions for the rows of ``split``; maps of rows without masks get the size of their images."""
        common: dict[str, Any] = {
            "problem_type": SEGMENTATION, "label_names": prepared.label_names, "texts": tuple(split["text"][:]),
            "row_ids": tuple(split["row_id"][:]),
        }  # fmt: skip
        if "mask" in split.column_names:
            scores = logits.astype(np.float64)
            return Predictions(
                scores=scores.reshape(len(scores), -1), labels=scores[..., 2].sum(axis=1).astype(np.int64), **common
            )
        classes, maps = len(prepared.label_names), []
        for found, (width, height) in zip(logits.astype(np.int64), split["size"][:], strict=True):
            maps.append(nearest(found, height, width))
        counts = np.array([np.bincount(found.ravel(), minlength=classes) for found in maps], dtype=np.float64)
        return Predictions(scores=counts, labels=None, maps=tuple(map(write_mask, maps)), **common)

    def baselines(
        self, names: Sequence[str], prepared: Prepared, predictions: Predictions, *, split: str
    ) -> list[Baseline]:
        """Return the named baselines: the class that each place has most often in train."""
        from launcher.evaluation.baselines_pixels import usual_pixels

        rows, collate = getattr(prepared, split), self.collator()
        train = (read_mask(mask) for mask in prepared.train["mask"])
        true = (collate([row])["labels"][0].numpy() for row in rows)
        return [usual_pixels(train, true, predictions, ignored=self.options.ignore_index) for _ in names]


class Collator:
    """Decodes, in training changes, and resizes images and their masks; a row's ``sample_weight`` is 0 for padding rows."""

    def __init__(self, task: SemanticSegmentation, *, training: bool) -> None:
        self.task = task
        self.augmentation = task.options.augmentation if training else None
        self.seed = task.recipe.training.seed

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Return pixel_values, ``labels`` where there are masks, and ``sample_weight``."""
        import torch

        changed = [self._changed(image, row) for image, row in zip(self.task.images_of(rows), rows, strict=True)]
        pixels = self.task.pixels([image for image, _ in changed])
        weights = [float(row.get("weight", 1.0)) for row in rows]
        result = {"pixel_values": pixels, "sample_weight": torch.tensor(weights)}
        if "mask" in rows[0]:
            height, width = pixels.shape[-2:]
            masks = [nearest(np.asarray(mask), height, width) for _, mask in changed]
            result["labels"] = torch.from_numpy(np.stack(masks).astype(np.int64))
        return result

    def _changed(self, image: Any, row: Mapping[str, Any]) -> tuple[Any, Any]:
        """Return the image and its mask, as Pillow has them; None where there is no mask."""
        from PIL import Image

        mask = Image.fromarray(read_mask(row["mask"]).astype(np.int32)) if "mask" in row else None
        if self.augmentation is None or "epoch" not in row or mask is None:
            return image, mask
        return augmented_with_mask(image, mask, self.augmentation, row_generator(row, seed=self.seed))


def enlarged(logits: Any, size: Sequence[int]) -> Any:
    """Return logits [rows, classes, h, w] at ``size`` (height, width), float32, bilinearly, as transformers' own losses do."""
    import torch.nn.functional as F

    return F.interpolate(logits.float(), size=tuple(size), mode="bilinear", align_corners=False)


def mask_features(
    columns: Mapping[str, Sequence[Any]], *, classes: int, ignored: int, origin: Origin = str
) -> tuple[dict[str, Any], dict[str, int]]:
    """Return features of images that were checked: those of every image task, size (width, height), and mask where there is one; and counts, of
    pixels of each class too (``pixels_0``, ...).
    """
    features, counts = image_features(columns)
    features["size"] = [list(upright_size(image)) for image in features["image"]]
    if "mask" not in columns:
        return features, counts
    masks = [image_bytes(mask) for mask in columns["mask"]]
    pixels = np.zeros(classes, dtype=np.int64)
    for mask in masks:
        numbers = read_mask(mask)
        pixels += np.bincount(numbers[numbers != ignored], minlength=classes)
    counts |= {f"pixels_{number}": int(count) for number, count in enumerate(pixels)}
    return {**features, "mask": masks}, counts


def _write(splits: SplitSet, name: str, folder: Path, make: Any, *, classes: int) -> dict[str, Any]:
    counts: dict[str, Any] = dict(write_features(splits, name, folder, make))
    pixels = [counts.pop(f"pixels_{number}", None) for number in range(classes)]
    labelled = "mask" in getattr(splits, name).column_names
    return {**counts, "labelled": labelled, **({"labels": pixels} if labelled else {})}
