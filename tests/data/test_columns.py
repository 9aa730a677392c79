"""Columns give back exactly what was put in, whatever it was."""

from __future__ import annotations

import math

from hypothesis import given, strategies as st

from launcher.data.columns import Column, dataset_of, joined_columns, packed

VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(st.characters()), st.lists(st.text(), max_size=2)
)
ONE_KIND = st.one_of(*(st.lists(kind, max_size=8) for kind in (st.text(), st.integers(), st.floats(), st.booleans())))


def same(one, other) -> bool:
    return type(one) is type(other) and (one == other or (one != one and other != other))


@given(st.one_of(st.lists(VALUES, max_size=8), ONE_KIND))
def test_values_and_their_types_come_back(values):
    column = Column([packed(values[:3]), packed(values[3:])]) if values else Column.of(values)
    assert len(column) == len(values)
    assert all(map(same, column, values))
    assert all(same(column[at], values[at]) for at in range(-len(values), len(values)))
    assert all(map(same, column[1:5], values[1:5])) and all(map(same, column[::2], values[::2]))


def test_half_a_surrogate_pair_is_text_too():
    """JSON can write one, and UTF-8 cannot."""
    assert list(Column.of(["a", "\ud800"])) == ["a", "\ud800"]


@given(st.data())
def test_rows_are_taken_across_chunks(data):
    values = data.draw(st.lists(st.one_of(st.text(), st.integers()), min_size=1, max_size=20))
    cut = data.draw(st.integers(0, len(values)))
    column = joined_columns([Column.of(values[:cut]), Column.of(values[cut:])])
    rows = sorted(data.draw(st.sets(st.integers(0, len(values) - 1))))
    assert column.take(rows) == [values[row] for row in rows]
    assert column.take(range(len(values))) is column


def test_a_dataset_has_the_columns_in_their_order_and_their_values():
    columns = {"text": Column.of(["a", "b"]), "label": Column.of([["x"], []]), "score": Column.of([0.5, math.inf])}
    found = dataset_of(columns)
    assert found.column_names == ["text", "label", "score"]
    assert found[:] == {name: list(column) for name, column in columns.items()}


def test_many_texts_take_little_more_than_their_bytes():
    column = Column.of(f"text {number:06}" for number in range(20_000))
    assert column.is_text and sum(chunk.nbytes for chunk in column.chunks) < 20_000 * 18


def test_without_the_rows_that_cannot_be_used_the_others_lie_in_arrow():
    """A null among numbers, and half of a character among texts, keep their neighbours in a list."""
    for values in ([1, None, 2], ["a", "\ud800", "b"]):
        column = Column.of(values)
        assert column.arrow() is None and column.take([0, 2]).arrow() is not None
