"""Rows packed into longer ones: every row once, no pack too long, hardly any room left, and positions that begin anew."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, strategies as st

from launcher.data.packing import best_fit, pack_split, positions
from launcher.data.pieces import Source, read_split, write_split


@given(st.lists(st.integers(1, 50), max_size=60))
def test_every_row_is_in_one_pack_that_it_fits(lengths: list[int]) -> None:
    packs = best_fit(lengths, max_length=50)
    assert sorted(row for pack in packs for row in pack) == list(range(len(lengths)))
    assert all(sum(lengths[row] for row in pack) <= 50 for pack in packs)
    # Johnson 1974: at most 11/9 of the fewest, and one more.
    assert len(packs) <= 11 / 9 * max(1, -(-sum(lengths) // 50)) + 1 + sum(length > 25 for length in lengths)
    assert packs == best_fit(lengths, max_length=50) == sorted(packs)


def test_packs_are_full_where_they_can_be() -> None:
    assert best_fit([7, 3, 5, 5, 2, 8], max_length=10) == [[0, 1], [2, 3], [4, 5]]


@pytest.mark.parametrize("with_learned", [True, False])
def test_a_packed_split_has_the_same_tokens(with_learned: bool, tmp_path: Path) -> None:
    lengths = np.random.default_rng(0).integers(2, 30, size=200)
    rows = [np.arange(length) + 100 * number for number, length in enumerate(lengths)]
    columns = {"input_ids": rows, "length": lengths.tolist(), "row_id": list(range(200)), "text": ["x"] * 200}
    if with_learned:
        columns["learned"] = [(np.arange(length) > 1).astype(np.int8) for length in lengths]
    path = tmp_path / "train.arrow"
    write_split(path, Source(columns, 200, str), lambda held, origin: (held, {}), processes=1)
    counts = pack_split(path, max_length=64)
    packed = read_split(path)
    assert counts == {"rows": len(packed), "tokens": int(lengths.sum())}
    assert packed["row_id"][:] == list(range(len(packed))) and max(packed["length"][:]) <= 64
    found = {}
    for row in packed:
        assert sum(row["seq_lengths"]) == row["length"] == len(row["input_ids"])
        ends = np.cumsum(row["seq_lengths"])[:-1]
        for sequence in np.split(np.asarray(row["input_ids"]), ends):
            found[int(sequence[0]) // 100] = sequence
        if with_learned:
            assert all(
                (part == (np.arange(len(part)) > 1)).all() for part in np.split(np.asarray(row["learned"]), ends)
            )
    assert all((found[number] == rows[number]).all() for number in range(200))


def test_positions_begin_anew_with_each_sequence_and_with_padding() -> None:
    assert positions([[2, 3], [4]], places=6).tolist() == [[0, 1, 0, 1, 2, 0], [0, 1, 2, 3, 0, 1]]
