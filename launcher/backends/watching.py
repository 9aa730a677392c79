"""Do the ranks of an attempt advance? Told from their heartbeats and the state of their processes; nothing is ended here."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from launcher.rundir import RunDir

# A rank that has not even begun to beat; more than any import takes.
_NO_BEAT_SECONDS = 1800.0
# What engine.heartbeat has the ranks answer with their stacks.
_STACK_SIGNAL = signal.SIGQUIT


@dataclass(frozen=True)
class Rank:
    """A rank as its newest heartbeat and its process show it."""

    number: int
    pid: int
    host: str
    doing: str
    step: int
    part: int
    idle: float
    """Seconds since it was seen to advance."""
    deadline: float
    stopped: float | None = None
    """Seconds since its process was seen stopped (SIGSTOP); None: it is not."""

    @property
    def who(self) -> str:
        """Its number, process and machine."""
        return f"rank {self.number} (pid {self.pid} on {self.host})"

    @property
    def what(self) -> str:
        """What it does, and after which step."""
        return f"{self.doing} after step {self.step}" if self.step else f"{self.doing} before the first step"


@dataclass(frozen=True)
class Stall:
    """The ranks no longer advance."""

    rank: int
    """The one to blame, or the first where none stands out."""
    reason: str
    is_sure: bool = True
    """Whether that rank is known to be the cause."""


@dataclass
class Watch:
    """Looks at an attempt again and again; remembers what it saw, by this process's own clock."""

    run: RunDir
    attempt: int
    own: range
    """Numbers of the ranks that have to begin on this machine."""
    began: float = field(default_factory=time.monotonic)
    _seen: dict[int, tuple[Any, float]] = field(default_factory=dict)
    _stopped: dict[int, float] = field(default_factory=dict)

    def look(self, now: float) -> tuple[Rank, ...]:
        """Return the ranks that began and have not ended; ``now`` in seconds of the monotonic clock."""
        verdicts = self.run.verdicts(self.attempt)
        found = []
        for number, beat in self.run.heartbeats(self.attempt).items():
            if verdicts.get(number, {}).get("verdict") == "running":
                found.append(self._rank(number, beat, now))
        return tuple(found)

    def _rank(self, number: int, beat: Mapping[str, Any], now: float) -> Rank:
        state = (beat["pid"], beat["step"], beat["part"], beat["doing"], beat["time"])
        if self._seen.get(number, (None, 0.0))[0] != state:
            self._seen[number] = (state, now)
        if _is_stopped(beat):
            self._stopped.setdefault(number, now)
        else:
            self._stopped.pop(number, None)
        since = self._stopped.get(number)
        return Rank(
            number=number,
            pid=beat["pid"],
            host=beat["host"],
            doing=beat["doing"],
            step=beat["step"],
            part=beat["part"],
            idle=now - self._seen[number][1],
            deadline=beat["timeout"] if since is not None else beat["deadline"],
            stopped=None if since is None else now - since,
        )

    def stall(self, ranks: tuple[Rank, ...], now: float) -> Stall | None:
        """Return why the run is to be ended; None: it may go on."""
        for rank in ranks:
            if rank.stopped is not None and rank.stopped >= rank.deadline:
                return Stall(rank.number, stopped_reason(rank))
        begun = self.run.verdicts(self.attempt).keys()
        missing = [number for number in self.own if number not in begun]
        if missing and now - self.began > _NO_BEAT_SECONDS:
            return Stall(missing[0], f"rank {missing[0]} has not begun {now - self.began:.0f} s after its start")
        if not ranks or missing or any(rank.idle < rank.deadline for rank in ranks):
            return None
        return _blame(ranks)


def stopped_reason(rank: Rank) -> str:
    """Return the words for a rank whose process is stopped."""
    assert rank.stopped is not None
    return (
        f"{rank.who} has been stopped (SIGSTOP) for {rank.stopped:.0f} s, since it was {rank.what}; "
        "the others wait for it"
    )


def _blame(ranks: tuple[Rank, ...]) -> Stall:
    """Of ranks that all stand still, blame the one that is behind: the others wait for it."""
    idle = min(rank.idle for rank in ranks)
    behind = min(ranks, key=lambda rank: (rank.step, rank.part))
    ahead = [rank for rank in ranks if (rank.step, rank.part) > (behind.step, behind.part)]
    state = _process_state(behind)
    if ahead or len(ranks) == 1:
        others = f"; {ahead[0].who} is already {ahead[0].what}" if ahead else ""
        return Stall(
            behind.number, f"{behind.who} has not advanced for {behind.idle:.0f} s: {behind.what}{state}{others}"
        )
    said = "; ".join(f"{rank.who} is {rank.what}{_process_state(rank)}" for rank in ranks)
    return Stall(behind.number, f"no rank has advanced for {idle:.0f} s: {said}", is_sure=False)


_STATES = {
    psutil.STATUS_STOPPED: "stopped",
    psutil.STATUS_TRACING_STOP: "held by a debugger",
    psutil.STATUS_DISK_SLEEP: "waiting for a disk",
    psutil.STATUS_RUNNING: "computing",
}


def _process_state(rank: Rank) -> str:
    try:
        state = _STATES.get(psutil.Process(rank.pid).status()) if rank.host == platform.node() else None
    except psutil.NoSuchProcess:
        state = "its process is gone"
    return f" ({state})" if state else ""


def _is_stopped(beat: Mapping[str, Any]) -> bool:
    if beat["host"] != platform.node():
        return False
    try:
        return bool(psutil.Process(beat["pid"]).status() == psutil.STATUS_STOPPED)
    except psutil.NoSuchProcess:
        return False


# --- stacks ----------------------------------------------------------------------------------------------------------

_FRAME = re.compile(r'File "([^"]+)", line (\d+) in (\S+)')
# Where a rank that waits for the others stands.
_WAITING = ("/torch/distributed/", "/torch/autograd/", "/deepspeed/comm/", "/torch/nn/parallel/", "/accelerate/")


def innermost_frames(dump: str) -> tuple[tuple[str, int, str], ...]:
    """Return (file, line, function) of a main thread, innermost first, from what faulthandler wrote last."""
    start = dump.rfind("Current thread")
    if start < 0:
        return ()
    frames = []
    for line in dump[start:].splitlines()[1:]:
        match = _FRAME.search(line)
        if match is None:
            break
        frames.append((match[1], int(match[2]), match[3]))
    return tuple(frames)


def waits_for_others(frames: tuple[tuple[str, int, str], ...]) -> bool:
    """Whether a main thread stands in communication with other ranks (or in a backward pass, where gradients are exchanged)."""
    return any(part in file for file, _, _ in frames[:3] for part in _WAITING)


def with_stacks(stall: Stall, ranks: tuple[Rank, ...], run: RunDir, attempt: int, *, seconds: float) -> tuple[int, str]:
    """Have every rank write its stacks into its log; return the rank to blame and the words, with where it stands.

    Where no rank is behind, the one that stands outside communication is: the others wait for it.
    """
    here = [rank for rank in ranks if rank.host == platform.node() and rank.stopped is None]
    logs = {rank.number: run.log(attempt, rank.number) for rank in here}
    sizes = {number: log.stat().st_size if log.exists() else 0 for number, log in logs.items()}
    for rank in here:
        with contextlib.suppress(ProcessLookupError):
            os.kill(rank.pid, _STACK_SIGNAL)
    time.sleep(seconds)
    frames = {number: innermost_frames(_read_from(log, sizes[number])) for number, log in logs.items()}
    blamed, reason = stall.rank, stall.reason
    alone = [number for number, found in frames.items() if found and not waits_for_others(found)]
    if not stall.is_sure and len(alone) == 1 and len(ranks) > 1:
        blamed = alone[0]
        who = next(rank.who for rank in ranks if rank.number == blamed)
        reason += f"; {who} is where no other rank is waited for"
    if frames.get(blamed):
        file, line, function = frames[blamed][0]
        reason += f"; it stands in {function} ({file}, line {line}); the stacks of all ranks are in their logs"
    return blamed, reason


def _read_from(log: Path, offset: int) -> str:
    try:
        with log.open("rb") as file:
            file.seek(offset)
            return file.read().decode(errors="replace")
    except OSError:
        return ""
