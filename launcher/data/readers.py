"""One file to named columns, whatever its format; every row keeps the line or number it had, so errors can name it."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from launcher.data.columns import Column, packed
from launcher.data.readers_conll import read_conll, read_conllu
from launcher.data.readers_csv import read_delimited
from launcher.data.readers_squad import squad_columns
from launcher.data.readers_text import DecodedText, lines_of, read_text
from launcher.data.telling import tell
from launcher.errors import DataError

if TYPE_CHECKING:
    from launcher.recipe.data_section import SourceSpec

FORMATS = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".tab": "tsv",
    ".json": "json",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".txt": "labelled-text",
    ".conll": "conll",
    ".bio": "conll",
    ".iob": "conll",
    ".iob2": "conll",
    ".conllu": "conllu",
}
_BATCH_ROWS = 4096
_TEXT_FORMATS = ("csv", "tsv", "json", "jsonl", "labelled-text", "text", "paragraphs", "conll", "conllu")


@dataclass(frozen=True)
class Places:
    """Where the rows of a table stand. ``lines`` are their first lines, from 1; None where rows have no lines."""

    shown: str
    lines: Sequence[int] | None = None
    folder: Path | None = None
    """What paths in the rows count from; None: they are whole."""

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


@dataclass(frozen=True)
class _Read:
    """What a reader makes of a file's text."""

    columns: Mapping[str, Sequence[Any]]
    lines: Sequence[int] | None = None
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ArrowTable:
    """A table of the library ``datasets``; ClassLabel numbers come out as names, and -1 (hidden) as None."""

    places: Places
    dataset: Any
    facts: dict[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

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


def read_file(path: Path, *, spec: SourceSpec, shown: str | None = None, plain_text: bool = False) -> Table:
    """Read one file by ``spec.format``, or by its ending.

    ``shown`` is how errors name the file; with ``plain_text`` the ending .txt stands for texts without labels, one a line.
    Raises DataError: unknown format, an option that the format does not have, or content that does not fit it (the line is
    named).
    """
    kind = spec.format or file_format(path)
    if plain_text and spec.format is None and kind == "labelled-text":
        kind = "text"
    if kind is None:
        known = ", ".join(sorted(FORMATS))
        raise DataError(f"{path}: its ending tells no format (known: {known}); set `format` of this source")
    _refuse_unused(spec, kind=kind, path=path)
    label = shown or str(path)
    if kind == "parquet":
        return _read_parquet(path, shown=label)
    decoded = read_text(path, encoding=spec.encoding)
    read = _READERS[kind](decoded.text, path, spec)
    warnings = (_guess(decoded, shown=label),) if decoded.guessed else ()
    facts = {"format": kind, "encoding": decoded.encoding, **read.facts}
    return ColumnsTable(Places(label, read.lines, path.parent), read.columns, facts, warnings)


def file_format(path: Path) -> str | None:
    """Return the format that the ending of ``path`` stands for, or None; text may be packed by gzip (.csv.gz)."""
    name = path.name.lower()
    kind = FORMATS.get(Path(name.removesuffix(".gz")).suffix)
    return None if kind == "parquet" and name.endswith(".gz") else kind


def bare_stem(path: Path) -> str:
    """Return the name of a file without its endings, such as ``train`` for train.csv.gz."""
    return Path(path.name.removesuffix(".gz")).stem


def _guess(decoded: DecodedText, *, shown: str) -> str:
    return (
        f"{shown} is not UTF-8; it was read as {decoded.encoding}, which was detected: "
        f"look at a few rows, and write `encoding: {decoded.encoding}` into the source to be sure"
    )


def _refuse_unused(spec: SourceSpec, *, kind: str, path: Path) -> None:
    """An option that would be ignored is an error."""
    wrong = {
        "delimiter": spec.delimiter is not None and kind not in ("csv", "tsv"),
        "header": spec.header is not None and kind not in ("csv", "tsv", "conll"),
        "encoding": spec.encoding is not None and kind not in _TEXT_FORMATS,
    }
    for key, refused in wrong.items():
        if refused:
            raise DataError(f"{path}: `{key}` is set, and a {kind} file has none; remove it from this source")


# --- formats -------------------------------------------------------------------------------------------------------


def _read_csv(text: str, path: Path, spec: SourceSpec) -> _Read:
    read = read_delimited(
        text, path=path, delimiter=spec.delimiter, header=spec.header, tabs=(spec.format or file_format(path)) == "tsv"
    )
    facts = {"delimiter": read.delimiter, "quoting": "double" if read.quoted else "none"}
    return _Read(dict(read.columns), read.lines, facts)


def _read_json(text: str, path: Path, spec: SourceSpec) -> _Read:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        # Many files named .json hold one object a line.
        if error.msg == "Extra data" and text.lstrip().startswith("{"):
            return _read_jsonl(text, path, spec)
        raise DataError(_broken_json(path, line=error.lineno, column=error.colno, fault=error.msg)) from None
    rows = value.get("data") if isinstance(value, dict) else value
    if isinstance(rows, list) and rows and all(isinstance(row, dict) and "paragraphs" in row for row in rows):
        return _Read(squad_columns(rows, path), facts={"layout": "squad"})
    if not isinstance(rows, list):
        held = f"the keys {', '.join(map(repr, value))}" if isinstance(value, dict) else type(value).__name__
        raise DataError(f'{path}: needs a list of objects, or {{"data": [...]}}; it holds {held}')
    return _Read(_columns_of(iter(rows), total=len(rows), place=lambda row: f"{path}, row {row + 1}"))


def _read_jsonl(text: str, path: Path, spec: SourceSpec) -> _Read:
    # A line is packed away before the next ones are parsed: as objects, rows take many times their size.
    lines = Column.of(number for number, line in lines_of(text) if line.strip())
    objects = (_parsed(line, path=path, number=number) for number, line in lines_of(text) if line.strip())
    return _Read(_columns_of(objects, total=len(lines), place=lambda row: f"{path}:{lines[row]}"), lines)


def _parsed(line: str, *, path: Path, number: int) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(_broken_json(path, line=number, column=error.colno, fault=error.msg)) from None


def _broken_json(path: Path, *, line: int, column: int, fault: str) -> str:
    return f"{path}:{line}:{column}: broken JSON ({fault}); mend this line, or set `format` if the file is not JSON"


def _columns_of(rows: Iterator[Any], *, total: int, place: Callable[[int], str]) -> dict[str, Column]:
    """Turn objects into columns; a key that a row lacks is None there."""
    chunks: dict[str, list[Any]] = {}
    read, odd = 0, ""
    for batch in iter(lambda: list(itertools.islice(rows, _BATCH_ROWS)), []):
        # A broken line, even a later one, is told first.
        odd = odd or next(
            (_no_object(row, place(read + n)) for n, row in enumerate(batch) if type(row) is not dict), ""
        )
        for name in dict.fromkeys(name for row in batch if not odd for name in row):
            missing = [[None] * read] if read and name not in chunks else []
            chunks.setdefault(name, []).extend(missing)
        for name, found in chunks.items():
            found.append([] if odd else packed([row.get(name) for row in batch]))
        read += len(batch)
        tell("reading rows", read, total)
    if odd:
        raise DataError(odd)
    return {name: Column(found) for name, found in chunks.items()}


def _no_object(row: Any, place: str) -> str:
    return f'{place}: is {type(row).__name__}, not an object such as {{"text": ..., "label": ...}}'


def _read_labelled(text: str, path: Path, spec: SourceSpec) -> _Read:
    numbered = [(n, line.removesuffix("\r")) for n, line in enumerate(text.split("\n"), start=1) if line.strip()]
    lines = [number for number, _ in numbered]
    if not any("\t" in line for _, line in numbered):
        return _Read({"text": [line for _, line in numbered]}, lines)
    for number, line in numbered:
        if "\t" not in line:
            raise DataError(f"{path}:{number}: has no tab; every line has to be label<TAB>text, as the other lines are")
    pairs = [line.split("\t", 1) for _, line in numbered]
    labels, texts = [label for label, _ in pairs], [body for _, body in pairs]
    if len(labels) >= 20 and len(set(labels)) > 0.9 * len(labels) and len(set(texts)) < 0.5 * len(texts):
        raise DataError(
            f"{path}: seems to be text<TAB>label, not label<TAB>text; "
            "read it with format: tsv and header: [text, label]"
        )
    return _Read({"label": labels, "text": texts}, lines)


def _read_lines(text: str, path: Path, spec: SourceSpec) -> _Read:
    """Each line that is not blank is a row."""
    texts = Column.of(line.removesuffix("\r") for _, line in lines_of(text) if line.strip())
    return _Read({"text": texts}, Column.of(number for number, line in lines_of(text) if line.strip()))


def _read_paragraphs(text: str, path: Path, spec: SourceSpec) -> _Read:
    """Lines up to the next blank line are a row, with their line breaks."""
    paragraphs: list[list[str]] = []
    lines: list[int] = []
    was_blank = True
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            if was_blank:
                paragraphs.append([])
                lines.append(number)
            paragraphs[-1].append(line.removesuffix("\r"))
        was_blank = not line.strip()
    return _Read({"text": ["\n".join(paragraph) for paragraph in paragraphs]}, lines)


def _read_conll(text: str, path: Path, spec: SourceSpec) -> _Read:
    return _Read(*read_conll(text, path, header=spec.header))


def _read_conllu(text: str, path: Path, spec: SourceSpec) -> _Read:
    return _Read(*read_conllu(text, path))


def _read_parquet(path: Path, *, shown: str) -> Table:
    import pyarrow
    import pyarrow.parquet

    try:
        arrow = pyarrow.parquet.read_table(path)
    except (OSError, pyarrow.ArrowException) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"{path}: is not a readable parquet file ({reason}); write it again, or set `format`") from None
    return table_of_arrow(arrow, shown=shown, facts={"format": "parquet"}, folder=path.parent)


def table_of_arrow(arrow: Any, *, shown: str, facts: dict[str, Any], folder: Path | None = None) -> Table:
    """Return a pyarrow table as a Table: dictionary columns decoded, names of classes from the metadata of ``datasets``."""
    from datasets import Dataset

    return ArrowTable(Places(shown, folder=folder), Dataset(_without_dictionaries(arrow)), facts)


def _without_dictionaries(arrow: Any) -> Any:
    import pyarrow

    for index, column in enumerate(arrow.schema):
        if pyarrow.types.is_dictionary(column.type):
            plain = column.with_type(column.type.value_type)
            arrow = arrow.set_column(index, plain, arrow.column(index).cast(column.type.value_type))
    # pandas' own notes would bring its index back as a column type that no longer fits.
    metadata = {k: v for k, v in (arrow.schema.metadata or {}).items() if k == b"huggingface"}
    return arrow.replace_schema_metadata(metadata or None)


_READERS = {
    "csv": _read_csv,
    "tsv": _read_csv,
    "json": _read_json,
    "jsonl": _read_jsonl,
    "labelled-text": _read_labelled,
    "text": _read_lines,
    "paragraphs": _read_paragraphs,
    "conll": _read_conll,
    "conllu": _read_conllu,
}
