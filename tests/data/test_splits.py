"""Properties of the share that is set aside."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import assume, given, settings, strategies as st

from launcher.data.splits import linked, split_share
from launcher.errors import DataError

labels = st.lists(st.sampled_from("abcde"), min_size=2, max_size=200)
shares = st.floats(0.05, 0.9)


@given(labels, shares, st.integers(0, 9))
@settings(deadline=None)
def test_every_row_once_and_each_label_by_its_share(strata: list[str], share: float, seed: int) -> None:
    assume(max(Counter(strata).values()) > 1)
    train, validation = split_share(range(len(strata)), share=share, seed=seed, strata=strata)
    assert sorted(train + validation) == list(range(len(strata)))
    assert train == sorted(train) and validation == sorted(validation) and validation
    held = Counter(strata[row] for row in validation)
    for label, count in Counter(strata).items():
        assert held[label] < count, "a label has left train"
        assert abs(held[label] - count * share) <= 1 or held[label] == count - 1
    assert len(validation) <= max(1, round(len(strata) * share))


@given(labels, shares, st.integers(0, 9))
@settings(deadline=None)
def test_the_same_choice_every_time_and_another_for_another_seed(strata: list[str], share: float, seed: int) -> None:
    assume(max(Counter(strata).values()) > 1)
    first = split_share(range(len(strata)), share=share, seed=seed, strata=strata)
    assert first == split_share(range(len(strata)), share=share, seed=seed, strata=strata)


@given(st.lists(st.integers(0, 12), min_size=2, max_size=80), shares)
@settings(deadline=None)
def test_equal_texts_stay_on_one_side(keys: list[int], share: float) -> None:
    assume(len(set(keys)) > 1)
    train, validation = split_share(keys, share=share, seed=1)
    assert not {keys[row] for row in train} & {keys[row] for row in validation}


def test_the_seed_changes_the_choice() -> None:
    choices = {tuple(split_share(range(50), share=0.2, seed=seed)[1]) for seed in range(5)}
    assert len(choices) == 5


def test_this_choice_never_changes() -> None:
    assert split_share(range(20), share=0.2, seed=42)[1] == [0, 1, 11, 13]


def test_too_little_to_split_is_an_error() -> None:
    with pytest.raises(DataError, match="1 different row"):
        split_share(["a", "a"], share=0.5, seed=0)
    with pytest.raises(DataError, match="stands on one row only"):
        split_share("ab", share=0.5, seed=0, strata="xy")


@given(
    st.lists(st.tuples(st.integers(0, 12), st.one_of(st.none(), st.integers(0, 6))), min_size=1, max_size=40),
)
def test_rows_of_a_key_or_a_group_are_linked_and_no_others(rows: list[tuple[int, int | None]]) -> None:
    """Held to a search through the graph of rows."""
    found = linked([key for key, _ in rows], [group for _, group in rows])
    places = range(len(rows))

    def near(a: int, b: int) -> bool:
        return rows[a][0] == rows[b][0] or (rows[a][1] is not None and rows[a][1] == rows[b][1])

    for start in places:
        reached, open_rows = {start}, [start]
        while open_rows:
            row = open_rows.pop()
            new = {other for other in places if near(row, other)} - reached
            reached |= new
            open_rows += new
        assert {row for row in places if found[row] == found[start]} == reached
