"""Batch arithmetic: one global batch, the same on any number of processes."""

from __future__ import annotations

from launcher.plans import BatchPlan, TokenBudget

# Without a cap, a rank holds at most this many rows at a time and accumulates the rest.
DEFAULT_MICRO_BATCH = 64


def plan_batch(
    *, global_batch_size: int, world_size: int, cap: int | None = None, multiple_of: int = 1, tokens: int | None = None
) -> BatchPlan:
    """Spread ``global_batch_size`` rows over ``world_size`` ranks, each holding at most ``cap`` rows at a time.

    The accumulation is the smallest that respects the cap, and the micro-batch the smallest that then suffices, so the
    fewest places hold padding rows.

    Args:
        world_size: ranks, or groups of ranks, that each hold rows of their own.
        multiple_of: ranks of such a group that read batches in turn (sequence parallelism); accumulation is a multiple of it.
        tokens: of a step, where they bound it (``BatchPlan.budget``); passes and rows are then known with the rows' lengths.
    """
    if tokens is not None:
        return BatchPlan(global_batch_size, world_size, 1, 1, TokenBudget(tokens))
    rows = -(-global_batch_size // world_size)
    accumulation = -(-rows // (cap or DEFAULT_MICRO_BATCH))
    accumulation = -(-accumulation // multiple_of) * multiple_of
    micro = -(-rows // accumulation)
    return BatchPlan(global_batch_size, world_size, micro, accumulation)


def steps_per_epoch(*, rows: int, global_batch_size: int) -> int:
    """Optimizer steps of one pass over ``rows`` rows; the last step may be smaller."""
    return -(-rows // global_batch_size)


def share_of_steps(value: float, total: int) -> int:
    """Return a number of steps: ``value`` itself, or below 1 that share of ``total``, rounded up (as transformers does)."""
    return int(value) if value >= 1 else -int(-(value * total - 1e-9) // 1)
