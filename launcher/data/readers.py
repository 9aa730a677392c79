"""One file to named columns, whatever its format; every row keeps the line or number it had, so errors can name it."""

from __future__ import annotations

import itertools
import json
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launcher.data.columns import Column, packed
from launcher.data.readers_arrow import ArrowTable, read_arrow, read_parquet
from launcher.data.readers_boxes import coco_columns, is_coco
from launcher.data.readers_conll import read_conll, read_conllu
from launcher.data.readers_csv import read_delimited
from launcher.data.readers_squad import squad_columns
from launcher.data.readers_text import MARK, MARK_INSIDE, DecodedText, lines_of, read_broken_text
from launcher.data.readers_xlsx import read_xlsx
from launcher.data.tables import ColumnsTable, Fault, Faults, Places
from launcher.data.telling import tell
from launcher.errors import DataError
from launcher.recipe.data_section import FORMATS

if TYPE_CHECKING:
    from launcher.recipe.data_section import SourceSpec

_BATCH_ROWS = 4096
_TEXT_FORMATS = ("csv", "tsv", "json", "jsonl", "labelled-text", "text", "paragraphs", "conll", "conllu")


@dataclass(frozen=True)
class Read:
    """What a reader makes of a file's text."""

    columns: Mapping[str, Sequence[Any]]
    lines: Sequence[int] | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    faults: Faults = field(default_factory=dict)


def read_file(
    path: Path, *, spec: SourceSpec, shown: str | None = None, plain_text: bool = False
) -> ColumnsTable | ArrowTable:
    """Read one file by ``spec.format``, or by its ending.

    ``shown`` is how errors name the file; with ``plain_text`` the ending .txt stands for texts without labels, one a line.
    Raises DataError: unknown format, an option that the format does not have, or content that does not fit it (the line is
    named).
    """
    kind, label = spec.format or file_format(path), shown or str(path)
    if plain_text and spec.format is None and kind == "labelled-text":
        kind = "text"
    if kind is None:
        known = ", ".join(sorted(FORMATS))
        raise DataError(f"{label}: its ending tells no format (known: {known}); set `format` of this source")
    _refuse_unused(spec, kind=kind, shown=label)
    if kind in _WHOLE:
        return _WHOLE[kind](path, shown=label)
    if kind == "xlsx":
        return read_xlsx(path, shown=label, header=spec.header)
    decoded = read_broken_text(path, encoding=spec.encoding, shown=label)
    read = _READERS[kind](decoded.text, label, spec)
    faults = {**read.faults, **faults_of_bytes(decoded.broken, lines=read.lines, shown=label)}
    warnings = (_guess(decoded, shown=label),) if decoded.guessed else ()
    facts = {"format": kind, "encoding": decoded.encoding, **read.facts}
    return ColumnsTable(Places(label, read.lines, path.parent), read.columns, facts, warnings, faults=faults)


def faults_of_bytes(broken: Mapping[int, str], *, lines: Sequence[int] | None, shown: str) -> Faults:
    """Return broken lines as faults of their rows. Raises DataError for one that is of no row, such as the header."""
    faults: Faults = {}
    for line, reason in broken.items():
        row = bisect_right(lines or (), line) - 1
        if row < 0:
            raise DataError(f"{shown}:{line}: {reason}")
        faults.setdefault(row, Fault(reason, None, f"{line}"))
    return faults


def file_format(path: Path) -> str | None:
    """Return the format that the ending of ``path`` stands for, or None; text may be packed by gzip (.csv.gz)."""
    name = path.name.lower()
    kind = FORMATS.get(Path(name.removesuffix(".gz")).suffix)
    return kind if kind in _TEXT_FORMATS or not name.endswith(".gz") else None


def bare_stem(path: Path) -> str:
    """Return the name of a file without its endings, such as ``train`` for train.csv.gz."""
    return Path(path.name.removesuffix(".gz")).stem


def _guess(decoded: DecodedText, *, shown: str) -> str:
    return (
        f"{shown} is not UTF-8; it was read as {decoded.encoding}, which was detected: "
        f"look at a few rows, and write `encoding: {decoded.encoding}` into the source to be sure"
    )


def _refuse_unused(spec: SourceSpec, *, kind: str, shown: str) -> None:
    """An option that would be ignored is an error."""
    wrong = {
        "delimiter": spec.delimiter is not None and kind not in ("csv", "tsv"),
        "header": spec.header is not None and kind not in ("csv", "tsv", "xlsx", "conll"),
        "encoding": spec.encoding is not None and kind not in _TEXT_FORMATS,
    }
    for key, refused in wrong.items():
        if refused:
            raise DataError(f"{shown}: `{key}` is set, and a {kind} file has none; remove it from this source")


# --- formats -------------------------------------------------------------------------------------------------------


def _read_csv(text: str, shown: str, spec: SourceSpec, *, tabs: bool = False) -> Read:
    read = read_delimited(text, shown=shown, delimiter=spec.delimiter, header=spec.header, tabs=tabs)
    facts = {"delimiter": read.delimiter, "quoting": "double" if read.quoted else "none"}
    return Read(dict(read.columns), read.lines, facts, read.faults)


def _read_json(text: str, shown: str, spec: SourceSpec) -> Read:
    try:
        value = _parsed(text)
    except _NotJson as error:
        # Many files named .json hold one object a line.
        if error.extra and text.lstrip().startswith("{"):
            return _read_jsonl(text, shown, spec)
        raise DataError(f"{shown}:{error.line}{error.column}: {error.reason}") from None
    if is_coco(value):
        columns, faults = coco_columns(value, shown)
        return Read(columns, None, {"layout": "coco"}, faults)
    rows = value.get("data") if isinstance(value, dict) else value
    if isinstance(rows, list) and rows and all(isinstance(row, dict) and "paragraphs" in row for row in rows):
        columns, faults = squad_columns(rows, shown)
        return Read(columns, None, {"layout": "squad"}, faults)
    if not isinstance(rows, list):
        held = f"the keys {', '.join(map(repr, value))}" if isinstance(value, dict) else type(value).__name__
        raise DataError(f'{shown}: needs a list of objects, or {{"data": [...]}}; it holds {held}')
    return _of_objects(iter(rows), total=len(rows))


def _read_jsonl(text: str, shown: str, spec: SourceSpec) -> Read:
    # A line is packed away before the next ones are parsed: as objects, rows take many times their size.
    lines = Column.of(number for number, line in lines_of(text) if line.strip())
    rows = (_of_line(line, number) for number, line in lines_of(text) if line.strip())
    return _of_objects(rows, total=len(lines), lines=lines)


def rows_of_jsonl(lines: Sequence[tuple[int, str]]) -> Read:
    """Return the rows of lines of JSON, each with its number."""
    rows = (_of_line(line, number) for number, line in lines)
    return _of_objects(rows, total=len(lines), lines=[number for number, _ in lines])


def _of_line(line: str, number: int) -> Any:
    """Return the value of a line of JSON, or its Fault."""
    try:
        return _parsed(line)
    except _NotJson as error:
        return Fault(MARK_INSIDE if line.startswith(MARK) else error.reason, line, f"{number}{error.column}")


class _NotJson(Exception):
    """Text that is no JSON: what is wrong, the line, ``:column`` or nothing, and whether only more text follows."""

    def __init__(self, fault: str, *, line: int = 1, column: str = "", extra: bool = False) -> None:
        self.reason = f"broken JSON ({fault}); mend this line, or set `format` if the file is not JSON"
        self.line, self.column, self.extra = line, column, extra


def _parsed(text: str) -> Any:
    """Return the value that JSON text stands for. Raises _NotJson."""
    try:
        return _DECODER.decode(text)
    except json.JSONDecodeError as error:
        extra = error.msg == "Extra data"
        raise _NotJson(error.msg, line=error.lineno, column=f":{error.colno}", extra=extra) from None
    except RecursionError:
        raise _NotJson("it is nested too deeply") from None
    except ValueError as error:
        # A key that stands twice, and whole numbers of thousands of digits.
        raise _NotJson(str(error)) from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(name for name in names if names.count(name) > 1)!r} stands twice in an object")
    return found


_DECODER = json.JSONDecoder(object_pairs_hook=_object)


def _of_objects(rows: Iterator[Any], *, total: int, lines: Sequence[int] | None = None) -> Read:
    """Turn objects into columns; a key that a row lacks is None there. A row that is a Fault, or no object, has None everywhere."""
    chunks: dict[str, list[Any]] = {}
    faults: Faults = {}
    read = 0
    for batch in iter(lambda: list(itertools.islice(rows, _BATCH_ROWS)), []):
        odd = [(read + number, row) for number, row in enumerate(batch) if type(row) is not dict]
        faults |= {number: _no_object(row, None if lines is None else f"{lines[number]}") for number, row in odd}
        objects = [row if type(row) is dict else {} for row in batch] if odd else batch
        for name in dict.fromkeys(name for row in objects for name in row):
            missing = [[None] * read] if read and name not in chunks else []
            chunks.setdefault(name, []).extend(missing)
        for name, found in chunks.items():
            found.append(packed([row.get(name) for row in objects]))
        read += len(batch)
        tell("reading rows", read, total)
    return Read({name: Column(found) for name, found in chunks.items()}, lines, faults=faults)


def _no_object(row: Any, at: str | None) -> Fault:
    if isinstance(row, Fault):
        return row
    return Fault(f'is {type(row).__name__}, not an object such as {{"text": ..., "label": ...}}', row, at)


def _read_labelled(text: str, shown: str, spec: SourceSpec) -> Read:
    numbered = [(n, line.removesuffix("\r")) for n, line in enumerate(text.split("\n"), start=1) if line.strip()]
    lines = [number for number, _ in numbered]
    if not any("\t" in line for _, line in numbered):
        return Read({"text": [line for _, line in numbered]}, lines)
    faults = {
        row: Fault(reason, line, f"{number}")
        for row, (number, line) in enumerate(numbered)
        if (reason := _unlabelled(line))
    }
    pairs = [(None, None) if row in faults else line.split("\t", 1) for row, (_, line) in enumerate(numbered)]
    labels, texts = [label for label, _ in pairs], [body for _, body in pairs]
    if len(labels) >= 20 and len(set(labels)) > 0.9 * len(labels) and len(set(texts)) < 0.5 * len(texts):
        raise DataError(
            f"{shown}: seems to be text<TAB>label, not label<TAB>text; "
            "read it with format: tsv and header: [text, label]"
        )
    return Read({"label": labels, "text": texts}, lines, faults=faults)


def _unlabelled(line: str) -> str | None:
    if line.startswith(MARK):
        return MARK_INSIDE
    return None if "\t" in line else "has no tab; every line has to be label<TAB>text, as the other lines are"


def _read_lines(text: str, shown: str, spec: SourceSpec) -> Read:
    """Each line that is not blank is a row."""
    texts = Column.of(line.removesuffix("\r") for _, line in lines_of(text) if line.strip())
    return Read({"text": texts}, Column.of(number for number, line in lines_of(text) if line.strip()))


def _read_paragraphs(text: str, shown: str, spec: SourceSpec) -> Read:
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
    return Read({"text": ["\n".join(paragraph) for paragraph in paragraphs]}, lines)


def _read_conll(text: str, shown: str, spec: SourceSpec) -> Read:
    columns, lines, faults = read_conll(text, shown, header=spec.header)
    return Read(columns, lines, faults=faults)


def _read_conllu(text: str, shown: str, spec: SourceSpec) -> Read:
    columns, lines, faults = read_conllu(text, shown)
    return Read(columns, lines, faults=faults)


_WHOLE = {"parquet": read_parquet, "arrow": read_arrow}
_READERS: dict[str, Callable[[str, str, SourceSpec], Read]] = {
    "csv": _read_csv,
    "tsv": partial(_read_csv, tabs=True),
    "json": _read_json,
    "jsonl": _read_jsonl,
    "labelled-text": _read_labelled,
    "text": _read_lines,
    "paragraphs": _read_paragraphs,
    "conll": _read_conll,
    "conllu": _read_conllu,
}
