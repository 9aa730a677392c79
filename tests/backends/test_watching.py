"""The watchdog without a model: which rank stands still, who is to blame, and when nothing is wrong."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from launcher.atomic import write_json
from launcher.backends.watching import Watch, innermost_frames, stopped_reason, waits_for_others
from launcher.rundir import RunDir

HOST = os.uname().nodename


@pytest.fixture
def run(tmp_path) -> RunDir:
    run = RunDir.create(tmp_path / "runs", "job", recipe_text="", resolved_text="x")
    run.new_attempt()
    return run


def beat(
    run: RunDir, rank: int, *, step: int = 0, part: int = 0, doing: str = "training", pid: int = 0, **more
) -> None:
    values = {"rank": rank, "pid": pid or os.getpid(), "host": HOST, "doing": doing, "step": step, "part": part}
    told = {"time": float(step * 100 + part), "deadline": 10.0, "timeout": 10.0, "alive": time.time()}
    write_json(run.heartbeat(1, rank), {**values, **told, **more})
    if rank not in run.verdicts(1):
        write_json(run.verdict(1, rank), {"verdict": "running", "pid": values["pid"], "time": 0.0})


def seen(watch: Watch, now: float):
    ranks = watch.look(now)
    return watch.stall(ranks, now)


def test_ranks_that_advance_are_left_alone(run):
    watch = Watch(run, 1, range(2), began=0.0)
    for now in range(0, 100, 5):
        beat(run, 0, step=now)
        beat(run, 1, step=now)
        assert seen(watch, float(now)) is None


def test_one_rank_that_advances_is_enough(run):
    """The others wait for it: while it evaluates, or prepares data."""
    watch = Watch(run, 1, range(2), began=0.0)
    for now in range(0, 100, 5):
        beat(run, 0, step=3, part=now, doing="evaluating")
        beat(run, 1, step=3, part=1)
        assert seen(watch, float(now)) is None


def test_no_beat_for_the_deadline_is_a_stall_and_the_rank_behind_is_named(run):
    watch = Watch(run, 1, range(2), began=0.0)
    beat(run, 0, step=7, part=2)
    beat(run, 1, step=7, part=1, doing="reading rows")
    assert seen(watch, 0.0) is None and seen(watch, 9.0) is None
    stall = seen(watch, 10.0)
    assert stall is not None and stall.rank == 1 and stall.is_sure
    assert "rank 1" in stall.reason and "reading rows after step 7" in stall.reason
    assert f"rank 0 (pid {os.getpid()} on {HOST}) is already training" in stall.reason


def test_where_none_is_behind_all_are_told(run):
    watch = Watch(run, 1, range(2), began=0.0)
    beat(run, 0, step=7)
    beat(run, 1, step=7)
    seen(watch, 0.0)
    stall = seen(watch, 11.0)
    assert stall is not None and not stall.is_sure
    assert "no rank has advanced for 11 s" in stall.reason and "rank 0" in stall.reason and "rank 1" in stall.reason


def test_silent_work_has_its_own_deadline(run):
    watch = Watch(run, 1, range(2), began=0.0)
    beat(run, 0, doing="preparing data", deadline=1000.0)
    beat(run, 1, doing="waiting for prepared data", deadline=1000.0)
    assert seen(watch, 0.0) is None and seen(watch, 999.0) is None
    assert seen(watch, 1001.0) is not None


def test_a_rank_that_has_ended_is_not_waited_for(run):
    watch = Watch(run, 1, range(2), began=0.0)
    beat(run, 0, step=7)
    beat(run, 1, step=7)
    write_json(run.verdict(1, 1), {"verdict": "finished", "time": 1.0})
    assert [rank.number for rank in watch.look(0.0)] == [0]


def test_a_rank_that_never_begins_is_named(run):
    watch = Watch(run, 1, range(2), began=0.0)
    beat(run, 0, doing="joining the other ranks")
    assert seen(watch, 100.0) is None
    stall = seen(watch, 2000.0)
    assert stall is not None and stall.rank == 1 and "has not begun" in stall.reason


def test_a_clock_that_jumps_ends_nothing(run):
    """Only changes of a beat count, never its time against this machine's clock."""
    watch = Watch(run, 1, range(1), began=0.0)
    beat(run, 0, step=1, time=-1e9)
    assert seen(watch, 0.0) is None
    beat(run, 0, step=2, time=1e12)
    assert seen(watch, 11.0) is None


def test_a_stopped_process_is_seen_at_once_and_may_go_on(run):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        beat(run, 0, step=4)
        beat(run, 1, step=4, pid=child.pid, deadline=1000.0)
        watch = Watch(run, 1, range(2), began=0.0)
        assert [rank.stopped for rank in watch.look(0.0)] == [None, None]
        os.kill(child.pid, signal.SIGSTOP)
        while psutil.Process(child.pid).status() != psutil.STATUS_STOPPED:
            time.sleep(0.01)
        ranks = watch.look(1.0)
        assert ranks[1].stopped == 0.0 and watch.stall(ranks, 1.0) is None
        # Others may still beat, and what it did may be silent for long: a stopped process does nothing.
        beat(run, 0, step=5)
        ranks = watch.look(12.0)
        stall = watch.stall(ranks, 12.0)
        assert stall is not None and stall.rank == 1 and stall.reason == stopped_reason(ranks[1])
        assert "rank 1" in stall.reason and str(child.pid) in stall.reason and "SIGSTOP" in stall.reason
        os.kill(child.pid, signal.SIGCONT)
        while psutil.Process(child.pid).status() == psutil.STATUS_STOPPED:
            time.sleep(0.01)
        assert watch.look(13.0)[1].stopped is None
    finally:
        child.kill()
        child.wait()


DUMP = """
Thread 0x1 (most recent call first):
  File "/x/heartbeat.py", line 1 in _keep_writing

Current thread 0x2 (most recent call first):
  File "/p/torch/distributed/distributed_c10d.py", line 3252 in all_reduce
  File "/w/launcher/engine/trainer.py", line 140 in get_batch_samples
"""


def test_stacks_say_who_waits_for_the_others():
    frames = innermost_frames("noise\n" + DUMP)
    assert frames[0] == ("/p/torch/distributed/distributed_c10d.py", 3252, "all_reduce") and len(frames) == 2
    assert waits_for_others(frames)
    assert not waits_for_others((("/w/my_collator.py", 3, "loop"), ("/p/torch/utils/data/fetch.py", 5, "fetch")))
    assert innermost_frames("nothing") == ()


def test_a_heartbeat_is_read_as_json(run):
    beat(run, 0, step=2)
    assert json.loads(run.heartbeat(1, 0).read_text())["step"] == 2 and list(run.heartbeats(1)) == [0]
