"""Asking a rank to stop: by Ctrl-C, by SIGTERM or SIGUSR2, or by a file in the attempt's folder."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path
from types import FrameType
from typing import Any

from launcher.errors import Interrupted

_POLL_SECONDS = 0.05


class StopFlag:
    """Remembers that this rank was asked to stop. Ranks agree on it at a step's end; nothing is cut short."""

    def __init__(self, stop_file: Path | None = None) -> None:
        self.stop_file = stop_file
        self.reason = ""

    def install(self) -> None:
        """Handle SIGINT, SIGTERM and SIGUSR2. A launcher passes requests on as well, so the same one may come twice."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2):
            signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.reason = signal.Signals(number).name

    @property
    def is_set(self) -> bool:
        """Whether to stop."""
        if not self.reason and self.stop_file is not None and self.stop_file.exists():
            self.reason = "a stop request"
        return bool(self.reason)

    def raise_if_set(self) -> None:
        """Raise Interrupted where this rank was asked to stop, in what comes before training."""
        if self.is_set:
            raise Interrupted(f"stopped by {self.reason} before the first step")

    def wait_for(self, path: Path) -> dict[str, Any]:
        """Return the JSON of a file when rank 0 has written it; no collective can time out over it. Raises Interrupted."""
        while not path.exists():
            self.raise_if_set()
            time.sleep(_POLL_SECONDS)
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return values


def ignore_in_worker(number: int) -> None:
    """Let a process that reads rows (its number is not used) outlive what asks its rank to stop: the step is still to be ended."""
    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(name, signal.SIG_IGN)
