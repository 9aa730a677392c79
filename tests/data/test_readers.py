"""Every format, encoding and delimiter, and what is said about files that do not fit."""

from __future__ import annotations

import gzip
import itertools
import json
import sys
import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st

from launcher.data.readers import read_file
from launcher.data.readers_csv import read_delimited
from launcher.data.readers_text import read_text
from launcher.data.readers_xlsx import table_of_rows
from launcher.errors import DataError, InstallationError
from launcher.recipe.data_section import SourceSpec

CHINESE = "这家餐厅的服务很好,我们下次还会再来"
GERMAN = "Die Größe paßt, schöne Grüße aus München"


def write(folder: Path, name: str, text: str | bytes, encoding: str = "utf-8") -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode(encoding))
    return path


def read(path: Path, **options: object):
    return read_file(path, spec=SourceSpec(source=path.name, **options))


def fault(path: Path, **options: object) -> str:
    """What is said of the file, or of its first row that cannot be used."""
    try:
        table = read(path, **options)
    except DataError as error:
        return str(error)
    row, found = min(table.faults.items())
    return f"{table.places.of(found, row)}: {found.reason}"


# --- encodings -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_unicode_is_read_with_and_without_a_mark(tmp_path: Path, encoding: str) -> None:
    rows = "".join(f"{GERMAN}\tgut {CHINESE}\n" for _ in range(3))
    decoded = read_text(write(tmp_path, "a.txt", rows, encoding))
    assert decoded.text == rows


@pytest.mark.parametrize("encoding", ["gbk", "gb18030", "gb2312"])
@pytest.mark.parametrize("rows", [1, 40])
def test_chinese_is_detected_and_stated(tmp_path: Path, encoding: str, rows: int) -> None:
    path = write(tmp_path, "a.tsv", "text\tlabel\n" + f"{CHINESE.replace(',', '。')}\t好\n" * rows, encoding)
    table = read(path)
    assert table.column("label") == ["好"] * rows
    assert table.facts["encoding"] == "gb18030"
    assert "gb18030" in table.warnings[0] and "detected" in table.warnings[0]


def test_western_text_is_detected(tmp_path: Path) -> None:
    path = write(tmp_path, "a.csv", "text;label\n" + f"{GERMAN};gut\nNa schön;schlecht\n" * 20, "cp1252")
    table = read(path)
    assert table.column("text")[:2] == [GERMAN, "Na schön"]
    assert table.facts["encoding"] != "utf-8" and table.warnings


@pytest.mark.parametrize("encoding", ["gbk", "latin-1", "utf-16", "GB18030"])
def test_a_named_encoding_is_used_without_a_warning(tmp_path: Path, encoding: str) -> None:
    text = "schön" if encoding == "latin-1" else "很好"
    table = read(write(tmp_path, "a.csv", f"text,label\n{text},1\n", encoding), encoding=encoding)
    assert table.column("text") == [text] and table.warnings == ()


def test_a_wrong_or_unknown_encoding_names_the_line(tmp_path: Path) -> None:
    path = write(tmp_path, "a.csv", b"text,label\ngood,1\nna \xe4 schlecht,0\n")
    assert f"{path}:3:" in fault(path, encoding="utf-8")
    assert "'klingon' is not known" in fault(path, encoding="klingon")


def test_utf8_with_one_broken_byte_is_not_read_as_something_else(tmp_path: Path) -> None:
    path = write(
        tmp_path, "a.csv", ("text,label\n" + f"{GERMAN.replace(',', '')},gut\n" * 9).encode() + b"sch\xf6n,gut\n"
    )
    assert f"{path}:11:" in fault(path) and "f6" in fault(path)


def test_packed_text(tmp_path: Path) -> None:
    path = write(tmp_path, "a.jsonl.gz", gzip.compress(b'{"text": "a", "label": 1}\n'))
    assert read(path).column("text") == ["a"]
    assert "cannot be read" in fault(write(tmp_path, "b.csv.gz", b"text,label\n"))


# --- csv and tsv ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mark", [",", ";", "\t", "|"])
def test_the_delimiter_is_found(tmp_path: Path, mark: str) -> None:
    others = "".join(other for other in ",;|" if other != mark)
    lines = ["id", "text", "label"], ["1", f"well{others} it is{others} good", "yes"], ["2", "bad, bad", "no"]
    rows = "\n".join(mark.join(f'"{f}"' if mark in f else f for f in line) for line in lines)
    table = read(write(tmp_path, "a.csv", rows))
    assert table.facts["delimiter"] == mark
    assert table.column("label") == ["yes", "no"] and table.column("text")[1] == "bad, bad"


def test_values_stay_text(tmp_path: Path) -> None:
    values = ["NA", "null", "no", "on", "1.0", "007", "", "None", "nan", " x", "True", "1e3"]
    table = read(write(tmp_path, "a.csv", "text,label\n" + "".join(f"t{n},{v}\n" for n, v in enumerate(values))))
    assert table.column("label") == values


def test_quoted_fields_hold_delimiters_quotes_and_line_ends(tmp_path: Path) -> None:
    text = 'text,label\r\n"one, ""two""\r\nthree",a\r\n\r\nfour,b\r\n'
    table = read(write(tmp_path, "a.csv", text))
    assert table.column("text") == ['one, "two"\r\nthree', "four"]
    assert table.places(0).endswith("a.csv:2 (row 1)") and table.places(1).endswith("a.csv:5 (row 2)")


@given(st.lists(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0")), min_size=2, max_size=2)))
@settings(max_examples=60, deadline=None)
def test_what_the_csv_writer_writes_is_read_back(rows: list[list[str]]) -> None:
    import csv
    import io

    out = io.StringIO(newline="")
    csv.writer(out, quoting=csv.QUOTE_ALL).writerows([["text", "label"], *rows])
    read_back = read_delimited(out.getvalue(), shown="a.csv")
    assert list(map(list, zip(read_back.columns["text"], read_back.columns["label"], strict=True))) == rows


def test_faulty_rows_are_named_by_line(tmp_path: Path) -> None:
    ragged = fault(write(tmp_path, "a.csv", 'text,label\n"a\nb",x\nit is, so to say, bad,y\n'))
    assert "a.csv:4:" in ragged and "4 fields" in ragged and "header has 2" in ragged
    assert "a.csv:3:" in fault(write(tmp_path, "a.csv", 'text,label\na,x\n"never closed,y\nb,x\n'))
    assert "a.csv:2:" in fault(write(tmp_path, "a.csv", 'text,label\n"closed" too early,y\n'))
    assert "'text' stands twice" in fault(write(tmp_path, "a.csv", "text,text\na,b\n"))
    assert "is empty" in fault(write(tmp_path, "a.csv", ""))


def test_reading_goes_on_behind_each_faulty_quote() -> None:
    """Also in a file of many blocks, and where a quoted field has several lines."""
    lines = [f'"text\n{row}",a\r\n' for row in range(20_000)]
    for row in (1, 3000, 3001, 19_999):
        lines[row] = f'"so" it is {row},b\n'
    table = read_delimited("text,label\n" + "".join(lines), shown="a.csv")
    assert list(table.faults) == [1, 3000, 3001, 19_999]
    starts = list(itertools.accumulate([2, *(line.count("\n") for line in lines[:-1])]))
    assert list(table.lines) == starts and [fault.at for fault in table.faults.values()] == [
        str(starts[row]) for row in table.faults
    ]
    assert table.columns["text"][3000] is None and table.columns["text"][3002] == "text\n3002"
    assert all(not isinstance(chunk, list) for chunk in table.columns["text"].chunks)


def test_a_delimiter_in_doubt_is_asked_for(tmp_path: Path) -> None:
    path = write(tmp_path, "a.csv", "a,b;c\n1,2;3\n")
    assert "comma and semicolon" in fault(path)
    assert read(path, delimiter=";").names == ("a,b", "c")


def test_a_file_without_header(tmp_path: Path) -> None:
    table = read(write(tmp_path, "a.csv", "pos;good, really\nneg;bad\n"), header=["label", "text"])
    assert table.column("label") == ["pos", "neg"] and table.places(0).endswith(":1 (row 1)")


def test_tsv_keeps_quotation_marks_unless_a_csv_writer_wrote_them(tmp_path: Path) -> None:
    plain = read(write(tmp_path, "a.tsv", 'text\tlabel\n"Oh," he said\t1\nfive 6" pipes\t0\n'))
    assert plain.column("text") == ['"Oh," he said', 'five 6" pipes'] and plain.facts["quoting"] == "none"
    written = read(write(tmp_path, "b.tsv", 'text\tlabel\n"""Oh,"" he said"\t1\n"two\nlines"\t0\n'))
    assert written.column("text") == ['"Oh," he said', "two\nlines"] and written.facts["quoting"] == "double"


# --- the other formats ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrap", [lambda rows: rows, lambda rows: {"version": 1, "data": rows}])
def test_json(tmp_path: Path, wrap) -> None:
    path = write(tmp_path, "a.json", json.dumps(wrap([{"text": "a", "label": 1}, {"text": "b"}])))
    assert read(path).column("label") == [1, None]


def test_json_that_is_lines(tmp_path: Path) -> None:
    path = write(tmp_path, "a.json", '{"text": "a"}\n{"text": "b"}\n')
    assert read(path).column("text") == ["a", "b"] and read(path).places(1).endswith(":2 (row 2)")


def test_jsonl_lines_end_only_at_line_feeds(tmp_path: Path) -> None:
    path = write(tmp_path, "a.jsonl", '{"text": "a\u2028b\x85c"}\r\n\r\n{"text": "d"}\n')
    assert read(path).column("text") == ["a\u2028b\x85c", "d"] and read(path).places(1).endswith(":3 (row 2)")


def test_broken_json_names_line_and_column(tmp_path: Path) -> None:
    assert "a.jsonl:2:" in fault(write(tmp_path, "a.jsonl", '{"text": "a"}\n{"text": "b}\n'))
    assert "a.json:3:" in fault(write(tmp_path, "a.json", '[\n{"text": "a"},\n{"text" "b"}]'))
    assert "needs a list of objects" in fault(write(tmp_path, "a.json", '{"rows": []}'))
    assert "a.jsonl:1: is str, not an object" in fault(write(tmp_path, "a.jsonl", '"a"\n'))


def test_labelled_text(tmp_path: Path) -> None:
    table = read(write(tmp_path, "a.txt", "pos\tgood\tvery\nno\tbad\n"))
    assert table.column("label") == ["pos", "no"] and table.column("text") == ["good\tvery", "bad"]
    assert "a.txt:2: has no tab" in fault(write(tmp_path, "a.txt", "pos\tgood\nbad\n"))
    swapped = "".join(f"text number {n}\t{n % 3}\n" for n in range(30))
    assert "text<TAB>label" in fault(write(tmp_path, "a.txt", swapped))


def test_lines_without_labels_are_texts(tmp_path: Path) -> None:
    assert read(write(tmp_path, "a.txt", "good\nbad\n")).names == ("text",)


def test_parquet_with_categories_and_class_names(tmp_path: Path) -> None:
    import pandas
    from datasets import ClassLabel, Dataset, Features, Value

    frame = pandas.DataFrame({"text": ["a", "b"], "label": pandas.Categorical(["no", "on"])}, index=[7, 9])
    frame.to_parquet(tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet").column("label") == ["no", "on"]
    features = Features({"text": Value("string"), "label": ClassLabel(names=["zero", "one"])})
    Dataset.from_dict({"text": ["a", "b"], "label": [1, -1]}, features=features).to_parquet(str(tmp_path / "b.parquet"))
    table = read(tmp_path / "b.parquet")
    assert table.column("label") == ["one", None] and table.class_names == {"label": ("zero", "one")}
    assert "not a readable parquet file" in fault(write(tmp_path, "c.parquet", b"text,label\n"))


@pytest.mark.parametrize("layout", ["file", "stream", "feather"])
def test_arrow(tmp_path: Path, layout: str) -> None:
    import pyarrow
    import pyarrow.feather

    rows = pyarrow.table({"text": ["a", "b"], "label": pyarrow.array(["no", "on"]).dictionary_encode()})
    path = tmp_path / ("a.feather" if layout == "feather" else "a.arrow")
    if layout == "feather":
        pyarrow.feather.write_feather(rows, str(path), compression="lz4")
    else:
        make = {"file": pyarrow.ipc.new_file, "stream": pyarrow.ipc.new_stream}[layout]
        with pyarrow.OSFile(str(path), "wb") as sink, make(sink, rows.schema) as writer:
            writer.write_table(rows)
    table = read(path)
    assert table.column("label") == ["no", "on"] and table.column("text").is_text and table.warnings == ()
    assert table.facts == {"format": "arrow", "layout": "stream" if layout == "stream" else "file"}
    assert "`encoding` is set" in fault(path, encoding="utf-8")


def test_arrow_as_datasets_writes_it_keeps_names_of_classes(tmp_path: Path) -> None:
    from datasets import ClassLabel, Dataset, Features, Value

    features = Features({"text": Value("string"), "label": ClassLabel(names=["zero", "one"])})
    Dataset.from_dict({"text": ["a", "b"], "label": [1, 0]}, features=features).save_to_disk(str(tmp_path))
    table = read(next(tmp_path.glob("*.arrow")))
    assert table.column("label") == ["one", "zero"] and table.class_names == {"label": ("zero", "one")}


def test_arrow_that_was_cut_short(tmp_path: Path) -> None:
    import pyarrow

    rows = pyarrow.table({"text": [f"text {n}" for n in range(2000)]})
    with pyarrow.OSFile(str(tmp_path / "a.arrow"), "wb") as sink, pyarrow.ipc.new_stream(sink, rows.schema) as writer:
        writer.write_table(rows, max_chunksize=1000)
    whole = (tmp_path / "a.arrow").read_bytes()
    assert "is not a readable Arrow file" in fault(write(tmp_path, "b.arrow", whole[: len(whole) // 3]))
    assert "is not a readable Arrow file" in fault(write(tmp_path, "c.arrow", b"text,label"))
    assert "is not a readable Arrow file" in fault(write(tmp_path, "d.arrow", b""))
    # A stream may end between two messages without a word.
    assert "no mark at its end" in read(write(tmp_path, "e.arrow", whole[:-8])).warnings[0]


def test_the_cells_of_a_sheet_become_columns() -> None:
    rows = [(2, ("text", " label ", None)), (3, (None, None)), (5, ("good", 1)), (6, ("bad", None, None))]
    table = table_of_rows(rows, shown="a.xlsx", header=None, facts={})
    assert table.column("text") == ["good", "bad"] and table.column("label") == [1, None]
    assert table.places(1) == "a.xlsx:6 (row 2)"
    assert table_of_rows(rows, shown="a.xlsx", header=["a", "b"], facts={}).column("a") == ["text", "good", "bad"]
    for cells, said in (
        (("text", None), "a.xlsx:1: column 2 has cells and no name"),
        (("text", "text"), "a.xlsx:1: the column name 'text' stands twice"),
    ):
        with pytest.raises(DataError, match=said):
            table_of_rows([(1, cells), (2, ("a", "b"))], shown="a.xlsx", header=None, facts={})
    with pytest.raises(DataError, match="is empty"):
        table_of_rows([(1, (None,))], shown="a.xlsx", header=None, facts={})


def test_a_workbook_without_openpyxl_names_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    with pytest.raises(InstallationError, match="pip install openpyxl"):
        read(workbook(tmp_path / "a.xlsx", [[["text", "label"], ["good", 1]]]))


def test_a_workbook(tmp_path: Path) -> None:
    table = read(workbook(tmp_path / "a.xlsx", [[["text", "label"], ["good", 1], ["bad", 0.5]], []]))
    assert table.column("text") == ["good", "bad"] and table.column("label") == [1, 0.5]
    assert table.places(0).endswith("a.xlsx:2 (row 1)") and table.facts == {"format": "xlsx", "sheet": "S1"}
    assert "has the sheets 'S1', 'S2'" in fault(workbook(tmp_path / "b.xlsx", [[["a"]], [["b"]]]))
    assert "is not a readable .xlsx file" in fault(write(tmp_path, "c.xlsx", b"text,label"))


def workbook(path: Path, sheets: list[list[list[object]]]) -> Path:
    """The least files of a workbook, as ECMA-376 names them."""
    main = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
    office = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
    package = "http://schemas.openxmlformats.org/package/2006"
    numbers = range(1, len(sheets) + 1)

    def cell(value: object) -> str:
        return f'<c t="inlineStr"><is><t>{value}</t></is></c>' if isinstance(value, str) else f"<c><v>{value}</v></c>"

    kind = "application/vnd.openxmlformats-officedocument.spreadsheetml"
    parts = "".join(f'<Override PartName="/s{n}.xml" ContentType="{kind}.worksheet+xml"/>' for n in numbers)
    links = "".join(f'<Relationship Id="r{n}" Type="{office}/worksheet" Target="s{n}.xml"/>' for n in numbers)
    names = "".join(f'<sheet name="S{n}" sheetId="{n}" r:id="r{n}"/>' for n in numbers)
    with zipfile.ZipFile(path, "w") as file:
        book = f'<Override PartName="/book.xml" ContentType="{kind}.sheet.main+xml"/>'
        file.writestr("[Content_Types].xml", f'<Types xmlns="{package}/content-types">{book}{parts}</Types>')
        root = f'<Relationship Id="r1" Type="{office}/officeDocument" Target="book.xml"/>'
        file.writestr("_rels/.rels", f'<Relationships xmlns="{package}/relationships">{root}</Relationships>')
        file.writestr("book.xml", f'<workbook xmlns="{main}" xmlns:r="{office}"><sheets>{names}</sheets></workbook>')
        file.writestr("_rels/book.xml.rels", f'<Relationships xmlns="{package}/relationships">{links}</Relationships>')
        for number, rows in zip(numbers, sheets, strict=True):
            cells = "".join(f"<row>{''.join(map(cell, row))}</row>" for row in rows)
            file.writestr(f"s{number}.xml", f'<worksheet xmlns="{main}"><sheetData>{cells}</sheetData></worksheet>')
    return path


def test_options_that_would_be_ignored_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path, "a.jsonl", '{"text": "a"}\n')
    assert "`delimiter` is set" in fault(path, delimiter=";")
    assert "`header` is set" in fault(path, header=["text"])
    assert "tells no format" in fault(write(tmp_path, "a.data", "x"))
    assert read(write(tmp_path, "b.data", "text,label\na,1\n"), format="csv").rows == 1
