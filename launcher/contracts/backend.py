"""What starts runs promises, and what is known of a run from outside."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol


@dataclass(frozen=True)
class JobStatus:
    """Where a run stands."""

    state: Literal["created", "running", "interrupted", "failed", "finished"]
    attempt: int
    step: int | None = None
    total_steps: int | None = None
    reason: str = ""


class Backend(Protocol):
    """Starts runs; knows a run only by its directory."""

    def submit(self, run: Path, *, attempt: int) -> int:
        """Start an attempt; return the exit code where it is waited for."""
        ...

    def status(self, run: Path) -> JobStatus:
        """Return where a run stands."""
        ...

    def logs(self, run: Path, *, rank: int = 0) -> Iterable[str]:
        """Yield the lines of a rank's log."""
        ...

    def cancel(self, run: Path) -> None:
        """Ask a run to stop at its next step, leaving a checkpoint."""
        ...
