"""Rows by column, as readers give them, and where each row stands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from launcher.data.columns import Column


@dataclass(frozen=True)
class Places:
    """Where the rows of a table stand. ``lines`` are their first lines, from 1; None where rows have no lines."""

    shown: str
    lines: Sequence[int] | None = None

    def __call__(self, row: int) -> str:
        """Return the place of ``row`` (from 0), for an error message."""
        number = f"row {row + 1}"
        return f"{self.shown}, {number}" if self.lines is None else f"{self.shown}:{self.lines[row]} ({number})"


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

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the columns, in the file's order."""
        return tuple(self.columns)

    @property
    def rows(self) -> int:
        """Number of rows."""
        return len(next(iter(self.columns.values()), []))

    def column(self, name: str) -> Column:
        """Return the values of a column, in order."""
        return Column.of(self.columns[name])
