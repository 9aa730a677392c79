"""A rank's heartbeat: what its main thread does, and when that last advanced, in a file that a watchdog reads."""

from __future__ import annotations

import faulthandler
import json
import os
import platform
import signal
import threading
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

Doing = Literal[
    "importing", "joining the other ranks", "preparing data", "waiting for prepared data", "loading the model",
    "starting the engine", "reading rows", "training", "evaluating", "saving", "finishing",
]  # fmt: skip

STACK_SIGNAL = signal.SIGQUIT
"""A rank that gets it writes the stacks of its threads into its log, also where its main thread is stuck below Python."""
_WRITE_SECONDS = 1.0
# By its number: it leads to the log by now, or will.
_STANDARD_ERROR = 2
_ALIVE_SECONDS = 10.0
# Before the recipe is read.
_DEFAULT_TIMEOUT = 1800.0


@dataclass(frozen=True)
class Beat:
    """What a main thread does. ``deadline``: seconds for which it may be silent about it."""

    doing: Doing = "importing"
    step: int = 0
    """Optimizer steps that are done."""
    part: int = 0
    """Beats since that step ended: of two ranks at the same step, the one with fewer is behind."""
    time: float = 0.0
    """Of the last beat, by this machine's clock."""
    deadline: float = _DEFAULT_TIMEOUT
    timeout: float = _DEFAULT_TIMEOUT
    """Deadline of work that beats often; also what a stopped process gets, whatever it did."""
    own_seconds: float | None = None
    """What this rank needs for its own part of a step, before it waits for the others; the mean of the last steps."""


class Heartbeat:
    """A rank's beats: set by the main thread at no cost, written by a thread at most once a second.

    The writing thread adds nothing of its own but ``alive``, the time at which the process could still write: a main thread
    that hangs no longer beats, whatever that thread does. Without a path nothing is written.
    """

    def __init__(self, path: Path | None = None, *, rank: int = 0) -> None:
        self.path = path
        self.rank = rank
        self.timeout = _DEFAULT_TIMEOUT
        self.startup_timeout = _DEFAULT_TIMEOUT
        self._beat = Beat(time=time.time())
        self._end = threading.Event()
        self._news = threading.Event()

    @property
    def last(self) -> Beat:
        """The newest beat."""
        return self._beat

    def start(self) -> None:
        """Write the first beat, go on writing, and dump stacks into the log on STACK_SIGNAL."""
        if self.path is None:
            return
        faulthandler.register(STACK_SIGNAL, file=_STANDARD_ERROR, all_threads=True, chain=False)
        self._write(self._beat)
        threading.Thread(target=self._keep_writing, name="heartbeat", daemon=True).start()

    def set_deadlines(self, *, timeout: float, startup_timeout: float) -> None:
        """Take over the recipe's deadlines, in seconds."""
        self.timeout, self.startup_timeout = timeout, startup_timeout
        self._beat = replace(self._beat, timeout=timeout, deadline=startup_timeout)

    def beat(
        self, doing: Doing, *, step: int | None = None, may_be_silent: bool = False, own_seconds: float | None = None
    ) -> None:
        """Say that the main thread has advanced, and to what.

        Args:
            step: optimizer steps that are done; None: as before.
            may_be_silent: what begins may take long without a beat (loading, compiling): the start-up deadline holds.
            own_seconds: what this rank needs for its own part of a step; None: as before.
        """
        before = self._beat
        step = before.step if step is None else step
        self._beat = Beat(
            doing=doing,
            step=step,
            part=before.part + 1 if step == before.step else 0,
            time=time.time(),
            deadline=self.startup_timeout if may_be_silent else self.timeout,
            timeout=self.timeout,
            own_seconds=before.own_seconds if own_seconds is None else own_seconds,
        )
        self._news.set()

    def end(self) -> None:
        """Write no more."""
        self._end.set()
        self._news.set()

    def _keep_writing(self) -> None:
        while not self._end.wait(_WRITE_SECONDS):
            self._news.wait(_ALIVE_SECONDS)
            self._news.clear()
            self._write(self._beat)

    def _write(self, beat: Beat) -> None:
        """Replace the file in one piece. Not forced to disk: what a crash of the machine loses, nobody wants to know."""
        assert self.path is not None
        who = {"rank": self.rank, "pid": os.getpid(), "host": platform.node()}
        new = self.path.with_name(f".{self.path.name}.new")
        try:
            new.write_text(json.dumps({**who, **asdict(beat), "alive": time.time()}) + "\n")
            new.replace(self.path)
        except OSError:
            # A full disk is the checkpoint's to report; a beat that is missing must not end a run.
            new.unlink(missing_ok=True)
