"""Cursors read what whole-file readers read, a stretch at a time, from any mark on."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from launcher.data.readers import read_file
from launcher.data.stream_files import Mark, StreamFile
from launcher.data.stream_readers import open_cursor
from launcher.errors import DataError
from launcher.recipe.data_section import SourceSpec

ROWS = [
    {"text": "plain", "label": "a"},
    {"text": 'with, a comma and "quotes"', "label": "b"},
    {"text": "über U+2028 \u2028 and 中文", "label": "a"},
    {"text": "last\tone", "label": "b"},
]


def many(count: int = 37) -> list[dict[str, Any]]:
    return [{**ROWS[number % 4], "text": f"{number} {ROWS[number % 4]['text']}"} for number in range(count)]


def _jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    lines = [json.dumps(row, ensure_ascii=bool(number % 2)) for number, row in enumerate(rows)]
    path.write_bytes("\r\n\n".join(lines).encode())


def _csv(path: Path, rows: list[dict[str, Any]]) -> None:
    def field(text: str) -> str:
        return '"' + text.replace('"', '""').replace(" ", "\n", 1) + '"'

    lines = ["text;label", *(f"{field(row['text'])};{row['label']}" for row in rows)]
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join([*lines[:5], "", *lines[5:]]).encode())


def _tsv(path: Path, rows: list[dict[str, Any]]) -> None:
    lines = ["text\tlabel", *(f"{row['text'].replace(chr(9), ' ')}\t{row['label']}" for row in rows)]
    path.write_text("\n".join(lines) + "\n")


def _text(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_bytes(b"\xef\xbb\xbf" + "\n\n".join(row["text"] for row in rows).encode())


def _gz(path: Path, rows: list[dict[str, Any]]) -> None:
    whole = path.with_suffix("")
    _jsonl(whole, rows)
    path.write_bytes(gzip.compress(whole.read_bytes()))


def _dataset(rows: list[dict[str, Any]]) -> Any:
    from datasets import ClassLabel, Dataset

    made = Dataset.from_list([{**row, "more": number} for number, row in enumerate(rows)])
    return made.cast_column("label", ClassLabel(names=["a", "b"]))


def _parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    _dataset(rows).to_parquet(str(path), batch_size=5)


def _arrow_file(path: Path, rows: list[dict[str, Any]]) -> None:
    import pyarrow

    table = _dataset(rows).with_format("arrow")[:]
    with pyarrow.ipc.new_file(str(path), table.schema) as writer:
        writer.write_table(table, max_chunksize=4)


def _arrow_stream(path: Path, rows: list[dict[str, Any]]) -> None:
    import pyarrow

    table = _dataset(rows).with_format("arrow")[:]
    with pyarrow.ipc.new_stream(str(path), table.schema) as writer:
        writer.write_table(table, max_chunksize=6)


FORMATS = {
    "a.jsonl": ("jsonl", _jsonl),
    "a.csv": ("csv", _csv),
    "a.tsv": ("tsv", _tsv),
    "a.txt": ("text", _text),
    "b.jsonl.gz": ("jsonl", _gz),
    "a.parquet": ("parquet", _parquet),
    "a.arrow": ("arrow", _arrow_file),
    "b.arrow": ("arrow", _arrow_stream),
}


def taken(file: StreamFile, mark: Mark, *, each: int) -> list[tuple[Mark, list[tuple[Any, ...]], list[str]]]:
    """(mark before, rows, their places) of every stretch of ``each`` rows."""
    cursor, found = open_cursor(file, mark), []
    while not cursor.is_at_end:
        before, table = cursor.mark, cursor.take(each)
        names = sorted(set(table.names) - {"more"})
        rows = list(zip(*(list(table.column(name)) for name in names), strict=True))
        found.append((before, rows, [table.places(row) for row in range(table.rows)]))
    cursor.close()
    return found


@pytest.mark.parametrize("name", FORMATS)
def test_stretches_from_any_mark_are_the_whole_file(name, tmp_path):
    kind, write = FORMATS[name]
    path = tmp_path / name
    write(path, many())
    spec = SourceSpec(source=str(path), format=kind if kind == "text" else None)
    whole = read_file(path, spec=spec, shown=str(path))
    names = sorted(set(whole.names) - {"more"})
    wanted = list(zip(*(list(whole.column(one)) for one in names), strict=True))
    columns = None if kind not in ("parquet", "arrow") else {"text": ["text"], "label": ["label"]}
    file = StreamFile(str(path), kind, 0, columns=columns)
    for each in (1, 5, 37, 100):
        stretches = taken(file, Mark(), each=each)
        assert [row for _, rows, _ in stretches for row in rows] == wanted
        assert [place for _, _, places in stretches for place in places] == [whole.places(row) for row in range(37)]
        for number, (mark, _, _) in enumerate(stretches):
            assert [part[1:] for part in taken(file, mark, each=each)] == [part[1:] for part in stretches[number:]]


def test_only_columns_that_are_wanted_are_read(tmp_path):
    path = tmp_path / "a.parquet"
    _parquet(path, many())
    file = StreamFile(str(path), "parquet", 0, columns={"text": ["text"]}, filter={"label": "a"})
    assert set(open_cursor(file, Mark()).take(3).names) == {"text", "label"}


def test_an_address_is_read_from_a_mark_on(tmp_path):
    import fsspec

    _jsonl(tmp_path / "a.jsonl", many())
    address = "memory://stream/a.jsonl"
    with fsspec.open(address, "wb") as target:
        target.write((tmp_path / "a.jsonl").read_bytes())
    file = StreamFile(address, "jsonl", 0)
    stretches = taken(file, Mark(), each=10)
    assert sum(len(rows) for _, rows, _ in stretches) == 37
    assert taken(file, stretches[2][0], each=10) == stretches[2:]


def test_faults_are_of_their_lines(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "one"}\n{"text": broken}\n"no object"\n{"text": "\xff\xfe"}\n{"text": "five"}\n')
    table = open_cursor(StreamFile(str(path), "jsonl", 0), Mark()).take(10)
    assert sorted(table.faults) == [1, 2, 3] and table.rows == 5
    shown = [table.places.of(table.faults[row], row) for row in (1, 2, 3)]
    assert shown == [f"{path}:2:10", f"{path}:3", f"{path}:4"]


@pytest.mark.parametrize("each", [1, 2, 10])
def test_a_faulty_quote_costs_one_line(tmp_path, each):
    path = tmp_path / "a.csv"
    path.write_text('text,label\ngood,a\n"never closes,b\n"fine",a\n"text" behind,b\nlast,a\n')
    cursor, faults, rows = open_cursor(StreamFile(str(path), "csv", 0), Mark()), [], []
    while not cursor.is_at_end:
        first, table = cursor.mark.row, cursor.take(each)
        faults += [first + row for row in table.faults]
        rows += list(table.column("text")) if table.rows else []
    assert rows == ["good", None, "fine", None, "last"] and faults == [1, 3]


def test_what_cannot_be_streamed_says_so(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("{}")
    with pytest.raises(DataError, match="utf-16 cannot be streamed"):
        open_cursor(StreamFile(str(path), "jsonl", 0, encoding="utf-16"), Mark())
    with pytest.raises(DataError, match=r"none\.jsonl: cannot be read \(No such file or directory\)"):
        open_cursor(StreamFile(str(tmp_path / "none.jsonl"), "jsonl", 0), Mark())
    (tmp_path / "a.parquet").write_text("no")
    with pytest.raises(DataError, match="is not a readable parquet file"):
        open_cursor(StreamFile(str(tmp_path / "a.parquet"), "parquet", 0), Mark())
