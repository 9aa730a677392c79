"""One split's rows in our columns: read, filtered, mapped, checked."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from launcher.data.bad_rows import OnBadRow, SkippedRow, refuse, refuse_many, skipped_row
from launcher.data.boxes import object_values
from launcher.data.columns import Column, dataset_of, joined_columns
from launcher.data.conversations import Wanted, choose_conversation, conversation_columns
from launcher.data.images import image_values
from launcher.data.masks import mask_values
from launcher.data.sources_columns import choose_columns
from launcher.data.sources_find import Reader
from launcher.data.sources_values import (
    answer_values,
    check_not_empty,
    check_tags,
    group_values,
    id_values,
    label_values,
    target_values,
    text_values,
    token_values,
    uniform_labels,
)
from launcher.data.tables import Faults, Places, Table, has_column
from launcher.errors import DataError
from launcher.registry import suggest

if TYPE_CHECKING:
    from datasets import Dataset

    from launcher.recipe.data_section import DataSection, SourceSpec


# What test rows may come without.
_MAY_BE_HIDDEN = ("label", "target", "objects", "mask")


@dataclass(frozen=True)
class RowSet:
    """The rows of one split, in our columns."""

    columns: dict[str, Column]
    """text[, text_pair][, tokens][, image, image_hash][, label][, id] and row_id, each [rows]; tokens are lists of words, and text is then those words."""
    segments: tuple[tuple[int, Places], ...]
    """(first row_id, places of the rows from there on) of every source, ascending."""
    provenance: tuple[dict[str, Any], ...]
    """What each source was: path, format, encoding, delimiter, revision, rows."""
    warnings: tuple[str, ...] = ()
    class_names: tuple[str, ...] = ()
    """Names of the classes where the source declares them."""
    skipped: tuple[SkippedRow, ...] = ()
    """Rows that were left out because they cannot be used."""
    firsts: tuple[int, ...] = ()
    """The first row_id of each source; a source may be of several tables."""

    @property
    def rows(self) -> int:
        """Number of rows."""
        return len(self.columns["row_id"])

    def place(self, row: int) -> str:
        """Return file and row of the ``row``-th row (from 0), for an error message."""
        places, number = self._source(row)
        return places(number)

    def _source(self, row: int) -> tuple[Places, int]:
        """Return the places of a row's source, and its number there, from 0."""
        row_id = self.columns["row_id"][row]
        start, places = self.segments[bisect_right([first for first, _ in self.segments], row_id) - 1]
        return places, row_id - start

    def without(self, faults: Faults, *, split: str, on_bad_row: OnBadRow) -> RowSet:
        """Return the rows that have no fault; ``faults`` by position. Raises DataError for the first one, unless they are skipped."""
        if not faults:
            return self
        found = []
        for row in sorted(faults):
            places, number = self._source(row)
            found.append(skipped_row(faults[row], split=split, places=places, row=number))
        refuse(found, on_bad_row=on_bad_row)
        good = [row for row in range(self.rows) if row not in faults]
        return replace(self.select(good), skipped=(*self.skipped, *found))

    def select(self, rows: Sequence[int]) -> RowSet:
        """Return the given rows, which ascend."""
        return replace(self, columns={name: values.take(rows) for name, values in self.columns.items()})

    def without_labels(self) -> RowSet:
        """Return the rows without their labels."""
        kept = {name: values for name, values in self.columns.items() if name not in ("label", "mask")}
        return replace(self, columns=kept)

    def places_only(self) -> RowSet:
        """Return the rows without what they hold: enough for ``place``."""
        return replace(self, columns={"row_id": self.columns["row_id"]})

    def text_keys(self) -> Iterator[tuple[str, ...]]:
        """Yield what makes two rows the same: text and pair, case and spacing folded, or an image's bytes."""
        if "image_hash" in self.columns:
            return ((key,) for key in self.columns["image_hash"])
        texts = [self.columns[name] for name in ("text", "text_pair") if name in self.columns]
        return (tuple(" ".join(text.casefold().split()) for text in row) for row in zip(*texts, strict=True))

    def dataset(self) -> Dataset:
        """Return the rows as a Dataset."""
        return dataset_of(self.columns)

    def lists(self) -> dict[str, list[Any]]:
        """Return the columns as lists."""
        return {name: list(values) for name, values in self.columns.items()}


@dataclass(frozen=True)
class Part:
    """One source of a split, found and not yet read."""

    spec: SourceSpec
    reader: Reader
    warnings: tuple[str, ...] = ()


def read_split(
    split: str,
    *,
    parts: Sequence[Part],
    data: DataSection,
    needs: Sequence[str],
    optional: Sequence[str],
    may_be_empty: bool = False,
    conversations: Wanted | None = None,
) -> RowSet:
    """Read the sources of a split, one after the other; ``may_be_empty`` allows texts without a word.

    ``conversations``: rows are these; ``needs`` and ``optional`` then do not matter.
    Raises DataError naming file and row; with ``data.on_bad_row: skip`` only where too many rows cannot be used.
    """
    if split == "test":
        hidden = [name for name in _MAY_BE_HIDDEN if name in needs]
        needs, optional = [name for name in needs if name not in hidden], [*optional, *hidden]
    pieces: list[RowSet] = []
    firsts: list[int] = []
    start = 0
    for part in parts:
        firsts.append(start)
        kept = read = 0
        for table in part.reader():
            for row, fault in sorted(table.faults.items())[:1]:
                # Before its columns are looked at: broken rows may be why one is missing.
                refuse([skipped_row(fault, split=split, places=table.places, row=row)], on_bad_row=data.on_bad_row)
            limit = None if part.spec.limit is None else part.spec.limit - kept
            # Rows to predict on come without the label column that the recipe names, and groups are train's affair.
            mapped = {
                ours: theirs
                for ours, theirs in data.columns.items()
                if split == "train" or _is_there(ours, theirs, table, split=split)
            }
            chosen: dict[str, list[str]] = {}
            format = None
            if table.names and conversations is not None:
                format, chosen = choose_conversation(table, columns=mapped, wanted=conversations)
            elif table.names:
                chosen = choose_columns(table, columns=mapped, needs=needs, optional=optional)
            piece = read_table(
                table,
                part=part,
                start=start,
                limit=limit,
                chosen=chosen,
                data=data,
                split=split,
                may_be_empty=may_be_empty,
                may_be_lists="target" in optional,
                conversations=None if conversations is None else (format or "", conversations),
            )
            pieces.append(piece)
            kept, read, start = kept + piece.rows, read + table.rows, start + table.rows
        if not kept:
            refuse_many([row for piece in pieces for row in piece.skipped], split=split, kept=0)
            raise DataError(_no_rows(split, part=part, read=read))
    joined = _join(split, pieces=pieces, warnings=[note for part in parts for note in part.warnings])
    return replace(joined, firsts=tuple(firsts))


def _is_there(ours: str, theirs: str | list[str], table: Table, *, split: str) -> bool:
    may_lack = (*_MAY_BE_HIDDEN, "group") if split == "test" else ("group",)
    return ours not in may_lack or (isinstance(theirs, str) and has_column(table, theirs))


def _no_rows(split: str, *, part: Part, read: int) -> str:
    where = f"{part.spec.source}: the {split} split"
    if part.spec.filter and read:
        return f"{where} has no rows left of {read} after filter {part.spec.filter}; check the values, which are compared as they stand"
    return f"{where} has no rows; give it some, or leave the split out"


def read_table(
    table: Table,
    *,
    part: Part,
    start: int,
    limit: int | None,
    chosen: Mapping[str, list[str]],
    data: DataSection,
    split: str,
    may_be_empty: bool,
    may_be_lists: bool,
    conversations: tuple[str, Wanted] | None = None,
) -> RowSet:
    """Return the rows of a table in our columns, those that cannot be used left out or refused.

    Args:
        conversations: the format of the table's conversations, where rows are these, and what is to be read of them.
        start: row_id of its first row.
        limit: take only this many rows; None: all.
        chosen: our column -> those of the table.

    Raises:
        DataError: a row cannot be used, unless ``data.on_bad_row`` is skip.
    """
    rows = _kept_rows(table, spec=part.spec)[:limit]
    among = rows if isinstance(rows, range) else set(rows)
    faults = {row: fault for row, fault in table.faults.items() if row in among}
    facts = {"source": part.spec.source, "place": table.places.shown, **table.facts}
    columns = {"row_id": Column.of(start + row for row in rows)}
    names: tuple[str, ...] = ()
    if chosen:
        facts["columns"] = {ours: theirs[0] if len(theirs) == 1 else theirs for ours, theirs in chosen.items()}
        held = {name: theirs for name, theirs in chosen.items() if conversations is None or name in ("id", "group")}
        ours = _our_columns(
            table, chosen=held, rows=rows, join=data.join, faults=faults, may_be_empty=may_be_empty or conversations is not None,
            may_be_lists=may_be_lists,
        )  # fmt: skip
        if conversations is not None:
            format, wanted = conversations
            facts["conversations"] = format
            ours |= conversation_columns(table, chosen=chosen, format=format, rows=rows, wanted=wanted, faults=faults)
        columns = ours | columns
        names = table.class_names.get(chosen["label"][0], ()) if "label" in chosen else ()
    whole = RowSet(columns, ((start, table.places),), (), table.warnings, names)
    # Rows ascend.
    found = {bisect_left(rows, row): fault for row, fault in faults.items()}
    used = whole.without(found, split=split, on_bad_row=data.on_bad_row)
    return replace(used, provenance=({**facts, "rows_read": table.rows, "rows": used.rows},))


def _our_columns(
    table: Table,
    *,
    chosen: Mapping[str, list[str]],
    rows: Sequence[int],
    join: str,
    faults: Faults,
    may_be_empty: bool,
    may_be_lists: bool,
) -> dict[str, Column]:
    """Return our columns; rows that cannot be used are added to ``faults`` and hold None. ``may_be_lists``: texts as lists of sentences."""
    columns: dict[str, Column] = {}
    for ours in sorted(chosen, key=_ORDER.index):
        theirs = chosen[ours]
        if ours in _TEXTS:
            columns[_TEXTS[ours]] = text_values(
                table, columns=theirs, rows=rows, join=join, ours=ours, faults=faults, may_be_lists=may_be_lists
            )
        elif ours == "answers":
            contexts = columns["text_pair"]
            columns["label"] = answer_values(table, column=theirs[0], rows=rows, contexts=contexts, faults=faults)
        elif ours == "target":
            columns["label"] = target_values(table, column=theirs[0], rows=rows, faults=faults)
        elif ours == "objects":
            images = columns["image"]
            columns["label"] = object_values(table, column=theirs[0], rows=rows, images=images, faults=faults)
        elif ours == "mask":
            images = columns["image"]
            columns |= mask_values(table, column=theirs[0], rows=rows, images=images, faults=faults)
        elif ours == "image":
            columns |= image_values(table, column=theirs[0], rows=rows, faults=faults)
        else:
            columns[ours] = _VALUES[ours](table, column=theirs[0], rows=rows, faults=faults)
    if "tokens" in columns:
        # What people read, and what makes two rows the same.
        columns["text"] = Column.of(" ".join(words or ()) for words in columns["tokens"])
        if "label" in columns:
            check_tags(tokens=columns["tokens"], tags=columns["label"], rows=rows, faults=faults)
    elif not may_be_empty and "image" not in columns:
        texts = {ours: columns[_TEXTS[ours]] for ours in chosen if ours in _TEXTS}
        check_not_empty(texts, rows=rows, each="question" in chosen, faults=faults)
    return columns


_ORDER = (
    "image",
    "text",
    "question",
    "text_pair",
    "context",
    "tokens",
    "label",
    "answers",
    "target",
    "objects",
    "mask",
    "id",
    "group",
)
# A question is a text, and what may answer it the second one.
_TEXTS = {"text": "text", "question": "text", "text_pair": "text_pair", "context": "text_pair"}
_VALUES: dict[str, Callable[..., Column]] = {
    "tokens": token_values,
    "label": label_values,
    "id": id_values,
    "group": group_values,
}


def _join(split: str, *, pieces: Sequence[RowSet], warnings: Sequence[str]) -> RowSet:
    skipped = tuple(row for piece in pieces for row in piece.skipped)
    refuse_many(skipped, split=split, kept=sum(piece.rows for piece in pieces))
    pieces = [piece for piece in pieces if piece.rows]
    names = list(pieces[0].columns)
    for piece in pieces[1:]:
        odd = set(names) ^ set(piece.columns) - {"id"}
        if odd - {"id"}:
            first, second = (p.segments[0][1].shown for p in (pieces[0], piece))
            raise DataError(
                f"the sources of {split} differ: {first} and {second} do not both have {', '.join(sorted(odd - {'id'}))}; "
                "name the columns under data.columns, or make the files alike"
            )
    names = [name for name in names if all(name in piece.columns for piece in pieces)]
    columns = {name: joined_columns([piece.columns[name] for piece in pieces]) for name in names}
    if "label" in columns:
        columns["label"] = uniform_labels(columns["label"])
    return RowSet(
        columns,
        tuple(segment for piece in pieces for segment in piece.segments),
        tuple(fact for piece in pieces for fact in piece.provenance),
        (*warnings, *(note for piece in pieces for note in piece.warnings)),
        pieces[0].class_names,
        skipped,
    )


# --- filters -------------------------------------------------------------------------------------------------------


def _kept_rows(table: Table, *, spec: SourceSpec) -> Sequence[int]:
    rows: Sequence[int] = range(table.rows)
    for name, wanted in (spec.filter or {}).items():
        if name not in table.names:
            near = suggest(name, table.names)
            hint = f"; did you mean {near!r}?" if near else ""
            raise DataError(
                f"{table.places.shown}: has no column {name!r} to filter by; "
                f"its columns are {', '.join(map(repr, table.names))}{hint}"
            )
        values = table.column(name).take(rows)
        accepted = wanted if isinstance(wanted, list) else [wanted]
        rows = [row for row, held in zip(rows, values, strict=True) if any(_equal(held, value) for value in accepted)]
    return rows


def _equal(value: Any, wanted: str | float | bool) -> bool:
    """Whether a row's value is the wanted one; text from a file is compared with a number by the number it writes."""
    if isinstance(value, str) and isinstance(wanted, bool):
        return value.lower() == str(wanted).lower()
    if isinstance(value, str) and not isinstance(wanted, str):
        try:
            return float(value) == wanted
        except ValueError:
            return False
    if isinstance(value, bool) != isinstance(wanted, bool):
        return False
    return str(value) == wanted if isinstance(wanted, str) else bool(value == wanted)
