"""Image classification: one label for an image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from launcher.contracts import Baseline, Predictions, Prepared, ShownRow
from launcher.data.augmentation import augmented
from launcher.data.chance import row_generator
from launcher.data.images import open_image
from launcher.data.labels import LabelSet, make_labels
from launcher.data.sources import SplitSet
from launcher.data.tables import Faults
from launcher.recipe.schema import Recipe
from launcher.tasks.class_sampling import with_draws
from launcher.tasks.class_weights import class_weights
from launcher.tasks.image_task import ImageTask, image_features
from launcher.tasks.label_loss import label_items, label_losses, probabilities
from launcher.tasks.prepared_task import SPLITS, faults_of, write_labelled

PROBLEM = "single_label_classification"


class ImageClassification(ImageTask):
    """One label for each image, by an AutoModelForImageClassification."""

    problem, truth, model_class = PROBLEM, "label", "AutoModelForImageClassification"

    def __init__(self, recipe: Recipe, *, base_folder: Path = Path()) -> None:
        super().__init__(recipe, base_folder=base_folder)
        self.class_weights: Any = None

    # --- data ------------------------------------------------------------------------------------------------------

    def load_data(self, folder: Path) -> Prepared:
        """Return the prepared data in ``folder``: what every rank does after rank 0 has prepared them."""
        prepared = super().load_data(folder)
        counts = prepared.facts["splits"]["train"]["labels"]
        self.class_weights = class_weights(self.options.class_weights, names=prepared.label_names, counts=counts)
        return with_draws(prepared, self.options.class_sampling)

    def notes(self, facts: Mapping[str, Any]) -> list[str]:
        """Return what a reader should know of the labels."""
        return list(facts["label_warnings"])

    def label_faults(self, splits: SplitSet) -> dict[str, Faults]:
        """Return split -> rows whose label is missing, or none of those that train has or the recipe names."""
        return faults_of(self._labels(splits), splits)

    def _labels(self, splits: SplitSet) -> LabelSet:
        return make_labels(
            list(splits.train["label"][:]), problem_type=PROBLEM,
            declared=self.recipe.data.labels or (list(splits.label_names) or None),
            base_folder=self.base_folder, delimiter=",", origin=splits.origin("train"),
        )  # fmt: skip

    def write_splits(self, splits: SplitSet, folder: Path) -> dict[str, Any]:
        """Write the images and labels of each split into ``folder``; return facts."""
        labels = self._labels(splits)
        names = [name for name in SPLITS if getattr(splits, name) is not None]
        return {
            "fingerprint": splits.fingerprint,
            "label_warnings": list(labels.warnings),
            "problem_type": PROBLEM,
            "label_names": list(labels.names),
            "max_length": 1,
            "splits": {name: write_labelled(splits, name, labels, folder, image_features) for name in names},
        }

    def key_parts(self, splits: SplitSet) -> dict[str, Any]:
        """Return what prepared rows depend on: the labels; not how images are resized, or changed in training."""
        return {"labels": [self.declared_labels(), splits.label_names], "task": self.options.type}

    def show_row(self, row: Mapping[str, Any], prepared: Prepared) -> ShownRow:
        """Return an image's name, its size, what the model gets of it, and its label."""
        label = prepared.label_names[row["labels"]] if "labels" in row else ""
        return ShownRow(row["row_id"], 1, ((self.in_words(row), "read"),), label)

    # --- model -----------------------------------------------------------------------------------------------------

    def config_fields(self) -> dict[str, Any]:
        """Return the problem type, by which transformers tells what a head is for."""
        return {"problem_type": PROBLEM}

    # --- loss ------------------------------------------------------------------------------------------------------

    def collator(self, *, training: bool = False) -> Any:
        """Return a callable: list of rows -> pixel_values [rows, channels, height, width], labels, and sample_weight."""
        return Collator(self, training=training)

    def row_outputs(self, outputs: Any, batch: Mapping[str, Any]) -> Any:
        """Return the logits [rows, labels]."""
        return outputs["logits"]

    def items(self, batch: Mapping[str, Any]) -> Any:
        """Return the batch's total weight, a scalar tensor: rows, or with class weights the sum of the rows' weights."""
        return label_items(batch, self.class_weights)

    def loss(self, outputs: Any, batch: Mapping[str, Any], *, label_smoothing: float = 0.0) -> Any:
        """Return the weighted sum of the rows' cross entropy, or focal loss (launcher.tasks.focal), a float32 scalar tensor."""
        rows = label_losses(
            outputs["logits"].float(), batch["labels"], class_weights=self.class_weights, label_smoothing=label_smoothing,
            gamma=self.options.focal_gamma,
        )  # fmt: skip
        return (rows * batch["sample_weight"]).sum()

    # --- evaluation ------------------------------------------------------------------------------------------------

    @property
    def default_metric(self) -> str:
        """The validation metric that chooses the best checkpoint unless the recipe names one."""
        return "macro_f1"

    def predictions(self, logits: np.ndarray, split: Any, prepared: Prepared) -> Predictions:
        """Turn logits [rows, labels] into Predictions for the rows of ``split``."""
        return Predictions(
            problem_type=PROBLEM,
            scores=probabilities(logits.astype(np.float64), PROBLEM),
            labels=np.asarray(split["labels"][:], dtype=np.int64) if "labels" in split.column_names else None,
            label_names=prepared.label_names,
            texts=tuple(split["text"][:]),
            row_ids=tuple(split["row_id"][:]),
        )

    def baselines(
        self, names: Sequence[str], prepared: Prepared, predictions: Predictions, *, split: str
    ) -> list[Baseline]:
        """Return the named baselines, trained on the images of train and tuned on those of validation."""
        from launcher.evaluation.baselines import TextRows, fit_baseline
        from launcher.evaluation.baselines_images import pixels_baseline

        found = []
        for name in names:
            if name == "pixels":
                rows = {part: getattr(prepared, part) for part in ("train", "validation", split)}
                small = {part: (small_copies(of), np.asarray(of["labels"][:])) for part, of in rows.items()}
                found.append(pixels_baseline(*small["train"], *small["validation"], small[split][0], predictions))
            else:
                train = TextRows(prepared.train["text"][:], np.asarray(prepared.train["labels"][:]))
                test = TextRows(predictions.texts, predictions.labels, predictions.row_ids)
                kind: Any = {"problem_type": PROBLEM, "label_names": prepared.label_names}
                found.append(fit_baseline(name, train, None, test, **kind))
        return found


def small_copies(rows: Any, *, size: int = 32) -> np.ndarray:
    """Return grey copies of images as float32 [rows, pixels] from 0 to 1, resized to ``size`` pixels in width and height."""
    return np.stack([_small(open_image(data, mode="L"), size) for data in rows["image"]])


def _small(image: Any, size: int) -> np.ndarray:
    return np.asarray(image.resize((size, size)), dtype=np.float32).ravel() / 255


class Collator:
    """Decodes, in training changes, and resizes images; a row's ``sample_weight`` is 0 for padding rows."""

    def __init__(self, task: ImageClassification, *, training: bool) -> None:
        self.task = task
        self.augmentation = task.options.augmentation if training else None
        self.seed = task.recipe.training.seed

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Return pixel_values, ``labels`` where there are any, and ``sample_weight``."""
        import torch

        images = self.task.images_of(rows)
        if self.augmentation is not None and "epoch" in rows[0]:
            images = [
                augmented(image, self.augmentation, row_generator(row, seed=self.seed))
                for image, row in zip(images, rows, strict=True)
            ]
        result = {
            "pixel_values": self.task.pixels(images),
            "sample_weight": torch.tensor([float(row.get("weight", 1.0)) for row in rows]),
        }
        if "labels" in rows[0]:
            result["labels"] = torch.tensor([row["labels"] for row in rows], dtype=torch.long)
        return result
