"""The order of rows: global batches that are the same on any number of ranks, each row once an epoch, or as often as it is drawn."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from launcher.contracts import epoch_rows
from launcher.data.token_batches import TokenBatches
from launcher.plans import PlannedPhase

Order = Literal["group_by_length", "random", "sequential"]

# Rows are sorted by length inside chunks of this many batches, fewer for small sets so that batches still vary.
_CHUNK_BATCHES = 50


class Drawn(NamedTuple):
    """A row as it is drawn for training."""

    number: int
    """``-1 - row`` stands for a padding row: a copy of zero weight."""
    epoch: int
    """The epoch of the run that it is drawn in, from 0."""
    copy: int = 0
    """How often it was drawn in that epoch before (task.class_sampling)."""


@dataclass(frozen=True)
class GlobalBatches:
    """The batches of every epoch, a pure function of lengths, batch size, seed, epoch and how often rows are drawn.

    ``lengths``: int [rows], tokens of each row. ``draws``: as in ``contracts.Prepared``; their sum is the rows of an epoch.
    """

    lengths: np.ndarray
    global_batch_size: int
    seed: int
    order: Order = "group_by_length"
    draws: np.ndarray | None = None

    def __len__(self) -> int:
        """Batches in an epoch; the last may be smaller."""
        return -(-epoch_rows(len(self.lengths), self.draws) // self.global_batch_size)

    def epoch(self, number: int) -> list[np.ndarray]:
        """Return the batches of an epoch: int64 arrays of row numbers, together each row once, or as ``draw_rows`` has them.

        All are full but the last, so that the rows that are used follow from the number of steps.
        """
        generator = np.random.default_rng([self.seed, number])
        rows = np.arange(len(self.lengths)) if self.draws is None else draw_rows(self.draws, generator)
        if self.order == "sequential":
            return self._cut(rows)
        rows = generator.permutation(rows)
        if self.order == "random":
            return self._cut(rows)
        batches = self._cut(self._sort_chunks(rows))
        short = [batches.pop()] if len(batches[-1]) < self.global_batch_size else []
        batches = [batches[position] for position in generator.permutation(len(batches))]
        if batches:
            # The longest batch goes first: if memory does not suffice, the run fails now and not hours later.
            longest = max(range(len(batches)), key=lambda i: int(self.lengths[batches[i]].max()))
            batches.insert(0, batches.pop(longest))
        return batches + short

    def _cut(self, rows: np.ndarray) -> list[np.ndarray]:
        size = self.global_batch_size
        return [rows[start : start + size] for start in range(0, len(rows), size)]

    def _sort_chunks(self, rows: np.ndarray) -> np.ndarray:
        # A row that is drawn often must not meet itself: its copies are of one length, and a sorted chunk would put them into one batch.
        copies = 1 if self.draws is None else int(np.bincount(rows).max(initial=1))
        batches = min(_CHUNK_BATCHES, max(1, len(rows) // (self.global_batch_size * max(4, copies))))
        chunk = batches * self.global_batch_size
        parts = [rows[start : start + chunk] for start in range(0, len(rows), chunk)]
        return np.concatenate([part[np.argsort(-self.lengths[part], kind="stable")] for part in parts])


@dataclass(frozen=True)
class PhaseBatches:
    """The global batches of a phase from a step of the run on, one for each optimizer step; with a token budget ``TokenBatches``.

    Where a phase begins inside an epoch, it goes on in that epoch's order, cut into batches of its own size: each row is
    still used exactly once an epoch, or as often as it was drawn for it.
    """

    lengths: np.ndarray
    phase: PlannedPhase
    seed: int
    order: Order = "group_by_length"
    after: int | None = None
    """Steps of the run that are done; None: those before the phase."""
    draws: np.ndarray | None = None

    @property
    def _done(self) -> int:
        return self.phase.first_step if self.after is None else self.after

    def __len__(self) -> int:
        """Steps that are left of the phase."""
        return self.phase.last_step - self._done

    def __iter__(self) -> Iterator[np.ndarray]:
        """Yield the row numbers of each step."""
        return (rows for _, rows in self.with_epochs())

    def with_epochs(self) -> Iterator[tuple[int, np.ndarray]]:
        """Yield the epoch and the row numbers of each step; no step has rows of two epochs."""
        return ((epoch, rows) for epoch, rows, _ in self.with_copies())

    def with_copies(self) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """Yield the epoch, the row numbers and their ``Drawn.copy`` of each step."""
        epoch, used = self.phase.position(self._done)
        left = len(self)
        while left:
            for rows, copies in self._epoch(epoch, used)[:left]:
                yield epoch, rows, copies
                left -= 1
            epoch, used = epoch + 1, 0

    def rows_used(self, step: int) -> int:
        """Return the rows of the run that are used after ``step``, a step of the run that lies in the phase."""
        if self.phase.batch.budget is None:
            return self.phase.used(step)
        epoch, used = self.phase.position(step)
        return epoch * len(self.lengths) + sum(len(rows) for rows, _ in self._epoch(epoch, 0)[:used])

    def _epoch(self, number: int, used: int) -> list[tuple[np.ndarray, np.ndarray]]:
        phase, size = self.phase, self.phase.batch.global_batch_size
        if phase.batch.budget is not None:
            batches = TokenBatches(self.lengths, phase.batch.budget.tokens, self.seed).epoch(number)
            return [(rows, np.zeros_like(rows)) for rows in batches[used:]]
        made_for = phase.epoch_batch_size if number == phase.epoch else size
        batches = GlobalBatches(self.lengths, made_for, self.seed, self.order, self.draws).epoch(number)
        rows = np.concatenate(batches)
        # Counted from the beginning of the epoch, wherever the phase takes it up.
        copies = np.zeros_like(rows) if self.draws is None else copies_before(rows)
        return [(rows[start : start + size], copies[start : start + size]) for start in range(used, len(rows), size)]


def copies_before(rows: np.ndarray) -> np.ndarray:
    """Return how often each row number stands in ``rows`` before, int64 [rows]."""
    order = np.argsort(rows, kind="stable")
    ordered = rows[order]
    found = np.empty(len(rows), dtype=np.int64)
    found[order] = np.arange(len(rows)) - np.searchsorted(ordered, ordered)
    return found


def draw_rows(draws: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Return the rows of an epoch in no order, int64 [rows]: row i as often as ``draws[i]`` says, rounded up or down by chance.

    Systematic resampling (Kitagawa 1996, J. Comput. Graph. Stat. 5): one random number for all rows. Drawing each row anew would have the same
    means, but leave out a third of the rows by chance even where all weights are equal. Rows of equal draws, such as those of a
    class or a source, lie together, so that their share of an epoch is right to about a row.
    """
    rows = epoch_rows(len(draws), draws)
    order = generator.permutation(len(draws))
    order = order[np.argsort(draws[order], kind="stable")]
    ends = np.cumsum(draws[order]) * (rows / draws.sum())
    places = np.searchsorted(ends, generator.random() + np.arange(rows), side="right")
    # The last end may lie a rounding error below the number of rows of an epoch.
    return np.asarray(order[np.minimum(places, len(draws) - 1)])


class RankBatches:
    """A rank's micro-batches: a batch sampler for torch's DataLoader.

    Yields ``accumulation`` lists of rows for each global batch; padding rows stand where a small last batch has fewer rows than
    there are ranks and passes.
    """

    def __init__(
        self, batches: PhaseBatches, *, accumulation: int, rank: int, world_size: int, least_rows: int = 1
    ) -> None:
        """``least_rows``: rows that each list has at least, filled up with padding rows."""
        self.batches = batches
        self.accumulation = accumulation
        self.rank = rank
        self.world_size = world_size
        self.least_rows = least_rows

    def __len__(self) -> int:
        """Micro-batches on one rank."""
        return len(self.batches) * self.accumulation

    def __iter__(self) -> Iterator[list[Drawn]]:
        """Yield the micro-batches in their order."""
        for epoch, rows, copies in self.batches.with_copies():
            # Places are shared out, not rows: a row that is drawn twice has a copy number at each.
            for places in self.share(np.arange(len(rows))):
                yield [_drawn(place, rows, copies, epoch=epoch) for place in places]

    def share(self, rows: np.ndarray) -> list[list[int]]:
        """Return the numbers (see ``Drawn``) of this rank's micro-batches of one global batch."""
        return rank_share(
            rows,
            accumulation=self.accumulation,
            rank=self.rank,
            world_size=self.world_size,
            least_rows=self.least_rows,
        )


def rank_share(
    rows: np.ndarray, *, accumulation: int, rank: int, world_size: int, least_rows: int = 1
) -> list[list[int]]:
    """Return the numbers (see ``Drawn``) of a rank's ``accumulation`` micro-batches of one global batch.

    Rows of like length stay in one pass, and the ranks take turns in it, so that all ranks work equally long.
    """
    shares = []
    for part in np.array_split(rows, accumulation):
        mine = [int(row) for row in part[rank::world_size]]
        padding = -1 - int(part[0] if len(part) else rows[0])
        shares.append(mine + [padding] * (least_rows - len(mine)))
    return shares


def _drawn(place: int, rows: np.ndarray, copies: np.ndarray, *, epoch: int) -> Drawn:
    at = place if place >= 0 else -1 - place
    row = int(rows[at])
    return Drawn(row if place >= 0 else -1 - row, epoch, int(copies[at]))


def evaluation_batches(lengths: Sequence[int] | np.ndarray, *, batch_size: int) -> list[np.ndarray]:
    """Return all rows in batches of like length, longest first: the least padding, and memory fails at once."""
    order = np.argsort(-np.asarray(lengths), kind="stable")
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
