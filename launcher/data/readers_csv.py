"""Delimited text to columns: the delimiter found from the header, quoting, and rows that do not fit named by line."""

from __future__ import annotations

import csv
import io
import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from launcher.data.columns import Column, packed
from launcher.data.readers_text import MARK, MARK_INSIDE, lines_of
from launcher.data.tables import Fault, Faults
from launcher.data.telling import tell
from launcher.errors import DataError

_DELIMITERS = (",", ";", "\t", "|")
_NAMES = {",": "comma", ";": "semicolon", "\t": "tab", "|": "bar"}
_LOOK_AT = 200
_BATCH_ROWS = 4096
# Characters that are cut into lines at once: few at first, as reading begins again behind each faulty quote.
_FIRST_BLOCK, _BLOCK = 1 << 12, 1 << 20
# The module's own limit of 131,072 characters is below a long document.
LONGEST_FIELD = 2**31 - 1
_QUOTED_FIELD = re.compile(r'(?:^|(?<=[\t\n]))"(?:[^"]|"")*"(?=\t|\r?\n|\r?$)')
_OPENING_QUOTE = re.compile(r'(?:^|(?<=[\t\n]))"')


Record = tuple[int, list[str] | Fault]
"""First line, from 1, and its fields, or why it has none."""


@dataclass(frozen=True)
class DelimitedText:
    """Columns of text by name (None where a row has a fault), the first line of every row (from 1), and how the file was read."""

    columns: dict[str, Column]
    lines: Column
    delimiter: str
    quoted: bool
    faults: Faults
    """Rows with another number of fields, or with a faulty quote."""


def read_delimited(
    text: str, *, shown: str, delimiter: str | None = None, header: list[str] | None = None, tabs: bool = False
) -> DelimitedText:
    """Read csv text, or tab-separated text with ``tabs``; every value stays text, as it stands.

    Tab-separated text is read with quoting only where its quotes are those of a csv writer: GLUE's files and their kin
    hold quotation marks that are part of the sentence.

    Raises:
        DataError: no header, or a doubled column name.
    """
    csv.field_size_limit(LONGEST_FIELD)
    quoted = not tabs or written_by_csv(text)
    chosen = delimiter or ("\t" if tabs else find_delimiter(text, shown=shown, header=header))
    records = _records(text, delimiter=chosen, quoted=quoted)
    names = header if header is not None else header_of(next(records, None), shown=shown)
    refuse_doubled(names, shown=shown)
    return collect(records, names=names, delimiter=chosen, quoted=quoted)


def collect(records: Iterator[Record], *, names: list[str], delimiter: str, quoted: bool) -> DelimitedText:
    """Return records as columns; those that do not fit ``names`` are faults."""
    lines: list[Any] = []
    chunks: list[list[Any]] = [[] for _ in names]
    faults: Faults = {}
    read = 0
    for batch in iter(lambda: list(itertools.islice(records, _BATCH_ROWS)), []):
        found = [_fault(line, fields=fields, names=names, delimiter=delimiter) for line, fields in batch]
        faults |= {read + number: fault for number, fault in enumerate(found) if fault}
        whole = ([None] * len(names) if fault else fields for fault, (_, fields) in zip(found, batch, strict=True))
        for chunk, values in zip(chunks, zip(*whole, strict=True), strict=True):
            chunk.append(packed(list(values)))
        lines.append(packed([line for line, _ in batch]))
        read += len(batch)
    columns = dict(zip(names, map(Column, chunks), strict=True))
    return DelimitedText(columns, Column(lines), delimiter, quoted, faults)


def _fault(line: int, *, fields: list[str] | Fault, names: list[str], delimiter: str) -> Fault | None:
    if isinstance(fields, Fault):
        return fields
    if fields[0].startswith(MARK):
        return Fault(MARK_INSIDE, delimiter.join(fields), f"{line}")
    if len(fields) == len(names):
        return None
    row = delimiter.join(fields)
    word = _NAMES.get(delimiter, repr(delimiter))
    reason = (
        f"has {len(fields)} fields between {word}s where the header has {len(names)} "
        f"({', '.join(names[:8])}); the row begins {_short(row)!r}; put a field that holds "
        f"a {word} into double quotes, or set `delimiter`"
    )
    return Fault(reason, row, f"{line}")


def _records(text: str, *, delimiter: str, quoted: bool) -> Iterator[Record]:
    """Yield every record that is not an empty line."""
    if not quoted:
        lines = ((number, line.removesuffix("\r")) for number, line in lines_of(text))
        yield from ((number, line.split(delimiter)) for number, line in lines if line.strip())
        return
    # Offset and number of the line where reading begins, again behind each faulty quote.
    start, number = 0, 1
    while start < len(text):
        reader = csv.reader(_csv_lines(text, start), delimiter=delimiter, strict=True)
        first = number
        try:
            for fields in reader:
                if fields and (len(fields) > 1 or fields[0].strip()):
                    yield first, fields
                first = number + reader.line_num
            return
        except csv.Error as error:
            # The line where the row begins is lost; what the quote took of those after it is read again.
            start += sum(map(len, itertools.islice(_csv_lines(text, start), first - number)))
            row = next(_csv_lines(text, start))
            yield first, quote_fault(error, delimiter=delimiter, line=first, row=row)
            start, number = start + len(row), first + 1


def _csv_lines(text: str, start: int) -> Iterator[str]:
    """Yield lines with their ends as a file does. All of the text in one StringIO would take four bytes for each character."""
    size = _FIRST_BLOCK
    while start < len(text):
        end = text.find("\n", start + size) + 1 or len(text)
        yield from io.StringIO(text[start:end], newline="")
        start, size = end, min(2 * size, _BLOCK)
        tell("reading rows", start, len(text))


def quote_fault(error: csv.Error, *, delimiter: str, line: int, row: str) -> Fault:
    """Return what is wrong with the row whose quote ended the reading of records."""
    never_closes = "unexpected end" in str(error)
    what = "a double quote opens a field and never closes" if never_closes else "text follows a closing double quote"
    remedy = ", or set format: tsv, which reads quotation marks as text" if delimiter == "\t" else ""
    reason = (
        f'{what} in the row that begins on this line; write a quotation mark inside a quoted field twice (""){remedy}'
    )
    return Fault(reason, row, f"{line}")


def header_of(first: Record | None, *, shown: str) -> list[str]:
    """Return the names of columns that the first record gives. Raises DataError where there is none."""
    if first is None:
        raise DataError(f"{shown}: is empty; it needs a first line that names the columns, and rows")
    if isinstance(first[1], Fault):
        raise DataError(f"{shown}:{first[1].at}: {first[1].reason}")
    return [name.strip() for name in first[1]]


def refuse_doubled(names: list[str], *, shown: str) -> None:
    """Raise DataError where a column name stands twice."""
    doubled = next((name for name in names if names.count(name) > 1), None)
    if doubled is not None:
        raise DataError(f"{shown}:1: the column name {doubled!r} stands twice in the header; rename one")


# --- the delimiter -------------------------------------------------------------------------------------------------


def find_delimiter(text: str, *, shown: str, header: list[str] | None) -> str:
    """Return the delimiter that cuts the header in most columns and the first rows in as many.

    The first line decides which delimiters are possible: sentences hold commas and semicolons, headers hold names.
    """
    scores = {mark: _fit(text, delimiter=mark, header=header) for mark in _DELIMITERS}
    possible = {mark: score for mark, score in scores.items() if score is not None}
    if not possible:
        return ","
    best = max(possible.values())
    winners = [mark for mark in _DELIMITERS if possible.get(mark) == best]
    if len(winners) > 1:
        kinds = " and ".join(_NAMES[mark] for mark in winners)
        raise DataError(f"{shown}: may be separated by {kinds} alike; set `delimiter` of this source to the right one")
    return winners[0]


def _fit(text: str, *, delimiter: str, header: list[str] | None) -> tuple[float, int] | None:
    """Return (share of the first rows with as many fields as the first line, fields), or None for a single column."""
    records = itertools.islice(_records(text, delimiter=delimiter, quoted=True), _LOOK_AT)
    widths = [0 if isinstance(fields, Fault) else len(fields) for _, fields in records]
    if 0 in widths:
        # A faulty quote further down must not decide the delimiter: count in the header alone.
        widths = [text.split("\n", 1)[0].count(delimiter) + 1]
        if widths[0] < 2:
            return None
        return 0.0, widths[0]
    wanted = len(header) if header is not None else (widths[0] if widths else 0)
    if wanted < 2 or not widths or (header is not None and wanted not in widths):
        return None
    return sum(width == wanted for width in widths) / len(widths), wanted


def written_by_csv(text: str) -> bool:
    """Whether tab-separated text has a csv writer's quotes: every quote that opens a field closes one, and some were needed."""
    opening = sum(1 for _ in _OPENING_QUOTE.finditer(text))
    if not opening:
        return False
    fields = _QUOTED_FIELD.findall(text)
    needed = any('""' in field or "\t" in field or "\n" in field for field in fields)
    first = text.split("\n", 1)[0].rstrip("\r").split("\t")
    return len(fields) == opening and (needed or all(_QUOTED_FIELD.fullmatch(name) for name in first))


def _short(text: str, *, width: int = 60) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= width else flat[: width - 3] + "..."
