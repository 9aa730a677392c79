"""Asking a rank to stop: by Ctrl-C, by SIGTERM, or by a file in the attempt's folder."""

from __future__ import annotations

import signal
from pathlib import Path
from types import FrameType


class StopFlag:
    """Remembers that this rank was asked to stop. Ranks agree on it at a step's end; nothing is cut short."""

    def __init__(self, stop_file: Path | None = None) -> None:
        self.stop_file = stop_file
        self.reason = ""

    def install(self) -> None:
        """Handle SIGINT and SIGTERM. A launcher passes Ctrl-C on as well, so the same signal may come twice."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.reason = signal.Signals(number).name

    @property
    def is_set(self) -> bool:
        """Whether to stop."""
        if not self.reason and self.stop_file is not None and self.stop_file.exists():
            self.reason = "a stop request"
        return bool(self.reason)
