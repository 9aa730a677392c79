"""Prepared rows in files: made piece by piece, in several processes where there are many, and never all held at once."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launcher.data.telling import tell
from launcher.data.workers import in_order, usable_processes

if TYPE_CHECKING:
    import pyarrow

PIECE_ROWS = 2000
# Below, starting processes takes longer than they save: the tokenizers of transformers have threads of their own.
MANY_ROWS = 50_000

Origin = Callable[[int], str]
MakeRows = Callable[..., tuple[Mapping[str, Any], Mapping[str, int]]]
"""(columns of some rows; origin: number of one of them -> its place) -> columns of features, and counts to add up."""


@dataclass(frozen=True)
class Source:
    """The rows of a split before they are tokenized: columns that are read by slice, each [rows]."""

    columns: Mapping[str, Any]
    rows: int
    origin: Origin
    """Number of a row -> its place, for an error message."""


@dataclass(frozen=True)
class _Item:
    """Some rows on their way to the process that makes features of them."""

    first: int
    columns: dict[str, list[Any]]


def write_split(path: Path, source: Source, make: MakeRows, *, processes: int | None = None) -> dict[str, int]:
    """Write the features that ``make`` has for the rows of ``source`` into an Arrow file; return the sums of their counts.

    The file has the same bytes with any number of processes.

    Args:
        make: a function that pickle can name, with its arguments (functools.partial).
        processes: None: as many as can work at the same time, where that saves time.

    Raises:
        DataError: what ``make`` raises, or a process has died.
    """
    import pyarrow

    count = processes or (usable_processes() if source.rows >= MANY_ROWS else 1)
    function = functools.partial(_piece, make)
    again = functools.partial(_piece_here, make, source.origin)
    counts: dict[str, int] = {}
    done, writer = 0, None
    try:
        for buffer, more in in_order(function, _items(source), processes=count, again=again):
            piece = pyarrow.ipc.open_stream(buffer).read_all()
            writer = writer or pyarrow.ipc.new_stream(str(path), piece.schema)
            writer.write_table(piece)
            counts = {name: counts.get(name, 0) + number for name, number in more.items()}
            done += PIECE_ROWS
            tell(f"tokenizing {path.stem}", min(done, source.rows), source.rows)
    finally:
        if writer is not None:
            writer.close()
    return counts


def read_split(path: Path) -> Any:
    """Return a file of ``write_split`` as a datasets.Dataset, memory-mapped."""
    from datasets import Dataset

    return Dataset.from_file(str(path))


def _items(source: Source) -> Iterator[_Item]:
    for first in range(0, source.rows, PIECE_ROWS):
        rows = slice(first, min(first + PIECE_ROWS, source.rows))
        yield _Item(first, {name: list(values[rows]) for name, values in source.columns.items()})


def _piece(make: MakeRows, item: _Item) -> tuple[bytes, Mapping[str, int]]:
    columns, counts = make(item.columns, origin=str)
    return _serialized(columns), counts


def _piece_here(make: MakeRows, origin: Origin, item: _Item) -> tuple[bytes, Mapping[str, int]]:
    columns, counts = make(item.columns, origin=lambda row: origin(item.first + row))
    return _serialized(columns), counts


def _serialized(columns: Mapping[str, Any]) -> bytes:
    import pyarrow

    types = _types()
    batch = pyarrow.record_batch({name: pyarrow.array(values, types.get(name)) for name, values in columns.items()})
    sink = pyarrow.BufferOutputStream()
    with pyarrow.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return sink.getvalue().to_pybytes()


@functools.cache
def _types() -> dict[str, pyarrow.DataType]:
    """Types of columns that some rows leave open (empty lists, no rows at all), or that need fewer bits than Arrow would take."""
    import pyarrow

    text, number = pyarrow.string(), pyarrow.int64()
    texts, numbers = pyarrow.list_(text), pyarrow.list_(number)
    return {
        **dict.fromkeys(("image", "mask"), pyarrow.large_binary()),
        "input_ids": pyarrow.list_(pyarrow.int32()),
        "word_ids": pyarrow.list_(pyarrow.int32()),
        "target_ids": pyarrow.list_(pyarrow.int32()),
        **dict.fromkeys(("chosen_ids", "rejected_ids"), pyarrow.list_(pyarrow.int32())),
        **dict.fromkeys(("chosen_learned", "rejected_learned"), pyarrow.list_(pyarrow.bool_())),
        "token_type_ids": pyarrow.list_(pyarrow.int8()),
        "learned": pyarrow.list_(pyarrow.int8()),
        "seq_lengths": numbers,
        **dict.fromkeys(("text", "context", "left_out"), text),
        **dict.fromkeys(("length", "row_id", "first_word"), number),
        **dict.fromkeys(("words", "references"), texts),
        **dict.fromkeys(("word_starts", "tags", "places", "classes", "size"), numbers),
        "boxes": pyarrow.list_(pyarrow.list_(pyarrow.float64())),
    }
