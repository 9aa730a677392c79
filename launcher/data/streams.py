"""Rows of train that are read while training: files in an order of chance, rows shuffled block by block, and a place to go on from.

An epoch is all files in an order that follows from seed and epoch. Its rows are read in blocks of ``data.shuffle_buffer_size``, and each
block is permuted by seed, epoch and its number. So everything behind a ``Position`` follows from it: nothing of what was read
before has to be kept, and no process has to know another.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

from launcher.data.bad_rows import SkippedRow, refuse_many
from launcher.data.labels import LabelSet
from launcher.data.pieces import MakeRows
from launcher.data.sources_rows import Part, RowSet, read_table
from launcher.data.stream_files import Cursor, Mark, StreamFile
from launcher.data.stream_readers import open_cursor
from launcher.data.tables import ColumnsTable, Table
from launcher.errors import DataError
from launcher.recipe.data_section import DataSection, SourceSpec

ROWS_OF_A_FILE = 10**10
"""A row's number is that of its file, in the recipe's order, times this, and its number in the file, from 0."""
PIECES_OF_A_ROW = 10**6
"""Where a text becomes several rows, the number of each is the text's times this, and its number in the text."""
_PIECE_ROWS = 256
_READ = ("text", "text_pair", "row_id")
# Of fewer rows a share says little.
_JUDGED_ROWS = 100

Row = dict[str, Any]


@dataclass(frozen=True)
class Position:
    """A place between two rows of a stream."""

    epoch: int = 0
    file: int = 0
    """Place of the file where the block begins, in the order of the epoch."""
    mark: Mark = field(default_factory=Mark)
    """Where the block begins in it."""
    block: int = 0
    """Blocks of the epoch before it."""
    used: int = 0
    """Rows that train of the block that are used."""

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Position:
        """Read back what ``to_json`` wrote."""
        return cls(**{**values, "mark": Mark(**values["mark"])})


@dataclass(frozen=True)
class Features:
    """How a task makes features of rows, on any rank; pickled where workers read."""

    make: MakeRows
    """(columns) -> (columns of features, counts)."""
    divides: bool
    """Whether a text becomes several rows, or none."""
    labels: LabelSet | None = None
    may_be_empty: bool = False
    """Whether texts without a word are of use."""


class StreamBatch(NamedTuple):
    """The rows of one optimizer step."""

    rows: list[Row]
    """Of all ranks; features where a task divides texts, else what they are made of."""
    epoch: int
    end: Position
    """Where the next batch begins."""
    skipped: list[SkippedRow]
    """Rows that were left out in the first epoch since the batch before."""


class _Block(NamedTuple):
    place: Position
    rows: list[Row]
    skipped: Sequence[SkippedRow]


@dataclass(frozen=True)
class Stream:
    """The rows of train, to be read from any position on."""

    files: tuple[StreamFile, ...]
    data: DataSection
    features: Features
    seed: int
    read: Callable[[StreamFile, Mark], Cursor] = field(default=open_cursor, repr=False)

    def batches(self, start: Position, *, size: int) -> Iterator[StreamBatch]:
        """Yield the global batches from ``start`` on, without end; no batch has rows of two epochs.

        Raises:
            DataError: a row that cannot be used, unless they are skipped; too many of them; or no row at all.
        """
        place, skipped = start, list[SkippedRow]()
        while True:
            rows, anything = list[Row](), place != Position(epoch=place.epoch)
            for block in self.blocks(place):
                if place.epoch == 0 and not block.place.used:
                    # Later epochs would leave out the same ones.
                    skipped += block.skipped
                used = block.place.used
                for row in itertools.islice(self._in_order(block), used, None):
                    rows.append(row)
                    anything, used = True, used + 1
                    if len(rows) == size:
                        yield StreamBatch(rows, place.epoch, replace(block.place, used=used), skipped)
                        rows, skipped = [], []
            following = Position(epoch=place.epoch + 1)
            if rows:
                yield StreamBatch(rows, place.epoch, following, skipped)
                skipped = []
            if not anything:
                raise DataError(
                    f"no row of the {len(self.files)} files of data.train can be used; look at data.columns and filter"
                )
            place = following

    def order(self, epoch: int) -> np.ndarray:
        """Return the numbers of the files in the order of an epoch."""
        return np.random.default_rng([self.seed, epoch]).permutation(len(self.files))

    def blocks(self, place: Position) -> Iterator[_Block]:
        """Yield the blocks that are left of an epoch, the first one from its beginning on."""
        order, cursor = self.order(place.epoch), None
        at = replace(place, used=0)
        used = place.used
        try:
            while at.file < len(order):
                sets, following, left = list[RowSet](), at, self.data.shuffle_buffer_size
                while left and following.file < len(order):
                    number = int(order[following.file])
                    file = self.files[number]
                    cursor = cursor or self.read(file, following.mark)
                    table = cursor.take(left)
                    if table.rows:
                        sets.append(self._usable(table, file, first=number * ROWS_OF_A_FILE + following.mark.row))
                        left -= table.rows
                    following = replace(following, mark=cursor.mark)
                    if cursor.is_at_end:
                        cursor.close()
                        cursor, following = None, replace(following, file=following.file + 1, mark=Mark())
                skipped = [row for rows in sets for row in rows.skipped]
                kept = sum(rows.rows for rows in sets)
                if len(skipped) + kept >= _JUDGED_ROWS:
                    refuse_many(skipped, split="train", kept=kept)
                yield _Block(replace(at, used=used), [row for rows in sets for row in self._rows(rows)], skipped)
                at, used = replace(following, block=at.block + 1), 0
        finally:
            if cursor is not None:
                cursor.close()

    def _usable(self, table: Table, file: StreamFile, *, first: int) -> RowSet:
        """Return the rows of a table in our columns, without those that cannot be used. Raises DataError."""
        assert file.columns is not None, "files are looked at before they are streamed"
        spec = SourceSpec(source=file.place, filter=dict(file.filter) if file.filter else None)
        rows = read_table(
            _with_names(table, file),
            part=Part(spec, lambda: []),
            start=first,
            limit=None,
            chosen={ours: list(theirs) for ours, theirs in file.columns.items()},
            data=self.data,
            split="train",
            may_be_empty=self.features.may_be_empty,
            may_be_lists=False,
        )
        labels = self.features.labels
        if labels is None:
            return rows
        return rows.without(
            labels.faults(list(rows.columns["label"]), split="train"), split="train", on_bad_row=self.data.on_bad_row
        )

    def _rows(self, rows: RowSet) -> Iterator[Row]:
        """Yield the rows as what features are made of."""
        columns = {name: list(rows.columns[name]) for name in _READ if name in rows.columns}
        labels = self.features.labels
        if labels is not None:
            columns["labels"] = labels.encode(list(rows.columns["label"]), split="train", origin=rows.place).tolist()
        return (dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True))

    def _in_order(self, block: _Block) -> Iterator[Row]:
        """Yield the rows of a block in their order of chance."""
        place = block.place
        order = np.random.default_rng([self.seed, place.epoch, place.block]).permutation(len(block.rows))
        if not self.features.divides:
            yield from (block.rows[number] for number in order)
            return
        for start in range(0, len(order), _PIECE_ROWS):
            yield from self.featured([block.rows[number] for number in order[start : start + _PIECE_ROWS]])

    def featured(self, rows: Sequence[Row]) -> list[Row]:
        """Return the features of rows, in their order."""
        if not rows:
            return []
        columns, _ = self.features.make({name: [row[name] for row in rows] for name in rows[0]})
        found = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        if self.features.divides:
            for text, pieces in itertools.groupby(found, key=lambda row: row["row_id"]):
                for number, row in enumerate(pieces):
                    row["row_id"] = text * PIECES_OF_A_ROW + number
        return found


def _with_names(table: Table, file: StreamFile) -> Table:
    """Return a table that has the columns that are wanted: rows of JSON may leave out what is null in all rows of a stretch."""
    # A name with a dot may be of a mapping's key.
    missing = [name for name in file.wanted if not {name, name.partition(".")[0]} & set(table.names)]
    if file.format != "jsonl" or not missing or not isinstance(table, ColumnsTable):
        return table
    return replace(table, columns={**table.columns, **{name: [None] * table.rows for name in missing}})
