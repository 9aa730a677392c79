"""Short rows of tokens packed into long ones, so that little of a batch is padding: best fit, the longest first.

Each row keeps its own beginning: a packed row says how long its sequences are, their positions begin at 0 again, and without a mask
attention then stays within each (docs/guide/sft.md).
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from launcher.data.pieces import Source, read_split, write_split


def best_fit(lengths: Sequence[int] | np.ndarray, *, max_length: int) -> list[list[int]]:
    """Return rows by number in packs of at most ``max_length`` tokens: the longest first, each where least room is left over.

    Best-fit decreasing (Johnson 1974) needs at most 11/9 of the fewest packs that are possible, and one more. Packs are in the order of their
    first rows, and rows within a pack ascend, so that the order of the data is lost as little as it can be.

    Args:
        lengths: tokens of each row, at most ``max_length``.
    """
    order = np.argsort(-np.asarray(lengths, dtype=np.int64), kind="stable")
    packs: list[list[int]] = []
    # (room that is left, number of a pack), ascending.
    rooms: list[tuple[int, int]] = []
    for row in order.tolist():
        length = int(lengths[row])
        assert length <= max_length
        place = bisect.bisect_left(rooms, (length, -1))
        if place == len(rooms):
            room, pack = max_length, len(packs)
            packs.append([])
        else:
            room, pack = rooms.pop(place)
        packs[pack].append(row)
        if room > length:
            bisect.insort(rooms, (room - length, pack))
    return sorted(sorted(pack) for pack in packs)


def pack_split(path: Path, *, max_length: int) -> dict[str, int]:
    """Pack the prepared rows of a file in place; return the counts of the packed ones.

    Of a file's columns ``input_ids`` and, where it is there, ``learned`` are joined; ``seq_lengths`` has the tokens of each sequence.
    The first token of a sequence is never learned, as it would have to be told from another one.
    """
    rows = read_split(path)
    packs = best_fit(rows["length"][:], max_length=max_length)
    packed = path.with_suffix(".packed")
    counts = write_split(packed, Source({"pack": packs}, len(packs), str), _Pack(rows), processes=1)
    packed.replace(path)
    return counts


class _Pack:
    """Makes packed rows of those of a split."""

    def __init__(self, rows: Any) -> None:
        self.rows = rows.select_columns([name for name in ("input_ids", "learned") if name in rows.column_names])
        self.made = 0

    def __call__(self, columns: dict[str, list[Any]], *, origin: Any = None) -> tuple[dict[str, Any], dict[str, int]]:
        packs = columns["pack"]
        wanted = [row for pack in packs for row in pack]
        held = self.rows[wanted]
        ends = np.cumsum([0, *map(len, packs)])
        sequences = [held["input_ids"][a:b] for a, b in itertools.pairwise(ends)]
        made: dict[str, Any] = {
            "input_ids": [np.concatenate([np.asarray(ids, dtype=np.int32) for ids in pack]) for pack in sequences],
            "seq_lengths": [[len(ids) for ids in pack] for pack in sequences],
        }
        if "learned" in held:
            learned = [held["learned"][a:b] for a, b in itertools.pairwise(ends)]
            made["learned"] = [np.concatenate([np.asarray(one, dtype=np.int8) for one in pack]) for pack in learned]
        made["length"] = [len(ids) for ids in made["input_ids"]]
        made["row_id"] = list(range(self.made, self.made + len(packs)))
        made["text"] = [""] * len(packs)
        self.made += len(packs)
        return made, {"rows": len(packs), "tokens": sum(made["length"])}


def positions(seq_lengths: Sequence[Sequence[int]], *, places: int) -> np.ndarray:
    """Return each place's position in its sequence, int64 [rows, places]; padding counts from 0 as a sequence of its own."""
    found = np.zeros((len(seq_lengths), places), dtype=np.int64)
    for row, lengths in enumerate(seq_lengths):
        rest = places - sum(lengths)
        found[row] = np.concatenate([np.arange(length) for length in (*lengths, rest)])
    return found
