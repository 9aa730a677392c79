"""Recipes' data sections to splits: kinds of sources, columns, filters, what is set aside, errors and warnings."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from launcher.data.sources import SplitSet, load_rows, load_splits
from launcher.errors import DataError
from launcher.recipe.data_section import DataSection, SourceSpec

ROWS = [("good film", "pos"), ("bad film", "neg"), ("fine play", "pos"), ("poor play", "neg")]


def csv(folder: Path, name: str, rows=ROWS, header: str = "text,label") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([header, *(",".join(map(str, row)) for row in rows)]) + "\n", "utf-8")
    return path


def load(folder: Path, **data: object) -> SplitSet:
    return load_splits(DataSection(**data), base_folder=folder)


def fault(folder: Path, **data: object) -> str:
    with pytest.raises(DataError) as caught:
        load(folder, **data)
    return str(caught.value)


# --- kinds of sources ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["validation", "dev", "valid", "val"])
def test_a_folder_of_splits(tmp_path: Path, name: str) -> None:
    csv(tmp_path, "set/train.csv")
    csv(tmp_path, f"set/{name}.tsv", [("x film\tpos",)], header="text\tlabel")
    (tmp_path / "set/test.jsonl").write_text('{"text": "y film", "label": "neg"}\n')
    (tmp_path / "set/labels.txt").write_text("neg\npos\n")
    splits = load(tmp_path, source="set")
    assert splits.train["text"][:] == [text for text, _ in ROWS] and splits.train["row_id"][:] == [0, 1, 2, 3]
    assert splits.validation["label"][:] == ["pos"] and splits.test["text"][:] == ["y film"]
    assert splits.origin("test")(0).endswith("test.jsonl:1 (row 1)")
    assert splits.provenance["validation"][0]["format"] == "tsv"


def test_shards_are_joined_in_order_and_must_be_complete(tmp_path: Path) -> None:
    from datasets import Dataset

    for number, text in enumerate("abc"):
        rows = Dataset.from_dict({"text": [text], "label": [text]})
        rows.to_parquet(str(tmp_path / f"data/train-{number:05d}-of-00003.parquet"))
    splits = load(tmp_path, source=".", validation=str(csv(tmp_path, "v.csv", [("q", "a")])))
    assert splits.train["text"][:] == ["a", "b", "c"] and splits.train["row_id"][:] == [0, 1, 2]
    assert "train-00002-of-00003" in splits.origin("train")(2)
    (tmp_path / "data/train-00001-of-00003.parquet").unlink()
    assert "2 of 3 shards" in fault(tmp_path, source=".")


def test_two_files_for_one_split_are_a_question(tmp_path: Path) -> None:
    csv(tmp_path, "train.csv")
    (tmp_path / "train.jsonl").write_text('{"text": "a"}\n')
    assert "both train.csv and train.jsonl" in fault(tmp_path, source=".")


def test_a_folder_saved_by_datasets(tmp_path: Path) -> None:
    from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

    features = Features({"text": Value("string"), "label": ClassLabel(names=["pos", "neg"])})
    rows = Dataset.from_dict({"text": list("abcdefgh"), "label": [0, 1] * 4}, features=features)
    hidden = Dataset.from_dict({"text": ["q"], "label": [-1]}, features=features)
    DatasetDict(train=rows, dev=rows.select([0]), test=hidden, extra=rows).save_to_disk(str(tmp_path / "saved"))
    splits = load(tmp_path, source="saved")
    assert splits.label_names == ("pos", "neg") and splits.train["label"][:2] == ["pos", "neg"]
    assert splits.test.column_names == ["text", "row_id"]
    said = " ".join(splits.warnings)
    assert "not used: extra" in said and "prediction only" in said and "1 of the 1 validation rows" in said
    rows.save_to_disk(str(tmp_path / "one"))
    assert len(load(tmp_path, train="one").train) == 7


def test_one_file_is_all_train_and_a_stratified_share_is_set_aside(tmp_path: Path) -> None:
    path = csv(tmp_path, "all.csv", [(f"text {n}", "ab"[n % 4 == 0]) for n in range(40)])
    splits = load(tmp_path, source=str(path), validation_share=0.2)
    assert sorted(splits.validation["label"][:]) == ["a"] * 6 + ["b"] * 2 and len(splits.train) == 32
    assert sorted(splits.train["row_id"][:] + splits.validation["row_id"][:]) == list(range(40))
    assert splits.validation["text"][0] == f"text {splits.validation['row_id'][0]}"
    assert splits.origin("validation")(0).endswith(f"(row {splits.validation['row_id'][0] + 1})")
    assert "8 of the 40 train rows were set aside, stratified by label" in splits.warnings[0]
    other = load(tmp_path, source=str(path), validation_share=0.2, split_seed=7)
    assert other.validation["row_id"][:] != splits.validation["row_id"][:]


def test_regression_is_split_without_strata(tmp_path: Path) -> None:
    csv(tmp_path, "a.csv", [(f"text {n}", n + 0.5) for n in range(20)])
    assert "regression" in load(tmp_path, source="a.csv").warnings[0]


def test_several_sources_one_after_the_other(tmp_path: Path) -> None:
    csv(tmp_path, "a.csv", [*ROWS, ("odd", "other")])
    csv(tmp_path, "b.csv", [("another", "pos"), ("more", "neg")], header="text,category")
    first = SourceSpec(source="a.csv", filter={"label": ["pos", "neg"]}, limit=3)
    splits = load(tmp_path, train=[first, "b.csv"], validation="a.csv")
    assert splits.train["text"][:] == ["good film", "bad film", "fine play", "another", "more"]
    assert splits.train["row_id"][:] == [0, 1, 2, 5, 6]
    assert splits.origin("train")(4).endswith("b.csv:3 (row 2)") and splits.origin("train")(1).endswith(
        "a.csv:3 (row 2)"
    )


def test_named_rows_replace_those_of_the_source(tmp_path: Path) -> None:
    for name in ("train", "validation", "test"):
        csv(tmp_path, f"set/{name}.csv", [(f"{name} {n}", "ab"[n % 2]) for n in range(4)])
    csv(tmp_path, "own.csv", [("mine", "a")])
    assert load(tmp_path, source="set", test="own.csv").test["text"][:] == ["mine"]
    third = load(tmp_path, train={"source": "set", "split": "test"}, validation="set", test="set")
    assert third.train["text"][0] == "test 0" and third.validation["text"][0] == "validation 0"
    assert "has no split 'tran'" in fault(tmp_path, train={"source": "set", "split": "tran"})
    assert "either" not in fault(tmp_path, source="set", train="set") and "both" in fault(
        tmp_path, source="set", train="set"
    )


def test_filters_compare_numbers_with_the_text_of_a_csv(tmp_path: Path) -> None:
    csv(
        tmp_path,
        "a.csv",
        [(*row, year) for row, year in zip(ROWS, ["1", "2", "2.0", "x"], strict=True)],
        "text,label,year",
    )
    kept = load(tmp_path, train={"source": "a.csv", "filter": {"year": 2}}, validation="a.csv")
    assert kept.train["row_id"][:] == [1, 2]
    assert "no rows left of 4" in fault(tmp_path, train={"source": "a.csv", "filter": {"year": 3}})
    assert "did you mean 'year'" in fault(tmp_path, train={"source": "a.csv", "filter": {"yaer": 3}})


# --- columns -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "found"),
    [
        ("text,label", {"text": "text", "label": "label"}),
        ("review,sentiment_id,category", {"text": "review", "label": "category"}),
        (
            "idx,sentence1,sentence2,label",
            {"text": "sentence1", "text_pair": "sentence2", "label": "label", "id": "idx"},
        ),
        (
            "index,question,sentence,label",
            {"text": "question", "text_pair": "sentence", "label": "label", "id": "index"},
        ),
        ("premise,hypothesis,gold", {"text": "premise", "text_pair": "hypothesis"}),
        ("text,content,intent", {"text": "text", "label": "intent"}),
    ],
)
def test_common_names_are_found(tmp_path: Path, header: str, found: dict) -> None:
    width = header.count(",") + 1
    csv(tmp_path, "a.csv", [[f"{n}{c}" for c in range(width)] for n in "ab"], header)
    used = load(tmp_path, train="a.csv", validation="a.csv").provenance["train"][0]["columns"]
    assert used == found


@pytest.mark.parametrize(
    "header", ["title,sentence,label", "sentence,review,label", "headline,class", "sentence2,content"]
)
def test_a_doubt_is_an_error_with_the_line_to_write(tmp_path: Path, header: str) -> None:
    csv(tmp_path, "a.csv", [["x"] * (header.count(",") + 1)] * 2, header)
    message = fault(tmp_path, train="a.csv")
    assert "columns: {" in message and "text: " in message
    assert all(repr(name) in message for name in header.split(","))


def test_columns_are_mapped_and_joined(tmp_path: Path) -> None:
    csv(tmp_path, "a.csv", [("T1", "B1", "x"), ("T2", "B2", "y")], "title,body,kind")
    data = {"train": "a.csv", "validation": "a.csv", "columns": {"text": ["title", "body"], "label": "kind"}}
    assert load(tmp_path, **data, join=" | ").train["text"][:] == ["T1 | B1", "T2 | B2"]
    assert "did you mean 'body'" in fault(tmp_path, train="a.csv", columns={"text": "bodi"})
    assert "did you mean 'text'" in fault(tmp_path, train="a.csv", columns={"txt": "body"})
    assert "only texts are joined" in fault(tmp_path, train="a.csv", columns={"text": "body", "label": ["kind"]})


@pytest.mark.parametrize("ending", ["csv", "tsv", "json", "jsonl", "parquet", "arrow", "saved"])
def test_columns_are_renamed_in_every_format(tmp_path: Path, ending: str) -> None:
    """Also where the file has a column of our name that means something else."""
    import pyarrow
    from datasets import Dataset

    rows = {"headline": ["good", "bad"], "kind": ["x", "y"], "text": ["1", "2"]}
    path = tmp_path / f"a.{ending}"
    if ending in ("csv", "tsv"):
        mark = {"csv": ",", "tsv": "\t"}[ending]
        path.write_text("\n".join(map(mark.join, [rows, *zip(*rows.values(), strict=True)])))
    elif ending == "arrow":
        table = pyarrow.table(rows)
        with pyarrow.OSFile(str(path), "wb") as sink, pyarrow.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
    elif ending == "saved":
        Dataset.from_dict(rows).save_to_disk(str(path))
    elif ending == "parquet":
        Dataset.from_dict(rows).to_parquet(str(path))
    else:
        objects = [dict(zip(rows, row, strict=True)) for row in zip(*rows.values(), strict=True)]
        path.write_text(json.dumps(objects) if ending == "json" else "\n".join(map(json.dumps, objects)))
    found = load(
        tmp_path, train=path.name, validation=path.name, columns={"text": "headline", "label": "kind", "id": "text"}
    )
    assert found.train[0] == {"text": "good", "label": "x", "id": "1", "row_id": 0}


def test_columns_of_words_and_questions_are_renamed(tmp_path: Path) -> None:
    (tmp_path / "a.conll").write_text("B-X\tAnna\nO\tsang\n\nO\thi\n")
    words = {"source": "a.conll", "header": ["ner", "word"]}
    data = DataSection(train=words, validation=words, columns={"tokens": "word", "label": "ner"})
    found = load_splits(
        data, base_folder=tmp_path, needs=("tokens",), optional=("label",), problem_type="token_classification"
    )
    assert found.train["tokens"][0] == ["Anna", "sang"] and found.train["label"][0] == ["B-X", "O"]
    (tmp_path / "q.jsonl").write_text(
        '{"q": "who?", "passage": "Anna sang", "gold": {"text": ["Anna"], "answer_start": [0]}}\n'
    )
    columns = {"question": "q", "context": "passage", "answers": "gold"}
    data = DataSection(train="q.jsonl", validation="q.jsonl", columns=columns)
    found = load_splits(data, base_folder=tmp_path, needs=("question", "context"), optional=("answers",))
    assert found.train["text_pair"][0] == "Anna sang" and found.train["label"][0]["text"] == ["Anna"]


def test_a_label_that_is_needed_is_asked_for(tmp_path: Path) -> None:
    csv(tmp_path, "a.csv", [("a b", "c d", 2.5)], "sentence1,sentence2,score")
    with pytest.raises(DataError, match="label: score"):
        load_splits(DataSection(train="a.csv"), base_folder=tmp_path, needs=("text", "label"), optional=("text_pair",))


# --- values --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [None, 3, ["a"], 1.5, {"a": 1}])
def test_text_that_is_not_text_names_the_row(tmp_path: Path, value: object) -> None:
    rows = [{"text": "fine", "label": 1}, {"text": value, "label": 0}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    message = fault(tmp_path, train="a.jsonl")
    assert "a.jsonl:2 (row 2)" in message and "is not text" in message


def test_labels_keep_one_type(tmp_path: Path) -> None:
    for values, expected in (
        ([1, 0], [1, 0]),
        ([1, 0.5], [1.0, 0.5]),
        ([1, "b"], ["1", "b"]),
        ([True, False], ["true", "false"]),
        ([["a"], []], [["a"], []]),
        ([["a", 1], "c"], [["a", "1"], ["c"]]),
    ):
        rows = [{"text": f"t{n}", "label": label} for n, label in enumerate(values)]
        (tmp_path / "a.json").write_text(json.dumps(rows))
        assert load(tmp_path, train="a.json", validation="a.json").train["label"][:] == expected
    (tmp_path / "a.json").write_text('[{"text": "a", "label": {"b": 1}}]')
    assert "a label is text, a number, or a list" in fault(tmp_path, train="a.json")


def test_rows_without_labels(tmp_path: Path) -> None:
    csv(tmp_path, "a.csv")
    for rows, header in (([("q",)], "text"), ([("q", ""), ("r", "")], "text,label"), ([("q", -1)], "text,label")):
        csv(tmp_path, "test.csv", rows, header)
        splits = load(tmp_path, train="a.csv", validation="a.csv", test="test.csv")
        assert "label" not in splits.test.column_names
        assert any("prediction only" in note for note in splits.warnings)
    (tmp_path / "part.jsonl").write_text('{"text": "a", "label": "pos"}\n{"text": "b"}\n')
    assert "row 2" in fault(tmp_path, train="a.csv", validation="a.csv", test="part.jsonl")
    assert "row 2" in fault(tmp_path, train="part.jsonl", validation="a.csv")
    csv(tmp_path, "bare.csv", [("q",)], "text")
    assert "do not both have label" in fault(tmp_path, train="a.csv", validation="bare.csv")


def test_rows_to_predict_on(tmp_path: Path) -> None:
    (tmp_path / "lines.txt").write_text("one\ntwo\n")
    rows = load_rows("lines.txt", data=DataSection(source="unused"), base_folder=tmp_path)
    assert rows.columns == {"text": ["one", "two"], "row_id": [0, 1]} and rows.place(1).endswith("lines.txt:2 (row 2)")


def test_the_label_column_may_be_missing_from_rows_to_predict_on_only(tmp_path: Path) -> None:
    csv(tmp_path, "a.csv", header="text,kind")
    csv(tmp_path, "bare.csv", [("q",)], "text")
    columns = {"label": "kind"}
    splits = load(tmp_path, train="a.csv", validation="a.csv", test="bare.csv", columns=columns)
    assert splits.test.column_names == ["text", "row_id"]
    data = DataSection(source="unused", columns=columns)
    assert "label" not in load_rows("bare.csv", data=data, base_folder=tmp_path, optional=("id",)).columns
    assert "label" not in load_rows("a.csv", data=data, base_folder=tmp_path, optional=("id",)).columns
    assert "has no column 'kind'" in fault(tmp_path, train="a.csv", validation="bare.csv", columns=columns)


def test_empty_splits(tmp_path: Path) -> None:
    csv(tmp_path, "a.csv")
    csv(tmp_path, "none.csv", [])
    assert "the test split has no rows" in fault(tmp_path, train="a.csv", validation="a.csv", test="none.csv")
    assert "is empty" in fault(tmp_path, train="a.csv", test=str((tmp_path / "e.csv").touch() or "e.csv"))


def test_rows_that_recur_are_counted_with_an_example(tmp_path: Path) -> None:
    csv(tmp_path, "a.csv")
    csv(tmp_path, "t.csv", [("new", "pos"), ("GOOD   film", "pos"), ("bad film ", "neg")])
    (note,) = load(
        tmp_path, train="a.csv", validation=str(csv(tmp_path, "v.csv", [("v", "pos")])), test="t.csv"
    ).warnings
    assert (
        note.startswith("2 of the 3 test rows also stand in train") and "t.csv:3 (row 2)" in note and "a.csv:2" in note
    )


# --- nothing there -------------------------------------------------------------------------------------------------


def test_missing_paths_name_their_neighbours(tmp_path: Path) -> None:
    csv(tmp_path, "set/train.csv")
    assert "did you mean 'train.csv'" in fault(tmp_path, train="set/trian.csv")
    assert "no folder" in fault(tmp_path, train="./sets/deep/train.csv")
    (tmp_path / "empty").mkdir()
    assert "it holds nothing" in fault(tmp_path, source="empty")
    assert "has no train split" in fault(tmp_path, source=str(csv(tmp_path, "other/test.csv").parent))
    assert "did you mean builtin:api-topics" in fault(tmp_path, source="builtin:api-topic")


def test_a_hub_id_without_a_network_names_the_remedy(tmp_path: Path) -> None:
    csv(tmp_path, "reviews/train.csv")
    message = fault(tmp_path, source="review")
    assert "did you mean 'reviews'" in message and "save_to_disk" in message
    assert "name" in fault(tmp_path, source={"source": "reviews", "name": "x"})


# --- fingerprints --------------------------------------------------------------------------------------------------


def test_the_fingerprint_is_of_the_rows_not_of_their_files(tmp_path: Path) -> None:
    one = load(tmp_path, train=str(csv(tmp_path, "x/a.csv")), validation="x/a.csv")
    lines = "\n".join(json.dumps({"label": label, "text": text}) for text, label in ROWS)
    (tmp_path / "b.jsonl").write_text(lines)
    two = load(tmp_path, train="b.jsonl", validation="b.jsonl")
    assert one.fingerprint == two.fingerprint and len(one.fingerprint) == 64
    swapped = load(tmp_path, train=str(csv(tmp_path, "c.csv", ROWS[::-1])), validation="b.jsonl")
    assert swapped.fingerprint != one.fingerprint
    assert one.fingerprint.startswith("e31d8307b2cf768b")


# --- real data -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "data", "rows", "columns"),
    [
        ("banking77", {}, (3080, 770, 770), ["text", "label", "row_id"]),
        ("ag_news", {"columns": {"text": ["title", "description"]}}, (2000, 500, 500), ["text", "label", "row_id"]),
        ("go_emotions", {}, (4000, 500, 500), ["text", "label", "id", "row_id"]),
        ("qnli", {}, (1600, 300, 300), ["text", "text_pair", "label", "id", "row_id"]),
        ("stsb", {"columns": {"label": "score"}}, (2000, 300, 300), ["text", "text_pair", "label", "row_id"]),
        ("gsm8k", {"columns": {"text": "question"}}, (2500, 300, 400), ["text", "row_id"]),
    ],
)
def test_real_sets(shared: Path, name: str, data: dict, rows: tuple, columns: list) -> None:
    splits = load(shared / "data", source=name, **data)
    assert (len(splits.train), len(splits.validation), len(splits.test)) == rows
    assert splits.train.column_names == columns
    assert splits.warnings == ()


# --- groups ----------------------------------------------------------------------------------------------------------


def test_a_group_is_never_divided(tmp_path: Path) -> None:
    """Neither by the group alone, nor where an equal text links two groups; a row without a group goes its own way."""
    rows = [(f"text {n}", "ab"[n % 2], "" if n % 10 == 9 else f"user {n // 4}") for n in range(80)]
    rows[8] = ("text 3", "a", "user 2")
    csv(tmp_path, "a.csv", rows, header="text,label,user")
    splits = load(tmp_path, train="a.csv", columns={"group": "user"}, validation_share=0.3)
    sides = [set(split["group"][:]) - {None} for split in (splits.train, splits.validation)]
    assert sides[0] and sides[1] and not sides[0] & sides[1]
    assert {"user 0", "user 2"} <= sides[0] or {"user 0", "user 2"} <= sides[1]
    assert len(splits.train) + len(splits.validation) == 80 and None in splits.train["group"][:]
    assert "whole groups, drawn alike" in " ".join(splits.warnings)


def test_groups_that_straddle_given_splits_are_told(tmp_path: Path) -> None:
    csv(tmp_path, "a.csv", [("one", "a", "u1"), ("two", "b", "u2")], header="text,label,user")
    csv(tmp_path, "b.csv", [("three", "a", "u2"), ("four", "b", "u3")], header="text,label,user")
    csv(tmp_path, "c.csv", [("five", "a"), ("six", "b")])
    splits = load(tmp_path, train="a.csv", validation="b.csv", test="c.csv", columns={"group": "user"})
    told = " ".join(splits.warnings)
    assert "1 of the 2 validation rows are of 1 groups that also stand in train, such as 'u2'" in told
    assert "has no column 'usr'" in fault(tmp_path, train="a.csv", columns={"group": "usr"})
