"""What all tasks share: data that are prepared once, under a key of everything that they depend on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from launcher.contracts import Predictions, Prepared
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
from launcher.data.mixtures import with_mixture
from launcher.data.pieces import MakeRows, Source, write_split
from launcher.data.prepare import cache_folder, code_fingerprint, fingerprint_of, load_prepared, prepared_folder
from launcher.data.sources import SplitSet
from launcher.data.stream_sources import files_from_json, files_to_json
from launcher.data.streams import Features, Stream
from launcher.data.tables import Faults
from launcher.errors import DataError
from launcher.recipe.schema import Recipe
from launcher.tasks.models import revision_of

SPLITS = ("train", "validation", "test")


class PreparedTask:
    """A task; a subclass says how its rows are read, what of them is kept, and what is learned from it."""

    def __init__(self, recipe: Recipe, *, base_folder: Path = Path()) -> None:
        self.recipe = recipe
        self.base_folder = base_folder

    @property
    def inputs_vary(self) -> bool:
        """Whether a row's input differs between epochs: where there is augmentation."""
        return getattr(self.recipe.task, "augmentation", None) is not None

    @property
    def read_in_training(self) -> tuple[str, ...]:
        """Names of columns that the collator of training wants beside the features."""
        return ()

    @property
    def reference_columns(self) -> tuple[str, ...]:
        """Names of the first columns of ``row_outputs`` that the loss wants of the model before training; (): it wants none."""
        return ()

    def augmented_row(self, row: Mapping[str, Any]) -> Mapping[str, Any] | None:
        """Return a row of train (with ``place``) as an epoch would have it, to be shown; None: as it is, or there is nothing to be seen."""
        return None

    @property
    def generates(self) -> bool:
        """Whether predictions are texts that the model writes: ``generate`` then stands for ``row_outputs``."""
        return False

    def writes(self, prepared: Prepared) -> bool:
        """Whether predictions of ``prepared`` are texts that the model writes."""
        return self.generates

    def sample_answers(self, model: Any, prepared: Prepared) -> list[dict[str, Any]]:
        """Return what ``model`` writes for the same few validation rows each time: prompt, reference, answer, ended; all ranks call it.

        None where a task has nothing to show.
        """
        return []

    @property
    def validates_by_loss(self) -> bool:
        """Whether validation during training computes the loss alone."""
        return False

    def generate(self, model: Any, batch: Mapping[str, Any]) -> Any:
        """Return the tokens that ``model`` writes for a batch, int64 [rows, tokens]; all ranks call it at the same time."""
        raise NotImplementedError

    # --- for a subclass to give ------------------------------------------------------------------------------------

    def load_splits(self) -> SplitSet:
        """Return the rows of every split. Raises DataError."""
        raise NotImplementedError

    def write_splits(self, splits: SplitSet, folder: Path) -> dict[str, Any]:
        """Write SPLIT.arrow for each split into ``folder``; return fingerprint, problem_type, label_names, max_length, splits."""
        raise NotImplementedError

    def label_faults(self, splits: SplitSet) -> dict[str, Faults]:
        """Return split -> rows whose labels cannot be used; asked only where such rows are to be skipped. Raises DataError."""
        return {}

    def input_parts(self) -> dict[str, Any]:
        """Return what prepared rows depend on of what turns them into inputs, such as a tokenizer."""
        return {}

    def key_parts(self, splits: SplitSet) -> dict[str, Any]:
        """Return what prepared rows depend on beside rows, inputs and code."""
        return {"task": self.recipe.task.model_dump()}

    def model_files(self) -> list[Path] | None:
        """Return the files of the model that prepared rows depend on; None where they are not all on this machine's disks."""
        raise NotImplementedError

    def notes(self, facts: Mapping[str, Any]) -> list[str]:
        """Return what a reader should know of how sources became rows."""
        return []

    def stream_features(self, facts: Mapping[str, Any]) -> Features:
        """Return how rows that are read while training become features; ``facts``: of the prepared data."""
        raise NotImplementedError

    def example_row(self) -> Mapping[str, Any] | None:
        """Return a row like the prepared ones, for plans without data; None: tokens do."""
        return None

    # --- data ------------------------------------------------------------------------------------------------------

    def prepare_data(self) -> tuple[Path, Prepared]:
        """Read, check, split and prepare the rows, or find them in the cache; return their folder too.

        Raises:
            DataError: a fault in the data, or ``data.max_length`` beyond what the model takes.
        """
        root = cache_folder(self.recipe.data.cache_dir)
        known = Known(root, self.read_from(), self._known_parts())
        found = known.find()
        # They are told again, so that a list which is not whole has to be made anew.
        skipped = None if found is None else listed_beside(found[0], number=found[1]["skipped"])
        if found is not None and skipped is not None:
            return self._with_told(*found, skipped=skipped, was_cached=True)
        splits = self.load_splits()
        if self.recipe.data.on_bad_row == "skip":
            splits = splits.without(self.label_faults(splits), on_bad_row="skip")
        parts = {"code": code_fingerprint(), "data": splits.fingerprint, **self.input_parts(), **self.key_parts(splits)}
        if len(splits.first_rows) > 1:
            # Equal rows may be divided into other sources.
            parts["sources"] = splits.first_rows
        if splits.files:
            # Which column is which is kept beside the sample, and where the files lie.
            parts["files"] = files_to_json(splits.files)
        if splits.skipped:
            # The list of them lies beside the rows.
            parts["skipped"] = as_lines(splits.skipped)
        folder, was_cached = prepared_folder(
            root,
            fingerprint_of(parts),
            lambda target: {
                **self.write_splits(splits, target),
                "sources": list(splits.first_rows),
                **({"files": files_to_json(splits.files)} if splits.files else {}),
            },
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

    def read_from(self) -> list[Path] | None:
        """Return the files and folders that prepared rows come from; None where they are not all on this machine's disks."""
        model = self.model_files()
        sources = sources_on_disk(self.recipe.data, base_folder=self.base_folder)
        return None if model is None or sources is None else [*sources, *model]

    def _known_parts(self) -> dict[str, Any]:
        recipe = self.recipe
        parts = {
            "task": recipe.task.model_dump(),
            "data": recipe.data.rows_alone(),
            "model": recipe.model.model_dump(),
        }
        # Paths are told as the recipe has them, and count from here.
        return {"base": str(self.base_folder.resolve()), **parts}

    def _with_told(
        self, folder: Path, told: Mapping[str, Any], *, skipped: Sequence[SkippedRow], was_cached: bool
    ) -> tuple[Path, Prepared]:
        prepared, file = self.load_data(folder), str(folder / SKIPPED_FILE)
        warnings = [*told["warnings"], *skip_notes(skipped, file=file), *self.notes(prepared.facts)]
        if prepared.stream is not None:
            warnings.insert(0, _told_of_stream(prepared))
        here = {"was_cached": was_cached, "provenance": told["provenance"], "warnings": warnings}
        if skipped:
            here["skipped"] = skip_facts(skipped, file=file)
        return folder, replace(prepared, facts={**prepared.facts, **here})

    def load_data(self, folder: Path) -> Prepared:
        """Return the prepared data in ``folder``: what every rank does after rank 0 has prepared them."""
        splits, facts = load_prepared(folder)
        prepared = Prepared(
            train=splits["train"],
            validation=splits.get("validation"),
            test=splits.get("test"),
            fingerprint=facts["fingerprint"],
            label_names=tuple(facts["label_names"]),
            problem_type=facts["problem_type"],
            facts=facts,
        )
        if self.recipe.data.streaming:
            return self._with_stream(prepared)
        return with_mixture(prepared, self.recipe.data)

    def _with_stream(self, prepared: Prepared) -> Prepared:
        """Return prepared data whose train is a sample, with the stream that it is of."""
        facts = dict(prepared.facts)
        files = files_from_json(facts.pop("files"))
        training = self.recipe.training
        stream = Stream(
            files,
            self.recipe.data,
            self.stream_features(facts),
            seed=training.passthrough.get("data_seed", training.seed),
        )
        facts["stream"] = {"files": len(files), "bytes": sum(file.bytes for file in files)}
        return replace(prepared, facts=facts, stream=stream)

    def declared_labels(self) -> list[str] | str | None:
        """Return the recipe's label names; those of a file by what it says, not by its name."""
        labels = self.recipe.data.labels
        path = self.base_folder / labels if isinstance(labels, str) else None
        return path.read_bytes().hex() if path is not None and path.is_file() else labels

    def model_revision(self, model: Any) -> str:
        """Return what identifies the pretrained weights."""
        return revision_of(model, self.recipe.model)

    def metrics(self, predictions: Predictions) -> dict[str, float]:
        """Return the metrics of predictions on labelled rows."""
        from launcher.evaluation.kinds import metrics_for

        return metrics_for(predictions)


def _told_of_stream(prepared: Prepared) -> str:
    stream = prepared.facts["stream"]
    return (
        f"train is streamed from {stream['files']:,} file(s) of {stream['bytes']:,} bytes in all (data.streaming); what is told of its rows is of a "
        f"sample, the first rows of each file: {len(prepared.train):,} rows"
    )


def write_features(
    splits: SplitSet, name: str, folder: Path, make: MakeRows, *, more: Mapping[str, Any] | None = None
) -> dict[str, int]:
    """Write the features of a split's rows, made by ``make`` from its columns and ``more``; return the sums of their counts."""
    split = getattr(splits, name)
    columns = {column: split[column] for column in split.column_names if column != "label"}
    source = Source({**columns, **(more or {})}, len(split), splits.origin(name))
    return write_split(folder / f"{name}.arrow", source, make)


def write_unlabelled(
    splits: SplitSet, folder: Path, make: MakeRows, *, problem_type: str, max_length: int, nothing: Callable[[str], str]
) -> dict[str, Any]:
    """Write the features of all splits of a task whose rows carry what is learned; return the facts of ``write_splits``.

    ``nothing``: name of a split -> what to say where none of its rows has anything to learn. Raises DataError then.
    """
    counts: dict[str, dict[str, Any]] = {}
    for name in SPLITS:
        if getattr(splits, name) is None:
            continue
        counts[name] = {**write_features(splits, name, folder, make), "labelled": True}
        if not counts[name]["rows"]:
            raise DataError(nothing(name))
    return {
        "fingerprint": splits.fingerprint,
        "problem_type": problem_type,
        "label_names": [],
        "max_length": max_length,
        "pairs": False,
        "splits": counts,
    }


def write_labelled(splits: SplitSet, name: str, labels: LabelSet, folder: Path, make: MakeRows) -> dict[str, Any]:
    """Write a split's features (``write_features``) and its labels' numbers, where it has labels; return counts, also by label."""
    split = getattr(splits, name)
    if "label" not in split.column_names:
        return {**write_features(splits, name, folder, make), "labelled": False}
    encoded = labels.encode(list(split["label"][:]), split=name, origin=splits.origin(name))
    counts: dict[str, Any] = {**write_features(splits, name, folder, make, more={"labels": encoded}), "labelled": True}
    if encoded.ndim == 1 and labels.names:
        counts["labels"] = np.bincount(encoded.astype(int), minlength=len(labels.names)).tolist()
    elif labels.names:
        counts["labels"] = encoded.sum(axis=0).astype(int).tolist()
    return counts


def faults_of(labels: LabelSet, splits: SplitSet) -> dict[str, Faults]:
    """Return split -> rows whose labels are missing or none of ``labels``."""
    rows = {name: getattr(splits, name) for name in SPLITS if getattr(splits, name) is not None}
    return {
        name: labels.faults(list(of["label"][:]), split=name) for name, of in rows.items() if "label" in of.column_names
    }
