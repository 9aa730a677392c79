"""Files of columns: parquet and Arrow, whose tables the library ``datasets`` holds."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from launcher.data.columns import Column
from launcher.data.tables import Faults, Places
from launcher.errors import DataError

_BATCH_ROWS = 4096
FILE_MARK = b"ARROW1"
_END_MARK = b"\xff\xff\xff\xff\0\0\0\0"
_NO_END = "{shown}: has no mark at its end, as an Arrow stream that was cut short; hold the number of rows to what was written"


@dataclass(frozen=True)
class ArrowTable:
    """A table of the library ``datasets``; ClassLabel numbers come out as names, and -1 (hidden) as None."""

    places: Places
    dataset: Any
    facts: dict[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    faults: Faults = field(default_factory=dict)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the columns."""
        return tuple(self.dataset.column_names)

    @property
    def rows(self) -> int:
        """Number of rows."""
        return len(self.dataset)

    @property
    def class_names(self) -> dict[str, tuple[str, ...]]:
        """Names of the classes of every ClassLabel column."""
        found = {name: _names_of(feature) for name, feature in self.dataset.features.items()}
        return {name: names for name, names in found.items() if names}

    def column(self, name: str) -> Column:
        """Return the values of a column, in order; class numbers as names."""
        names = self.class_names.get(name)
        if type(self.dataset.features[name]).__name__ == "Image":
            return Column.of(self._undecoded(name))
        if names is None and _is_plain(self.dataset.features[name]):
            return Column(self.dataset.select_columns([name]).with_format("arrow")[:].column(name).chunks)
        values = (value for batch in self.dataset.select_columns([name]).iter(_BATCH_ROWS) for value in batch[name])
        return Column.of(values if names is None else (_class_name(value, names=names) for value in values))

    def _undecoded(self, name: str) -> Iterator[Any]:
        """Yield images as {bytes, path}: who needs their pixels decodes them."""
        from datasets import Image

        one = self.dataset.select_columns([name]).cast_column(name, Image(decode=False))
        return (value for batch in one.iter(_BATCH_ROWS) for value in batch[name])


def _is_plain(feature: Any) -> bool:
    """Whether values of a feature are those of their Arrow array as they stand."""
    return getattr(feature, "dtype", None) in ("string", "large_string", "int32", "int64", "float64")


def _names_of(feature: Any) -> tuple[str, ...]:
    inner = feature[0] if isinstance(feature, list) and feature else getattr(feature, "feature", feature)
    return tuple(getattr(inner, "names", None) or ())


def _class_name(value: Any, *, names: tuple[str, ...]) -> Any:
    if isinstance(value, list):
        return [_class_name(item, names=names) for item in value]
    if isinstance(value, int):
        return names[value] if 0 <= value < len(names) else None
    return value


def read_parquet(path: Path, *, shown: str) -> ArrowTable:
    """Read a parquet file. Raises DataError."""
    import pyarrow
    import pyarrow.parquet

    try:
        arrow = pyarrow.parquet.read_table(path)
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(unreadable(error, shown=shown, kind="parquet")) from None
    return table_of_arrow(arrow, Places(shown, folder=path.parent), facts={"format": "parquet"})


def read_arrow(path: Path, *, shown: str) -> ArrowTable:
    """Read an Arrow file (Feather is one) or an Arrow stream, as `datasets` writes them. Raises DataError."""
    import pyarrow

    try:
        with path.open("rb") as file:
            is_file = file.read(len(FILE_MARK)) == FILE_MARK
        with pyarrow.memory_map(str(path)) as source:
            read = (pyarrow.ipc.open_file if is_file else pyarrow.ipc.open_stream)(source).read_all()
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(unreadable(error, shown=shown, kind="Arrow")) from None
    notes = () if is_file or _has_end(path) else (_NO_END.format(shown=shown),)
    facts = {"format": "arrow", "layout": "file" if is_file else "stream"}
    return table_of_arrow(read, Places(shown, folder=path.parent), facts=facts, warnings=notes)


def _has_end(path: Path) -> bool:
    """Whether a stream closes with the mark that writers set (arrow.apache.org/docs/format/Columnar.html, IPC Streaming Format)."""
    with path.open("rb") as file:
        file.seek(-min(len(_END_MARK), path.stat().st_size), os.SEEK_END)
        return file.read() == _END_MARK


def unreadable(error: Exception, *, shown: str, kind: str) -> str:
    """Return the error of a file that its library cannot read."""
    reason = next(iter(str(error).splitlines()), type(error).__name__)
    return f"{shown}: is not a readable {kind} file ({reason}); write it again, or set `format`"


def table_of_arrow(arrow: Any, places: Places, *, facts: dict[str, Any], warnings: tuple[str, ...] = ()) -> ArrowTable:
    """Return a pyarrow table as an ArrowTable: dictionary columns decoded, names of classes from the metadata of ``datasets``.

    Raises DataError where two columns have one name.
    """
    from datasets import Dataset

    names = arrow.column_names
    doubled = next((name for name in names if names.count(name) > 1), None)
    if doubled is not None:
        raise DataError(f"{places.shown}: the column name {doubled!r} stands twice; rename one")
    return ArrowTable(places, Dataset(_without_dictionaries(arrow)), facts, warnings)


def _without_dictionaries(arrow: Any) -> Any:
    import pyarrow

    for index, column in enumerate(arrow.schema):
        if pyarrow.types.is_dictionary(column.type):
            plain = column.with_type(column.type.value_type)
            arrow = arrow.set_column(index, plain, arrow.column(index).cast(column.type.value_type))
    # pandas' own notes would bring its index back as a column type that no longer fits.
    metadata = {k: v for k, v in (arrow.schema.metadata or {}).items() if k == b"huggingface"}
    return arrow.replace_schema_metadata(metadata or None)
