"""The ranks of one machine: start them, pass on Ctrl-C, end them where they stand still, leave nothing behind, and say how each ended."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from types import FrameType
from typing import IO, Any

from launcher.atomic import write_text
from launcher.backends.endings import GOOD_ENDS, close_verdicts, memory_kills, report_of_torchrun
from launcher.backends.watching import Rank, Stall, Watch, with_stacks
from launcher.launching.processes import die_with_parent
from launcher.launching.render import Node, launch_script, worker_command
from launcher.plans import LaunchPlan
from launcher.rundir import RunDir

_KILL_AFTER_SECONDS = 10.0
# torchrun gives ranks that are asked to end 30 s; this is what they get once a rank stands still.
_END_SECONDS = 5.0
_STACKS_SECONDS = 1.0
_LOOK_SECONDS = 1.0
# What a process may take from its verdict to its end.
_LINGER_SECONDS = 60.0
_KEPT_WORDS = 2**16
# What the ranks of this machine get to end by themselves once one of another machine has failed.
_FAREWELL_SECONDS = 30.0
# What Slurm sends to every process of a job, or to those that it has started itself: only the ranks are to listen, once they can.
_SLURM_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
_TORCHRUN_HANDLES = {"PET_SIGNALS_TO_HANDLE": "SIGINT,SIGHUP,SIGQUIT"}


@dataclass(frozen=True)
class MachineEnd:
    """How the ranks of this machine ended."""

    code: int
    """Exit code of what started them."""
    was_stopped: bool
    """Whether they were asked to stop through this process."""


def run_machine(
    run: RunDir, attempt: int, *, node: Node | None = None, on_look: Callable[[], object] = lambda: None
) -> MachineEnd:
    """Start this machine's ranks of an attempt, wait for them, and give each a true verdict.

    Args:
        node: this machine's place among several; None: it is alone.
        on_look: called every second meanwhile.

    Raises:
        OSError: the verdicts could not be written down.
    """
    plan = read_plan(run, attempt)
    port = free_port() if node is None and plan.engine != "single" else None
    command, environment = (
        worker_command(run.path, attempt=attempt, plan=plan, port=port, node=node),
        _thread_settings(plan),
    )
    script = run.attempt(attempt) / ("launch.sh" if node is None else f"launch.node-{node.number}.sh")
    write_text(script, launch_script(command, environment=environment))
    script.chmod(0o755)
    own = range(plan.processes_per_node) if node is None else node.ranks(plan)
    ranks = _Ranks(run, attempt, plan, own, on_look=on_look, is_alone=node is None)
    kills = memory_kills()
    code = ranks.wait(command, environment)
    close_verdicts(
        run, attempt, ranks=own, codes=ranks.exit_codes(), ended=ranks.ended, stalled=ranks.stalled, code=code,
        is_out_of_memory=memory_kills() > kills,
    )  # fmt: skip
    return MachineEnd(code, was_stopped=ranks.requests > 0)


def free_port() -> int:
    """Return a port that is free on the loopback address now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def read_plan(run: RunDir, attempt: int) -> LaunchPlan:
    """Return how an attempt was planned to be launched."""
    return LaunchPlan.from_json(json.loads(run.launch_plan(attempt).read_text())["plan"])


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
    """The processes of an attempt, what Ctrl-C does to them, and what is done when they stand still."""

    run: RunDir
    attempt: int
    plan: LaunchPlan
    own: range
    """Numbers of this machine's ranks."""
    on_look: Callable[[], object]
    is_alone: bool
    """Whether all ranks are here, so that signals come from a person, who may lose patience, and not from Slurm."""
    requests: int = 0
    process: subprocess.Popen[bytes] | None = None
    deadline: float = field(default=float("inf"))
    ended: dict[int, str] = field(default_factory=dict)
    """Process id of a rank -> why it was ended from here."""
    stalled: tuple[int, str] | None = None
    _words: _Words | None = None
    _told: set[int] = field(default_factory=set)
    _all_ended_at: float | None = None
    _failed_elsewhere_at: float | None = None

    def wait(self, command: list[str], environment: dict[str, str]) -> int:
        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, *(() if self.is_alone else _SLURM_SIGNALS[1:]))
        before = {number: signal.signal(number, self._on_signal) for number in numbers}
        several = self.plan.engine != "single"
        try:
            # A session of its own: Ctrl-C reaches only this process, which then asks the ranks to stop together.
            self.process = subprocess.Popen(
                command,
                env={**os.environ, **environment, **({} if self.is_alone else _TORCHRUN_HANDLES)},
                cwd=_base_folder(self.run, self.attempt),
                start_new_session=True,
                # If this process is killed outright, torchrun is told, and tells the ranks.
                preexec_fn=die_with_parent if self.is_alone else _ignore_slurm,
                # torchrun knows, and says, with which signal a rank ended.
                stderr=subprocess.PIPE if several else None,
            )
            if self.process.stderr is not None:
                self._words = _Words(self.process.stderr)
                self._words.start()
            return self._poll(self.process)
        finally:
            self._kill("the process that had started it was gone" if self.process else "")
            if self._words is not None:
                self._words.join(timeout=2.0)
            for number, handler in before.items():
                signal.signal(number, handler)

    def exit_codes(self) -> dict[int, int]:
        """Return process id -> exit code, as far as known; negative: the signal."""
        assert self.process is not None
        if self._words is not None:
            return report_of_torchrun(self._words.text)
        return {self.process.pid: self.process.returncode} if self.process.pid not in self.ended else {}

    def _poll(self, process: subprocess.Popen[bytes]) -> int:
        watch = Watch(self.run, self.attempt, self.own)
        looked = time.monotonic()
        while True:
            try:
                code = process.wait(timeout=0.2)
                return 128 - code if code < 0 else code
            except subprocess.TimeoutExpired:
                now = time.monotonic()
                if now > self.deadline:
                    self._kill("ended at once, as asked")
                elif self.stalled is None and now - looked >= _LOOK_SECONDS:
                    looked = now
                    self._look(watch, now)

    def _look(self, watch: Watch, now: float) -> None:
        """Name a rank that is stopped; end the attempt where its ranks no longer advance, or do not end."""
        self.on_look()
        ranks = watch.look(now)
        for rank in ranks:
            if rank.stopped is None:
                self._told.discard(rank.number)
            elif rank.number not in self._told:
                self._told.add(rank.number)
                self._tell_stopped(rank)
        stall = watch.stall(ranks, now)
        if stall is not None:
            self._end_stalled(stall, ranks)
        elif self._linger(ranks, now):
            self._kill("it did not end after its verdict")
        elif not self.is_alone:
            self._look_elsewhere(now)

    def _tell_stopped(self, rank: Rank) -> None:
        self.run.add_event("rank_stopped", attempt=self.attempt, rank=rank.number, pid=rank.pid, step=rank.step)
        say(
            f"{rank.who} is stopped (SIGSTOP) while {rank.what}; `kill -CONT {rank.pid}` lets it go on, otherwise the run "
            f"ends in {rank.deadline:.0f} s (distributed.timeout)"
        )

    def _end_stalled(self, stall: Stall, ranks: tuple[Rank, ...]) -> None:
        """Write down where the ranks stand, and end them: asked first, then killed."""
        number, reason = with_stacks(stall, ranks, self.run, self.attempt, seconds=_STACKS_SECONDS)
        self.stalled = (number, reason)
        say(f"{reason}; ending the run")
        self._signal_all(signal.SIGTERM)
        self.deadline = time.monotonic() + _END_SECONDS
        for rank in ranks:
            self.ended.setdefault(rank.pid, f"ended by the launcher, because rank {number} stood still")

    def _linger(self, ranks: tuple[Rank, ...], now: float) -> bool:
        """Whether all ranks have given their verdict for so long that one must hang at its exit."""
        mine = [rank for rank in ranks if rank.number in self.own]
        if mine or not set(self.own) <= self.run.verdicts(self.attempt).keys():
            self._all_ended_at = None
            return False
        self._all_ended_at = self._all_ended_at or now
        return now - self._all_ended_at > _LINGER_SECONDS

    def _look_elsewhere(self, now: float) -> None:
        """End these ranks where one of another machine has failed: some collectives would wait for it for half an hour."""
        others = self.run.verdicts(self.attempt)
        failed = [rank for rank, v in others.items() if rank not in self.own and v["verdict"] not in GOOD_ENDS]
        if not failed:
            self._failed_elsewhere_at = None
            return
        self._failed_elsewhere_at = self._failed_elsewhere_at or now
        if now - self._failed_elsewhere_at > _FAREWELL_SECONDS:
            self._kill(f"ended by the launcher, because rank {failed[0]} had failed on another machine")

    def _ask_to_stop(self) -> None:
        """Have the ranks stop at their next step: by a file, and, as a file may be seen late on another machine, by a signal."""
        self.run.stop_request(self.attempt).touch()
        for rank, pid in self.run.processes(self.attempt).items():
            if rank in self.own:
                _signal(os.kill, pid, signal.SIGUSR2)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.requests += 1
        if not self.is_alone:
            # Slurm may send several, and kills by itself when the time is over.
            if self.requests == 1:
                self._ask_to_stop()
                say("asked to stop: the ranks save and end after this step")
            return
        if self.requests == 1:
            self.run.stop_request(self.attempt).touch()
            say("\nstopping after this step, with a checkpoint; once more to stop at once")
        elif self.requests == 2:
            self._signal_all(signal.SIGTERM)
            self.deadline = time.monotonic() + _KILL_AFTER_SECONDS if number != signal.SIGINT else time.monotonic()

    def _kill(self, why: str) -> None:
        for pid in self._signal_all(signal.SIGKILL):
            self.ended.setdefault(pid, why)

    def _signal_all(self, number: signal.Signals) -> list[int]:
        """Signal the launcher's process group, and every rank: torchrun gives the ranks sessions of their own."""
        ranks = [pid for rank, pid in self.run.processes(self.attempt).items() if rank in self.own]
        for pid in ranks:
            _signal(os.kill, pid, number)
        if self.process is not None and self.process.poll() is None:
            _signal(os.killpg, self.process.pid, number)
        return ranks


def _ignore_slurm() -> None:
    """Prepare a child for Slurm's signals: ignored by torchrun, by what ranks start, and by ranks until they listen themselves."""
    for number in _SLURM_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    die_with_parent(signal.SIGINT)


class _Words(threading.Thread):
    """Passes on what torchrun and ranks without a log say, and keeps the end of it."""

    def __init__(self, stream: IO[bytes]) -> None:
        super().__init__(daemon=True)
        self._stream = stream
        self._kept = b""

    @property
    def text(self) -> str:
        """The last words."""
        return self._kept.decode(errors="replace")

    def run(self) -> None:
        """Pass on until all writers are gone."""
        while line := self._stream.readline():
            self._kept = (self._kept + line)[-_KEPT_WORDS:]
            with contextlib.suppress(OSError, ValueError):
                sys.stderr.write(line.decode(errors="replace"))
                sys.stderr.flush()


def say(text: str) -> None:
    """Tell the person at the terminal, if there still is one."""
    with contextlib.suppress(OSError):
        print(text, file=sys.stderr, flush=True)


def _base_folder(run: RunDir, attempt: int) -> str:
    return str(json.loads(run.launch_plan(attempt).read_text())["base_folder"])


def _signal(send: Any, pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        send(pid, number)
