"""Runs on this machine: start the ranks, pass on Ctrl-C, leave nothing behind, and say which rank failed and why."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from launcher.contracts import JobStatus
from launcher.launching.processes import die_with_parent
from launcher.launching.render import launch_script, worker_command
from launcher.plans import LaunchPlan
from launcher.rundir import RunDir, read_jsonl, write_text

_KILL_AFTER_SECONDS = 10.0
_ENDS = ("finished", "interrupted", "failed")
# What a rank says when another one has gone: not the cause, and not to be shown as it.
_ECHOES = ("connection closed by peer", "connection reset by peer", "broken pipe", "gloo", "nccl", "socket timeout")


class LocalBackend:
    """The backend ``local``."""

    def submit(self, run: Path, *, attempt: int) -> int:
        """Start an attempt and wait for it; return the exit code of the rank that failed first, or 0."""
        directory = RunDir(run)
        command, environment = _command(directory, attempt)
        script = directory.attempt(attempt) / "launch.sh"
        write_text(script, launch_script(command, environment=environment))
        script.chmod(0o755)
        ranks = _Ranks(directory, attempt)
        code = ranks.wait(command, environment)
        failed = first_failure(directory, attempt)
        _close_events(directory, attempt, failed, was_stopped=ranks.requests > 0)
        # The ranks' own verdicts are the truth: launchers turn every code into 1.
        return int(failed[1].get("exit_code") or code or 1) if failed else code

    def status(self, run: Path) -> JobStatus:
        """Return where a run stands."""
        return RunDir.open(run).status()

    def logs(self, run: Path, *, rank: int = 0) -> Iterator[str]:
        """Yield the lines of a rank's log, of the newest attempt."""
        directory = RunDir.open(run)
        with directory.log(directory.last_attempt, rank).open(errors="replace") as file:
            yield from file

    def cancel(self, run: Path) -> None:
        """Ask the newest attempt to save and stop at its next step."""
        directory = RunDir.open(run)
        directory.stop_request(directory.last_attempt).touch()


def _close_events(run: RunDir, attempt: int, failed: tuple[int, dict[str, Any]] | None, *, was_stopped: bool) -> None:
    """Add why an attempt ended, where its rank 0 was killed before it could say, or said only that another had gone."""
    if failed is None:
        return
    rank, verdict = failed
    reason = f"rank {rank} {verdict['verdict']}: {verdict['error']}"
    ends = [row for row in read_jsonl(run.events) if row.get("attempt") == attempt and row["event"] in _ENDS]
    if ends and (rank == 0 or ends[-1]["event"] != "failed"):
        return
    run.add_event("interrupted" if was_stopped else "failed", attempt=attempt, reason=reason)


def first_failure(run: RunDir, attempt: int) -> tuple[int, dict[str, Any]] | None:
    """Return (rank, verdict) of the rank whose end made the others end, or None where all finished.

    A rank that was killed left ``running`` as its verdict. It is the cause where every other verdict is only about a lost
    connection.
    """
    verdicts = run.verdicts(attempt)
    ended = sorted(
        ((rank, v) for rank, v in verdicts.items() if v["verdict"] not in ("running", "finished")),
        key=lambda pair: pair[1]["time"],
    )
    causes = [pair for pair in ended if not any(echo in str(pair[1].get("error", "")).lower() for echo in _ECHOES)]
    if causes:
        return causes[0]
    killed = [(rank, v) for rank, v in verdicts.items() if v["verdict"] == "running"]
    if killed and (ended or not run.live_ranks(attempt)):
        rank, verdict = killed[0]
        return rank, {**verdict, "verdict": "killed", "error": "it ended without a word: killed, or out of memory"}
    return ended[0] if ended else None


def free_port() -> int:
    """Return a port that is free on the loopback address now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _command(run: RunDir, attempt: int) -> tuple[list[str], dict[str, str]]:
    plan = LaunchPlan.from_json(json.loads(run.launch_plan(attempt).read_text())["plan"])
    port = free_port() if plan.engine != "single" else None
    return worker_command(run.path, attempt=attempt, plan=plan, port=port), _thread_settings(plan)


def _thread_settings(plan: LaunchPlan) -> dict[str, str]:
    """Return OpenMP's settings for ranks on the processor; those that the user has exported stay."""
    if plan.device != "cpu":
        return {}
    wanted = {
        # Threads that spin while they wait take the processor from each other once anything else runs on the machine.
        "OMP_WAIT_POLICY": "PASSIVE",
        # torchrun would set one thread; each rank may have its share of the cores.
        "OMP_NUM_THREADS": str(max(1, len(os.sched_getaffinity(0)) // plan.processes_per_node)),
    }
    return {name: value for name, value in wanted.items() if name not in os.environ}


@dataclass
class _Ranks:
    """The processes of an attempt, and what Ctrl-C does to them."""

    run: RunDir
    attempt: int
    requests: int = 0
    process: subprocess.Popen[bytes] | None = None
    deadline: float = field(default=float("inf"))

    def wait(self, command: list[str], environment: dict[str, str]) -> int:
        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        before = {number: signal.signal(number, self._on_signal) for number in numbers}
        try:
            # A session of its own: Ctrl-C reaches only this process, which then asks the ranks to stop together.
            self.process = subprocess.Popen(
                command,
                env={**os.environ, **environment},
                cwd=_base_folder(self.run, self.attempt),
                start_new_session=True,
                # If this process is killed outright, torchrun is told, and tells the ranks.
                preexec_fn=die_with_parent,
            )
            return self._poll(self.process)
        finally:
            self._kill()
            for number, handler in before.items():
                signal.signal(number, handler)

    def _poll(self, process: subprocess.Popen[bytes]) -> int:
        while True:
            try:
                code = process.wait(timeout=0.2)
                return 128 - code if code < 0 else code
            except subprocess.TimeoutExpired:
                if time.monotonic() > self.deadline:
                    self._kill()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.requests += 1
        if self.requests == 1:
            self.run.stop_request(self.attempt).touch()
            print(
                "\nstopping after this step, with a checkpoint; once more to stop at once", file=sys.stderr, flush=True
            )
        elif self.requests == 2:
            self._signal_all(signal.SIGTERM)
            self.deadline = time.monotonic() + _KILL_AFTER_SECONDS if number != signal.SIGINT else time.monotonic()

    def _kill(self) -> None:
        self._signal_all(signal.SIGKILL)

    def _signal_all(self, number: signal.Signals) -> None:
        """Signal the launcher's process group, and every rank: torchrun gives the ranks sessions of their own."""
        if self.process is not None and self.process.poll() is None:
            _signal(os.killpg, self.process.pid, number)
        for pid in self.run.live_ranks(self.attempt):
            _signal(os.kill, pid, number)


def _base_folder(run: RunDir, attempt: int) -> str:
    return str(json.loads(run.launch_plan(attempt).read_text())["base_folder"])


def _signal(send: Any, pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        send(pid, number)
