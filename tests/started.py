"""A launcher in the background, and what of it still runs."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import tiny


class Started:
    """A launcher in the background."""

    def __init__(self, *arguments: str | Path, cwd: Path) -> None:
        self.cwd = cwd
        self.known = set((cwd / "runs").glob("*")) if (cwd / "runs").exists() else set()
        # A session of its own, as a shell gives a job: signals reach the launcher alone.
        self.process = subprocess.Popen(
            [tiny.LAUNCHER, *map(str, arguments)], cwd=cwd, env=tiny.environment(), start_new_session=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    @property
    def run(self) -> Path:
        wait_for(lambda: set((self.cwd / "runs").glob("*")) - self.known, process=self.process)
        return next(iter(set((self.cwd / "runs").glob("*")) - self.known))

    def wait_for_step(self, run: Path, step: int) -> None:
        def reached() -> bool:
            path = run / "progress.jsonl"
            return path.exists() and path.read_text().count('"loss"') >= step

        wait_for(reached, process=self.process)

    def end(self, timeout: float = 60) -> tuple[int, str, str]:
        out, err = self.process.communicate(timeout=timeout)
        return self.process.returncode, out, err


def wait_for(what: Callable[[], object], *, process: subprocess.Popen[str] | None = None, timeout: float = 120) -> None:
    end = time.monotonic() + timeout
    while not what():
        if process is not None and process.poll() is not None:
            raise AssertionError(f"the launcher ended with {process.returncode}: {process.communicate()}")
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.01)


def processes_of(run: Path) -> list[psutil.Process]:
    """Every process that has the run's path in its command line."""
    found = []
    for process in psutil.process_iter():
        try:
            if any(str(run) in part for part in process.cmdline()):
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            continue
    return found


def rank_pid(run: Path, rank: int, *, attempt: int = 1) -> int:
    """The process of a rank of an attempt."""
    return int(json.loads((run / f"attempts/{attempt}/verdict.rank-{rank}.json").read_text())["pid"])


def verdicts(run: Path, attempt: int) -> list[dict[str, Any]]:
    """How the ranks of an attempt ended, in their order."""
    paths = sorted((run / f"attempts/{attempt}").glob("verdict.rank-*.json"))
    return [json.loads(path.read_text()) for path in paths]
