"""Workbooks of Excel (.xlsx), read by openpyxl where it is installed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from launcher.data.columns import Column
from launcher.data.tables import ColumnsTable, Places
from launcher.errors import DataError, InstallationError

Row = Sequence[Any]
Numbered = tuple[int, Row]
"""A row's number in Excel, from 1, and its cells."""


def read_xlsx(path: Path, *, shown: str, header: Sequence[str] | None) -> ColumnsTable:
    """Read the one sheet of a workbook: values as Excel shows them, of formulas what they came to when it was saved.

    Raises:
        DataError: no workbook, several sheets with cells, or columns that have no name of their own.
        InstallationError: openpyxl is not installed.
    """
    filled = {name: rows for name, rows in _sheets(path, shown=shown).items() if rows}
    if len(filled) > 1:
        raise DataError(
            f"{shown}: has the sheets {', '.join(map(repr, filled))}; a source is one sheet: save the right one as a file of its own, "
            "as .csv or .xlsx"
        )
    name, rows = next(iter(filled.items()), ("", []))
    return table_of_rows(rows, shown=shown, header=header, facts={"format": "xlsx", "sheet": name})


def table_of_rows(
    rows: Iterable[Numbered], *, shown: str, header: Sequence[str] | None, facts: dict[str, Any]
) -> ColumnsTable:
    """Return (number, cells) of a sheet's rows as a table; numbers are Excel's, from 1, and rows without a value are left out.

    Raises DataError where a column has no name, or that of another one.
    """
    filled = [(number, list(cells)) for number, cells in rows if any(cell is not None for cell in cells)]
    if header is None and not filled:
        raise DataError(f"{shown}: is empty; it needs a first row that names the columns, and rows")
    first, names = (1, list(header)) if header is not None else filled.pop(0)
    width = max(
        (place for _, cells in [(first, names), *filled] for place, cell in enumerate(cells, 1) if cell is not None)
    )
    names = [None if name is None else str(name).strip() for name in [*names, *[None] * width][:width]]
    for place, name in enumerate(names):
        if not name or name in names[:place]:
            what = f"the column name {name!r} stands twice" if name else f"column {place + 1} has cells and no name"
            raise DataError(f"{shown}:{first}: {what}; name each column in the first row, or all of them in `header`")
    columns = {name: Column.of(_cell(cells, place) for _, cells in filled) for place, name in enumerate(names)}
    return ColumnsTable(Places(shown, Column.of(number for number, _ in filled)), columns, facts)


def _cell(cells: Row, place: int) -> Any:
    return cells[place] if place < len(cells) else None


def _sheets(path: Path, *, shown: str) -> dict[str, list[Numbered]]:
    """Return name -> (number, values) of the rows of every sheet that have a value."""
    try:
        import openpyxl
    except ImportError:
        raise InstallationError(
            f"{shown}: reading .xlsx needs the package openpyxl, which is not installed; pip install openpyxl, or save the sheet as .csv"
        ) from None
    try:
        with closing(openpyxl.load_workbook(path, read_only=True, data_only=True)) as book:
            for sheet in book.worksheets:
                # Some programs write a size that is too small, and what lies beyond would be left out.
                sheet.reset_dimensions()
            return {sheet.title: list(_filled(sheet.iter_rows(values_only=True))) for sheet in book.worksheets}
    except Exception as error:
        # A damaged file raises whatever its reader met.
        raise DataError(f"{shown}: is not a readable .xlsx file ({error}); save it again, or set `format`") from None


def _filled(rows: Iterable[Row]) -> Iterator[Numbered]:
    return ((number, cells) for number, cells in enumerate(rows, start=1) if any(cell is not None for cell in cells))
