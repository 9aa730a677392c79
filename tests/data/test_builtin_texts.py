"""builtin:number-words and builtin:docstrings: rows that are right, the same each time, and in one split each."""

from __future__ import annotations

from pathlib import Path

import pytest

from launcher.data.builtin import make_builtin
from launcher.data.builtin_number_words import SIZES, english, spanish


@pytest.mark.parametrize(
    ("number", "in_english", "in_spanish"),
    [
        (1, "one", "uno"),
        (22, "twenty-two", "veintidós"),
        (31, "thirty-one", "treinta y uno"),
        (100, "one hundred", "cien"),
        (101, "one hundred and one", "ciento uno"),
        (555, "five hundred and fifty-five", "quinientos cincuenta y cinco"),
        (1000, "one thousand", "mil"),
        (1007, "one thousand and seven", "mil siete"),
        (9916, "nine thousand nine hundred and sixteen", "nueve mil novecientos dieciséis"),
    ],
)
def test_numbers_in_words(number: int, in_english: str, in_spanish: str) -> None:
    assert (english(number), spanish(number)) == (in_english, in_spanish)


def test_no_number_is_in_two_splits() -> None:
    made = make_builtin("number-words")
    ids = [row["id"] for rows in made.splits.values() for row in rows]
    assert len(set(ids)) == len(ids) == sum(SIZES.values())
    assert len({spanish(n) for n in range(1, 10_000)}) == len({english(n) for n in range(1, 10_000)}) == 9999
    assert make_builtin("number-words").splits == made.splits


def test_docstrings_are_summed_up_by_the_names_of_functions(tmp_path: Path) -> None:
    made = make_builtin("docstrings", cache_dir=tmp_path)
    assert {split: len(rows) for split, rows in made.splits.items()} == {"train": 6000, "validation": 300, "test": 600}
    rows = [row for part in made.splits.values() for row in part]
    assert len({row["text"] for row in rows}) == len(rows)
    assert all(2 <= len(row["target"].split()) <= 4 and 30 <= len(row["text"]) <= 240 for row in rows)
    assert all(row["target"].replace(" ", "_") not in row["text"] for row in rows)
    assert made.facts["scipy"] and make_builtin("docstrings", cache_dir=tmp_path).splits == made.splits
