"""Bad data of every kind, through the whole of reading and preparing: what the error says, and which rows `on_bad_row: skip` leaves out.

Every file has 40 rows that are good, but for what the case says.
"""

from __future__ import annotations

import gzip
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import tiny

from launcher import registry
from launcher.contracts import Prepared
from launcher.errors import DataError
from launcher.recipe.examine import examine
from launcher.recipe.schema import Recipe

ROWS = 40
TEXT, TOKENS, ANSWERS, NEXT = "text-classification", "token-classification", "question-answering", "causal-lm"
MEND = "mend"


@dataclass(frozen=True)
class Bad:
    """A kind of bad data."""

    name: str
    files: dict[str, bytes | str]
    said: tuple[str, ...]
    """Parts of the error."""
    skipped: tuple[str, ...] = ()
    """Places of the rows that are left out by skip; none: a fault of the whole file, which is an error all the same."""
    task: str = TEXT
    data: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)


def good(row: int) -> dict[str, Any]:
    return {"text": f"text number {row}", "label": "ab"[row % 2]}


def words(row: int) -> dict[str, Any]:
    return {"tokens": ["old", "iron", str(row)], "tags": ["O", "B-X", "O"]}


def asked(row: int) -> dict[str, Any]:
    return {
        "question": f"what is {row}",
        "context": f"the iron is {row}",
        "answers": {"text": ["iron"], "answer_start": [4]},
    }


def jsonl(rows: Callable[[int], dict[str, Any]] = good, /, **changed: Any) -> str:
    """Lines of JSON; ``line17=`` replaces what stands on line 17: by text as it is, else by an object's JSON."""
    lines = [json.dumps(rows(row)) for row in range(ROWS)]
    for name, value in changed.items():
        line = int(name.removeprefix("line"))
        lines[line - 1] = value if isinstance(value, str) else json.dumps({**rows(line - 1), **value})
    return "\n".join(lines) + "\n"


def csv(head: str = "text,label", /, **changed: str | bytes) -> bytes:
    """A csv file; ``line17=`` replaces the line, of which the first is the header."""
    lines = [head.encode(), *(f"text number {row},{'ab'[row % 2]}".encode() for row in range(ROWS))]
    for name, value in changed.items():
        lines[int(name.removeprefix("line")) - 1] = value if isinstance(value, bytes) else value.encode()
    return b"\n".join(lines) + b"\n"


def conll(**changed: str) -> str:
    """Sentences of two words and a blank line: the n-th begins on line 3 n - 2."""
    lines = [line for row in range(ROWS) for line in (f"iron{row} B-X", "old O", "")]
    for name, value in changed.items():
        lines[int(name.removeprefix("line")) - 1] = value
    return "\n".join(lines) + "\n"


def squad(change: Callable[[list[dict[str, Any]]], object]) -> str:
    questions = [
        {"id": str(n), "question": f"what {n}", "answers": [{"text": "iron", "answer_start": 4}]} for n in range(ROWS)
    ]
    paragraph: dict[str, Any] = {"context": "the iron is old", "qas": questions}
    change(questions)
    return json.dumps({"data": [{"title": "t", "paragraphs": [paragraph]}]})


def parquet(**columns: list[Any]) -> bytes:
    import pyarrow
    import pyarrow.parquet

    sink = pyarrow.BufferOutputStream()
    given = {"text": [good(row)["text"] for row in range(ROWS)], "label": [good(row)["label"] for row in range(ROWS)]}
    pyarrow.parquet.write_table(pyarrow.table({**given, **columns}), sink)
    return sink.getvalue().to_pybytes()


def but(values: list[Any], **changed: Any) -> list[Any]:
    """A list with ``row17=`` in the place of its 17th value."""
    return [changed.get(f"row{number}", value) for number, value in enumerate(values, start=1)]


def line17(name: str = "a.jsonl") -> tuple[str, ...]:
    return (f"{name}:17 (row 17)",)


LABELS = [row % 2 for row in range(ROWS)]
TEXTS = [good(row)["text"] for row in range(ROWS)]
UTF8 = csv(line2="schöne Grüße aus München für Jörg,a")

ROW_FAULTS = [
    # --- json, a line each
    Bad("broken json", {"a.jsonl": jsonl(line17='{"text": "x')}, ("a.jsonl:17:10: broken JSON", MEND), ("a.jsonl:17:10",)),
    Bad("text after json", {"a.jsonl": jsonl(line17='{"text": "x"} {}')}, ("a.jsonl:17:15: broken JSON (Extra data)", MEND), ("a.jsonl:17:15",)),
    Bad("a line that is a list", {"a.jsonl": jsonl(line17='["x", "a"]')}, ("a.jsonl:17: is list, not an object",), ("a.jsonl:17",)),
    Bad("nested too deeply", {"a.jsonl": jsonl(line17="[" * 200_000)}, ("a.jsonl:17", "nested too deeply", MEND), ("a.jsonl:17",)),
    Bad("a number of 5,000 digits", {"a.jsonl": jsonl(line17='{"text": "x", "label": ' + "1" * 5000 + "}")}, ("a.jsonl:17: broken JSON", MEND), ("a.jsonl:17",)),
    Bad("a key twice", {"a.jsonl": jsonl(line17='{"text": "x", "text": "y", "label": "a"}')}, ("a.jsonl:17", "the key 'text' stands twice"), ("a.jsonl:17",)),
    Bad("a mark in the middle", {"a.jsonl": jsonl(line17='\ufeff{"text": "x", "label": "a"}')}, ("a.jsonl:17", "byte-order mark", "remove the mark"), ("a.jsonl:17:1",)),
    Bad("null text", {"a.jsonl": jsonl(line17={"text": None})}, (*line17(), "holds None (null), which is not text", MEND), line17()),
    Bad("empty text", {"a.jsonl": jsonl(line17={"text": " \n"})}, (*line17(), "the text is empty", MEND), line17()),
    Bad("a number for text", {"a.jsonl": jsonl(line17={"text": 7})}, (*line17(), "holds 7 (int), which is not text", MEND), line17()),
    Bad("a list for text", {"a.jsonl": jsonl(line17={"text": ["x", "y"]})}, (*line17(), "(list), which is not text", MEND), line17()),
    Bad("an object for text", {"a.jsonl": jsonl(line17={"text": {"x": 1}})}, (*line17(), "(dict), which is not text", MEND), line17()),
    Bad("half a character", {"a.jsonl": jsonl(line17='{"text": "x\\ud83d", "label": "a"}')}, (*line17(), "half of a character", MEND), line17()),
    Bad("half a character in a label", {"a.jsonl": jsonl(line17='{"text": "x", "label": "\\ud83d"}')}, (*line17(), "label"), line17()),
    Bad("null label", {"a.jsonl": jsonl(line17={"label": None})}, (*line17(), "has no label", "remove the row"), line17()),
    Bad("NaN label", {"a.jsonl": jsonl(line17={"label": float("nan")})}, (*line17(), "has no label", "remove the row"), line17()),
    Bad("an object for a label", {"a.jsonl": jsonl(line17={"label": {"x": 1}})}, (*line17(), "a label is text, a number"), line17()),
    Bad("a label of 80 bits", {"a.jsonl": jsonl(line17={"label": 2**80})}, (*line17(), "a label is text, a number"), line17()),
    Bad("an empty label", {"a.jsonl": jsonl(line17={"label": " "}), "v.jsonl": jsonl()}, (*line17(), "the label is empty", "remove"), line17(), data={"validation": "v.jsonl"}),
    # --- csv
    Bad("too many cells", {"a.csv": csv(line17="x, really,a")}, ("a.csv:17: has 3 fields", "begins 'x, really,a'", "double quotes"), ("a.csv:17",)),
    Bad("too few cells", {"a.csv": csv(line17="x")}, ("a.csv:17: has 1 fields",), ("a.csv:17",)),
    Bad("a quote that never closes", {"a.csv": csv(line17='"never,a')}, ("a.csv:17: a double quote opens a field and never closes", "twice"), ("a.csv:17",)),
    Bad("text after a quote", {"a.csv": csv(line17='"so" it is,a')}, ("a.csv:17: text follows a closing double quote", "twice"), ("a.csv:17",)),
    Bad("two faulty quotes", {"a.csv": csv(line17='"never,a', line30='"so",b')}, ("a.csv:17:", "double quote"), ("a.csv:17",)),
    Bad("a broken byte", {"a.csv": UTF8.replace(b"text number 15,", b"text \xff 15,")}, ("a.csv:17: the bytes ff are not UTF-8 text", MEND), ("a.csv:17",)),
    Bad("a byte that is not gbk", {"a.csv": csv(line17=b"x \xff,a")}, ("a.csv:17: the bytes ff are not gbk text", MEND), ("a.csv:17",), data={"train": {"source": "a.csv", "encoding": "gbk"}}),
    Bad("two files in one", {"a.csv": csv(line17="\ufefftext,label")}, ("a.csv:17: begins with a byte-order mark", "header that is repeated"), ("a.csv:17",)),
    Bad("mixed line ends", {"a.csv": csv(line17="x\r").replace(b"number 20,a\n", b"number 20,a\r\n")}, ("a.csv:17: has 1 fields",), ("a.csv:17",)),
    Bad("empty cell for text", {"a.csv": csv(line17=",a")}, ("a.csv:17 (row 16): the text is empty", MEND), ("a.csv:17 (row 16)",)),
    Bad("empty cell for a label", {"a.csv": csv(line17="x,"), "v.csv": csv()}, ("a.csv:17 (row 16): the label is empty",), ("a.csv:17 (row 16)",), data={"validation": "v.csv"}),
    Bad("no tab", {"a.tsv": csv().replace(b",", b"\t").replace(b"number 15\t", b"number 15 ")}, ("a.tsv:17: has 1 fields between tabs",), ("a.tsv:17",)),
    Bad("no tab in labelled text", {"a.txt": "".join(f"{'ab'[n % 2]}{' ' if n == 16 else chr(9)}text {n}\n" for n in range(ROWS))}, ("a.txt:17: has no tab", "label<TAB>text"), ("a.txt:17",)),
    Bad("a mark in labelled text", {"a.txt": "".join(f"{chr(0xFEFF) if n == 16 else ''}{'ab'[n % 2]}\ttext {n}\n" for n in range(ROWS))}, ("a.txt:17: begins with a byte-order mark",), ("a.txt:17",)),
    # --- labels
    Bad("an unknown label in validation", {"a.jsonl": jsonl(), "v.jsonl": jsonl(line17={"label": "aa"})}, ("v.jsonl:17 (row 17): label 'aa' of validation is not known; did you mean 'a'?", "The labels are a, b"), ("v.jsonl:17 (row 17)",), data={"validation": "v.jsonl"}),
    Bad("a number out of range in test", {"a.jsonl": jsonl(lambda n: {**good(n), "label": n % 2}), "v.jsonl": jsonl(lambda n: {**good(n), "label": n % 2}, line17={"label": 2})}, ("v.jsonl:17 (row 17): label '2' of test is not a number from 0 to 1 of the names no, on",), ("v.jsonl:17 (row 17)",), data={"test": "v.jsonl", "labels": ["no", "on"]}),
    Bad("one test row without a label", {"a.jsonl": jsonl(), "v.jsonl": jsonl(line17={"label": None})}, ("v.jsonl:17 (row 17): has no label, like 1 of the 40 test rows", "label all test rows, or none"), ("v.jsonl:17 (row 17)",), data={"test": "v.jsonl"}),
    Bad("a target that is no number", {"a.jsonl": jsonl(lambda n: {**good(n), "label": n / 2}, line17={"label": "high"})}, (*line17(), "'high' of", "is not a finite number", MEND), line17(), options={"problem_type": "regression"}),
    Bad("an infinite target", {"a.jsonl": jsonl(lambda n: {**good(n), "label": n / 2}, line17={"label": float("inf")})}, (*line17(), "is not a finite number", MEND), line17(), options={"problem_type": "regression"}),
    Bad("two labels where one is asked for", {"a.jsonl": jsonl(line17={"label": ["a", "b"]})}, ("holds 2 labels", "multi_label_classification"), line17(), options={"problem_type": "single_label_classification"}),
    Bad("a label that the recipe does not name", {"a.jsonl": jsonl(line17={"label": "c"})}, (*line17(), "label 'c'", "add it under data.labels"), line17(), data={"labels": ["a", "b"]}),
    # --- parquet
    Bad("null in parquet", {"a.parquet": parquet(text=but(TEXTS, row17=None))}, ("a.parquet, row 17: column 'text' (text) holds None",), ("a.parquet, row 17",)),
    Bad("NaN label in parquet", {"a.parquet": parquet(label=but([float(x) for x in LABELS], row17=float("nan")))}, ("a.parquet, row 17: has no label",), ("a.parquet, row 17",)),
    # --- words
    Bad("another number of tags", {"a.jsonl": jsonl(words, line17={"tags": ["O"]})}, (*line17(), "has 3 words and, as their label, 1 tags", "one tag"), line17(), TOKENS),
    Bad("a word that is a number", {"a.jsonl": jsonl(words, line17={"tokens": ["a", 1, "b"]})}, (*line17(), "is no list of words", MEND), line17(), TOKENS),
    Bad("no words", {"a.jsonl": jsonl(words, line17={"tokens": [], "tags": []})}, (*line17(), "holds [], which is no list of words"), line17(), TOKENS),
    Bad("an unknown tag", {"a.jsonl": jsonl(words), "v.jsonl": jsonl(words, line17={"tags": ["O", "B-Y", "O"]})}, ("v.jsonl:17 (row 17): label 'B-Y' of validation is not known",), ("v.jsonl:17 (row 17)",), TOKENS, {"validation": "v.jsonl"}),
    Bad("a line without a tag", {"a.conll": conll(line17="old")}, ("a.conll:17: has 1 column(s), and line 1 has 2", "a word and its tag"), ("a.conll:17",), TOKENS),
    Bad("a line with two tags", {"a.conll": conll(line16="old O O")}, ("a.conll:16: has 3 column(s)",), ("a.conll:16",), TOKENS),
    Bad("a conllu line of five columns", {"a.conllu": "".join(f"1\told{n}\t_\t{'ADJ' if n % 2 else 'X'}\t_\t_\t0\troot\t_\t{'' if n == 16 else '_'}\n\n".replace("\t\n" if n == 16 else "\0", "\n") for n in range(ROWS))}, ("a.conllu:33: is no line of CoNLL-U", "this one has 9", "Mend it"), ("a.conllu:33",), TOKENS),
    # --- questions
    Bad("an answer outside its text", {"a.jsonl": jsonl(asked, line17={"answers": {"text": ["iron"], "answer_start": [99]}})}, (*line17(), "the answer 'iron' does not stand at character 99", MEND), line17(), ANSWERS),
    Bad("an answer that is text", {"a.jsonl": jsonl(asked, line17={"answers": "iron"})}, (*line17(), "(answers) holds 'iron'", MEND), line17(), ANSWERS),
    Bad("more answers than places", {"a.jsonl": jsonl(asked, line17={"answers": {"text": ["iron", "is"], "answer_start": [4]}})}, (*line17(), "answer_start", MEND), line17(), ANSWERS),
    Bad("an empty question", {"a.jsonl": jsonl(asked, line17={"question": ""})}, (*line17(), "the question is empty", MEND), line17(), ANSWERS),
    Bad("an empty context", {"a.jsonl": jsonl(asked, line17={"context": "", "answers": {"text": [], "answer_start": []}})}, (*line17(), "the context is empty", MEND), line17(), ANSWERS),
    Bad("a squad question without answers", {"a.json": squad(lambda asked: asked[16].pop("answers"))}, ("a.json, row 17: (article 1, paragraph 1, question 17) has no list of objects 'answers'", MEND), ("a.json, row 17",), ANSWERS),
    Bad("a squad answer elsewhere", {"a.json": squad(lambda asked: asked[16]["answers"][0].update(answer_start=5))}, ("a.json, row 17: the answer 'iron' does not stand at character 5",), ("a.json, row 17",), ANSWERS),
    # --- next tokens
    Bad("null in plain text", {"a.jsonl": jsonl(line17={"text": None})}, (*line17(), "is not text", MEND), line17(), NEXT),
]  # fmt: skip

FILE_FAULTS = [
    Bad("an empty csv", {"a.csv": ""}, ("a.csv: is empty", "names the columns")),
    Bad("a header alone", {"a.csv": "text,label\n"}, ("a.csv: the train split has no rows", "give it some")),
    Bad("an empty jsonl", {"a.jsonl": "\n\n"}, ("the train split has no rows",)),
    Bad("doubled columns", {"a.csv": csv("text,text")}, ("a.csv:1: the column name 'text' stands twice", "rename one")),
    Bad("no text column", {"a.csv": csv("body_of_it,label")}, ("which column is text cannot be told", "'body_of_it', 'label'", "columns: {")),
    Bad("a column that is not there", {"a.csv": csv()}, ("has no column 'txt'", "did you mean 'text'"), data={"columns": {"text": "txt"}}),
    Bad("no labels", {"a.csv": csv("text,other")}, ("the training rows have no labels", "data.columns: {label: ...}")),
    Bad("one label only", {"a.jsonl": jsonl(lambda n: {**good(n), "label": "a"})}, ("train holds only the label 'a'", "add rows of another label")),
    Bad("each line broken", {"a.jsonl": "text,label\n" * 40}, ("a.jsonl:1", "broken JSON", "set `format`")),
    Bad("every fifth line broken", {"a.jsonl": jsonl(**{f"line{n}": "{" for n in range(1, 40, 5)})}, ("a.jsonl:1:", "broken JSON")),
    Bad("a wrong encoding", {"a.csv": b"text,label\n" + "schön,a\n".encode("latin-1") * 40}, ("a.csv:2: the bytes f6", "utf-8"), data={"train": {"source": "a.csv", "encoding": "utf-8"}}),
    Bad("an encoding that is none of text", {"a.csv": csv()}, ("encoding 'rot13' is none of text", "utf-8"), data={"train": {"source": "a.csv", "encoding": "rot13"}}),
    Bad("an unknown encoding", {"a.csv": csv()}, ("encoding 'klingon' is not known",), data={"train": {"source": "a.csv", "encoding": "klingon"}}),
    Bad("a broken byte in the header", {"a.csv": UTF8.replace(b"text,label", b"text,lab\xff")}, ("a.csv:1: the bytes ff", MEND)),
    Bad("bytes of no encoding", {"a.csv": bytes(range(256)) * 4}, ("a.csv", "is not UTF-8", "`encoding`")),
    Bad("gzip that is none", {"a.csv.gz": csv()}, ("a.csv.gz: cannot be read", "Not a gzipped file")),
    Bad("gzip that was cut", {"a.csv.gz": gzip.compress(csv())[:-20]}, ("a.csv.gz: cannot be read", "ended before the end-of-stream")),
    Bad("parquet of no bytes", {"a.parquet": b""}, ("a.parquet: is not a readable parquet file", "write it again")),
    Bad("parquet that was cut", {"a.parquet": parquet()[:-100]}, ("a.parquet: is not a readable parquet file",)),
    Bad("parquet that is csv", {"a.parquet": csv()}, ("a.parquet: is not a readable parquet file", "set `format`")),
    Bad("bytes for text in parquet", {"a.parquet": parquet(text=[text.encode() for text in TEXTS])}, ("a.parquet, row 1", "(bytes), which is not text")),
    Bad("arrow that is csv", {"a.arrow": csv()}, ("a.arrow: is not a readable Arrow file",)),
    Bad("an unknown ending", {"a.dat": csv()}, ("its ending tells no format", "set `format`"), data={"train": "./a.dat"}),
    Bad("json that is one object", {"a.json": '{"text": "x", "label": "a"}'}, ("a.json: needs a list of objects", "the keys 'text', 'label'")),
    Bad("json that is broken", {"a.json": '[{"text": "x"},\n{"text" "y"}]'}, ("a.json:2:9: broken JSON",)),
    Bad("json nested too deeply", {"a.json": "[" * 200_000}, ("a.json:1", "nested too deeply")),
    Bad("squad without questions", {"a.json": '{"data": [{"paragraphs": [{"context": "x"}]}]}'}, ("article 1, paragraph 1: has no list of objects 'qas'",), task=ANSWERS),
    Bad("words without tags", {"a.conll": "iron\nold\n"}, ("a.conll:1: has one column", "a word and its tag"), task=TOKENS),
    Bad("a header of another width", {"a.conll": conll()}, ("`header` names 3 columns, and the file has 2",), task=TOKENS, data={"train": {"source": "a.conll", "header": ["tokens", "pos", "tags"]}}),
    Bad("a folder without splits", {"set/rows.csv": csv()}, ("holds no file named train", "it holds rows.csv", "data.train"), data={"train": None, "source": "set"}),
    Bad("a folder with two train files", {"set/train.csv": csv(), "set/train.jsonl": jsonl()}, ("both train.csv and train.jsonl", "data.train"), data={"train": None, "source": "set"}),
    Bad("a shard is missing", {"set/train-00000-of-00002.csv": csv()}, ("1 of 2 shards", "fetch the missing"), data={"train": None, "source": "set"}),
    Bad("a label file with a name twice", {"a.csv": csv(), "labels.txt": "a\nb\na\n"}, ("labels.txt: the label 'a' stands there twice",), data={"labels": "labels.txt"}),
    Bad("more label numbers than names", {"a.jsonl": jsonl(lambda n: {**good(n), "label": n % 3})}, ("labels of train run from 0 to 2, and data.labels has 2 names",), data={"labels": ["no", "on"]}),
    Bad("a filter that leaves nothing", {"a.csv": csv()}, ("no rows left of 40 after filter",), data={"train": {"source": "a.csv", "filter": {"label": "c"}}}),
    Bad("a validation split without labels", {"a.csv": csv(), "v.csv": csv("text,other")}, ("validation and train do not both have label",), data={"validation": "v.csv"}),
    Bad("labels in all rows but their own", {"a.jsonl": jsonl(lambda n: {**good(n), "label": f"l{n}"})}, ("each of the 40 labels of train stands on one row only", "add rows")),
]  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_bert(tmp_path_factory.mktemp("model"))


def values(bad: Bad, folder: Path, model: Path, on_bad_row: str) -> dict[str, Any]:
    for name, content in bad.files.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    data = {"train": f"./{next(iter(bad.files))}", **bad.data}
    data = {key: value for key, value in data.items() if value is not None}
    more = {"on_bad_row": on_bad_row, "cache_dir": str(folder / "cache"), "max_length": 32}
    task = {"type": bad.task, **bad.options, **({"doc_stride": 8} if bad.task == ANSWERS else {})}
    return {**tiny.recipe_values(model, "", task=task), "data": {**data, **more}}


def prepare(bad: Bad, folder: Path, model: Path, on_bad_row: str) -> tuple[Path, Prepared]:
    recipe = Recipe.model_validate(values(bad, folder, model, on_bad_row))
    return registry.load(registry.TASKS, bad.task)(recipe, base_folder=folder).prepare_data()


def named(cases: list[Bad]) -> Any:
    return pytest.mark.parametrize("bad", cases, ids=lambda bad: bad.name)


def test_there_are_enough() -> None:
    assert len({bad.name for bad in (*ROW_FAULTS, *FILE_FAULTS)}) == len(ROW_FAULTS) + len(FILE_FAULTS) >= 90


@named([*ROW_FAULTS, *FILE_FAULTS])
def test_an_error_names_file_row_value_and_remedy(bad: Bad, tmp_path: Path, model: Path) -> None:
    with pytest.raises(DataError) as caught:
        prepare(bad, tmp_path, model, "error")
    assert all(part in str(caught.value) for part in bad.said), f"{caught.value}\n{bad.said}"
    assert len(str(caught.value)) < 1000


@named(ROW_FAULTS)
def test_rows_that_cannot_be_used_are_left_out_and_listed(bad: Bad, tmp_path: Path, model: Path) -> None:
    folder, prepared = prepare(bad, tmp_path, model, "skip")
    listed = [json.loads(line) for line in (folder / "skipped.jsonl").read_text().splitlines()]
    assert [row["place"].removeprefix(f"{tmp_path}/") for row in listed] == list(bad.skipped)
    assert all(row["reason"] and len(row["value"]) <= 80 for row in listed)
    facts = prepared.facts["skipped"]
    assert facts["rows"] == listed and sum(facts["counts"].values()) == len(listed)
    assert facts["file"] == str(folder / "skipped.jsonl")
    warned = [note for note in prepared.facts["warnings"] if "cannot be used and were skipped" in note]
    assert len(warned) == 1 and listed[0]["place"] in warned[0] and str(folder / "skipped.jsonl") in warned[0]
    splits = [rows for rows in (prepared.train, prepared.validation, prepared.test) if rows is not None]
    assert sum(len(set(rows["row_id"])) for rows in splits) == ROWS * len(bad.files) - len(listed)


@named(FILE_FAULTS)
def test_a_fault_of_a_whole_file_is_never_skipped(bad: Bad, tmp_path: Path, model: Path) -> None:
    with pytest.raises(DataError) as caught:
        prepare(bad, tmp_path, model, "skip")
    said = str(caught.value)
    assert all(part in said for part in bad.said) or "more than the 10% that data.on_bad_row: skip leaves out" in said


def test_more_than_a_tenth_is_an_error(tmp_path: Path, model: Path) -> None:
    def lines(bad: int) -> Bad:
        return Bad("", {"a.jsonl": jsonl(**{f"line{n}": "{" for n in range(1, bad + 1)})}, ())

    _, prepared = prepare(lines(4), tmp_path, model, "skip")
    assert prepared.facts["skipped"]["counts"] == {"train": 4}
    with pytest.raises(DataError) as caught:
        prepare(lines(5), tmp_path, model, "skip")
    assert "5 of the 40 train rows (12%) cannot be used" in str(caught.value)
    assert "look at the file" in str(caught.value) and "a.jsonl:1:2: broken JSON" in str(caught.value)


def test_all_rows_are_in_the_file_and_the_first_hundred_in_the_facts(tmp_path: Path, model: Path) -> None:
    rows = [json.dumps(good(n)) if n % 20 else "{" for n in range(2400)]
    bad = Bad("", {"a.jsonl": "\n".join(rows)}, ())
    folder, prepared = prepare(bad, tmp_path, model, "skip")
    facts = prepared.facts["skipped"]
    assert facts["counts"] == {"train": 120} and len(facts["rows"]) == 100
    assert len((folder / "skipped.jsonl").read_text().splitlines()) == 120
    assert "120 train rows cannot be used" in " ".join(prepared.facts["warnings"])
    again, prepared = prepare(bad, tmp_path, model, "skip")
    assert again == folder and prepared.facts["was_cached"] and prepared.facts["skipped"] == facts


def test_rows_keep_their_numbers_and_equal_files_their_fingerprint(tmp_path: Path, model: Path) -> None:
    broken = Bad("", {"a.jsonl": jsonl(line17="{"), "v.jsonl": jsonl()}, (), data={"validation": "v.jsonl"})
    _, prepared = prepare(broken, tmp_path, model, "skip")
    assert prepared.train["row_id"][:] == [n for n in range(ROWS) if n != 16]
    whole = Bad("", {"a.jsonl": jsonl(), "v.jsonl": jsonl()}, (), data={"validation": "v.jsonl"})
    assert (
        prepare(whole, tmp_path, model, "skip")[1].fingerprint
        == prepare(whole, tmp_path, model, "error")[1].fingerprint
    )
    assert "skipped" not in prepare(whole, tmp_path, model, "skip")[1].facts


def test_limit_and_filter_see_the_rows_as_they_stand(tmp_path: Path, model: Path) -> None:
    limited = Bad(
        "", {"a.jsonl": jsonl(line17="{", line30="{")}, (), data={"train": {"source": "a.jsonl", "limit": 20}}
    )
    _, prepared = prepare(limited, tmp_path, model, "skip")
    assert prepared.facts["skipped"]["counts"] == {"train": 1}
    assert len(prepared.train) + len(prepared.validation) == 19


def test_names_that_yaml_once_took_for_truth_are_labels(tmp_path: Path, model: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.csv").write_text(
        "text,label\n" + "".join(f"text {n},{('no', 'on', 'yes')[n % 3]}\n" for n in range(30))
    )
    text = f"version: 1\nname: r\ntask: text-classification\nmodel: {{name_or_path: {model}}}\n"
    path = tmp_path / "r.yaml"
    path.write_text(f"{text}data: {{train: a.csv, labels: [no, on, yes], max_length: 32, cache_dir: cache}}\n")
    found, problems = examine(path)
    assert problems == [] and found.recipe.data.labels == ["no", "on", "yes"]
    _, prepared = registry.load(registry.TASKS, TEXT)(found.recipe, base_folder=tmp_path).prepare_data()
    assert prepared.label_names == ("no", "on", "yes") and prepared.facts["splits"]["train"]["labels"] == [9, 9, 9]
    path.write_text(f"{text}data: {{train: a.csv, labels: [false, true]}}\n")
    assert "data.labels[0] is false; it must be text" in str(examine(path)[1][0])


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ("{train: none.csv}", "there is no such file or folder"),
        ("{train: a.csv, labels: none.txt}", "there is no such file"),
        ("{train: a.csv, labels: [a, b, a]}", "data.labels[2] is 'a', a label that stands twice"),
        ("{train: a.csv, columns: {txt: body}}", "data.columns has no column txt of ours"),
        ("{train: {source: a.csv, format: cvs}}", "data.train.format is 'cvs'"),
        ("{train: {source: a.parquet, encoding: gbk}}", "has no effect: the format is parquet"),
        ("{train: a.csv, on_bad_row: ignore}", "data.on_bad_row is 'ignore'; it must be one of error, skip"),
    ],
)
def test_what_a_recipe_says_is_found_by_check(tmp_path: Path, monkeypatch: Any, data: str, said: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.csv").write_bytes(csv())
    (tmp_path / "a.parquet").write_bytes(parquet())
    path = tmp_path / "r.yaml"
    path.write_text(f"version: 1\nname: r\ntask: text-classification\nmodel: {{name_or_path: bert}}\ndata: {data}\n")
    (problem,) = examine(path)[1]
    assert said in problem.message and problem.remedy and problem.place.startswith(f"{path}:5:")


def test_check_names_what_reads_a_workbook(tmp_path: Path, monkeypatch: Any) -> None:

    monkeypatch.setitem(sys.modules, "openpyxl", None)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.xlsx").write_bytes(b"")
    path = tmp_path / "r.yaml"
    path.write_text("version: 1\nname: r\ntask: causal-lm\nmodel: {name_or_path: gpt2}\ndata: {train: a.xlsx}\n")
    (problem,) = examine(path)[1]
    assert "needs openpyxl" in problem.message and problem.remedy == "pip install openpyxl"


def test_what_was_left_out_is_shown_by_the_view_of_the_data(tmp_path: Path, model: Path) -> None:
    from launcher.workflows.data_view import view_data

    bad = Bad("", {"a.jsonl": jsonl(line17="{")}, ())
    recipe = Recipe.model_validate(values(bad, tmp_path, model, "skip"))
    shown = view_data(recipe, base_folder=tmp_path, rows=1).to_json()
    assert shown["skipped"]["counts"] == {"train": 1} and shown["skipped"]["rows"][0]["row"] == 17
    assert any("1 train rows cannot be used" in note for note in shown["warnings"])


def test_rows_to_predict_on_are_never_left_out(tmp_path: Path, model: Path) -> None:
    bad = Bad("", {"a.jsonl": jsonl(line17={"text": None})}, ())
    recipe = Recipe.model_validate(values(bad, tmp_path, model, "skip"))
    task = registry.load(registry.TASKS, TEXT)(recipe, base_folder=tmp_path)
    with pytest.raises(DataError, match=r"a.jsonl:17 \(row 17\)"):
        task.read_rows(str(tmp_path / "a.jsonl"))
