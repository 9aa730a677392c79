"""Features in pieces: the same file whatever number of processes makes it, and errors that name the row."""

from __future__ import annotations

import functools

import pytest
import tiny

from launcher.data import pieces
from launcher.data.pieces import Source, read_split, write_split
from launcher.errors import DataError


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    from transformers import AutoTokenizer

    folder = tmp_path_factory.mktemp("bert")
    tiny.save_tokenizer(folder)
    return AutoTokenizer.from_pretrained(str(folder))


@pytest.fixture
def small_pieces(monkeypatch):
    monkeypatch.setattr(pieces, "PIECE_ROWS", 7)


def test_any_number_of_processes_writes_the_same_bytes(tokenizer, tmp_path, small_pieces):
    from launcher.tasks.text_classification import text_features

    rows = tiny.rows(50, seed=3)
    columns = {"text": [text for text, _ in rows], "row_id": list(range(50)), "labels": [n % 3 for n in range(50)]}
    make = functools.partial(text_features, tokenizer=tokenizer, max_length=9)
    counts = [write_split(tmp_path / f"{n}.arrow", Source(columns, 50, str), make, processes=n) for n in (1, 2)]
    assert (tmp_path / "1.arrow").read_bytes() == (tmp_path / "2.arrow").read_bytes()
    found = read_split(tmp_path / "2.arrow")
    assert counts[0] == counts[1] == {"rows": 50, "tokens": sum(found["length"]), "cut": counts[0]["cut"]}
    assert counts[0]["cut"] > 0 and found["row_id"][:] == list(range(50)) and found["text"][:] == columns["text"]
    whole, _ = make(columns)
    assert found["input_ids"][:] == whole["input_ids"]


def test_an_error_of_another_process_names_the_row(tokenizer, tmp_path, small_pieces):
    """In the second piece, and of two faults the first."""
    from launcher.tasks.question_answering import window_features

    questions = ["iron"] * 9 + ["gold " * 30] + ["iron"] * 10 + ["tin " * 30]
    columns = {"text": questions, "text_pair": ["the apple"] * 21, "row_id": list(range(21))}
    make = functools.partial(window_features, tokenizer=tokenizer, max_length=20, stride=4)
    source = Source(columns, 21, lambda row: f"file.csv:{row + 2}")
    with pytest.raises(DataError, match=r"^file\.csv:11: the question has 30 tokens"):
        write_split(tmp_path / "rows.arrow", source, make, processes=2)


def test_a_piece_without_answers_has_the_type_of_the_others(tokenizer, tmp_path, small_pieces):
    from launcher.tasks.question_answering import window_features

    answers = [{"text": [], "answer_start": []}] * 8 + [{"text": ["apple"], "answer_start": [4]}]
    columns = {"text": ["iron"] * 9, "text_pair": ["the apple"] * 9, "row_id": list(range(9)), "answers": answers}
    make = functools.partial(window_features, tokenizer=tokenizer, max_length=20, stride=4)
    write_split(tmp_path / "rows.arrow", Source(columns, 9, str), make)
    assert read_split(tmp_path / "rows.arrow")["references"][-2:] == [[], ["apple"]]


def test_a_piece_without_a_row_has_the_types_of_the_others(tokenizer, tmp_path, small_pieces):
    from launcher.data.blocks import make_framed_blocks
    from launcher.tasks.language_task import block_features

    texts = [""] * 7 + [text for text, _ in tiny.rows(14, seed=3)] + [" "] * 8
    columns = {"text": texts, "row_id": list(range(29))}
    cut = functools.partial(
        make_framed_blocks, tokenizer, max_length=6, unlearned=tokenizer.all_special_ids, with_words=True
    )
    make = functools.partial(block_features, cut=cut)
    counts = [write_split(tmp_path / f"{n}.arrow", Source(columns, 29, str), make, processes=n) for n in (1, 2)]
    assert (tmp_path / "1.arrow").read_bytes() == (tmp_path / "2.arrow").read_bytes()
    assert counts[0] == counts[1] and counts[0]["empty"] == 15 and counts[0]["texts"] == 29
    found, whole = read_split(tmp_path / "2.arrow"), make(columns)[0]
    assert found.column_names == list(whole) and "word_ids" in whole
    for name in whole:
        assert [list(row) if name.endswith("_ids") else row for row in whole[name]] == found[name][:]
