"""Text classification: one label, several labels, one logit, or a number, for a text or a pair of texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from launcher.contracts import Predictions, Prepared
from launcher.data.labels import LabelSet, make_labels
from launcher.data.prepare import (
    cache_folder,
    code_fingerprint,
    fingerprint_of,
    load_prepared,
    prepared_folder,
    tokenize,
)
from launcher.data.sources import SplitSet, load_rows, load_splits
from launcher.errors import DataError, ModelError, ModelUnreachable
from launcher.recipe.schema import Recipe, TextClassificationOptions
from launcher.tasks.models import (
    LoadedModel,
    load_config,
    load_model,
    load_tokenizer,
    revision_of,
    token_limit,
    tokenizer_fingerprint,
)

SPLITS = ("train", "validation", "test")

_DEFAULT_MAX_LENGTH = 512

# Fields by which configurations name the dropout before the classifier.
_HEAD_DROPOUT = ("classifier_dropout", "classifier_dropout_prob", "seq_classif_dropout", "cls_dropout")


class TextClassification:
    """The task ``text-classification``."""

    def __init__(self, recipe: Recipe, *, base_folder: Path = Path()) -> None:
        assert isinstance(recipe.task, TextClassificationOptions)
        self.recipe = recipe
        self.options = recipe.task
        self.base_folder = base_folder
        self.problem_type = ""
        self.class_weights: Any = None

    @cached_property
    def tokenizer(self) -> Any:
        """The model's tokenizer, loaded when it is first asked for."""
        return load_tokenizer(self.recipe.model)

    # --- data ------------------------------------------------------------------------------------------------------

    def prepare_data(self, *, progress: Any = None) -> tuple[Path, Prepared]:
        """Read, check, split and tokenize the rows, or find them in the cache; return their folder too.

        Raises:
            DataError: a fault in the data, or ``data.max_length`` beyond what the model takes.
        """
        splits = load_splits(
            self.recipe.data,
            base_folder=self.base_folder,
            problem_type=self.options.problem_type,
            label_delimiter=self.options.label_delimiter,
        )
        max_length = self._max_length()
        key = fingerprint_of(
            {
                "code": code_fingerprint(),
                "data": splits.fingerprint,
                "tokenizer": tokenizer_fingerprint(self.tokenizer),
                "max_length": max_length,
                "labels": [self._declared_labels(), splits.label_names],
                "task": self.options.model_dump(include={"type", "problem_type", "label_delimiter"}),
            }
        )
        folder, found = prepared_folder(
            cache_folder(self.recipe.data.cache_dir), key, lambda: self._prepare(splits, max_length)
        )
        prepared = self.load_data(folder)
        # Equal rows may have come from elsewhere when they were prepared; what is told is about these files.
        here = {
            "was_cached": found,
            "provenance": splits.provenance,
            "warnings": [*splits.warnings, *prepared.facts["label_warnings"]],
        }
        return folder, replace(prepared, facts={**prepared.facts, **here})

    def _declared_labels(self) -> list[str] | str | None:
        """Return the recipe's label names; those of a file by what it says, not by its name."""
        labels = self.recipe.data.labels
        path = self.base_folder / labels if isinstance(labels, str) else None
        return path.read_bytes().hex() if path is not None and path.is_file() else labels

    def load_data(self, folder: Path) -> Prepared:
        """Return the prepared data in ``folder``: what every rank does after rank 0 has prepared them."""
        splits, facts = load_prepared(folder)
        self.problem_type = facts["problem_type"]
        prepared = Prepared(
            train=splits["train"],
            validation=splits.get("validation"),
            test=splits.get("test"),
            fingerprint=facts["fingerprint"],
            label_names=tuple(facts["label_names"]),
            problem_type=facts["problem_type"],
            facts=facts,
        )
        self.class_weights = self._class_weights(prepared)
        return prepared

    def _max_length(self) -> int:
        limit = token_limit(self.tokenizer, load_config(self.recipe.model, skeleton=True))
        wanted = self.recipe.data.max_length
        if wanted is None:
            return min(limit or _DEFAULT_MAX_LENGTH, _DEFAULT_MAX_LENGTH)
        if limit is not None and wanted > limit:
            raise DataError(f"data.max_length is {wanted}, but this model takes at most {limit} tokens; lower it")
        return wanted

    def _prepare(self, splits: SplitSet, max_length: int) -> tuple[dict[str, Any], dict[str, Any]]:
        rows = {name: getattr(splits, name) for name in SPLITS if getattr(splits, name) is not None}
        if "label" not in rows["train"].column_names:
            raise DataError("the training rows have no labels; name their column in data.columns: {label: ...}")
        labels = make_labels(
            rows["train"]["label"],
            problem_type=self.options.problem_type,
            declared=self.recipe.data.labels or (list(splits.label_names) or None),
            base_folder=self.base_folder,
            delimiter=self.options.label_delimiter,
            origin=splits.origin("train"),
        )
        prepared, counts = {}, {}
        for name in rows:
            prepared[name], counts[name] = self._features(splits, name, labels, max_length)
        facts = {
            "fingerprint": splits.fingerprint,
            "label_warnings": list(labels.warnings),
            "problem_type": labels.problem_type,
            "label_names": list(labels.names),
            "max_length": max_length,
            "pairs": "text_pair" in splits.train.column_names,
            "splits": counts,
        }
        return prepared, facts

    def tokenize_rows(
        self, texts: list[str], pairs: list[str] | None, *, row_ids: list[int], max_length: int
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return columns of features for texts, and counts: rows, tokens, cut."""
        tokens = tokenize(self.tokenizer, texts, pairs, max_length=max_length)
        columns: dict[str, Any] = dict(tokens.features)
        columns["length"] = tokens.lengths
        columns["row_id"] = row_ids
        columns["text"] = texts if pairs is None else [f"{a} ⏎ {b}" for a, b in zip(texts, pairs, strict=True)]
        return columns, {"rows": len(texts), "tokens": int(tokens.lengths.sum()), "cut": tokens.cut}

    def _features(self, splits: SplitSet, name: str, labels: LabelSet, max_length: int) -> tuple[Any, dict[str, Any]]:
        from datasets import Dataset

        split = getattr(splits, name)
        pairs = list(split["text_pair"]) if "text_pair" in split.column_names else None
        columns, counts = self.tokenize_rows(
            list(split["text"]), pairs, row_ids=list(split["row_id"]), max_length=max_length
        )
        counts["labelled"] = "label" in split.column_names
        if counts["labelled"]:
            encoded = labels.encode(split["label"], split=name, origin=splits.origin(name))
            columns["labels"] = encoded.tolist()
            if encoded.ndim == 1 and labels.names:
                counts["labels"] = np.bincount(encoded.astype(int), minlength=len(labels.names)).tolist()
            elif labels.names:
                counts["labels"] = encoded.sum(axis=0).astype(int).tolist()
        return Dataset.from_dict(columns), counts

    def prepare_texts(
        self, texts: list[str], pairs: list[str] | None, facts: Mapping[str, Any]
    ) -> tuple[Any, Prepared]:
        """Return rows of features for new texts, and what they are to be read with.

        Raises:
            DataError: the model was trained on pairs and gets single texts, or the other way round.
        """
        from datasets import Dataset

        if (pairs is not None) != facts["pairs"]:
            wanted = "pairs of texts" if facts["pairs"] else "single texts"
            raise DataError(f"this model was trained on {wanted}; give it {wanted}")
        columns, _ = self.tokenize_rows(texts, pairs, row_ids=list(range(len(texts))), max_length=facts["max_length"])
        self.problem_type = facts["problem_type"]
        rows = Dataset.from_dict(columns)
        return rows, Prepared(rows, rows, rows, "", tuple(facts["label_names"]), facts["problem_type"])

    def read_rows(self, source: str) -> dict[str, list[Any]]:
        """Return the columns of a file under our names; labels are not needed. Raises DataError."""
        data = self.recipe.data
        kept = {ours: theirs for ours, theirs in data.columns.items() if ours != "label"}
        reading = data.model_copy(update={"columns": kept})
        return load_rows(source, data=reading, base_folder=Path(), optional=("text_pair", "id")).columns

    def load_trained(self, folder: Path, facts: Mapping[str, Any]) -> Any:
        """Return a saved model in evaluation mode."""
        from transformers import AutoModelForSequenceClassification

        self.problem_type = facts["problem_type"]
        config = load_config(self.recipe.model.model_copy(update={"config": None}))
        return load_model(AutoModelForSequenceClassification, self.recipe.model, config).model.eval()

    def model_facts(self, prepared: Prepared) -> dict[str, Any]:
        """Return what has to be known to use the saved model without its run."""
        return {
            "task": self.options.type,
            "problem_type": prepared.problem_type,
            "label_names": list(prepared.label_names),
            "max_length": prepared.facts["max_length"],
            "pairs": prepared.facts["pairs"],
        }

    def model_revision(self, model: Any) -> str:
        """Return what identifies the pretrained weights."""
        return revision_of(model, self.recipe.model)

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

    def collator(self) -> Any:
        """Return a callable: list of rows -> padded batch of tensors, with ``sample_weight`` float32 [rows]."""
        return Collator(self.tokenizer, self.problem_type)

    def row_outputs(self, outputs: Any, batch: Mapping[str, Any]) -> Any:
        """Return the logits [rows, outputs]."""
        return outputs["logits"]

    def items(self, batch: Mapping[str, Any]) -> Any:
        """Return the batch's total weight, a scalar tensor: rows, or with class weights the sum of the rows' weights."""
        weights = batch["sample_weight"]
        if self.class_weights is not None and self.problem_type != "multi_label_classification":
            weights = weights * self.class_weights.to(weights.device)[batch["labels"]]
        return weights.sum()

    def loss(self, outputs: Any, batch: Mapping[str, Any], *, label_smoothing: float = 0.0) -> Any:
        """Return the weighted sum of the rows' losses, a float32 scalar tensor.

        Cross entropy for one label, mean binary cross entropy over the labels for several, binary cross entropy for one
        logit, squared error for regression. With class weights w the mean is sum(w * loss) / sum(w), as in torch.
        """
        import torch.nn.functional as F

        logits, labels = outputs["logits"].float(), batch["labels"]
        classes = None if self.class_weights is None else self.class_weights.to(logits.device)
        if self.problem_type == "single_label_classification":
            rows = F.cross_entropy(logits, labels, weight=classes, reduction="none", label_smoothing=label_smoothing)
        elif self.problem_type == "multi_label_classification":
            rows = F.binary_cross_entropy_with_logits(logits, labels, weight=classes, reduction="none").mean(dim=-1)
        elif self.problem_type == "binary_classification":
            target = labels.float() * (1 - label_smoothing) + 0.5 * label_smoothing
            no, yes = classes if classes is not None else (1.0, 1.0)
            rows = -yes * target * F.logsigmoid(logits[:, 0]) - no * (1 - target) * F.logsigmoid(-logits[:, 0])
        else:
            rows = F.mse_loss(logits[:, 0], labels.float(), reduction="none")
        return (rows * batch["sample_weight"]).sum()

    def _class_weights(self, prepared: Prepared) -> Any:
        chosen = self.options.class_weights
        if chosen == "none":
            return None
        import torch

        names = prepared.label_names
        if chosen == "balanced":
            counts = np.asarray(prepared.facts["splits"]["train"]["labels"], dtype=float)
            weights = counts.sum() / (len(counts) * np.maximum(counts, 1))
        else:
            unknown = sorted(set(chosen) - set(names))
            if unknown:
                raise DataError(
                    f"task.class_weights names {unknown[0]!r}, which is no label; labels: {', '.join(names)}"
                )
            weights = np.asarray([chosen.get(name, 1.0) for name in names])
        return torch.tensor(weights, dtype=torch.float32)

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
            labels = np.asarray(split["labels"]).astype(dtype)
        return Predictions(
            problem_type=prepared.problem_type,
            scores=probabilities(logits.astype(np.float64), prepared.problem_type),
            labels=labels,
            label_names=prepared.label_names,
            texts=tuple(split["text"]),
            row_ids=tuple(split["row_id"]),
        )

    def metrics(self, predictions: Predictions) -> dict[str, float]:
        """Return the metrics of predictions on labelled rows."""
        from launcher.evaluation.metrics import metrics_for

        return metrics_for(predictions)


def probabilities(logits: np.ndarray, problem_type: str) -> np.ndarray:
    """Return scores as in ``Predictions.scores`` for float64 logits [rows, outputs]."""
    if problem_type == "regression":
        return logits
    if problem_type == "single_label_classification":
        shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
        return shifted / shifted.sum(axis=1, keepdims=True)
    positive = 0.5 * (1 + np.tanh(0.5 * logits))
    return np.hstack([1 - positive, positive]) if problem_type == "binary_classification" else positive


def _has_head_dropout(model: Any, probability: float) -> bool:
    """Whether a dropout of this probability lies outside the backbone."""
    backbone = f"{model.base_model_prefix}."
    return any(
        "dropout" in type(module).__name__.lower() and getattr(module, "p", None) == probability
        for name, module in model.named_modules()
        if not name.startswith(backbone)
    )


class Collator:
    """Pads rows to the longest of their batch; a row's ``sample_weight`` is 0 for padding rows."""

    # Multiples of 8 suit the matrix units of GPUs and measured 8 % faster on CPU.
    MULTIPLE = 8

    def __init__(self, tokenizer: Any, problem_type: str) -> None:
        self.tokenizer = tokenizer
        self.problem_type = problem_type

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Return input tensors, ``labels`` where there are any, and ``sample_weight``."""
        import torch

        names = [name for name in rows[0] if name in self.tokenizer.model_input_names]
        batch = self.tokenizer.pad(
            [{name: row[name] for name in names} for row in rows],
            padding=True,
            pad_to_multiple_of=self.MULTIPLE,
            return_tensors="pt",
        )
        result = dict(batch)
        if "labels" in rows[0]:
            single = self.problem_type in ("single_label_classification", "binary_classification")
            result["labels"] = torch.tensor(
                [row["labels"] for row in rows], dtype=torch.long if single else torch.float32
            )
        result["sample_weight"] = torch.tensor([row.get("weight", 1.0) for row in rows], dtype=torch.float32)
        return result
