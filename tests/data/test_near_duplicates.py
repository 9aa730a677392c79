"""Texts that are nearly the same, held to a comparison of all with all."""

from __future__ import annotations

import numpy as np
import pytest

from launcher.data.near_duplicates import _likeness, _triples, near_texts

WORDS = [f"word{n}" for n in range(200)]


def some_texts(number: int, *, seed: int) -> list[str]:
    """Texts of 30 words; about a third of them are an earlier one with up to three words changed."""
    rng = np.random.default_rng(seed)
    texts: list[str] = []
    for _ in range(number):
        words = [str(word) for word in rng.choice(WORDS, 30)]
        if texts and rng.random() < 0.35:
            words = texts[int(rng.integers(len(texts)))].split()
            for place in rng.integers(30, size=int(rng.integers(4))):
                words[place] = str(rng.choice(WORDS))
        texts.append(" ".join(words))
    return texts


@pytest.mark.parametrize("seed", range(3))
def test_it_finds_what_a_comparison_of_all_with_all_finds(seed: int) -> None:
    texts = some_texts(120, seed=seed)
    triples = [_triples(text) for text in texts]
    wanted = {
        row: max(_likeness(triples[row], triples[other]) for other in range(row))
        for row in range(1, len(texts))
        if max(_likeness(triples[row], triples[other]) for other in range(row)) >= 0.8
    }
    found = near_texts(texts)
    assert len(wanted) > 10 and {near.row: near.likeness for near in found} == wanted
    assert all(near.other < near.row for near in found)


def test_rows_of_another_split() -> None:
    train = ["The quick brown fox jumps over the lazy dog today.", "Something else is written here, all in all."]
    held = [
        "the QUICK brown fox jumps over the lazy dog - today",
        "nothing of the kind",
        "Something else is written here, all in one.",
    ]
    (first,) = near_texts(held, train)
    assert (first.row, first.other, first.likeness) == (0, 0, 1.0)
    assert [near.row for near in near_texts(held, train, least=0.5)] == [0, 2]


def test_short_and_empty_texts() -> None:
    assert [near.row for near in near_texts(["yes", "no", "Yes!", "", "..."])] == [2, 4]
