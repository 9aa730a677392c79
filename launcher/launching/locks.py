"""One holder at a time for each part of a run (the launcher that starts attempts, and each rank), or for other work.

The kernel releases a lock when its process ends, however it ends. On file systems where flock does nothing (some mounts of
Lustre and GPFS), what the holder has written into the lock file, and whether it lives, decides.
"""

from __future__ import annotations

import fcntl
import json
import os
import platform
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.errors import RunStateError
from launcher.rundir import RunDir, is_that_process

_REFRESH_SECONDS = 15.0
_FRESH_SECONDS = 60.0
"""A holder on another machine that has shown no life for so long is gone."""
_TRIES = 20
_TRY_SECONDS = 0.1


@dataclass
class Lock:
    """A lock that this process holds until ``release``, or until its end."""

    path: Path
    handle: int
    refreshed: float = 0.0

    def refresh(self) -> None:
        """Show to other machines, every now and then, that the holder lives."""
        if time.monotonic() - self.refreshed > _REFRESH_SECONDS:
            self.refreshed = time.monotonic()
            os.utime(self.handle)

    def release(self) -> None:
        """Let the next one have it."""
        if self.handle >= 0:
            os.ftruncate(self.handle, 0)
            os.close(self.handle)
            self.handle = -1

    def __enter__(self) -> Lock:
        return self

    def __exit__(self, *error: object) -> None:
        self.release()


def hold_run(run: RunDir) -> Lock:
    """Take a run for a launcher that starts attempts of it. Raises RunStateError where it is in use; nothing is changed then."""
    lock = _take(run, "launcher")
    try:
        for path in sorted(run.locks.glob("rank-*")):
            _take(run, path.name).release()
        _refuse_living_ranks(run)
    except BaseException:
        lock.release()
        raise
    return lock


def hold_rank(run: RunDir, rank: int) -> Lock:
    """Take a rank's place in a run. Raises RunStateError where another process is that rank."""
    for left in reversed(range(_TRIES)):
        try:
            return _take(run, f"rank-{rank}")
        except RunStateError:
            # A launcher that looks whether ranks live holds their locks for a moment.
            if not left:
                raise
            time.sleep(_TRY_SECONDS)
    raise AssertionError


def _take(run: RunDir, name: str) -> Lock:
    run.locks.mkdir(exist_ok=True)
    lock, record = take_file(run.locks / name)
    if lock is None:
        raise RunStateError(_in_use(run, name, record))
    return lock


def take_file(path: Path) -> tuple[Lock | None, dict[str, Any]]:
    """Take a lock file; (None, pid, host and time of the holder as far as they are known) where somebody holds it."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o664)
    try:
        is_free = _flock(handle)
        record = _read(handle)
        if not is_free and not record:
            record = _awaited(handle)
        if not is_free or _lives(record, path):
            os.close(handle)
            return None, record
    except BaseException:
        os.close(handle)
        raise
    text = json.dumps({"pid": os.getpid(), "host": platform.node(), "time": time.time()})
    os.ftruncate(handle, 0)
    os.pwrite(handle, text.encode(), 0)
    # A child of a fork shares the lock and would keep it beyond this process.
    os.register_at_fork(after_in_child=lambda: _close(lock))
    lock = Lock(path, handle)
    return lock, {}


def _close(lock: Lock) -> None:
    if lock.handle >= 0:
        os.close(lock.handle)
        lock.handle = -1


def _flock(handle: int) -> bool:
    """Whether the kernel gives the lock; True where the file system knows no locks."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def _read(handle: int) -> dict[str, Any]:
    try:
        record = json.loads(os.pread(handle, 4096, 0))
    except ValueError:
        return {}
    return record if isinstance(record, dict) else {}


def _awaited(handle: int) -> dict[str, Any]:
    """Read what the holder, which has only just taken the lock, writes into it in a moment."""
    for _ in range(_TRIES):
        time.sleep(_TRY_SECONDS)
        if record := _read(handle):
            return record
    return {}


def _lives(record: Mapping[str, Any], path: Path) -> bool:
    """Whether the holder that wrote ``record`` still runs, as far as can be told from here."""
    if not record:
        return False
    if record["host"] == platform.node():
        return record["pid"] != os.getpid() and is_that_process(record)
    return time.time() - path.stat().st_mtime < _FRESH_SECONDS


def _refuse_living_ranks(run: RunDir) -> None:
    """Refuse a run whose ranks live, also on other machines, where heartbeats tell."""
    attempt = run.last_attempt
    here = platform.node()
    living = [f"process {pid} on {here}" for pid in run.live_ranks(attempt)]
    verdicts = run.verdicts(attempt)
    for rank, beat in run.heartbeats(attempt).items():
        runs = verdicts.get(rank, {}).get("verdict") == "running"
        if runs and beat["host"] != here and time.time() - beat["alive"] < _FRESH_SECONDS:
            living.append(f"process {beat['pid']} on {beat['host']}")
    if living:
        raise RunStateError(f"{run.path} is still running ({', '.join(living)}); wait for it, or stop it first")


def _in_use(run: RunDir, name: str, record: Mapping[str, Any]) -> str:
    who = "another process" if not record else f"process {record['pid']} on {record['host']}"
    since = "" if not record else f" since {time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(record['time']))}"
    what = "is in use" if name == "launcher" else f"is still running: its {name.replace('-', ' ')} is"
    return f"{run.path} {what}{' by' if name == 'launcher' else ''} {who}{since}; wait for it, or stop it first"
