"""Files that are read a stretch at a time, from a place inside them on: what streaming needs of each format.

A cursor stands at a ``Mark`` and takes rows from there. The row that it stands at is found again by the mark alone: by its byte in text,
by its number in files of columns. What it takes is a table as other readers give it, whose rows keep line and number.
"""

from __future__ import annotations

from collections.abc import Callable

from launcher.data.stream_columns import ArrowCursor, ParquetCursor
from launcher.data.stream_files import Cursor, Mark, StreamFile
from launcher.data.stream_lines import DelimitedCursor, JsonlCursor, TextCursor

_CURSORS: dict[str, Callable[[StreamFile, Mark], Cursor]] = {
    "jsonl": JsonlCursor,
    "csv": DelimitedCursor,
    "tsv": DelimitedCursor,
    "text": TextCursor,
    "parquet": ParquetCursor,
    "arrow": ArrowCursor,
}


def open_cursor(file: StreamFile, mark: Mark) -> Cursor:
    """Return a cursor that stands at ``mark``. Raises DataError where the file cannot be read."""
    return _CURSORS[file.format](file, mark)
