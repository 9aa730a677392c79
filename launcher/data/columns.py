"""Columns of values that take little memory: what is text or a number lies in Arrow, value for value what was put in."""

from __future__ import annotations

import itertools
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pyarrow
    from datasets import Dataset

_CHUNK_ROWS = 4096
_WHOLE = 2**63


class Column(Sequence[Any]):
    """Values in their order. A chunk is an Arrow array where all its values are text, bytes, or numbers of a kind; else a list."""

    def __init__(self, chunks: Sequence[Any]) -> None:
        self.chunks = [chunk for chunk in chunks if len(chunk)]
        self.starts = [0, *itertools.accumulate(len(chunk) for chunk in self.chunks)]

    @classmethod
    def of(cls, values: Iterable[Any]) -> Column:
        """Return the values as a Column; they are taken one by one, so that they need not all be held."""
        if isinstance(values, Column):
            return values
        rest = iter(values)
        return cls([packed(chunk) for chunk in iter(lambda: list(itertools.islice(rest, _CHUNK_ROWS)), [])])

    def __len__(self) -> int:
        return self.starts[-1]

    def __iter__(self) -> Iterator[Any]:
        for chunk in self.chunks:
            yield from _plain(chunk)

    def __getitem__(self, at: int | slice) -> Any:
        if isinstance(at, slice):
            return self._slice(*at.indices(len(self)))
        place = at + len(self) if at < 0 else at
        if not 0 <= place < len(self):
            raise IndexError(at)
        number = bisect_right(self.starts, place) - 1
        value = self.chunks[number][place - self.starts[number]]
        return value if isinstance(self.chunks[number], list) else value.as_py()

    def _slice(self, start: int, stop: int, step: int) -> list[Any]:
        found: list[Any] = []
        for first, chunk in zip(self.starts, self.chunks, strict=False):
            if first < stop and first + len(chunk) > start:
                found += _plain(chunk[max(start - first, 0) : max(stop - first, 0)])
        return found[::step]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and len(self) == len(other) and all(map(_same, self, other))

    __hash__ = None  # type: ignore[assignment]

    def take(self, rows: Sequence[int]) -> Column:
        """Return the values of ``rows``, which ascend."""
        if isinstance(rows, range) and rows == range(len(self)):
            return self
        wanted = np.asarray(rows, dtype=np.int64)
        cuts = np.searchsorted(wanted, self.starts)
        return Column(
            [_taken(c, wanted[a:b] - s) for c, s, a, b in zip(self.chunks, self.starts, cuts, cuts[1:], strict=False)]
        )

    @property
    def is_text(self) -> bool:
        """Whether every value is known to be text, without a look at them."""
        return all(not isinstance(chunk, list) and _is_text(chunk) and not chunk.null_count for chunk in self.chunks)

    def arrow(self) -> pyarrow.ChunkedArray | None:
        """Return the values as they lie in Arrow; None where they do not all do so, or are of several types."""
        import pyarrow

        if any(isinstance(chunk, list) for chunk in self.chunks) or len({str(c.type) for c in self.chunks}) != 1:
            return None
        return pyarrow.chunked_array(self.chunks)


def packed(values: list[Any]) -> Any:
    """Return values as an Arrow array that gives back the same values; the list itself where none does."""
    import pyarrow

    kinds = set(map(type, values))
    if kinds == {str} or kinds == {str, type(None)}:
        try:
            return pyarrow.array(values, pyarrow.string())
        except UnicodeEncodeError:
            # Half a surrogate pair, which JSON can write and UTF-8 cannot.
            return values
    if kinds == {int} and min(values) >= -_WHOLE and max(values) < _WHOLE:
        return pyarrow.array(values, pyarrow.int64())
    if kinds == {bytes}:
        return pyarrow.array(values, pyarrow.large_binary())
    if kinds == {float}:
        return pyarrow.array(values, pyarrow.float64(), from_pandas=False)
    return values


def joined_columns(columns: Sequence[Column]) -> Column:
    """Return the values of several columns, one after the other."""
    return Column([chunk for column in columns for chunk in column.chunks])


def dataset_of(columns: Mapping[str, Column]) -> Dataset:
    """Return columns as a Dataset; what lies in Arrow is not copied."""
    import pyarrow
    from datasets import Dataset

    arrays = {name: column.arrow() for name, column in columns.items()}
    lists = {name: list(columns[name]) for name, array in arrays.items() if array is None}
    if lists:
        table = Dataset.from_dict(lists).with_format("arrow")[:]
        arrays |= {name: table.column(name) for name in lists}
    # A fingerprint of its own making would read every value; nothing here asks for one.
    return Dataset(pyarrow.table(arrays), fingerprint="rows")


def _plain(chunk: Any) -> list[Any]:
    return chunk if isinstance(chunk, list) else chunk.to_pylist()


def _taken(chunk: Any, rows: np.ndarray) -> Any:
    # Without the values that kept it from lying in Arrow a list may do so.
    return packed([chunk[row] for row in rows]) if isinstance(chunk, list) else chunk.take(rows)


def _is_text(chunk: Any) -> bool:
    import pyarrow

    return pyarrow.types.is_string(chunk.type) or pyarrow.types.is_large_string(chunk.type)


def _same(one: Any, other: Any) -> bool:
    return bool(one == other)
