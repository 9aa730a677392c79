"""Files of a stream: what is known of each, a place inside one, and what reads it from there on."""

from __future__ import annotations

import gzip
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from launcher.data.tables import Table
from launcher.errors import DataError

_BUFFER_BYTES = 1 << 20


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

    @property
    def wanted(self) -> set[str]:
        """Names of its columns that are read."""
        return {name for names in (self.columns or {}).values() for name in names} | set(self.filter or ())


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
