"""Locks of a run: one holder at a time, released by the kernel, and decided by what is written where flock does nothing."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from launcher.atomic import write_json
from launcher.errors import RunStateError
from launcher.launching import locks
from launcher.launching.locks import hold_rank, hold_run
from launcher.rundir import RunDir

HOLDER = """
import sys, time
from pathlib import Path
from launcher.launching.locks import hold_rank, hold_run
from launcher.rundir import RunDir
run = RunDir(Path(sys.argv[1]))
try:
    lock = hold_run(run) if sys.argv[2] == "launcher" else hold_rank(run, 0)
except Exception as error:
    print(type(error).__name__, error, flush=True)
    sys.exit(6)
print("holds", flush=True)
time.sleep(60)
"""


@pytest.fixture
def run(tmp_path) -> RunDir:
    run = RunDir.create(tmp_path / "runs", "job", recipe_text="", resolved_text="x")
    run.new_attempt()
    return run


@pytest.fixture
def other(run):
    """Return a function that starts another process which takes a lock."""
    started = []

    def start(what: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", HOLDER, str(run.path), what]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def files(run: RunDir) -> dict[str, tuple[int, int]]:
    return {str(p): (p.stat().st_mtime_ns, p.stat().st_size) for p in run.path.rglob("*")}


def test_the_second_is_told_who_holds_it_and_changes_nothing(run, other):
    holder = other("launcher")
    assert holder.stdout.readline() == "holds\n"
    before = files(run)
    with pytest.raises(RunStateError) as caught:
        hold_run(run)
    text = str(caught.value)
    assert f"process {holder.pid} on {os.uname().nodename} since 20" in text and str(run.path) in text
    assert files(run) == before


def test_one_that_has_only_just_taken_it_is_named_too(run):
    """Between the kernel's lock and the line that says who holds it lies a moment, in which two that start together meet."""
    run.locks.mkdir()
    with (run.locks / "launcher").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        record = json.dumps({"pid": 4711, "host": "login1", "time": time.time()})
        writing = threading.Timer(0.3, lambda: print(record, file=file, flush=True))
        writing.start()
        with pytest.raises(RunStateError, match="process 4711 on login1 since 20"):
            hold_run(run)
        writing.join()


def test_the_kernel_releases_it_when_the_holder_is_killed(run, other):
    holder = other("launcher")
    assert holder.stdout.readline() == "holds\n"
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    hold_run(run).release()


def test_a_launcher_is_refused_while_a_rank_lives(run, other):
    """Its launcher was killed, or it was started by hand from launch.sh."""
    holder = other("rank")
    assert holder.stdout.readline() == "holds\n"
    with pytest.raises(RunStateError, match=f"its rank 0 is process {holder.pid}"):
        hold_run(run)
    hold_rank(run, 1).release()


def test_a_rank_is_refused_while_another_process_is_that_rank(run, other):
    with hold_rank(run, 0):
        second = other("rank")
        assert "RunStateError" in second.stdout.readline() and second.wait() == 6


def test_of_many_at_once_one_gets_it(run, other):
    processes = [other("launcher") for _ in range(4)]
    lines = [process.stdout.readline() for process in processes]
    assert lines.count("holds\n") == 1 and sum("RunStateError" in line for line in lines) == 3


def test_released_it_can_be_taken_again_and_again(run):
    for _ in range(3):
        with hold_run(run):
            pass


def test_a_forked_child_does_not_keep_it(run):
    """Data-loader workers are forked, and outlive a killed rank by seconds."""
    lock = hold_rank(run, 0)
    pid = os.fork()
    if pid == 0:
        time.sleep(20)
        os._exit(0)
    try:
        os.close(lock.handle)
        lock.handle = -1
        (run.locks / "rank-0").write_text("")
        hold_rank(run, 0).release()
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


@pytest.fixture
def no_flock(monkeypatch):
    """A file system on which flock does nothing."""
    monkeypatch.setattr(fcntl, "flock", lambda handle, how: None)


def test_where_flock_does_nothing_what_is_written_decides(run, other, no_flock):
    holder = other("launcher")
    assert holder.stdout.readline() == "holds\n"
    with pytest.raises(RunStateError, match=str(holder.pid)):
        hold_run(run)
    holder.kill()
    holder.wait()
    hold_run(run).release()


def test_a_holder_on_another_machine_counts_as_long_as_it_shows_life(run, no_flock):
    run.locks.mkdir(exist_ok=True)
    path = run.locks / "launcher"
    path.write_text(json.dumps({"pid": 1, "host": "elsewhere", "time": time.time() - 900}))
    with pytest.raises(RunStateError, match="process 1 on elsewhere"):
        hold_run(run)
    os.utime(path, (time.time() - 100, time.time() - 100))
    hold_run(run).release()


def test_a_rank_on_another_machine_counts_as_long_as_it_beats(run):
    write_json(run.verdict(1, 1), {"verdict": "running", "pid": 7, "host": "elsewhere", "time": 0.0})
    write_json(run.heartbeat(1, 1), {"pid": 7, "host": "elsewhere", "alive": time.time()})
    with pytest.raises(RunStateError, match="process 7 on elsewhere"):
        hold_run(run)
    write_json(run.heartbeat(1, 1), {"pid": 7, "host": "elsewhere", "alive": time.time() - 100})
    hold_run(run).release()


def test_two_launchers_never_make_the_same_attempt(run):
    (run.path / "attempts" / "2").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunDir, "last_attempt", property(lambda self: 1))
        with pytest.raises(RunStateError, match="attempt 2"):
            run.new_attempt()


def test_the_holder_shows_life_to_other_machines(run, monkeypatch):
    lock = hold_run(run)
    os.utime(lock.path, (1, 1))
    lock.refresh()
    assert time.time() - lock.path.stat().st_mtime < 5
    os.utime(lock.path, (1, 1))
    lock.refresh()
    assert lock.path.stat().st_mtime == 1, "seldom: it is a write to a shared file system"
    assert locks._FRESH_SECONDS > 2 * locks._REFRESH_SECONDS
    lock.release()
