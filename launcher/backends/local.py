"""Runs on this machine: start the ranks, pass on Ctrl-C, leave nothing behind, and say which rank failed and why."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from launcher.backends.endings import close_events, first_failure
from launcher.backends.machine import read_plan, run_machine, say
from launcher.backends.watching import Watch
from launcher.contracts import JobStatus
from launcher.rundir import RunDir


class LocalBackend:
    """The backend ``local``. ``on_look`` is called every second while an attempt runs."""

    def __init__(self, *, on_look: Callable[[], object] | None = None) -> None:
        self._on_look = on_look or (lambda: None)

    def submit(self, run: Path, *, attempt: int) -> int:
        """Start an attempt and wait for it; return the exit code of the rank that failed first, or 0."""
        directory = RunDir(run)
        try:
            end = run_machine(directory, attempt, on_look=self._on_look)
            failed = first_failure(directory, attempt)
            close_events(directory, attempt, failed, was_stopped=end.was_stopped)
        except OSError as full:
            say(f"how attempt {attempt} ended could not be written down: {full}")
            return 1
        # The ranks' own verdicts are the truth: launchers turn every code into 1, and gloo sometimes aborts at the exit.
        if failed is not None:
            return int(failed[1].get("exit_code") or end.code or 1)
        everyone = read_plan(directory, attempt).processes_per_node
        return 0 if len(directory.verdicts(attempt)) == everyone else end.code

    def status(self, run: Path) -> JobStatus:
        """Return where a run stands."""
        directory = RunDir.open(run)
        return looked_at(directory, directory.status())

    def logs(self, run: Path, *, rank: int = 0) -> Iterator[str]:
        """Yield the lines of a rank's log, of the newest attempt."""
        return RunDir.open(run).log_lines(rank)

    def cancel(self, run: Path) -> None:
        """Ask the newest attempt to save and stop at its next step."""
        directory = RunDir.open(run)
        directory.stop_request(directory.last_attempt).touch()


def looked_at(run: RunDir, status: JobStatus) -> JobStatus:
    """Correct what the events say of a running run by what its ranks show: they may have been killed with their launcher, or
    stand still.
    """
    if status.state != "running":
        return status
    attempt = status.attempt
    ranks = Watch(run, attempt, range(0)).look(time.monotonic())
    stopped = [f"{rank.who} is stopped (SIGSTOP)" for rank in ranks if rank.stopped is not None]
    if stopped:
        return replace(status, reason="; ".join(stopped))
    here = [rank for rank in ranks if rank.host == platform.node()]
    if here and not run.live_ranks(attempt):
        return replace(
            status, state="failed", reason="its processes are gone: they were killed together with their launcher"
        )
    return status
