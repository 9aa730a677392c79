"""Rows by column, as readers give them; where each row stands, and which cannot be used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from launcher.data.columns import Column


@dataclass(frozen=True)
class Fault:
    """Why a row cannot be used. Readers and checks note it beside the row; what is done about it is `data.on_bad_row`."""

    reason: str
    """What is wrong, and the remedy, as it follows the row's place."""
    value: Any
    """What the row holds there."""
    at: str | None = None
    """Line, or line:column, where the fault stands, if that is more exact than the row."""


Faults = dict[int, Fault]
"""By number of the row, from 0."""


@dataclass(frozen=True)
class Places:
    """Where the rows of a table stand. ``lines`` are their first lines, from 1; None where rows have no lines."""

    shown: str
    lines: Sequence[int] | None = None
    folder: Path | None = None
    """What paths in the rows count from; None: they are whole."""
    before: int = 0
    """Rows of the file before the first one."""

    def __call__(self, row: int) -> str:
        """Return the place of ``row`` (from 0), for an error message."""
        number = f"row {self.before + row + 1}"
        return f"{self.shown}, {number}" if self.lines is None else f"{self.shown}:{self.lines[row]} ({number})"

    def of(self, fault: Fault, row: int) -> str:
        """Return the place of a fault in ``row``."""
        return self(row) if fault.at is None else f"{self.shown}:{fault.at}"


class Table(Protocol):
    """Rows by column, before any choice of columns."""

    @property
    def places(self) -> Places:
        """Where the rows stand."""
        ...

    @property
    def facts(self) -> dict[str, Any]:
        """How the rows were read: format, encoding, delimiter, revision."""
        ...

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the user should know about how the rows were read."""
        ...

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the columns, in the source's order."""
        ...

    @property
    def rows(self) -> int:
        """Number of rows."""
        ...

    @property
    def class_names(self) -> dict[str, tuple[str, ...]]:
        """Names of the classes of a column, where the source declares them."""
        ...

    @property
    def faults(self) -> Faults:
        """Rows that could not be read; they are counted, and their columns hold None."""
        ...

    def column(self, name: str) -> Column:
        """Return the values of a column, in order."""
        ...


@dataclass(frozen=True)
class ColumnsTable:
    """A table held as columns."""

    places: Places
    columns: Mapping[str, Sequence[Any]]
    facts: dict[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    class_names: dict[str, tuple[str, ...]] = field(default_factory=dict)
    faults: Faults = field(default_factory=dict)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the columns, in the file's order."""
        return tuple(self.columns)

    @property
    def rows(self) -> int:
        """Number of rows."""
        # Where no row could be read there is no column.
        return len(next(iter(self.columns.values()), self.faults))

    def column(self, name: str) -> Column:
        """Return the values of a column, in order."""
        return Column.of(self.columns[name])


def has_column(table: Table, name: str) -> bool:
    """Whether a table has a column, or in ``outer.inner`` a column of mappings (JSON objects) with such a key."""
    outer, _, inner = name.partition(".")
    if name in table.names or not inner or outer not in table.names:
        return name in table.names
    return any(isinstance(value, Mapping) and inner in value for value in table.column(outer))


def column_of(table: Table, name: str) -> Column:
    """Return the values of a column as ``has_column`` knows it; None where a row has no such key."""
    if name in table.names:
        return table.column(name)
    outer, _, inner = name.partition(".")
    return Column.of(value.get(inner) if isinstance(value, Mapping) else None for value in table.column(outer))
