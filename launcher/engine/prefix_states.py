"""Stored states of rows: unpadded, in one part for each rank that computed a share, in memory or in files."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from launcher.engine.ranks import rank_and_world
from launcher.errors import InstallationError

_BROADCAST_BYTES = 64 * 2**20
_WRONG_LENGTHS = "the rows' lengths are not those of their attention masks"


@dataclass(frozen=True)
class Entries:
    """What is kept of a split's rows, unpadded.

    ``parts``: one tensor [entries, hidden] for each rank that computed a share; ``part``, ``start``, ``length``: int64
    [rows], where a row's entries lie.
    """

    parts: tuple[torch.Tensor, ...]
    part: np.ndarray
    start: np.ndarray
    length: np.ndarray

    def __len__(self) -> int:
        return len(self.part)

    def __getitem__(self, row: int) -> torch.Tensor:
        """Return a row's states, [tokens or 1, hidden]; a view."""
        start = int(self.start[row])
        return self.parts[int(self.part[row])][start : start + int(self.length[row])]


@dataclass(frozen=True)
class Layout:
    """Where each row's entries lie, known to all ranks beforehand."""

    index: tuple[np.ndarray, np.ndarray, np.ndarray]
    sizes: list[int]
    """Entries of each rank's part."""


def make_layout(batches: Sequence[np.ndarray], lengths: np.ndarray, ranks: int) -> Layout:
    """Return where entries lie when rank r computes batches r, r + ranks, ...; ``lengths``: int64 [rows], entries of each."""
    part, start = np.zeros_like(lengths), np.zeros_like(lengths)
    sizes = [0] * ranks
    for number, rows in enumerate(batches):
        rank = number % ranks
        part[rows] = rank
        start[rows] = sizes[rank] + np.cumsum(lengths[rows]) - lengths[rows]
        sizes[rank] += int(lengths[rows].sum())
    return Layout((part, start, lengths), sizes)


def in_memory(computed: Iterator[torch.Tensor], sizes: Sequence[int], device: torch.device) -> tuple[torch.Tensor, ...]:
    """Return every rank's part, on the host of every rank.

    Args:
        computed: this rank's states, [entries, hidden] each; a rank without entries computes some to know their shape.
        sizes: entries of each rank's part.
        device: where collectives can run.
    """
    rank, world = rank_and_world()
    first = next(computed)
    parts = [torch.empty(size, first.shape[1], dtype=first.dtype) for size in sizes]
    done = 0
    for states in _chain(first, computed):
        if sizes[rank]:
            parts[rank][done : done + len(states)] = states
            done += len(states)
    assert done == sizes[rank], _WRONG_LENGTHS
    if world > 1:
        for source, part in enumerate(parts):
            _broadcast(part, source, device)
    return tuple(parts)


def _broadcast(part: torch.Tensor, source: int, device: torch.device) -> None:
    """Send a tensor on the host from ``source`` to all ranks, in pieces that pass through ``device``."""
    flat = part.view(torch.uint8).flatten()
    for piece in flat.split(_BROADCAST_BYTES):
        passing = piece.to(device)
        dist.broadcast(passing, src=source)
        piece.copy_(passing)


def write_part(path: Path, computed: Iterator[torch.Tensor], *, size: int) -> tuple[int, str]:
    """Write a part of ``size`` entries; return (hidden, dtype). It is written, not mapped: other machines read it too."""
    shape, done = (0, ""), 0
    with path.open("wb") as file:
        for states in computed:
            shape = (states.shape[1], str(states.dtype).removeprefix("torch."))
            if size:
                states.contiguous().view(torch.uint8).numpy().tofile(file)
                done += len(states)
        assert done == size, _WRONG_LENGTHS
        file.flush()
        os.fsync(file.fileno())
    return shape


def read_parts(folder: Path, facts: Mapping[str, Any], layout: Layout) -> Entries:
    """Map the parts into memory; nothing is read before it is used."""
    dtype = getattr(torch, facts["dtype"])
    parts = []
    for rank, size in enumerate(facts["sizes"]):
        path = str(folder / f"part-{rank}.bin")
        count = size * facts["hidden"]
        flat = torch.from_file(path, shared=False, size=count, dtype=dtype) if count else torch.empty(0, dtype=dtype)
        parts.append(flat.view(size, facts["hidden"]))
    return Entries(tuple(parts), *layout.index)


@contextlib.contextmanager
def room_in(folder: Path) -> Iterator[None]:
    """Remove a folder that cannot be written. Raises InstallationError."""
    try:
        yield
    except OSError as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise InstallationError(
            f"the prefix cache cannot be written to {folder}: {error}; free some space, or write strategy.prefix_cache: off"
        ) from error


def _chain(first: torch.Tensor, rest: Iterator[torch.Tensor]) -> Iterator[torch.Tensor]:
    yield first
    yield from rest
