"""Heartbeats: they tell what the main thread does, cheaply, and nothing when it does nothing."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny

from launcher.engine.heartbeat import Heartbeat

PROGRAM = """
import sys, time
from pathlib import Path
from launcher.engine.heartbeat import Heartbeat
beat = Heartbeat(Path(sys.argv[1]), rank=3)
beat.set_deadlines(timeout=7, startup_timeout=70)
beat.start()
for step in range(1, 5):
    beat.beat("reading rows")
    beat.beat("training", step=step)
print("hangs", flush=True)
def a_loop_without_end():
    while True:
        time.sleep(0.1)
a_loop_without_end()
"""


def read(path: Path) -> dict:
    return json.loads(path.read_text())


def wait_for(what, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.02)


@pytest.fixture
def hanging(tmp_path):
    """A rank that takes four steps and then hangs."""
    path = tmp_path / "heartbeat.rank-3.json"
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(path)], stdout=subprocess.PIPE, stderr=(tmp_path / "log").open("wb")
    )
    assert process.stdout.readline() == b"hangs\n"
    yield process, path, tmp_path / "log"
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_main_thread_that_hangs_does_not_beat_and_its_last_beat_is_told(hanging):
    process, path, _ = hanging
    wait_for(lambda: read(path)["step"] == 4)
    first = read(path)
    assert {k: first[k] for k in ("rank", "pid", "doing", "step")} == {
        "rank": 3, "pid": process.pid, "doing": "training", "step": 4,
    }  # fmt: skip
    assert first["deadline"] == first["timeout"] == 7
    time.sleep(2.5)
    assert {**read(path), "alive": 0} == {**first, "alive": 0}, "the writing thread must not speak for the main thread"


def test_its_stacks_come_into_the_log_on_sigquit_and_it_goes_on(hanging):
    process, _, log = hanging

    def asked() -> bool:
        os.kill(process.pid, signal.SIGQUIT)
        return "in a_loop_without_end" in log.read_text()

    wait_for(asked)
    assert process.poll() is None


def test_a_beat_writes_nothing_itself_and_costs_microseconds(tmp_path):
    beat = Heartbeat(tmp_path / "heartbeat.rank-0.json")
    started = time.perf_counter()
    for step in range(1000):
        beat.beat("training", step=step)
    assert time.perf_counter() - started < 0.5
    assert list(tmp_path.iterdir()) == []


def test_parts_tell_who_is_behind_at_the_same_step():
    beat = Heartbeat()
    beat.beat("training", step=5)
    assert (beat.last.step, beat.last.part) == (5, 0)
    beat.beat("reading rows")
    beat.beat("training")
    assert (beat.last.step, beat.last.part) == (5, 2)
    beat.beat("training", step=6)
    assert beat.last.part == 0


def test_what_may_be_silent_has_the_deadline_of_the_start():
    beat = Heartbeat()
    beat.set_deadlines(timeout=10, startup_timeout=500)
    assert beat.last.deadline == 500, "a rank that has just begun imports"
    beat.beat("training")
    assert beat.last.deadline == 10
    beat.beat("loading the model", may_be_silent=True)
    assert (beat.last.deadline, beat.last.timeout) == (500, 10)


def test_a_full_disk_does_not_end_the_rank(tmp_path):
    beat = Heartbeat(tmp_path / "no such folder" / "heartbeat.rank-0.json")
    beat.start()
    beat.end()


JOIN = """
import tiny, torch
import torch.distributed as dist
from launcher.engine.arguments import training_arguments
from launcher.plans import BatchPlan, LaunchPlan
plan = LaunchPlan("ddp", None, "fp32", "cpu", 1, 2, BatchPlan(8, 2, 4, 1))
arguments = training_arguments(tiny.recipe(distributed={"timeout": 90}), plan, output_dir="out")
group = dist.group.WORLD._get_backend(torch.device("cpu")).options._timeout
print("limits", group.total_seconds(), arguments.ddp_timeout)
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_ranks_that_wait_for_each_other_give_up_after_the_watchdog_has_spoken(tmp_path):
    """On the CPU, too, where transformers passes no time limit on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    group = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    env = tiny.environment(PYTHONPATH=str(Path(tiny.__file__).parent), **group)
    done = subprocess.run([sys.executable, "-c", JOIN], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert "limits 150.0 150" in done.stdout, done.stderr[-2000:]
