"""Text classification: one label, several labels, one logit, or a number, for a text or a pair of texts."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from launcher.contracts import Baseline, Predictions, Prepared, ShownRow
from launcher.data.labels import LabelSet, make_labels
from launcher.data.prepare import tokenize
from launcher.data.sources import SplitSet, load_rows, load_splits
from launcher.data.streams import Features
from launcher.data.tables import Faults
from launcher.errors import DataError, ModelError, ModelUnreachable
from launcher.recipe.schema import Recipe
from launcher.recipe.task_options import TextClassificationOptions
from launcher.tasks.class_sampling import with_draws
from launcher.tasks.class_weights import class_weights
from launcher.tasks.focal import focal_factors_of_two
from launcher.tasks.label_loss import label_items, label_losses, probabilities
from launcher.tasks.models import LoadedModel, load_config, load_model
from launcher.tasks.padding import pad_inputs
from launcher.tasks.prepared_task import SPLITS, faults_of, write_labelled
from launcher.tasks.text_augmenter import TextAugmenter, as_in_first_epoch, synonyms_of
from launcher.tasks.text_task import TextTask, joined, second_texts_at

# Fields by which configurations name the dropout before the classifier.
_HEAD_DROPOUT = ("classifier_dropout", "classifier_dropout_prob", "seq_classif_dropout", "cls_dropout")


class TextClassification(TextTask):
    """The task ``text-classification``."""

    def __init__(self, recipe: Recipe, *, base_folder: Path = Path()) -> None:
        super().__init__(recipe, base_folder=base_folder)
        assert isinstance(recipe.task, TextClassificationOptions)
        self.options = recipe.task
        self.problem_type = ""
        self.class_weights: Any = None

    # --- data ------------------------------------------------------------------------------------------------------

    def load_splits(self) -> SplitSet:
        """Return the rows of every split. Raises DataError."""
        return load_splits(
            self.recipe.data,
            base_folder=self.base_folder,
            problem_type=self.options.problem_type,
            label_delimiter=self.options.label_delimiter,
        )

    def key_parts(self, splits: SplitSet) -> dict[str, Any]:
        """Return what prepared rows depend on: the labels, and how they are read."""
        task = self.options.model_dump(include={"type", "problem_type", "label_delimiter"})
        return {"labels": [self.declared_labels(), splits.label_names], "task": task}

    def notes(self, facts: Mapping[str, Any]) -> list[str]:
        """Return what a reader should know of the labels."""
        return list(facts["label_warnings"])

    def load_data(self, folder: Path) -> Prepared:
        """Return the prepared data in ``folder``: what every rank does after rank 0 has prepared them."""
        prepared = super().load_data(folder)
        self.problem_type = prepared.problem_type
        self._refuse_without_effect()
        if self.options.class_weights != "none":
            counts = prepared.facts["splits"]["train"]["labels"]
            self.class_weights = class_weights(self.options.class_weights, names=prepared.label_names, counts=counts)
        return with_draws(prepared, self.options.class_sampling)

    def _refuse_without_effect(self) -> None:
        """Refuse what has no effect on the labels that were found; those that the recipe declares were checked with it."""
        found, task = self.problem_type, self.options
        one_label = found in ("single_label_classification", "binary_classification")
        given = {
            "training.label_smoothing_factor": self.recipe.training.label_smoothing_factor if not one_label else 0,
            "evaluation.label_errors": self.recipe.evaluation.label_errors and not one_label,
            "task.class_sampling": task.class_sampling != "natural" and not one_label,
            "task.class_weights": task.class_weights != "none" and found == "regression",
            "task.focal_gamma": task.focal_gamma if found == "regression" else 0,
        }
        for key in (key for key, is_given in given.items() if is_given):
            raise DataError(
                f"{key} has no effect: the labels were read as {found}; remove it, or say what they are: task.problem_type"
            )

    def prepare_splits(self, splits: SplitSet, folder: Path, *, max_length: int) -> dict[str, Any]:
        """Write the features of each split into ``folder``; return facts."""
        rows = {name: getattr(splits, name) for name in SPLITS if getattr(splits, name) is not None}
        labels = self._labels(splits)
        make = functools.partial(text_features, tokenizer=self.tokenizer, max_length=max_length)
        counts = {name: write_labelled(splits, name, labels, folder, make) for name in rows}
        return {
            "fingerprint": splits.fingerprint,
            "label_warnings": list(labels.warnings),
            "problem_type": labels.problem_type,
            "label_names": list(labels.names),
            "first_number": labels.first_number,
            "max_length": max_length,
            "pairs": "text_pair" in splits.train.column_names,
            "splits": counts,
        }

    def stream_features(self, facts: Mapping[str, Any]) -> Features:
        """Return how rows that are read while training become features."""
        labels = LabelSet(
            tuple(facts["label_names"]), facts["problem_type"], self.options.label_delimiter, facts["first_number"]
        )
        make = functools.partial(text_features, tokenizer=self.tokenizer, max_length=facts["max_length"])
        return Features(make, divides=False, labels=labels)

    def label_faults(self, splits: SplitSet) -> dict[str, Faults]:
        """Return split -> rows whose labels cannot be used. Raises DataError."""
        return faults_of(self._labels(splits), splits)

    def _labels(self, splits: SplitSet) -> LabelSet:
        if "label" not in splits.train.column_names:
            raise DataError("the training rows have no labels; name their column in data.columns: {label: ...}")
        return make_labels(
            list(splits.train["label"][:]),
            problem_type=self.options.problem_type,
            declared=self.recipe.data.labels or (list(splits.label_names) or None),
            base_folder=self.base_folder,
            delimiter=self.options.label_delimiter,
            origin=splits.origin("train"),
        )

    def show_row(self, row: Mapping[str, Any], prepared: Prepared) -> ShownRow:
        """Return a prepared row as the model sees it, and its label by name."""
        shown = super().show_row(row, prepared)
        if "labels" not in row:
            return shown
        label, names = row["labels"], prepared.label_names
        if prepared.problem_type == "regression":
            return replace(shown, label=f"{label:g}")
        several = [names[number] for number, holds in enumerate(label) if holds] if isinstance(label, list) else None
        return replace(shown, label=names[int(label)] if several is None else ", ".join(several) or "(none)")

    @property
    def read_in_training(self) -> tuple[str, ...]:
        """Names of columns that the collator of training wants beside the features: the texts, where words are replaced."""
        wanted = self.options.augmentation
        return ("text", "second_text_at") if wanted is not None and wanted.synonyms is not None else ()

    def _augmenter(self) -> TextAugmenter | None:
        wanted = self.options.augmentation
        if wanted is None:
            return None
        return TextAugmenter(
            self.tokenizer,
            seed=self.recipe.training.seed,
            token_dropout=wanted.token_dropout,
            synonyms=None if wanted.synonyms is None else synonyms_of(wanted.synonyms, base_folder=self.base_folder),
            synonym_probability=wanted.synonym_probability,
            max_length=self.max_length(),
        )

    def augmented_row(self, row: Mapping[str, Any]) -> Mapping[str, Any] | None:
        """Return a row of train as the first epoch would have it; None without augmentation."""
        augment = self._augmenter()
        return None if augment is None else as_in_first_epoch(row, augment)

    def prepare_rows(self, columns: Mapping[str, list[Any]], facts: Mapping[str, Any]) -> tuple[Any, Prepared]:
        """Return rows of features for new texts, and what they are to be read with.

        Raises:
            DataError: the model was trained on pairs and gets single texts, or the other way round.
        """
        from datasets import Dataset

        pairs, count = columns.get("text_pair"), len(columns["text"])
        if (pairs is not None) != facts["pairs"]:
            wanted = "pairs of texts" if facts["pairs"] else "single texts"
            raise DataError(f"this model was trained on {wanted}; give it {wanted}")
        texts = {**columns, "row_id": list(range(count))}
        features, _ = text_features(texts, tokenizer=self.tokenizer, max_length=facts["max_length"])
        self.problem_type = facts["problem_type"]
        rows = Dataset.from_dict(dict(features))
        return rows, Prepared(rows, rows, rows, "", tuple(facts["label_names"]), facts["problem_type"])

    def read_rows(self, source: str) -> dict[str, list[Any]]:
        """Return the columns of a file under our names; labels are not needed. Raises DataError."""
        data = self.recipe.data
        kept = {ours: theirs for ours, theirs in data.columns.items() if ours != "label"}
        reading = data.model_copy(update={"columns": kept})
        return load_rows(source, data=reading, base_folder=Path(), optional=("text_pair", "id")).lists()

    def load_trained(self, folder: Path, facts: Mapping[str, Any]) -> Any:
        """Return a saved model in evaluation mode."""
        from transformers import AutoModelForSequenceClassification

        self.problem_type = facts["problem_type"]
        config = load_config(self.recipe.model.model_copy(update={"config": None}))
        return load_model(AutoModelForSequenceClassification, self.recipe.model, config).model.eval()

    # --- model -----------------------------------------------------------------------------------------------------

    def build_model(
        self, prepared: Prepared | None, *, skeleton: bool = False, quantization: Any = None
    ) -> LoadedModel:
        """Return the model with a head for these labels; without data, for those of the recipe, or two. Raises ModelError."""
        from transformers import AutoModelForSequenceClassification

        config = load_config(self.recipe.model, skeleton=skeleton, **self._head_fields(prepared))
        if config.pad_token_id is None:
            try:
                config.pad_token_id = self.tokenizer.pad_token_id
            except ModelUnreachable:
                # Without weights it decides nothing.
                if not skeleton:
                    raise
        wanted = self.options.head_dropout
        if wanted is not None:
            for field in _HEAD_DROPOUT:
                setattr(config, field, wanted)
        loaded = load_model(
            AutoModelForSequenceClassification, self.recipe.model, config, skeleton=skeleton, quantization=quantization
        )
        if wanted is not None and not _has_head_dropout(loaded.model, wanted):
            raise ModelError(
                f"task.head_dropout is {wanted}, but {type(loaded.model).__name__} has no dropout before its head; remove it"
            )
        # These heads take **kwargs but ignore the count of items; Trainer must not scale their loss by it.
        loaded.model.accepts_loss_kwargs = False
        return loaded

    def _head_fields(self, prepared: Prepared | None) -> dict[str, Any]:
        problem_type = self._likely_problem() if prepared is None else prepared.problem_type
        if problem_type == "regression":
            return {"num_labels": 1, "problem_type": "regression"}
        names = self._likely_names() if prepared is None else list(prepared.label_names)
        if problem_type == "binary_classification":
            # One logit for the second name; pipelines then apply a sigmoid, as for several labels.
            names = names[1:]
        problem = (
            "single_label_classification"
            if problem_type == "single_label_classification"
            else "multi_label_classification"
        )
        return {
            "problem_type": problem,
            "id2label": dict(enumerate(names)),
            "label2id": {name: number for number, name in enumerate(names)},
        }

    def _likely_problem(self) -> str:
        chosen = self.options.problem_type
        return "single_label_classification" if chosen == "auto" else chosen

    def _likely_names(self) -> list[str]:
        declared = self.recipe.data.labels
        return declared if isinstance(declared, list) else ["0", "1"]

    # --- loss ------------------------------------------------------------------------------------------------------

    def collator(self, *, training: bool = False) -> Any:
        """Return a callable: list of rows -> padded batch of tensors, with ``sample_weight`` float32 [rows]."""
        return Collator(self.tokenizer, self.problem_type, augment=self._augmenter() if training else None)

    def row_outputs(self, outputs: Any, batch: Mapping[str, Any]) -> Any:
        """Return the logits [rows, outputs]."""
        return outputs["logits"]

    def items(self, batch: Mapping[str, Any]) -> Any:
        """Return the batch's total weight, a scalar tensor: rows, or with class weights the sum of the rows' weights."""
        by_class = None if self.problem_type == "multi_label_classification" else self.class_weights
        return label_items(batch, by_class)

    def loss(self, outputs: Any, batch: Mapping[str, Any], *, label_smoothing: float = 0.0) -> Any:
        """Return the weighted sum of the rows' losses, a float32 scalar tensor.

        Cross entropy for one label, mean binary cross entropy over the labels for several, binary cross entropy for one
        logit, squared error for regression. With class weights w the mean is sum(w * loss) / sum(w), as in torch. With
        task.focal_gamma each cross entropy is multiplied by (1 - p)^gamma (launcher.tasks.focal).
        """
        import torch.nn.functional as F

        logits, labels, gamma = outputs["logits"].float(), batch["labels"], self.options.focal_gamma
        classes = None if self.class_weights is None else self.class_weights.to(logits.device)
        if self.problem_type == "single_label_classification":
            rows = label_losses(logits, labels, class_weights=classes, label_smoothing=label_smoothing, gamma=gamma)
        elif self.problem_type == "multi_label_classification":
            places = F.binary_cross_entropy_with_logits(logits, labels, weight=classes, reduction="none")
            places = places * focal_factors_of_two(logits, labels, gamma=gamma) if gamma else places
            rows = places.mean(dim=-1)
        elif self.problem_type == "binary_classification":
            target = labels.float() * (1 - label_smoothing) + 0.5 * label_smoothing
            no, yes = classes if classes is not None else (1.0, 1.0)
            rows = -yes * target * F.logsigmoid(logits[:, 0]) - no * (1 - target) * F.logsigmoid(-logits[:, 0])
            rows = rows * focal_factors_of_two(logits[:, 0], labels, gamma=gamma) if gamma else rows
        else:
            rows = F.mse_loss(logits[:, 0], labels.float(), reduction="none")
        return (rows * batch["sample_weight"]).sum()

    # --- evaluation ------------------------------------------------------------------------------------------------

    @property
    def default_metric(self) -> str:
        """The validation metric that chooses the best checkpoint unless the recipe names one."""
        by_problem = {"regression": "spearman", "multi_label_classification": "micro_f1"}
        return by_problem.get(self.problem_type, "macro_f1")

    def predictions(self, logits: np.ndarray, split: Any, prepared: Prepared) -> Predictions:
        """Turn logits [rows, outputs] into Predictions for the rows of ``split``."""
        labels = None
        if "labels" in split.column_names:
            dtype = np.float64 if prepared.problem_type == "regression" else np.int64
            labels = np.asarray(split["labels"][:]).astype(dtype)
        return Predictions(
            problem_type=prepared.problem_type,
            scores=probabilities(logits.astype(np.float64), prepared.problem_type),
            labels=labels,
            label_names=prepared.label_names,
            texts=tuple(split["text"][:]),
            row_ids=tuple(split["row_id"][:]),
        )

    def baselines(
        self, names: Sequence[str], prepared: Prepared, predictions: Predictions, *, split: str
    ) -> list[Baseline]:
        """Return the named baselines, trained on the texts of train and tuned on those of validation."""
        from launcher.evaluation.baselines import TextRows, fit_baseline

        def rows(of: Any) -> TextRows:
            dtype = np.float64 if prepared.problem_type == "regression" else np.int64
            return TextRows(list(of["text"][:]), np.asarray(of["labels"][:]).astype(dtype), list(of["row_id"][:]))

        train, validation = rows(prepared.train), rows(prepared.validation)
        test = TextRows(predictions.texts, predictions.labels, predictions.row_ids)
        kind: Any = {"problem_type": prepared.problem_type, "label_names": prepared.label_names}
        return [fit_baseline(name, train, validation, test, **kind) for name in names]


def text_features(
    rows: Mapping[str, list[Any]], *, tokenizer: Any, max_length: int, origin: Any = None
) -> tuple[dict[str, Any], dict[str, int]]:
    """Return columns of features for texts, and counts: rows, tokens, cut."""
    texts, pairs = rows["text"], rows.get("text_pair")
    tokens = tokenize(tokenizer, texts, pairs, max_length=max_length)
    columns: dict[str, Any] = {
        **tokens.features,
        "length": tokens.lengths,
        "row_id": rows["row_id"],
        "text": joined(texts, pairs),
        **({} if pairs is None else {"second_text_at": second_texts_at(texts)}),
        **({"labels": rows["labels"]} if "labels" in rows else {}),
    }
    return columns, {"rows": len(texts), "tokens": int(tokens.lengths.sum()), "cut": tokens.cut}


def _has_head_dropout(model: Any, probability: float) -> bool:
    """Whether a dropout of this probability lies outside the backbone."""
    backbone = f"{model.base_model_prefix}."
    return any(
        "dropout" in type(module).__name__.lower() and getattr(module, "p", None) == probability
        for name, module in model.named_modules()
        if not name.startswith(backbone)
    )


class Collator:
    """Changes rows in training, and pads them to the longest of their batch; a row's ``sample_weight`` is 0 for padding rows."""

    def __init__(self, tokenizer: Any, problem_type: str, *, augment: TextAugmenter | None = None) -> None:
        self.tokenizer = tokenizer
        self.problem_type = problem_type
        self.augment = augment

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Return input tensors, ``labels`` where there are any, and ``sample_weight``."""
        import torch

        rows = rows if self.augment is None else [self.augment(row) for row in rows]
        result = pad_inputs(self.tokenizer, rows)
        if "labels" in rows[0]:
            single = self.problem_type in ("single_label_classification", "binary_classification")
            result["labels"] = torch.tensor(
                [row["labels"] for row in rows], dtype=torch.long if single else torch.float32
            )
        return result
