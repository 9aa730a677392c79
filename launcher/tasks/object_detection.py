"""Object detection: boxes around the objects in an image, each with a class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from launcher.contracts import Baseline, Boxes, Predictions, Prepared, ShownRow
from launcher.data.augmentation import augmented_with_boxes
from launcher.data.chance import row_generator
from launcher.data.images import upright_size
from launcher.data.labels import LabelSet, make_labels
from launcher.data.pieces import Origin
from launcher.data.sources import SplitSet
from launcher.data.tables import Faults
from launcher.errors import ModelError
from launcher.recipe.schema import Recipe
from launcher.tasks.image_task import ImageTask, image_features
from launcher.tasks.models import load_config
from launcher.tasks.prepared_task import SPLITS, write_features

PROBLEM = "object_detection"
MOST_FOUND = 100
"""Boxes that are kept of an image, those with the best scores."""


class ObjectDetection(ImageTask):
    """Boxes and classes, by an AutoModelForObjectDetection."""

    problem, truth, model_class = PROBLEM, "objects", "AutoModelForObjectDetection"

    def __init__(self, recipe: Recipe, *, base_folder: Path = Path()) -> None:
        super().__init__(recipe, base_folder=base_folder)
        self.mean_boxes = 1.0

    # --- data ------------------------------------------------------------------------------------------------------

    def load_data(self, folder: Path) -> Prepared:
        """Return the prepared data in ``folder``: what every rank does after rank 0 has prepared them."""
        prepared = super().load_data(folder)
        train = prepared.facts["splits"]["train"]
        self.mean_boxes = sum(train["labels"]) / train["rows"]
        return prepared

    def notes(self, facts: Mapping[str, Any]) -> list[str]:
        """Return what a reader should know of the classes, and of images with more boxes than the model can find."""
        return [*facts["label_warnings"], *self._too_many(facts["splits"]["train"])]

    def _too_many(self, train: Mapping[str, Any]) -> list[str]:
        try:
            queries = _queries(self.config)
        except ModelError:
            # A model that is out of reach is told where it is needed.
            return []
        if queries is None or train["most_boxes"] <= queries:
            return []
        return [
            f"an image of train has {train['most_boxes']} boxes, and the model finds {queries} at most: others of that image teach it nothing; set "
            "model.config.num_queries (num_detection_tokens of a YOLOS), or cut such images"
        ]

    def label_faults(self, splits: SplitSet) -> dict[str, Faults]:
        """Return split -> rows with a category that is none of those that train has or the recipe names."""
        labels = self._labels(splits)
        rows = {name: getattr(splits, name) for name in SPLITS if getattr(splits, name) is not None}
        return {
            name: labels.faults(_categories(of), split=name) for name, of in rows.items() if "label" in of.column_names
        }

    def _labels(self, splits: SplitSet) -> LabelSet:
        # As rows of several labels: an image has any number of them.
        return make_labels(
            _categories(splits.train), problem_type="multi_label_classification", declared=self.recipe.data.labels,
            base_folder=self.base_folder, origin=splits.origin("train"),
        )  # fmt: skip

    def write_splits(self, splits: SplitSet, folder: Path) -> dict[str, Any]:
        """Write the images, boxes and classes of each split into ``folder``; return facts."""
        labels = self._labels(splits)
        names = [name for name in SPLITS if getattr(splits, name) is not None]
        return {
            "fingerprint": splits.fingerprint,
            "label_warnings": list(labels.warnings),
            "problem_type": PROBLEM,
            "label_names": list(labels.names),
            "max_length": 1,
            "splits": {name: _write(splits, name, labels, folder) for name in names},
        }

    def key_parts(self, splits: SplitSet) -> dict[str, Any]:
        """Return what prepared rows depend on: the classes; not how images are resized, or changed in training."""
        return {"labels": self.declared_labels(), "task": self.options.type}

    def show_row(self, row: Mapping[str, Any], prepared: Prepared) -> ShownRow:
        """Return an image's name, its size, what the model gets of it, and its boxes."""
        found = [
            f"{prepared.label_names[number]} [{', '.join(f'{value:g}' for value in box)}]"
            for number, box in zip(row.get("classes", ()), row.get("boxes", ()), strict=True)
        ]
        return ShownRow(
            row["row_id"], 1, ((self.in_words(row), "read"),), ", ".join(found) or ("no box" if "boxes" in row else "")
        )

    def example_row(self) -> dict[str, Any]:
        """Return a row like the prepared ones, for plans without data."""
        row = super().example_row()
        del row["labels"]
        return {**row, "size": [32, 32], "classes": [0], "boxes": [[8.0, 8.0, 16.0, 16.0]]}

    # --- model -----------------------------------------------------------------------------------------------------

    @cached_property
    def config(self) -> Any:
        """The model's configuration, as the recipe has it."""
        return load_config(self.recipe.model, skeleton=True)

    @cached_property
    def set_loss(self) -> Any:
        """The model's loss (launcher.tasks.detection_loss). Raises ModelError for a model whose loss is not known."""
        from launcher.tasks.detection_loss import SetLoss

        return SetLoss.of(self.config)

    def config_fields(self) -> dict[str, Any]:
        """Return no denoising: it needs labels in the forward pass, and without them its embeddings would never get a gradient.

        Raises ModelError for a model whose loss is not known.
        """
        self._check_config()
        return {"num_denoising": 0} if hasattr(self.config, "num_denoising") else {}

    def new_features(self, columns: Mapping[str, list[Any]]) -> dict[str, Any]:
        """Return features of new images, of which nothing else is known."""
        return box_features(columns)[0]

    def _check_config(self) -> None:
        """Raise ModelError for a model whose loss is not known, and for parts of a loss that are not computed."""
        family = self.set_loss.family
        given = self.recipe.model.config or {}
        if given.get("num_denoising"):
            raise ModelError(
                f"model.config.num_denoising is {given['num_denoising']}, but the denoising loss is not there; remove it"
            )
        if family != "varifocal" and getattr(self.config, "auxiliary_loss", False):
            raise ModelError(
                f"auxiliary_loss is true in the configuration of this {self.config.model_type}, but the losses of its single layers are not there; "
                "write model.config: {auxiliary_loss: false}"
            )

    # --- loss ------------------------------------------------------------------------------------------------------

    def collator(self, *, training: bool = False) -> Any:
        """Return a callable: list of rows -> pixel_values [rows, channels, height, width], labels, and sample_weight.

        ``labels``, float32 [rows, boxes, 5]: class, centre x, y, width and height from 0 to 1; the class is NO_CLASS where a row has fewer boxes.
        """
        return Collator(self, training=training)

    def row_outputs(self, outputs: Any, batch: Mapping[str, Any]) -> Any:
        """Return [rows, found, 6]: score, class, centre x, y, width and height from 0 to 1, at most MOST_FOUND of a row, best first."""
        from launcher.tasks.detection_loss import detections

        return detections(outputs, self.config, most=MOST_FOUND)

    def items(self, batch: Mapping[str, Any]) -> Any:
        """Return the number of images, a scalar tensor; their losses are divided by the boxes of an image on average."""
        return batch["sample_weight"].sum()

    def loss(self, outputs: Any, batch: Mapping[str, Any], *, label_smoothing: float = 0.0) -> Any:
        """Return the weighted sum of the images' losses (launcher.tasks.detection_loss), a float32 scalar tensor."""
        labels = batch["labels"].float()
        rows = self.set_loss.row_losses(
            outputs, labels[..., 0].long(), labels[..., 1:], mean_boxes=max(self.mean_boxes, 1e-6)
        )
        return (rows * batch["sample_weight"]).sum()

    # --- evaluation ------------------------------------------------------------------------------------------------

    @property
    def default_metric(self) -> str:
        """The validation metric that chooses the best checkpoint unless the recipe names one."""
        return "map"

    def predictions(self, logits: np.ndarray, split: Any, prepared: Prepared) -> Predictions:
        """Turn what was found, [rows, found, 6], into Predictions for the rows of ``split``, in pixels of their images."""
        found = logits.astype(np.float64)
        sizes = np.tile(np.asarray(split["size"][:], dtype=np.float64), 2)
        low, high = (np.clip(found[..., 2:4] + sign * found[..., 4:6] / 2, 0, 1) for sign in (-1, 1))
        places = np.concatenate([low, high - low], axis=-1) * sizes[:, None]
        known = "boxes" in split.column_names
        return Predictions(
            problem_type=PROBLEM,
            scores=found[..., 0].ravel(),
            labels=np.array([number for row in split["classes"] for number in row], dtype=np.int64) if known else None,
            label_names=prepared.label_names,
            texts=tuple(split["text"][:]),
            row_ids=tuple(split["row_id"][:]),
            predicted=np.nan_to_num(found[..., 1]).astype(np.int64).ravel(),
            boxes=Boxes(np.full(len(found), found.shape[1]), places.reshape(-1, 4)),
            true_boxes=true_boxes(split) if known else None,
            threshold=self.options.threshold,
        )

    def baselines(
        self, names: Sequence[str], prepared: Prepared, predictions: Predictions, *, split: str
    ) -> list[Baseline]:
        """Return the named baselines: the boxes that are usual in train."""
        from launcher.evaluation.baselines_boxes import typical_boxes

        train, sizes = prepared.train, np.asarray(getattr(prepared, split)["size"][:], dtype=np.float64)
        classes = np.array([number for row in train["classes"] for number in row], dtype=np.int64)
        own = np.asarray(train["size"][:], dtype=np.float64)
        return [typical_boxes(true_boxes(train), classes, own, new_sizes=sizes, predictions=predictions) for _ in names]


def true_boxes(split: Any) -> Boxes:
    """Return the boxes of prepared rows."""
    rows = split["boxes"][:]
    places = np.array([box for row in rows for box in row], dtype=np.float64).reshape(-1, 4)
    return Boxes(np.array([len(row) for row in rows], dtype=np.int64), places)


def box_features(
    columns: Mapping[str, Sequence[Any]], *, origin: Origin = str
) -> tuple[dict[str, Any], dict[str, int]]:
    """Return features of images that were checked: those of every image task, size (width, height), and boxes and classes where there are any."""
    features, counts = image_features(columns)
    features["size"] = [list(upright_size(image)) for image in features["image"]]
    return {**features, **{name: list(columns[name]) for name in ("boxes", "classes") if name in columns}}, counts


def _queries(config: Any) -> int | None:
    return getattr(config, "num_detection_tokens", None) or getattr(config, "num_queries", None)


def _categories(split: Any) -> list[list[str]]:
    return [objects["category"] for objects in split["label"]]


def _write(splits: SplitSet, name: str, labels: LabelSet, folder: Path) -> dict[str, Any]:
    split = getattr(splits, name)
    if "label" not in split.column_names:
        return {**write_features(splits, name, folder, box_features), "labelled": False}
    classes = labels.encode_lists(_categories(split), split=name, origin=splits.origin(name))
    more = {"classes": classes, "boxes": [objects["bbox"] for objects in split["label"]]}
    counts = np.bincount(
        np.concatenate([np.array(row, dtype=np.int64) for row in classes]), minlength=len(labels.names)
    )
    return {
        **write_features(splits, name, folder, box_features, more=more),
        "labelled": True,
        "labels": counts.tolist(),
        "most_boxes": max(map(len, classes)),
    }


def padded_labels(rows: Sequence[tuple[Any, np.ndarray, np.ndarray]]) -> np.ndarray:
    """Return the labels of images with their boxes and classes, float32 [rows, boxes, 5]; at least one place, so that no row is empty."""
    from launcher.tasks.detection_loss import NO_CLASS

    most = max(1, *(len(classes) for _, _, classes in rows))
    labels = np.tile(np.array([NO_CLASS, 0.5, 0.5, 1.0, 1.0], dtype=np.float32), (len(rows), most, 1))
    for row, (image, boxes, classes) in zip(labels, rows, strict=True):
        row[: len(classes), 0] = classes
        row[: len(classes), 1:3] = (boxes[:, :2] + boxes[:, 2:] / 2) / (image.width, image.height)
        row[: len(classes), 3:] = boxes[:, 2:] / (image.width, image.height)
    return labels


class Collator:
    """Decodes, in training changes, and resizes images and their boxes; a row's ``sample_weight`` is 0 for padding rows."""

    def __init__(self, task: ObjectDetection, *, training: bool) -> None:
        self.task = task
        self.augmentation = task.options.augmentation if training else None
        self.seed = task.recipe.training.seed

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Return pixel_values, ``labels`` where there are any, and ``sample_weight``."""
        import torch

        changed = [self._changed(image, row) for image, row in zip(self.task.images_of(rows), rows, strict=True)]
        result = {
            "pixel_values": self.task.pixels([image for image, _, _ in changed]),
            "sample_weight": torch.tensor([float(row.get("weight", 1.0)) for row in rows]),
        }
        if "boxes" in rows[0]:
            result["labels"] = torch.from_numpy(padded_labels(changed))
        return result

    def _changed(self, image: Any, row: Mapping[str, Any]) -> tuple[Any, np.ndarray, np.ndarray]:
        """Return the image, its boxes [boxes, 4] (x, y, width, height in pixels) and their classes [boxes]."""
        boxes = np.array(row.get("boxes", ()), dtype=np.float64).reshape(-1, 4)
        classes = np.array(row.get("classes", ()), dtype=np.int64)
        if self.augmentation is None or "epoch" not in row:
            return image, boxes, classes
        generator = row_generator(row, seed=self.seed)
        image, boxes, kept = augmented_with_boxes(image, boxes, self.augmentation, generator)
        return image, boxes, classes[kept]
