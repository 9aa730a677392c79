"""The rows of a recipe: every source found and read, validation set aside where none is given, all of it fingerprinted."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launcher.data.bad_rows import OnBadRow, SkippedRow, refuse_many
from launcher.data.conversations import Wanted
from launcher.data.labels import infer_problem_type
from launcher.data.sources_between import (
    check_alike,
    fingerprint,
    labelled,
    recurring,
    straddling,
    without_hidden_labels,
)
from launcher.data.sources_columns import check_keys
from launcher.data.sources_find import SPLITS, OpenSource, open_source, pick_split
from launcher.data.sources_rows import Part, RowSet, read_split
from launcher.data.splits import linked, split_share
from launcher.data.stream_files import StreamFile
from launcher.data.stream_sources import find_stream, looked_at, sample_parts, stream_fingerprint
from launcher.data.tables import Faults
from launcher.errors import DataError
from launcher.recipe.data_section import DataSection, SourceSpec

if TYPE_CHECKING:
    from datasets import Dataset

NEEDS = ("text",)
# Whatever the task, rows may be of groups, which is said by data.columns alone.
GROUP = "group"
OPTIONAL = ("text_pair", "label", "id", GROUP)


@dataclass(frozen=True)
class SplitSet:
    """The rows of a recipe, each split a Dataset of text[, text_pair][, tokens][, label][, id], row_id.

    ``label`` is text, a whole number, a number or a list of text, as the source has it; with ``tokens`` a tag for each of them. The
    columns question, context and answers of question answering are text, text_pair and label. ``row_id`` is the row's number in
    its split's sources, from 0, before filters and before validation was set aside.
    """

    train: Dataset
    validation: Dataset
    test: Dataset | None
    fingerprint: str
    """sha256 (hex) over every row of every split in order: the same on every machine, wherever the files lie."""
    provenance: dict[str, Any]
    """split -> list of what each of its sources was: place, format, encoding, delimiter, hub revision, columns, rows."""
    warnings: tuple[str, ...]
    label_names: tuple[str, ...] = ()
    """Names of the classes in the source's own order, where it declares them (ClassLabel)."""
    places: dict[str, RowSet] = field(default_factory=dict, repr=False)
    """Where the rows of each split stand, without their texts."""
    skipped: tuple[SkippedRow, ...] = ()
    """Rows that were left out because they cannot be used (``data.on_bad_row: skip``)."""
    files: tuple[StreamFile, ...] = ()
    """With ``data.streaming`` the files of train, whose first rows ``train`` has."""

    @property
    def first_rows(self) -> tuple[int, ...]:
        """The first ``row_id`` of each source of train, in the recipe's order."""
        return self.places["train"].firsts if "train" in self.places else ()

    def origin(self, split: str) -> Callable[[int], str]:
        """Return a function: position of a row in ``split`` (from 0) -> its file and row, for an error message."""
        return self.places[split].place

    def without(self, faults: Mapping[str, Faults], *, on_bad_row: OnBadRow) -> SplitSet:
        """Return the rows that have no fault; ``faults``: split -> position of a row -> what is wrong with it.

        Raises DataError for the first one unless they are skipped, and where too many are.
        """
        if not any(faults.values()):
            return self
        kept: dict[str, Any] = {}
        places, skipped = dict(self.places), list(self.skipped)
        for split, bad in faults.items():
            places[split] = self.places[split].without(bad, split=split, on_bad_row=on_bad_row)
            skipped += places[split].skipped[len(self.places[split].skipped) :]
            kept[split] = getattr(self, split).select([row for row in range(self.places[split].rows) if row not in bad])
            refuse_many(skipped, split=split, kept=len(kept[split]))
        left_out = {split: sorted(bad) for split, bad in faults.items()}
        digest = hashlib.sha256(json.dumps([self.fingerprint, left_out], sort_keys=True).encode()).hexdigest()
        return replace(self, **kept, places=places, skipped=tuple(skipped), fingerprint=digest)


def load_splits(
    data: DataSection,
    *,
    base_folder: Path,
    needs: tuple[str, ...] = NEEDS,
    optional: tuple[str, ...] = OPTIONAL,
    problem_type: str = "auto",
    label_delimiter: str = ",",
    plain_text: bool = False,
    may_be_empty: bool = False,
    conversations: Wanted | None = None,
) -> SplitSet:
    """Read the rows of ``data``; relative paths count from ``base_folder``.

    ``needs`` must be found in train and validation, and in test but for ``label``; ``optional`` is taken where found.
    Without validation rows a seeded share of train is set aside: stratified by label, or drawn from all rows alike for
    regression and multi-label; ``problem_type`` and ``label_delimiter`` say what a label is; ``plain_text``, that files named
    .txt hold texts alone; ``may_be_empty``, that texts without a word are of use; ``conversations``, that rows are these, in the columns text and
    conversation, or chosen and rejected: ``needs`` then has the columns that the recipe may name.

    Raises:
        DataError: a source, column or row is missing or broken; file, row, value and remedy are named. With
            ``data.on_bad_row: skip`` rows that cannot be used are left out, unless they are too many.
    """
    optional = tuple(dict.fromkeys((*optional, GROUP)))
    check_keys(data.columns, known=(*needs, *optional))
    streamed = find_stream(data, base_folder=base_folder, plain_text=plain_text) if data.streaming else []
    found = _find_parts(data, base_folder=base_folder, plain_text=plain_text, train=sample_parts(streamed))
    sets = {
        split: read_split(
            split,
            parts=parts,
            data=data,
            needs=needs,
            optional=optional,
            may_be_empty=may_be_empty,
            conversations=conversations,
        )
        for split, parts in found.items()
    }
    notes = [note for rows in sets.values() for note in rows.warnings]
    if "test" in sets:
        sets["test"], hidden = without_hidden_labels(sets["test"], train=sets["train"], on_bad_row=data.on_bad_row)
        notes += hidden
    check_alike(sets)
    sets = labelled(sets, on_bad_row=data.on_bad_row)
    if "validation" not in sets:
        train, validation, note = _set_aside(
            sets["train"], data=data, problem_type=problem_type, delimiter=label_delimiter
        )
        sets |= {"train": train, "validation": validation}
        notes.append(note)
    whole = _finish(sets, notes=[*notes, *recurring(sets), *straddling(sets)])
    if not streamed:
        return whole
    files = looked_at(streamed, whole.provenance["train"])
    return replace(whole, files=files, fingerprint=stream_fingerprint(whole.fingerprint, files))


def load_rows(
    source: str | SourceSpec,
    *,
    data: DataSection,
    base_folder: Path,
    needs: tuple[str, ...] = NEEDS,
    optional: tuple[str, ...] = OPTIONAL,
    split: str = "test",
    plain_text: bool = False,
    conversations: Wanted | None = None,
) -> RowSet:
    """Read one source on its own, with the columns of ``data``: to predict or evaluate on other rows.

    ``split`` is what to take from a source that has several. Labels are left out where no row has one.
    Raises DataError as ``load_splits`` does, whatever ``data.on_bad_row`` is.
    """
    check_keys(data.columns, known=tuple(dict.fromkeys((*needs, *optional, *NEEDS, *OPTIONAL))))
    parts = [_part(source, data=data, base_folder=base_folder, split=split, plain_text=plain_text)]
    # Each of these rows is to have its answer.
    whole = data.model_copy(update={"on_bad_row": "error"})
    read = read_split(
        "test", parts=parts, data=whole, needs=needs, optional=optional, may_be_empty=True, conversations=conversations
    )
    return without_hidden_labels(read)[0]


def column_names(source: str, *, data: DataSection, base_folder: Path) -> list[str]:
    """Return the names of a source's own columns, of its first table where it has several. Raises DataError where it cannot be read."""
    part = _part(source, data=data, base_folder=base_folder, split="test", plain_text=False)
    return next((list(table.names) for table in part.reader()), [])


# --- steps ---------------------------------------------------------------------------------------------------------


def _find_parts(
    data: DataSection, *, base_folder: Path, plain_text: bool, train: Sequence[Part]
) -> dict[str, list[Part]]:
    """Return split -> its sources, in order; rows named for a split replace those that ``source`` has for it.

    ``train``: a sample of what is streamed, in place of what the recipe names; none where nothing is.
    """
    if (data.source is None) == (data.train is None):
        fault = "neither" if data.source is None else "both; remove one"
        raise DataError(f"data needs `source` (one source with all splits) or `train`, and has {fault}")
    found: dict[str, list[Part]] = {"train": list(train)} if train else {}
    if data.source is not None:
        spec = _spec(data.source)
        opened = open_source(spec, base_folder=base_folder, cache_dir=_cache_dir(data), plain_text=plain_text)
        found = _named_parts(opened, spec=spec)
    for split in SPLITS:
        given = None if train and split == "train" else getattr(data, split)
        sources = given if isinstance(given, list) else [] if given is None else [given]
        if sources:
            found[split] = [
                _part(s, data=data, base_folder=base_folder, split=split, plain_text=plain_text) for s in sources
            ]
    if "train" not in found:
        raise DataError("data.train is an empty list; name at least one source")
    return {split: found[split] for split in SPLITS if split in found}


def _named_parts(opened: OpenSource, *, spec: SourceSpec) -> dict[str, list[Part]]:
    if spec.split is not None or opened.single:
        return {"train": [Part(spec, pick_split(opened, spec=spec, wanted="train"), opened.warnings)]}
    if "train" not in opened.splits:
        raise DataError(
            f"{opened.shown}: has no train split, only {', '.join(opened.splits)}; "
            "name the sources as data.train, data.validation and data.test, each with its `split`"
        )
    kept = [split for split in SPLITS if split in opened.splits]
    return {s: [Part(spec, opened.splits[s], opened.warnings if s == "train" else ())] for s in kept}


def _part(source: str | SourceSpec, *, data: DataSection, base_folder: Path, split: str, plain_text: bool) -> Part:
    spec = _spec(source)
    opened = open_source(spec, base_folder=base_folder, cache_dir=_cache_dir(data), plain_text=plain_text)
    return Part(spec, pick_split(opened, spec=spec, wanted=split), opened.warnings)


def _spec(source: str | SourceSpec) -> SourceSpec:
    return SourceSpec(source=source) if isinstance(source, str) else source


def _cache_dir(data: DataSection) -> Path | None:
    return Path(data.cache_dir).expanduser() if data.cache_dir else None


def _set_aside(train: RowSet, *, data: DataSection, problem_type: str, delimiter: str) -> tuple[RowSet, RowSet, str]:
    """Return what is left of train, the validation rows, and a note that says how they were drawn."""
    labels = train.columns.get("label")
    strata, how = None, "drawn from all rows alike, as there are no labels"
    if labels is not None:
        kind = infer_problem_type(labels, problem_type, delimiter=delimiter)
        if kind not in ("single_label_classification", "binary_classification"):
            how = f"drawn from all rows alike, as labels are not strata in {kind.replace('_', ' ')}"
        else:
            strata, how = [sys.intern(str(label).strip()) for label in labels], "stratified by label"
    keys: list[Any] = _digests(train)
    if GROUP in train.columns:
        keys, strata, how = linked(keys, train.columns[GROUP]), None, "whole groups, drawn alike"
    kept, held = split_share(keys, share=data.validation_share, seed=data.split_seed, strata=strata)
    note = f"no validation rows are given: {len(held)} of the {train.rows} train rows were set aside, {how}"
    return train.select(kept), replace(train.select(held), skipped=()), note


def _digests(rows: RowSet) -> list[bytes]:
    """Return [rows] 16 bytes that are equal where the texts are: the texts would be held once more."""
    return [
        hashlib.blake2b(repr(key).encode("utf-8", "surrogatepass"), digest_size=16).digest() for key in rows.text_keys()
    ]


def _finish(sets: dict[str, RowSet], *, notes: list[str]) -> SplitSet:
    ordered = {split: sets[split] for split in SPLITS if split in sets}
    test = ordered.get("test")
    return SplitSet(
        train=ordered["train"].dataset(),
        validation=ordered["validation"].dataset(),
        test=None if test is None else test.dataset(),
        fingerprint=fingerprint(ordered),
        provenance={split: list(rows.provenance) for split, rows in ordered.items()},
        warnings=tuple(dict.fromkeys(notes)),
        label_names=ordered["train"].class_names,
        places={split: rows.places_only() for split, rows in ordered.items()},
        skipped=tuple(row for rows in ordered.values() for row in rows.skipped),
    )
