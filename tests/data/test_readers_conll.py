"""Words and their tags from CoNLL and CoNLL-U, and what is said about files that do not fit."""

from __future__ import annotations

from pathlib import Path

import pytest

from launcher.data.readers import read_file
from launcher.data.sources import load_splits
from launcher.data.tables import Table
from launcher.errors import DataError
from launcher.recipe.data_section import DataSection, SourceSpec

UD = "1\tPlease\tplease\tINTJ\tUH\t_\t2\tdiscourse\t_\t_\n2\thelp\thelp\tVERB\tVB\tMood=Imp\t0\troot\t_\t_\n"


def read(folder: Path, text: str, name: str = "a.conll", **options: object) -> Table:
    (folder / name).write_text(text)
    return read_file(folder / name, spec=SourceSpec(source=name, **options))


def fault(folder: Path, text: str, name: str = "a.conll", **options: object) -> str:
    """What is said of the file, or of its first row that cannot be used."""
    try:
        table = read(folder, text, name, **options)
    except DataError as error:
        return str(error)
    row, found = min(table.faults.items())
    return f"{table.places.of(found, row)}: {found.reason}"


@pytest.mark.parametrize("between", ["\t", " ", "   "])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_sentences_stand_between_blank_lines(tmp_path, between, end):
    lines = ["", "Anna B-PER", "sang O", "", "", "# O", "no O", " ", "on B-LOC"]
    table = read(tmp_path, end.join(line.replace(" ", between) for line in lines))
    assert table.names == ("tokens", "tags")
    assert table.column("tokens") == [["Anna", "sang"], ["#", "no"], ["on"]]
    assert table.column("tags") == [["B-PER", "O"], ["O", "O"], ["B-LOC"]]
    assert table.places(1).endswith("a.conll:6 (row 2)")


def test_documents_and_comments_are_no_words(tmp_path):
    text = "-DOCSTART- -X- -X- O\n\n# id = 7\nEU NNP I-NP B-ORG\nrejects VBZ I-VP O\n"
    table = read(tmp_path, text)
    assert table.names == ("tokens", "column_2", "column_3", "tags")
    assert table.column("tokens") == [["EU", "rejects"]] and table.column("tags") == [["B-ORG", "O"]]
    named = read(tmp_path, text, header=["tokens", "pos", "chunk", "ner"])
    assert named.column("pos") == [["NNP", "VBZ"]]


def test_a_tab_keeps_words_with_blanks_whole(tmp_path):
    assert read(tmp_path, "New York\tB-LOC\nis\tO\n").column("tokens") == [["New York", "is"]]


def test_lines_that_do_not_fit_are_named(tmp_path):
    assert "a.conll:3: has 1 column(s), and line 1 has 2" in fault(tmp_path, "a O\n\nb\n")
    assert "a.conll:2: has 3 column(s), and line 1 has 2" in fault(tmp_path, "a\tO\nb\tO\tO\n")
    assert "a.conll:1: has one column" in fault(tmp_path, "a\nb\n")
    assert "`header` names 3 columns, and the file has 2" in fault(tmp_path, "a O\n", header=["tokens", "pos", "tags"])


def test_conllu_has_its_columns_by_name(tmp_path):
    text = f"# sent_id = s1\n# text = Please help\n{UD}\n# sent_id = s2\n1-2\tdon't\t_\t_\t_\t_\t_\t_\t_\t_\n{UD}1.1\tx\t_\t_\t_\t_\t_\t_\t_\t_\n"
    table = read(tmp_path, text, "a.conllu")
    assert table.column("tokens") == [["Please", "help"]] * 2 and table.column("upos") == [["INTJ", "VERB"]] * 2
    assert table.column("id") == ["s1", "s2"] and table.places(1).endswith(":6 (row 2)")
    assert "a.conllu:1: is no line of CoNLL-U" in fault(tmp_path, "Anna\tB-PER\n", "a.conllu")


# --- to our columns --------------------------------------------------------------------------------------------------


def splits(folder: Path, train: str, name: str = "train.jsonl", **data: object):
    (folder / name).write_text(train)
    section = DataSection(source=str(folder), **data)
    return load_splits(
        section, base_folder=folder, needs=("tokens",), optional=("label", "id"), problem_type="token_classification"
    )


ROWS = '{"tokens": ["a", "b"], "ner_tags": ["O", "B-X"]}\n{"tokens": ["c"], "ner_tags": ["O"]}\n'


def test_words_and_tags_are_found_by_their_names(tmp_path):
    found = splits(tmp_path, ROWS)
    assert sorted([*found.train["text"], *found.validation["text"]]) == ["a b", "c"]
    assert found.train.column_names.count("label") == 1
    assert "labels are not strata in token classification" in found.warnings[0]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ('{"tokens": ["a"], "ner_tags": ["O", "O"]}', "train.jsonl:3 (row 3): has 1 words and, as their label, 2 tags"),
        ('{"tokens": ["a"], "ner_tags": "O"}', "train.jsonl:3 (row 3): has 1 words and, as their label, 'O'"),
        ('{"tokens": "a b", "ner_tags": ["O", "O"]}', "(tokens) holds 'a b', which is no list of words"),
        ('{"tokens": [], "ner_tags": []}', "(tokens) holds [], which is no list of words"),
        ('{"tokens": ["a", 1], "ner_tags": ["O", "O"]}', "which is no list of words"),
        ('{"tokens": ["a"], "ner_tags": [null]}', "a label is text, a number, or a list of these"),
    ],
)
def test_rows_that_do_not_fit_are_named(tmp_path, row, said):
    with pytest.raises(DataError) as caught:
        splits(tmp_path, f"{ROWS}{row}\n")
    assert said in str(caught.value)


def test_tags_of_two_kinds_are_not_guessed(tmp_path):
    both = '{"tokens": ["a"], "ner_tags": ["O"], "pos_tags": ["X"]}\n{"tokens": ["b"], "ner_tags": ["O"], "pos_tags": ["X"]}\n'
    assert "label" not in splits(tmp_path, both).train.column_names
    assert splits(tmp_path, both, columns={"label": "pos_tags"}).train["label"] == [["X"]]


def test_real_files(shared):
    for name, tags in (("broad_twitter_ner", "tags"), ("ud_ewt_pos", "upos")):
        section = DataSection(source=str(shared / "data" / name))
        found = load_splits(section, base_folder=shared, needs=("tokens",), optional=("label", "id"))
        assert found.provenance["train"][0]["columns"]["label"] == tags
        assert all(
            len(words) == len(of_words)
            for words, of_words in zip(found.test["tokens"], found.test["label"], strict=True)
        )
