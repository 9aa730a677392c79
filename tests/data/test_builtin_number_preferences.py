"""builtin:number-preferences: the chosen answer is right, the rejected one wrong, and longer about as often as shorter."""

from __future__ import annotations

import pytest

from launcher.data.builtin import make_builtin
from launcher.data.builtin_number_preferences import SIZES, mistakes
from launcher.data.builtin_number_words import english, spanish


@pytest.mark.parametrize(
    ("number", "longer", "shorter"),
    [
        (502, ["cinco cientos dos"], ["quincien dos"]),
        (231, ["dos cientos treinta y uno"], ["doscientos treinta uno", "doscien treinta y uno"]),
        (1022, ["uno mil veintidós", "mil veinte y dos"], []),
        (116, ["ciento diez y seis"], ["cien dieciséis"]),
        (7, [], []),
    ],
)
def test_mistakes(number: int, longer: list[str], shorter: list[str]) -> None:
    assert (mistakes(number, longer=True), mistakes(number, longer=False)) == (longer, shorter)


def test_pairs() -> None:
    made = make_builtin("number-preferences")
    assert {split: len(rows) for split, rows in made.splits.items()} == SIZES
    rows = [row for part in made.splits.values() for row in part]
    assert len({row["id"] for row in rows}) == len(rows), "no number is in two splits"
    right = {spanish(number) for number in range(1, 10_000)}
    for row in rows:
        assert (row["prompt"], row["chosen"]) == (english(int(row["id"])), spanish(int(row["id"])))
        assert row["rejected"] not in right
    assert sum(len(row["chosen"]) > len(row["rejected"]) for row in rows) / len(rows) == pytest.approx(0.5, abs=0.03)
    assert make_builtin("number-preferences").splits == made.splits
