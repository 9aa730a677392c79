"""Token classification: a tag for each word of a sentence, such as named entities or parts of speech."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from launcher.contracts import Baseline, Predictions, Prepared, ShownRow
from launcher.data.labels import LabelSet, make_labels
from launcher.data.sources import SplitSet, load_rows, load_splits
from launcher.data.tables import Faults
from launcher.data.words import WordRows, make_word_rows
from launcher.errors import DataError, ModelError
from launcher.evaluation.tagging import ENTITIES, TAGS, are_entity_tags
from launcher.recipe.schema import Recipe
from launcher.recipe.task_options import TokenClassificationOptions
from launcher.tasks.class_weights import class_weights
from launcher.tasks.models import LoadedModel, load_config, load_model, load_tokenizer
from launcher.tasks.padding import pad_inputs
from launcher.tasks.prepared_task import SPLITS, faults_of, write_features
from launcher.tasks.text_augmenter import TextAugmenter, as_in_first_epoch
from launcher.tasks.text_task import IGNORED, TextTask, token_losses

_NEEDS, _OPTIONAL = ("tokens",), ("label", "id")
# A text that a person types: words, and each mark on its own, as corpora divide them.
_WORD = re.compile(r"\w+(?:['’]\w+)*|[^\w\s]")


class TokenClassification(TextTask):
    """The task ``token-classification``."""

    def __init__(self, recipe: Recipe, *, base_folder: Path = Path()) -> None:
        super().__init__(recipe, base_folder=base_folder)
        assert isinstance(recipe.task, TokenClassificationOptions)
        self.options = recipe.task
        self.problem_type = ""
        self.class_weights: Any = None

    @cached_property
    def tokenizer(self) -> Any:
        """The model's tokenizer, which has to tell the word of each token. Raises ModelError."""
        found = load_tokenizer(self.recipe.model)
        if not found.is_fast:
            raise ModelError(
                f"{type(found).__name__} does not tell which word a token is of, which token-classification needs; choose a model "
                "with a tokenizer.json"
            )
        if getattr(found, "add_prefix_space", None) is False:
            # Else byte-level tokenizers take words that are given one by one for parts of one word.
            found = load_tokenizer(self.recipe.model, add_prefix_space=True)
        # So that a token of a row keeps its place in a batch.
        found.padding_side = "right"
        return found

    # --- data ------------------------------------------------------------------------------------------------------

    def load_splits(self) -> SplitSet:
        """Return the sentences of every split. Raises DataError."""
        return load_splits(
            self.recipe.data, base_folder=self.base_folder, needs=_NEEDS, optional=_OPTIONAL, problem_type=TAGS
        )

    def key_parts(self, splits: SplitSet) -> dict[str, Any]:
        """Return what prepared rows depend on: the tags, and how they are scored."""
        return {
            "labels": [self.declared_labels(), splits.label_names],
            "task": [self.options.type, self.options.evaluate_as],
        }

    def load_data(self, folder: Path) -> Prepared:
        """Return the prepared data in ``folder``: what every rank does after rank 0 has prepared them."""
        prepared = super().load_data(folder)
        self.problem_type = prepared.problem_type
        counts = prepared.facts["splits"]["train"]["labels"]
        self.class_weights = class_weights(self.options.class_weights, names=prepared.label_names, counts=counts)
        return prepared

    def notes(self, facts: Mapping[str, Any]) -> list[str]:
        """Return what a reader should know of the tags, and of sentences that became several rows."""
        divided = [
            f"{counts['divided']:,} of the {counts['sentences']:,} {name} sentences are longer than {facts['max_length']:,} tokens "
            "and were divided between words; no word was left out"
            for name, counts in facts["splits"].items()
            if counts["divided"]
        ]
        return [*facts["label_warnings"], *divided]

    def prepare_splits(self, splits: SplitSet, folder: Path, *, max_length: int) -> dict[str, Any]:
        """Write the features of each split into ``folder``; return facts."""
        labels = self._labels(splits)
        make = functools.partial(word_features, tokenizer=self.tokenizer, max_length=max_length)
        counts = {name: _write(splits, name, labels, folder, make) for name in SPLITS if getattr(splits, name)}
        return {
            "fingerprint": splits.fingerprint,
            "label_warnings": list(labels.warnings),
            "problem_type": self._scored_as(labels.names),
            "label_names": list(labels.names),
            "max_length": max_length,
            "pairs": False,
            "splits": counts,
        }

    def label_faults(self, splits: SplitSet) -> dict[str, Faults]:
        """Return split -> rows with a tag that cannot be used. Raises DataError."""
        return faults_of(self._labels(splits), splits)

    def _labels(self, splits: SplitSet) -> LabelSet:
        if "label" not in splits.train.column_names:
            raise DataError(
                "the training rows have no tags that can be told from the names of their columns: "
                f"{_columns(splits)}; name the column in data.columns: {{label: ...}}"
            )
        return make_labels(
            list(splits.train["label"][:]),
            problem_type=TAGS,
            declared=self.recipe.data.labels or (list(splits.label_names) or None),
            base_folder=self.base_folder,
            origin=splits.origin("train"),
        )

    def _scored_as(self, names: Sequence[str]) -> str:
        wanted = self.options.evaluate_as
        if wanted == "entities" and not are_entity_tags(names):
            odd = next((name for name in names if not are_entity_tags(["B-X", name])), names[0])
            raise DataError(
                f"task.evaluate_as is entities, but the tag {odd!r} is neither O nor a prefix and a type such as B-PER; write tags"
            )
        return ENTITIES if wanted == "entities" or (wanted == "auto" and are_entity_tags(names)) else TAGS

    def show_row(self, row: Mapping[str, Any], prepared: Prepared) -> ShownRow:
        """Return a prepared row as the model sees it: the first token of each word is learned, with its tag behind it."""
        ids, starts = row["input_ids"], row["word_starts"]
        tags = [prepared.label_names[tag] for tag in row["tags"]] if "tags" in row else [""] * len(starts)
        parts: list[tuple[str, Any]] = list(self.text_parts(ids[: starts[0]]))
        for start, end, tag in zip(starts, [*starts[1:], len(ids)], tags, strict=True):
            parts.append((f" {self.tokenizer.decode([ids[start]]).strip()}", "learned" if tag else "read"))
            parts += self.text_parts(ids[start + 1 : end])
            parts += [(tag, "label")] if tag and tag != "O" else []
        return ShownRow(row["row_id"], len(ids), tuple(parts), "")

    def _augmenter(self) -> TextAugmenter | None:
        wanted = self.options.augmentation
        if wanted is None:
            return None
        seed = self.recipe.training.seed
        return TextAugmenter(self.tokenizer, seed=seed, token_dropout=wanted.token_dropout, words_whole=True)

    def augmented_row(self, row: Mapping[str, Any]) -> Mapping[str, Any] | None:
        """Return a row of train as the first epoch would have it; None without augmentation."""
        augment = self._augmenter()
        if augment is None:
            return None
        found = as_in_first_epoch(row, augment)
        starts = np.flatnonzero(np.asarray(found["labels"]) != IGNORED)
        return {**found, "word_starts": starts.tolist(), "tags": [found["labels"][start] for start in starts]}

    def prepare_rows(self, columns: Mapping[str, list[Any]], facts: Mapping[str, Any]) -> tuple[Any, Prepared]:
        """Return rows of features for new sentences, and what they are to be read with.

        Raises:
            DataError: there are pairs of texts, or a text without a word.
        """
        from datasets import Dataset

        if "text_pair" in columns:
            raise DataError("words of single texts are tagged; give no second ones")
        sentences = columns.get("tokens") or [_WORD.findall(text) for text in columns["text"]]
        empty = next((number for number, words in enumerate(sentences) if not words), None)
        if empty is not None:
            raise DataError(f"text {empty + 1} has no word; remove it")
        self.problem_type = facts["problem_type"]
        features, _ = word_features(
            {"tokens": sentences, "row_id": list(range(len(sentences)))},
            tokenizer=self.tokenizer,
            max_length=facts["max_length"],
            origin=lambda number: f"text {number + 1}",
        )
        rows = Dataset.from_dict(features)
        return rows, Prepared(rows, rows, rows, "", tuple(facts["label_names"]), facts["problem_type"])

    def read_rows(self, source: str) -> dict[str, list[Any]]:
        """Return the words of a file's sentences. Raises DataError."""
        data = self.recipe.data
        kept = {ours: theirs for ours, theirs in data.columns.items() if ours != "label"}
        reading = data.model_copy(update={"columns": kept})
        return load_rows(source, data=reading, base_folder=Path(), needs=_NEEDS, optional=("id",)).lists()

    # --- model -----------------------------------------------------------------------------------------------------

    def build_model(
        self, prepared: Prepared | None, *, skeleton: bool = False, quantization: Any = None
    ) -> LoadedModel:
        """Return the model with a head for these tags; without data, for those of the recipe, or two. Raises ModelError."""
        from transformers import AutoModelForTokenClassification

        declared = self.recipe.data.labels
        known = declared if isinstance(declared, list) else ["0", "1"]
        names = known if prepared is None else list(prepared.label_names)
        fields = {"id2label": dict(enumerate(names)), "label2id": {name: number for number, name in enumerate(names)}}
        config = load_config(self.recipe.model, skeleton=skeleton, **fields)
        loaded = load_model(
            AutoModelForTokenClassification, self.recipe.model, config, skeleton=skeleton, quantization=quantization
        )
        # The loss is ours; Trainer must not scale it by its own count.
        loaded.model.accepts_loss_kwargs = False
        return loaded

    def load_trained(self, folder: Path, facts: Mapping[str, Any]) -> Any:
        """Return a saved model in evaluation mode."""
        from transformers import AutoModelForTokenClassification

        self.problem_type = facts["problem_type"]
        config = load_config(self.recipe.model.model_copy(update={"config": None}))
        return load_model(AutoModelForTokenClassification, self.recipe.model, config).model.eval()

    # --- loss ------------------------------------------------------------------------------------------------------

    def collator(self, *, training: bool = False) -> Any:
        """Return a callable: list of rows -> padded batch of tensors, with ``sample_weight`` float32 [rows]."""
        return Collator(self.tokenizer, augment=self._augmenter() if training else None)

    def items(self, batch: Mapping[str, Any]) -> Any:
        """Return the batch's total weight, a scalar tensor: tagged words, or with class weights the sum of their weights."""
        labels = batch["labels"]
        weights = (labels != IGNORED).float()
        if self.class_weights is not None:
            weights = weights * self.class_weights.to(labels.device)[labels.clamp(min=0)]
        return (weights * batch["sample_weight"][:, None]).sum()

    def loss(self, outputs: Any, batch: Mapping[str, Any], *, label_smoothing: float = 0.0) -> Any:
        """Return the summed loss (cross entropy) of the words' tags, a float32 scalar tensor; the first token of a word stands for it.

        With class weights w the mean is sum(w * loss) / sum(w), as in torch; with task.focal_gamma the loss is the focal one.
        """
        losses = token_losses(
            outputs["logits"], batch["labels"], label_smoothing=label_smoothing, class_weights=self.class_weights,
            focal_gamma=self.options.focal_gamma,
        )  # fmt: skip
        return (losses * batch["sample_weight"][:, None]).sum()

    def row_outputs(self, outputs: Any, batch: Mapping[str, Any]) -> Any:
        """Return the likeliest tag of each token and its probability, float32 [rows, tokens, 2]."""
        import torch

        probability, tag = outputs["logits"].float().softmax(dim=-1).max(dim=-1)
        return torch.stack([tag.to(probability.dtype), probability], dim=-1)

    # --- evaluation ------------------------------------------------------------------------------------------------

    @property
    def default_metric(self) -> str:
        """The validation metric that chooses the best checkpoint unless the recipe names one."""
        return "f1" if self.problem_type == ENTITIES else "accuracy"

    def predictions(self, logits: np.ndarray, split: Any, prepared: Prepared) -> Predictions:
        """Put the rows of each sentence together: ``logits`` are ``row_outputs`` [rows, tokens, 2]."""
        is_first = np.asarray(split["first_word"]) == 0
        words: list[list[str]] = []
        for begins, of_row in zip(is_first, split["words"], strict=True):
            if begins:
                words.append([])
            words[-1] += of_row
        found = np.concatenate([row[starts] for row, starts in zip(logits, split["word_starts"], strict=True)])
        labels = None
        if "tags" in split.column_names:
            labels = np.concatenate([np.asarray(tags, dtype=np.int64) for tags in split["tags"]])
        row_ids = np.asarray(split["row_id"][:])[is_first]
        return Predictions(
            problem_type=prepared.problem_type,
            scores=found[:, 1].astype(np.float64),
            labels=labels,
            label_names=prepared.label_names,
            texts=tuple(" ".join(of_sentence) for of_sentence in words),
            row_ids=tuple(row_ids.tolist()),
            words=tuple(tuple(of_sentence) for of_sentence in words),
            predicted=found[:, 0].astype(np.int64),
        )

    def baselines(
        self, names: Sequence[str], prepared: Prepared, predictions: Predictions, *, split: str
    ) -> list[Baseline]:
        """Return the named baselines: the most frequent tag of each word in train."""
        from launcher.evaluation.baselines_tokens import word_tag_baseline

        train = prepared.train
        words = [word for of_row in train["words"] for word in of_row]
        tags = np.concatenate([np.asarray(of_row, dtype=np.int64) for of_row in train["tags"]])
        return [word_tag_baseline(words, tags, predictions) for _ in names]


class Collator:
    """Changes rows in training, and pads them to the longest of their batch; a row's ``sample_weight`` is 0 for padding rows."""

    def __init__(self, tokenizer: Any, *, augment: TextAugmenter | None = None) -> None:
        self.tokenizer = tokenizer
        self.augment = augment

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Return input tensors, ``labels`` int64 [rows, tokens] where there are any, and ``sample_weight``."""
        import torch

        rows = rows if self.augment is None else [self.augment(row) for row in rows]
        batch = pad_inputs(self.tokenizer, rows)
        if "labels" in rows[0]:
            labels = torch.full(batch["input_ids"].shape, IGNORED, dtype=torch.long)
            for number, row in enumerate(rows):
                labels[number, : len(row["labels"])] = torch.as_tensor(row["labels"], dtype=torch.long)
            batch["labels"] = labels
        return batch


def word_features(
    rows: Mapping[str, list[Any]], *, tokenizer: Any, max_length: int, origin: Callable[[int], str]
) -> tuple[dict[str, Any], dict[str, int]]:
    """Return columns of features for sentences of words (``tokens``), with labels where they have ``tags``; and counts."""
    made = make_word_rows(tokenizer, rows["tokens"], max_length=max_length, origin=origin)
    columns: dict[str, Any] = {
        **made.features,
        "length": made.lengths,
        "row_id": [rows["row_id"][sentence] for sentence in made.sentences],
        "text": [" ".join(words) for words in made.words],
        "words": made.words,
        "word_starts": made.starts,
        "first_word": made.first_words,
        **(_label_columns(made, rows["tags"]) if "tags" in rows else {}),
    }
    counts = {"rows": len(made.sentences), "sentences": len(rows["tokens"])}
    return columns, {**counts, "tokens": sum(made.lengths), "divided": made.divided, "cut": 0}


def _label_columns(made: WordRows, tags: Sequence[Sequence[int]]) -> dict[str, Any]:
    """Return the tags of each row's words, and a label for each token; ``tags``: [sentences][words]."""
    of_rows = [
        list(tags[sentence][first : first + len(words)])
        for sentence, first, words in zip(made.sentences, made.first_words, made.words, strict=True)
    ]
    labels = [
        _by_token(numbers, starts=starts, length=length)
        for numbers, starts, length in zip(of_rows, made.starts, made.lengths, strict=True)
    ]
    return {"tags": of_rows, "labels": labels}


def _write(splits: SplitSet, name: str, labels: LabelSet, folder: Path, make: Any) -> dict[str, Any]:
    """Write a split's features and tags; return counts."""
    split = getattr(splits, name)
    if "label" not in split.column_names:
        return {**write_features(splits, name, folder, make), "labelled": False}
    tags = labels.encode_lists(list(split["label"][:]), split=name, origin=splits.origin(name))
    flat = np.concatenate([np.asarray(numbers, dtype=np.int64) for numbers in tags])
    counts = write_features(splits, name, folder, make, more={"tags": tags})
    return {**counts, "labelled": True, "labels": np.bincount(flat, minlength=len(labels.names)).tolist()}


def _by_token(tags: Sequence[int], *, starts: Sequence[int], length: int) -> list[int]:
    """Return a label for each token: a word's tag at its first token, IGNORED elsewhere."""
    labels = [IGNORED] * length
    for start, tag in zip(starts, tags, strict=True):
        labels[start] = tag
    return labels


def _columns(splits: SplitSet) -> str:
    return ", ".join(map(repr, splits.train.column_names))
