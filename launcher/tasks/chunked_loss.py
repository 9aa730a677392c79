"""Losses of many places over a large vocabulary, some places at a time: no float32 copy of all logits is held, nor what autograd keeps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch.autograd.function import once_differentiable

LARGE_BYTES = 2**26
"""Logits that are more than this in float32 are large."""
PARTS = 16
"""As many parts: each is small beside all logits, and large enough to keep a GPU busy."""

Losses = Callable[[Any, Any], Any]
"""(logits float32 [places, classes], labels int64 [places]) -> losses float32 [places], of which each depends on its own place alone."""

_TIMES: ContextVar[float] = ContextVar("_TIMES", default=1.0)


@contextmanager
def as_if(times: float) -> Iterator[None]:
    """Treat logits as large where so many times as many would be: of few rows a planner tells what many do."""
    before = _TIMES.set(times)
    try:
        yield
    finally:
        _TIMES.reset(before)


def by_place(losses: Losses, logits: Any, labels: Any) -> Any:
    """Return ``losses(logits.float(), labels)``, float32 [places], with the same values and gradients, and less memory where logits are large.

    Beside the logits and their gradient, both of the logits' own type, a part is held in float32 at a time; what autograd would keep of it is
    made again in the backward pass.

    Args:
        logits: [places, classes], of any floating type.
        labels: int64 [places].
    """
    if 4 * logits.numel() * _TIMES.get() <= LARGE_BYTES:
        return losses(logits.float(), labels)
    return _InParts.apply(logits, labels, losses)  # type: ignore[no-untyped-call]


class _InParts(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Any, labels: Any, losses: Losses) -> Any:
        ctx.save_for_backward(logits, labels)
        ctx.losses = losses
        return torch.cat([losses(logits[part].float(), labels[part]) for part in _parts(len(labels))])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Any) -> tuple[Any, None, None]:  # type: ignore[override]
        logits, labels = ctx.saved_tensors
        found = torch.empty_like(logits)
        for part in _parts(len(labels)):
            with torch.enable_grad():
                places = logits[part].detach().requires_grad_()
                losses = ctx.losses(places.float(), labels[part])
            (found[part],) = torch.autograd.grad(losses, places, gradient[part])
        return found, None, None


def _parts(places: int) -> Iterator[slice]:
    size = -(-places // PARTS)
    return (slice(begin, begin + size) for begin in range(0, places, size))
