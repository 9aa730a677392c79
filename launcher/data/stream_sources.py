"""The files of a stream: found, and looked at before training, so that a fault in one of them does not come up days later."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from launcher.data.addresses import file_name, list_folder, refuse_faulty
from launcher.data.builtin import PREFIX
from launcher.data.readers import file_format
from launcher.data.sources_find import split_files
from launcher.data.sources_rows import Part
from launcher.data.stream_files import Mark, StreamFile, open_binary
from launcher.data.stream_readers import open_cursor
from launcher.data.tables import Table
from launcher.errors import DataError
from launcher.recipe.addresses import is_address
from launcher.recipe.data_section import STREAMED_FORMATS, DataSection, SourceSpec

_SAMPLE_ROWS = 1000
_LEAST_ROWS = 20
_MOST_FILES = 1000
"""Files that are looked at; the others are taken to be like the first one of their source."""


@dataclass(frozen=True)
class StreamSource:
    """A source of train, and the files that it stands for."""

    spec: SourceSpec
    files: tuple[StreamFile, ...]


def find_stream(data: DataSection, *, base_folder: Path, plain_text: bool) -> list[StreamSource]:
    """Return the files of each source of train, in the recipe's order; those of a folder by name.

    Raises:
        DataError: there is no such file, a source is none of files, or a format that cannot be streamed.
        InstallationError: a package that reads such addresses is not installed.
    """
    listed = data.train if isinstance(data.train, list) else [data.train]
    specs = [SourceSpec(source=one) if isinstance(one, str) else one for one in listed if one is not None]
    return [
        StreamSource(
            spec, tuple(_file(place, size, spec, number, plain_text) for place, size in _places(spec, base_folder))
        )
        for number, spec in enumerate(specs)
    ]


def _places(spec: SourceSpec, base_folder: Path) -> list[tuple[str, int]]:
    """Return (path or address, bytes) of the files of a source."""
    if spec.source.startswith(PREFIX):
        raise DataError(f"{spec.source}: a built-in source is small and cannot be streamed; remove data.streaming")
    if is_address(spec.source):
        return _addresses(spec)
    path = (base_folder / Path(spec.source).expanduser()).resolve()
    if path.is_file():
        return [(str(path), path.stat().st_size)]
    if not path.is_dir():
        hub = f"hf://datasets/{spec.source}"
        raise DataError(
            f"data source {spec.source!r}: no file or folder {path} exists; data.streaming reads files: of a data set on the hub name them, "
            f"such as {hub}/data, or its name with revision {hub}@REVISION/data"
        )
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        raise DataError(
            f"{path}: was saved by `datasets`, whose order of rows may lie in another file; write it as parquet (to_parquet) to stream it"
        )
    names = _of_folder([entry.name for entry in path.iterdir() if entry.is_file()], spec, shown=str(path))
    return [(str(path / name), (path / name).stat().st_size) for name in names]


def _addresses(spec: SourceSpec) -> list[tuple[str, int]]:
    refuse_faulty(spec.source)
    listed = [] if file_format(Path(file_name(spec.source))) else list_folder(spec.source)
    by_name = {file_name(address): address for address in listed}
    found = [by_name[name] for name in _of_folder(list(by_name), spec, shown=spec.source)] if listed else [spec.source]
    return [(address, _size(address)) for address in found]


def _size(address: str) -> int:
    with open_binary(address) as file:
        raw = getattr(file, "raw", None)
        return int(getattr(raw, "size", 0) or 0)


def _of_folder(names: list[str], spec: SourceSpec, *, shown: str) -> list[str]:
    """Return the files of a folder that are the split train, or all of a known format where none is named for a split."""
    split = split_files(names, shown=shown)
    if split:
        wanted = spec.split or "train"
        if wanted not in split:
            raise DataError(f"{shown}: has no split {wanted!r}, only {', '.join(split)}; set `split` of this source")
        return split[wanted]
    found = sorted(name for name in names if spec.format or file_format(Path(name)))
    if not found:
        raise DataError(f"{shown}: holds no file of a format that can be streamed ({', '.join(STREAMED_FORMATS)})")
    return found


def _file(place: str, size: int, spec: SourceSpec, number: int, plain_text: bool) -> StreamFile:
    kind = spec.format or file_format(Path(file_name(place)) if is_address(place) else Path(place))
    if plain_text and spec.format is None and kind == "labelled-text":
        kind = "text"
    if kind not in STREAMED_FORMATS:
        held = f"is {kind}" if kind else "has an ending that tells no format"
        raise DataError(
            f"{place}: {held}; what can be streamed is {', '.join(STREAMED_FORMATS)}: write it in one of them, or remove data.streaming"
        )
    return StreamFile(
        place, kind, size, number,
        encoding=spec.encoding, delimiter=spec.delimiter, header=spec.header, filter=spec.filter,
    )  # fmt: skip


# --- a look at them --------------------------------------------------------------------------------------------------


def sample_parts(sources: Sequence[StreamSource]) -> list[Part]:
    """Return the first rows of each file as sources of their own: what of train is prepared, checked and shown."""
    files = max(1, sum(len(source.files) for source in sources))
    rows = max(_LEAST_ROWS, -(-_SAMPLE_ROWS // files))
    left = _MOST_FILES
    parts = []
    for source in sources:
        # At least one of each source, whose files are taken to be alike.
        looked_at = source.files[: max(1, left)]
        left -= len(looked_at)
        parts.append(Part(source.spec, functools.partial(_tables, looked_at, rows)))
    return parts


def _tables(files: Sequence[StreamFile], rows: int) -> list[Table]:
    return [_first_rows(file, rows) for file in files]


def _first_rows(file: StreamFile, rows: int) -> Table:
    cursor = open_cursor(file, Mark())
    try:
        return cursor.take(rows)
    finally:
        cursor.close()


def looked_at(sources: Sequence[StreamSource], provenance: Sequence[Mapping[str, Any]]) -> tuple[StreamFile, ...]:
    """Return all files, each with its columns: as they were found in it, or in another file of its source."""
    found = {fact["place"]: fact.get("columns") for fact in provenance}
    files = []
    for source in sources:
        usual = next((found[file.place] for file in source.files if found.get(file.place)), None)
        for file in source.files:
            columns = found.get(file.place) or usual
            if columns is None:
                raise DataError(f"{file.place}: has no row that can be used among its first; remove the source")
            known = {ours: [theirs] if isinstance(theirs, str) else list(theirs) for ours, theirs in columns.items()}
            files.append(replace(file, columns=known))
    return tuple(files)


def stream_fingerprint(fingerprint: str, files: Sequence[StreamFile]) -> str:
    """Return what identifies the rows of a recipe whose train is streamed: those that were read, and names and sizes of the files."""
    listed = [[Path(file.place).name, file.bytes, file.source] for file in files]
    return hashlib.sha256(json.dumps([fingerprint, listed]).encode()).hexdigest()


def files_to_json(files: Sequence[StreamFile]) -> list[dict[str, Any]]:
    """Return plain values of files, for the ranks that did not look at them."""
    return [asdict(file) for file in files]


def files_from_json(values: Sequence[Mapping[str, Any]]) -> tuple[StreamFile, ...]:
    """Read back what ``files_to_json`` returned."""
    return tuple(StreamFile(**value) for value in values)
