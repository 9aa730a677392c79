"""The order of rows: global batches that are the same on any number of ranks, each row exactly once an epoch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

Order = Literal["group_by_length", "random", "sequential"]

# Rows are sorted by length inside chunks of this many batches, fewer for small sets so that batches still vary.
_CHUNK_BATCHES = 50


@dataclass(frozen=True)
class GlobalBatches:
    """The batches of every epoch, a pure function of lengths, batch size, seed and epoch.

    ``lengths``: int [rows], tokens of each row.
    """

    lengths: np.ndarray
    global_batch_size: int
    seed: int
    order: Order = "group_by_length"

    def __len__(self) -> int:
        """Batches in an epoch; the last may be smaller."""
        return -(-len(self.lengths) // self.global_batch_size)

    def epoch(self, number: int) -> list[np.ndarray]:
        """Return the batches of an epoch: int64 arrays of row numbers, together each row once."""
        generator = np.random.default_rng([self.seed, number])
        rows = np.arange(len(self.lengths))
        if self.order == "sequential":
            return self._cut(rows)
        rows = generator.permutation(rows)
        if self.order == "random":
            return self._cut(rows)
        batches = self._cut(self._sort_chunks(rows))
        batches = [batches[position] for position in generator.permutation(len(batches))]
        # The longest batch goes first: if memory does not suffice, the run fails now and not hours later.
        longest = max(range(len(batches)), key=lambda i: int(self.lengths[batches[i]].max()) * len(batches[i]))
        batches.insert(0, batches.pop(longest))
        return batches

    def _cut(self, rows: np.ndarray) -> list[np.ndarray]:
        size = self.global_batch_size
        return [rows[start : start + size] for start in range(0, len(rows), size)]

    def _sort_chunks(self, rows: np.ndarray) -> np.ndarray:
        batches = min(_CHUNK_BATCHES, max(1, len(rows) // (self.global_batch_size * 4)))
        chunk = batches * self.global_batch_size
        parts = [rows[start : start + chunk] for start in range(0, len(rows), chunk)]
        return np.concatenate([part[np.argsort(-self.lengths[part], kind="stable")] for part in parts])


class RankBatches:
    """A rank's micro-batches: a batch sampler for torch's DataLoader.

    Yields ``accumulation`` lists for each global batch. A list holds row numbers; ``-1 - row`` stands for a padding row,
    a copy of zero weight, where a small last batch has fewer rows than there are ranks and passes.
    """

    def __init__(self, batches: GlobalBatches, *, accumulation: int, rank: int, world_size: int) -> None:
        self.batches = batches
        self.accumulation = accumulation
        self.rank = rank
        self.world_size = world_size
        self.epoch_number = 0

    def set_epoch(self, number: int) -> None:
        """Choose the epoch that the next iteration yields."""
        self.epoch_number = number

    def __len__(self) -> int:
        """Micro-batches of one epoch on one rank."""
        return len(self.batches) * self.accumulation

    def __iter__(self) -> Iterator[list[int]]:
        """Yield the micro-batches of the current epoch."""
        for rows in self.batches.epoch(self.epoch_number):
            yield from self.share(rows)

    def share(self, rows: np.ndarray) -> list[list[int]]:
        """Return this rank's micro-batches of one global batch.

        Rows of like length stay in one pass, and the ranks take turns in it, so that all ranks work equally long.
        """
        passes = np.array_split(rows, self.accumulation)
        return [
            [int(row) for row in part[self.rank :: self.world_size]] or [-1 - int(part[0] if len(part) else rows[0])]
            for part in passes
        ]


def evaluation_batches(lengths: Sequence[int] | np.ndarray, *, batch_size: int) -> list[np.ndarray]:
    """Return all rows in batches of like length, longest first: the least padding, and memory fails at once."""
    order = np.argsort(-np.asarray(lengths), kind="stable")
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
