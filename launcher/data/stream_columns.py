"""Files of columns from a row inside them on: parquet, by its row groups, and Arrow, by its batches."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from launcher.data.readers_arrow import FILE_MARK, table_of_arrow, unreadable
from launcher.data.stream_files import Cursor, Mark, StreamFile, open_binary
from launcher.data.tables import ColumnsTable, Places, Table
from launcher.errors import DataError

_BATCH_ROWS = 4096


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
        # A name with a dot may be of a mapping's key.
        wanted = {part for name in self.file.wanted for part in (name, name.partition(".")[0])}
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


class ParquetCursor(_ColumnsCursor):
    """A cursor in a parquet file; row groups before it are not read."""

    def tables(self, skip: int) -> Iterator[Any]:
        """Return an iterator over pyarrow tables that together hold all rows behind the first ``skip``."""
        import pyarrow
        import pyarrow.parquet

        self.raw = open_binary(self.file.place)
        opened = pyarrow.parquet.ParquetFile(self.raw)
        groups, begin = list[int](), 0
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


class ArrowCursor(_ColumnsCursor):
    """A cursor in an Arrow file or stream."""

    def tables(self, skip: int) -> Iterator[Any]:
        """Return an iterator over pyarrow tables that together hold all rows behind the first ``skip``."""
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
    noted = json.loads((metadata or {}).get(b"huggingface", b"{}"))
    features = noted.get("info", {}).get("features")
    if not features:
        return None
    kept = {name: features[name] for name in names if name in features}
    return {b"huggingface": json.dumps({"info": {"features": kept}}).encode()} if len(kept) == len(names) else None
