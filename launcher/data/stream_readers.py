"""Files that are read a stretch at a time, from a place inside them on: what streaming needs of each format.

A cursor stands at a ``Mark`` and takes rows from there. The row that it stands at is found again by the mark alone: by its byte in text,
by its number in files of columns. What it takes is a table as other readers give it, whose rows keep line and number.
"""

from __future__ import annotations

import csv
import gzip
import io
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

from launcher.data.readers import faults_of_bytes, rows_of_jsonl
from launcher.data.readers_arrow import FILE_MARK, table_of_arrow, unreadable
from launcher.data.readers_csv import (
    LONGEST_FIELD,
    Record,
    collect,
    find_delimiter,
    header_of,
    quote_fault,
    refuse_doubled,
    written_by_csv,
)
from launcher.data.readers_text import ESCAPED, MARK, broken_bytes
from launcher.data.tables import ColumnsTable, Faults, Places, Table
from launcher.errors import DataError

_UTF8_MARK = b"\xef\xbb\xbf"
_BUFFER_BYTES = 1 << 20
# What tells delimiter and quoting of a file.
_HEAD_BYTES = 1 << 20
# A quote that never closes would take the rest of the file.
_MOST_RECORD_BYTES = 64 << 20
_BATCH_ROWS = 4096
# In these a line feed may be a part of another character.
_WIDE = ("utf-16", "utf-32", "utf-7", "utf_16", "utf_32")


@dataclass(frozen=True)
class StreamFile:
    """A file of a stream, and how it is read."""

    place: str
    """Its path or address; as errors name it."""
    format: str
    """One of ``STREAMED_FORMATS``."""
    bytes: int
    """Its size."""
    source: int = 0
    """Number of the source of train that it is of."""
    columns: Mapping[str, Sequence[str]] | None = None
    """Our column -> those of the file; None: not known yet."""
    encoding: str | None = None
    delimiter: str | None = None
    header: Sequence[str] | None = None
    filter: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Mark:
    """Where a cursor stands in a file."""

    offset: int = 0
    """Byte where the next row begins; of files of columns, the rows before it."""
    row: int = 0
    """Rows before it."""
    line: int = 1
    """Its line, from 1."""


class Cursor:
    """Reads a file from a mark on."""

    mark: Mark
    is_at_end = False
    """Whether nothing follows; known once fewer rows were taken than there was room for."""

    def take(self, most: int) -> Table:
        """Return the next rows, ``most`` of them at most; rows with a fault count. Raises DataError for a fault of the whole file."""
        raise NotImplementedError

    def close(self) -> None:
        """Let go of the file."""


def open_cursor(file: StreamFile, mark: Mark) -> Cursor:
    """Return a cursor that stands at ``mark``. Raises DataError where the file cannot be read."""
    return _CURSORS[file.format](file, mark)


def open_binary(place: str) -> BinaryIO:
    """Open a file or an address to read bytes from any place; of one packed by gzip, its unpacked bytes. Raises DataError."""
    try:
        if "://" in place:
            from fsspec.core import url_to_fs

            system, path = url_to_fs(place)
            raw: Any = io.BufferedReader(system.open(path, "rb"), _BUFFER_BYTES)
        else:
            raw = Path(place).open("rb", buffering=_BUFFER_BYTES)  # noqa: SIM115 - who asked closes it
    except Exception as error:
        # Every file system has errors of its own.
        reason = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
        raise DataError(f"{place}: cannot be read ({reason}); check the file and its permissions") from None
    return gzip.GzipFile(fileobj=raw) if place.lower().endswith(".gz") else raw  # type: ignore[return-value]


# --- lines -----------------------------------------------------------------------------------------------------------


class _Lines:
    """The lines of a text file from a mark on, with their ends; where bytes do not fit, ``broken`` says so of the line."""

    def __init__(self, file: StreamFile, mark: Mark) -> None:
        self.place = file.place
        self.encoding = _reader_of(file)
        self.raw = open_binary(file.place)
        self.broken: dict[int, str] = {}
        self.go(mark)

    def go(self, mark: Mark) -> None:
        """Stand at ``mark``; what was read behind it is read again."""
        self._seek(mark.offset)
        self.offset, self.line = mark.offset, mark.line

    def _seek(self, offset: int) -> None:
        self.raw.seek(offset)

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        try:
            data = self.raw.readline()
        except Exception as error:
            raise DataError(f"{self.place}:{self.line}: cannot be read on ({error}); check the file") from None
        if not data:
            raise StopIteration
        at_start = self.offset == 0
        self.offset += len(data)
        text = (data.removeprefix(_UTF8_MARK) if at_start else data).decode(self.encoding, "surrogateescape")
        bad = ESCAPED.search(text)
        if bad:
            self.broken[self.line] = broken_bytes(bad[0].encode("utf-8", "surrogateescape")[:4], self.encoding)
        self.line += 1
        return text

    def faults(self, lines: Sequence[int]) -> Faults:
        """Return the broken lines that were read as faults of the rows that begin on ``lines``."""
        found, self.broken = self.broken, {}
        return faults_of_bytes(found, lines=lines, shown=self.place)

    def head(self) -> str:
        """Return the first lines of the file, of about a megabyte."""
        self._seek(0)
        data = self.raw.read(_HEAD_BYTES)
        whole = data if len(data) < _HEAD_BYTES else data[: data.rfind(b"\n") + 1] or data
        return whole.removeprefix(_UTF8_MARK).decode(self.encoding, "replace")


def _reader_of(file: StreamFile) -> str:
    name = (file.encoding or "utf-8").lower()
    if name.startswith(_WIDE):
        raise DataError(
            f"{file.place}: encoding {file.encoding} cannot be streamed, as its lines do not end in a byte of their own; write the "
            "file as UTF-8"
        )
    return "gb18030" if name in ("gbk", "gb2312") else name


class _LineCursor(Cursor):
    """A cursor in a text file; a subclass says what a row is."""

    def __init__(self, file: StreamFile, mark: Mark) -> None:
        self.file = file
        self.lines = _Lines(file, mark)
        self.mark = mark

    def read(self, most: int) -> tuple[Mapping[str, Sequence[Any]], Sequence[int], Faults]:
        """Return the columns of the next rows, the line of each, and their faults."""
        raise NotImplementedError

    def take(self, most: int) -> Table:
        """Return the next rows."""
        columns, lines, faults = self.read(most)
        faults = {**faults, **self.lines.faults(lines)}
        places = Places(self.file.place, lines, Path(self.file.place).parent, self.mark.row)
        self.is_at_end = len(lines) < most
        self.mark = Mark(self.lines.offset, self.mark.row + len(lines), self.lines.line)
        return ColumnsTable(
            places, columns, {"format": self.file.format, "encoding": self.lines.encoding}, faults=faults
        )

    def numbered(self) -> Iterator[tuple[int, str]]:
        """Yield (number, line without its end) of lines that are not blank."""
        number = self.lines.line
        for line in self.lines:
            if line.strip():
                yield number, line.removesuffix("\n").removesuffix("\r")
            number = self.lines.line

    def close(self) -> None:
        """Let go of the file."""
        self.lines.raw.close()


class _Text(_LineCursor):
    def read(self, most: int) -> tuple[Mapping[str, Sequence[Any]], Sequence[int], Faults]:
        found = list(itertools.islice(self.numbered(), most))
        return {"text": [line for _, line in found]}, [number for number, _ in found], {}


class _Jsonl(_LineCursor):
    def read(self, most: int) -> tuple[Mapping[str, Sequence[Any]], Sequence[int], Faults]:
        found = list(itertools.islice(self.numbered(), most))
        read = rows_of_jsonl(found)
        return read.columns, [number for number, _ in found], read.faults


class _Delimited(_LineCursor):
    """A cursor in a csv or tsv file, whose records may be of several lines."""

    def __init__(self, file: StreamFile, mark: Mark) -> None:
        csv.field_size_limit(LONGEST_FIELD)
        super().__init__(file, mark)
        head, tabs = self.lines.head(), file.format == "tsv"
        if MARK in head[:1]:
            head = head[1:]
        header = list(file.header) if file.header is not None else None
        self.is_quoted = not tabs or written_by_csv(head)
        self.delimiter = file.delimiter or ("\t" if tabs else find_delimiter(head, shown=file.place, header=header))
        self.lines.go(Mark())
        self.names = header or header_of(next(self._records(), None), shown=file.place)
        refuse_doubled(self.names, shown=file.place)
        if mark.offset:
            self.lines.go(mark)
        elif header is not None:
            self.lines.go(Mark())
        self.records = self._records()

    def read(self, most: int) -> tuple[Mapping[str, Sequence[Any]], Sequence[int], Faults]:
        some = itertools.islice(self.records, most)
        found = collect(some, names=self.names, delimiter=self.delimiter, quoted=self.is_quoted)
        return dict(found.columns), list(found.lines), found.faults

    def _records(self) -> Iterator[Record]:
        """Yield every record that is not an empty line; a quote that is at fault costs the line where its row begins."""
        if not self.is_quoted:
            yield from ((number, line.split(self.delimiter)) for number, line in self.numbered())
            return
        while True:
            lines = _RecordLines(self.lines)
            reader = csv.reader(lines, delimiter=self.delimiter, strict=True)
            try:
                for fields in reader:
                    first = lines.first.line
                    lines.next_record()
                    if fields and (len(fields) > 1 or fields[0].strip()):
                        yield first, fields
                return
            except csv.Error as error:
                begin = lines.first
                self.lines.go(begin)
                row = next(self.lines)
                yield begin.line, quote_fault(error, delimiter=self.delimiter, line=begin.line, row=row)


class _RecordLines:
    """Lines for the reader of csv records, with the place where the record begins that it is at."""

    def __init__(self, lines: _Lines) -> None:
        self.lines = lines
        self.next_record()

    def next_record(self) -> None:
        """A record was read; the next one begins here."""
        self.first = Mark(self.lines.offset, 0, self.lines.line)

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        if self.lines.offset - self.first.offset > _MOST_RECORD_BYTES:
            raise csv.Error("unexpected end of data")
        return next(self.lines)


# --- columns ---------------------------------------------------------------------------------------------------------


class _ColumnsCursor(Cursor):
    """A cursor in a file of columns; a subclass yields its batches."""

    def __init__(self, file: StreamFile, mark: Mark) -> None:
        self.file = file
        self.mark = mark
        self._rest: Any = None
        try:
            self._tables = self.tables(mark.offset)
        except DataError:
            raise
        except Exception as error:
            raise self._fault(error) from None

    def tables(self, skip: int) -> Iterator[Any]:
        """Return an iterator over pyarrow tables that together hold all rows behind the first ``skip``."""
        raise NotImplementedError

    def names(self, all_names: Sequence[str]) -> list[str] | None:
        """Return the columns that are wanted; None: all."""
        if self.file.columns is None:
            return None
        wanted = {name for names in self.file.columns.values() for name in names} | set(self.file.filter or ())
        return [name for name in all_names if name in wanted]

    def take(self, most: int) -> Table:
        """Return the next rows."""
        import pyarrow

        found, left = [], most
        while left:
            table = self._rest if self._rest is not None else self._next()
            if table is None:
                break
            found.append(table.slice(0, left))
            self._rest = table.slice(left) if table.num_rows > left else None
            left -= found[-1].num_rows
        self.is_at_end = left > 0
        places = Places(self.file.place, None, Path(self.file.place).parent, self.mark.row)
        done = self.mark.row + most - left
        self.mark = Mark(done, done)
        if not found:
            return ColumnsTable(places, {}, {"format": self.file.format})
        return table_of_arrow(pyarrow.concat_tables(found), places, facts={"format": self.file.format})

    def _next(self) -> Any:
        try:
            return next(self._tables, None)
        except Exception as error:
            raise self._fault(error) from None

    def _fault(self, error: Exception) -> DataError:
        return DataError(unreadable(error, shown=self.file.place, kind=self.file.format))


class _Parquet(_ColumnsCursor):
    def tables(self, skip: int) -> Iterator[Any]:
        import pyarrow
        import pyarrow.parquet

        self.raw = open_binary(self.file.place)
        opened = pyarrow.parquet.ParquetFile(self.raw)
        groups, begin = [], 0
        for number in range(opened.num_row_groups):
            rows = opened.metadata.row_group(number).num_rows
            if groups or begin + rows > skip:
                groups.append(number)
            else:
                begin += rows
        columns, metadata = self.names(opened.schema_arrow.names), opened.schema_arrow.metadata

        def batches() -> Iterator[Any]:
            left = skip - begin
            for batch in opened.iter_batches(batch_size=_BATCH_ROWS, row_groups=groups, columns=columns):
                if left < batch.num_rows:
                    table = pyarrow.Table.from_batches([batch.slice(left)])
                    # The names of classes stand in the metadata of the file.
                    yield table.replace_schema_metadata(_metadata_of(metadata, table.column_names))
                left = max(0, left - batch.num_rows)

        return batches() if groups else iter(())

    def close(self) -> None:
        """Let go of the file."""
        self.raw.close()


class _Arrow(_ColumnsCursor):
    def tables(self, skip: int) -> Iterator[Any]:
        import pyarrow

        self.raw = open_binary(self.file.place)
        is_file = self.raw.read(len(FILE_MARK)) == FILE_MARK
        self.raw.seek(0)
        # A local file is mapped: rows that are skipped are not read.
        source = self.raw if "://" in self.file.place else pyarrow.memory_map(self.file.place)
        opened = (pyarrow.ipc.open_file if is_file else pyarrow.ipc.open_stream)(source)
        each = (opened.get_batch(number) for number in range(opened.num_record_batches)) if is_file else iter(opened)
        columns, metadata = self.names(opened.schema.names), opened.schema.metadata

        def batches() -> Iterator[Any]:
            left = skip
            for batch in each:
                for start in range(min(left, batch.num_rows), batch.num_rows, _BATCH_ROWS):
                    table = pyarrow.Table.from_batches([batch.slice(start, _BATCH_ROWS)])
                    table = table if columns is None else table.select(columns)
                    yield table.replace_schema_metadata(_metadata_of(metadata, table.column_names))
                left = max(0, left - batch.num_rows)

        return batches()

    def close(self) -> None:
        """Let go of the file."""
        self.raw.close()


def _metadata_of(metadata: Any, names: Sequence[str]) -> Any:
    """Return what the library datasets has noted in a schema, of some of its columns."""
    import json

    noted = json.loads((metadata or {}).get(b"huggingface", b"{}"))
    features = noted.get("info", {}).get("features")
    if not features:
        return None
    kept = {name: features[name] for name in names if name in features}
    return {b"huggingface": json.dumps({"info": {"features": kept}}).encode()} if len(kept) == len(names) else None


_CURSORS: dict[str, Callable[[StreamFile, Mark], Cursor]] = {
    "jsonl": _Jsonl,
    "csv": _Delimited,
    "tsv": _Delimited,
    "text": _Text,
    "parquet": _Parquet,
    "arrow": _Arrow,
}


def with_columns(file: StreamFile, columns: Mapping[str, Sequence[str]]) -> StreamFile:
    """Return a file of which it is known which column is which."""
    return replace(file, columns={ours: list(theirs) for ours, theirs in columns.items()})
