"""How long a rank needs for its own part of a step: its rows and its forward passes, before it has to wait for the others.

Steps take equally long on all ranks, since each waits for the slowest at the gradients; this is what tells which one that is. Where
a forward pass itself waits (sharded weights), the ranks' times are alike and say nothing.
"""

from __future__ import annotations

import time
from collections import deque
from typing import Any

import torch

# How much the newest step counts: about the last ten are told.
_NEWEST = 0.1


class OwnTime:
    """Adds a step's own seconds up, and keeps their moving average. On a GPU nothing is waited for: events are read a step later."""

    def __init__(self, *, device: str) -> None:
        self._on_gpu = device == "cuda"
        self._seconds = 0.0
        self._began: Any = None
        self._pending: deque[tuple[Any, Any]] = deque()
        self.average: float | None = None

    def add(self, seconds: float) -> None:
        """Add what took ``seconds`` of the processor's time by the clock, such as reading rows."""
        self._seconds += seconds

    def __enter__(self) -> OwnTime:
        self._began = self._now()
        return self

    def __exit__(self, *error: object) -> None:
        if self._on_gpu:
            self._pending.append((self._began, self._now()))
        else:
            self._seconds += self._now() - self._began

    def _now(self) -> Any:
        if not self._on_gpu:
            return time.monotonic()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def end_step(self) -> float | None:
        """Return the average over the last steps, this one included as far as it is known; seconds."""
        while self._pending and self._pending[0][1].query():
            began, ended = self._pending.popleft()
            self._seconds += began.elapsed_time(ended) / 1000
        if self._seconds:
            before = self._seconds if self.average is None else self.average
            self.average = (1 - _NEWEST) * before + _NEWEST * self._seconds
        self._seconds = 0.0
        return self.average
