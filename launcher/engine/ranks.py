"""What the ranks tell each other; one process alone needs no torch.distributed for any of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.distributed as dist


def rank_and_world() -> tuple[int, int]:
    """Return this process's rank, and the number of processes."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def share(find: Callable[[], Any]) -> Any:
    """Return what rank 0 finds, on all ranks."""
    rank, world = rank_and_world()
    found = [find() if rank == 0 else None]
    if world > 1:
        dist.broadcast_object_list(found)
    return found[0]


def everyone(value: Any) -> list[Any]:
    """Return the values of all ranks."""
    world = rank_and_world()[1]
    values = [value] * world
    if world > 1:
        dist.all_gather_object(values, value)
    return values


def barrier() -> None:
    """Wait for all ranks."""
    if rank_and_world()[1] > 1:
        dist.barrier()
