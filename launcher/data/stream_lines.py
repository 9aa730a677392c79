"""Text files from a byte inside them on: lines, JSON on each line, and records of csv and tsv."""

from __future__ import annotations

import csv
import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from launcher.data.readers import faults_of_bytes, rows_of_jsonl
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
from launcher.data.readers_text import ESCAPED, broken_bytes
from launcher.data.stream_files import Cursor, Mark, StreamFile, open_binary
from launcher.data.tables import ColumnsTable, Faults, Places, Table
from launcher.errors import DataError

_UTF8_MARK = b"\xef\xbb\xbf"
# What tells delimiter and quoting of a file.
_HEAD_BYTES = 1 << 20
# A quote that never closes would take the rest of the file.
_MOST_RECORD_BYTES = 64 << 20
# In these a line feed may be a part of another character.
_WIDE = ("utf-16", "utf-32", "utf-7", "utf_16", "utf_32")


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


class TextCursor(_LineCursor):
    """A cursor in a file with a text on each line."""

    def read(self, most: int) -> tuple[Mapping[str, Sequence[Any]], Sequence[int], Faults]:
        """Return the columns of the next rows, the line of each, and their faults."""
        found = list(itertools.islice(self.numbered(), most))
        return {"text": [line for _, line in found]}, [number for number, _ in found], {}


class JsonlCursor(_LineCursor):
    """A cursor in a file with an object of JSON on each line."""

    def read(self, most: int) -> tuple[Mapping[str, Sequence[Any]], Sequence[int], Faults]:
        """Return the columns of the next rows, the line of each, and their faults."""
        found = list(itertools.islice(self.numbered(), most))
        read = rows_of_jsonl(found)
        return read.columns, [number for number, _ in found], read.faults


class DelimitedCursor(_LineCursor):
    """A cursor in a csv or tsv file, whose records may be of several lines."""

    def __init__(self, file: StreamFile, mark: Mark) -> None:
        csv.field_size_limit(LONGEST_FIELD)
        super().__init__(file, mark)
        head, tabs = self.lines.head(), file.format == "tsv"
        header = list(file.header) if file.header is not None else None
        self.is_quoted = not tabs or written_by_csv(head)
        self.delimiter = file.delimiter or ("\t" if tabs else find_delimiter(head, shown=file.place, header=header))
        self.lines.go(Mark())
        self.names = header or header_of(next(self._records(), None), shown=file.place)
        refuse_doubled(self.names, shown=file.place)
        if mark.offset:
            self.lines.go(mark)
        self.records = self._records()

    def read(self, most: int) -> tuple[Mapping[str, Sequence[Any]], Sequence[int], Faults]:
        """Return the columns of the next rows, the line of each, and their faults."""
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
