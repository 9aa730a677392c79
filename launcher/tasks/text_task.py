"""What all tasks on texts share: the tokenizer, and data that are prepared once under a key of everything that they depend on."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from launcher.contracts import Predictions, Prepared, ShownRow
from launcher.data.bad_rows import (
    SKIPPED_FILE,
    SkippedRow,
    as_lines,
    list_beside,
    listed_beside,
    skip_facts,
    skip_notes,
)
from launcher.data.known import Known, sources_on_disk
from launcher.data.labels import LabelSet
from launcher.data.pieces import MakeRows, Source, write_split
from launcher.data.prepare import cache_folder, code_fingerprint, fingerprint_of, load_prepared, prepared_folder
from launcher.data.sources import SplitSet
from launcher.data.tables import Faults
from launcher.errors import DataError
from launcher.recipe.schema import Recipe
from launcher.tasks.models import (
    load_config,
    load_tokenizer,
    model_folders,
    revision_of,
    token_limit,
    tokenizer_fingerprint,
)

SPLITS = ("train", "validation", "test")
IGNORED = -100
"""Label of a place that is not predicted, as torch's cross entropy has it."""

_DEFAULT_MAX_LENGTH = 512
_FACTS = ("problem_type", "label_names", "max_length", "pairs")


class TextTask:
    """A task whose rows are texts; a subclass says how they are read, what a row is, and what is learned from it."""

    inputs_vary = False
    """Whether a row's input differs between epochs."""

    def __init__(self, recipe: Recipe, *, base_folder: Path = Path()) -> None:
        self.recipe = recipe
        self.base_folder = base_folder

    @cached_property
    def tokenizer(self) -> Any:
        """The model's tokenizer, loaded when it is first asked for."""
        return load_tokenizer(self.recipe.model)

    # --- for a subclass to give ------------------------------------------------------------------------------------

    def load_splits(self) -> SplitSet:
        """Return the rows of every split. Raises DataError."""
        raise NotImplementedError

    def prepare_splits(self, splits: SplitSet, folder: Path, *, max_length: int) -> dict[str, Any]:
        """Write SPLIT.arrow for each split into ``folder``; return fingerprint, problem_type, label_names, max_length, pairs, splits."""
        raise NotImplementedError

    def label_faults(self, splits: SplitSet) -> dict[str, Faults]:
        """Return split -> rows whose labels cannot be used; asked only where such rows are to be skipped. Raises DataError."""
        return {}

    def key_parts(self, splits: SplitSet) -> dict[str, Any]:
        """Return what prepared rows depend on beside rows, tokenizer, length and code."""
        return {"task": self.recipe.task.model_dump()}

    def notes(self, facts: Mapping[str, Any]) -> list[str]:
        """Return what a reader should know of how texts became rows."""
        return []

    # --- data ------------------------------------------------------------------------------------------------------

    def prepare_data(self) -> tuple[Path, Prepared]:
        """Read, check, split and tokenize the rows, or find them in the cache; return their folder too.

        Raises:
            DataError: a fault in the data, or ``data.max_length`` beyond what the model takes.
        """
        root = cache_folder(self.recipe.data.cache_dir)
        known = Known(root, self._read_from(), self._known_parts())
        found = known.find()
        # They are told again, so that a list which is not whole has to be made anew.
        skipped = None if found is None else listed_beside(found[0], number=found[1]["skipped"])
        if found is not None and skipped is not None:
            return self._with_told(*found, skipped=skipped, was_cached=True)
        splits = self.load_splits()
        if self.recipe.data.on_bad_row == "skip":
            splits = splits.without(self.label_faults(splits), on_bad_row="skip")
        max_length = self.max_length()
        key = fingerprint_of(
            {
                "code": code_fingerprint(),
                "data": splits.fingerprint,
                "tokenizer": tokenizer_fingerprint(self.tokenizer),
                "max_length": max_length,
                # The list of them lies beside the rows.
                **({"skipped": as_lines(splits.skipped)} if splits.skipped else {}),
                **self.key_parts(splits),
            }
        )
        folder, was_cached = prepared_folder(
            root, key, lambda target: self.prepare_splits(splits, target, max_length=max_length)
        )
        list_beside(folder, splits.skipped)
        # Equal rows may have come from elsewhere when they were prepared; what is told is about these files.
        told = {
            "provenance": splits.provenance,
            "warnings": list(splits.warnings),
            "skipped": len(splits.skipped),
        }
        known.keep(folder, told)
        return self._with_told(folder, told, skipped=splits.skipped, was_cached=was_cached)

    def _read_from(self) -> list[Path] | None:
        """Return the files and folders that rows and tokens come from; None where they are not all on this machine's disks."""
        model = model_folders(self.recipe.model)
        sources = sources_on_disk(self.recipe.data, base_folder=self.base_folder)
        return None if model is None or sources is None else [*sources, *model]

    def _known_parts(self) -> dict[str, Any]:
        recipe = self.recipe
        parts = {"task": recipe.task, "data": recipe.data, "model": recipe.model}
        # Paths are told as the recipe has them, and count from here.
        return {"base": str(self.base_folder.resolve()), **{name: part.model_dump() for name, part in parts.items()}}

    def _with_told(
        self, folder: Path, told: Mapping[str, Any], *, skipped: Sequence[SkippedRow], was_cached: bool
    ) -> tuple[Path, Prepared]:
        prepared, file = self.load_data(folder), str(folder / SKIPPED_FILE)
        warnings = [*told["warnings"], *skip_notes(skipped, file=file), *self.notes(prepared.facts)]
        here = {"was_cached": was_cached, "provenance": told["provenance"], "warnings": warnings}
        if skipped:
            here["skipped"] = skip_facts(skipped, file=file)
        return folder, replace(prepared, facts={**prepared.facts, **here})

    def load_data(self, folder: Path) -> Prepared:
        """Return the prepared data in ``folder``: what every rank does after rank 0 has prepared them."""
        splits, facts = load_prepared(folder)
        return Prepared(
            train=splits["train"],
            validation=splits.get("validation"),
            test=splits.get("test"),
            fingerprint=facts["fingerprint"],
            label_names=tuple(facts["label_names"]),
            problem_type=facts["problem_type"],
            facts=facts,
        )

    def max_length(self) -> int:
        """Return the greatest number of tokens of a row. Raises DataError where the recipe wants more than the model takes."""
        limit = self.token_limit()
        wanted = self.recipe.data.max_length
        if wanted is None:
            return min(limit or _DEFAULT_MAX_LENGTH, _DEFAULT_MAX_LENGTH)
        if limit is not None and wanted > limit:
            raise DataError(f"data.max_length is {wanted}, but this model takes at most {limit} tokens; lower it")
        return wanted

    def token_limit(self) -> int | None:
        """Return how many tokens the model takes; None: that is not known."""
        return token_limit(self.tokenizer, load_config(self.recipe.model, skeleton=True))

    def declared_labels(self) -> list[str] | str | None:
        """Return the recipe's label names; those of a file by what it says, not by its name."""
        labels = self.recipe.data.labels
        path = self.base_folder / labels if isinstance(labels, str) else None
        return path.read_bytes().hex() if path is not None and path.is_file() else labels

    def show_row(self, row: Mapping[str, Any], prepared: Prepared) -> ShownRow:
        """Return a prepared row as the model sees it: its tokens as text, special ones apart."""
        return ShownRow(row["row_id"], len(row["input_ids"]), tuple(self.text_parts(row["input_ids"])), "")

    def text_parts(self, ids: Sequence[int], *, learned: bool = False) -> Iterator[tuple[str, Any]]:
        """Yield stretches of tokens as text, special ones apart; ``learned``: the others are part of the loss."""
        special = set(self.tokenizer.all_special_ids)
        for is_special, stretch in itertools.groupby(ids, key=special.__contains__):
            text = self.tokenizer.decode(list(stretch), clean_up_tokenization_spaces=False)
            yield text, "special" if is_special else "learned" if learned else "read"

    # --- the model and its predictions -----------------------------------------------------------------------------

    def model_facts(self, prepared: Prepared) -> dict[str, Any]:
        """Return what has to be known to use the saved model without its run."""
        return {"task": self.recipe.task.type, **{name: prepared.facts[name] for name in _FACTS}}

    def model_revision(self, model: Any) -> str:
        """Return what identifies the pretrained weights."""
        return revision_of(model, self.recipe.model)

    def metrics(self, predictions: Predictions) -> dict[str, float]:
        """Return the metrics of predictions on labelled rows."""
        from launcher.evaluation.kinds import metrics_for

        return metrics_for(predictions)


def write_features(
    splits: SplitSet, name: str, folder: Path, make: MakeRows, *, more: Mapping[str, Any] | None = None
) -> dict[str, int]:
    """Write the features of a split's rows, made by ``make`` from its columns and ``more``; return the sums of their counts."""
    split = getattr(splits, name)
    columns = {column: split[column] for column in split.column_names if column != "label"}
    source = Source({**columns, **(more or {})}, len(split), splits.origin(name))
    return write_split(folder / f"{name}.arrow", source, make)


def faults_of(labels: LabelSet, splits: SplitSet) -> dict[str, Faults]:
    """Return split -> rows whose labels are missing or none of ``labels``."""
    rows = {name: getattr(splits, name) for name in SPLITS if getattr(splits, name) is not None}
    return {
        name: labels.faults(list(of["label"][:]), split=name) for name, of in rows.items() if "label" in of.column_names
    }


def joined(texts: Sequence[str], pairs: Sequence[str] | None) -> list[str]:
    """Return texts, or pairs of them as one, for people to read."""
    return list(texts) if pairs is None else [f"{a} ⏎ {b}" for a, b in zip(texts, pairs, strict=True)]


def token_losses(logits: Any, targets: Any, *, label_smoothing: float = 0.0, class_weights: Any = None) -> Any:
    """Return the cross entropy of each place, float32 [rows, tokens], 0 where it is IGNORED.

    ``logits`` [rows, tokens, classes] of any floating type; ``targets`` int64 [rows, tokens]; ``class_weights`` float32 [classes].
    """
    import torch.nn.functional as F

    flat = F.cross_entropy(
        logits.float().flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="none",
        label_smoothing=label_smoothing, weight=None if class_weights is None else class_weights.to(logits.device),
    )  # fmt: skip
    return flat.view(targets.shape)
