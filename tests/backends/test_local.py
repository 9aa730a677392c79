"""The local backend without a model: which rank is to blame, and what signals do."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from dataclasses import asdict

import pytest

from launcher.atomic import read_jsonl, write_json
from launcher.backends import machine
from launcher.backends.endings import first_failure, report_of_torchrun
from launcher.backends.local import LocalBackend
from launcher.backends.machine import free_port
from launcher.plans import BatchPlan, LaunchPlan
from launcher.rundir import RunDir


@pytest.fixture
def run(tmp_path) -> RunDir:
    run = RunDir.create(tmp_path / "runs", "job", recipe_text="", resolved_text="x")
    run.new_attempt()
    plan = LaunchPlan("single", None, "fp32", "cpu", 1, 1, BatchPlan(8, 1, 8, 1))
    write_json(run.launch_plan(1), {"plan": asdict(plan), "base_folder": str(tmp_path)})
    return run


def verdict(run: RunDir, rank: int, kind: str, *, time: float = 0.0, pid: int = 2**22 + 1, **more: object) -> None:
    write_json(run.verdict(1, rank), {"verdict": kind, "time": time, "pid": pid, **more})


# --- who is to blame -------------------------------------------------------------------------------------------------


def test_nobody_where_all_finished(run):
    verdict(run, 0, "finished")
    verdict(run, 1, "finished")
    assert first_failure(run, 1) is None


def test_the_rank_that_ended_first(run):
    verdict(run, 0, "failed", time=5.0, error="a late one")
    verdict(run, 1, "failed", time=4.0, error="CUDA out of memory")
    rank, found = first_failure(run, 1)
    assert (rank, found["error"]) == (1, "CUDA out of memory")


def test_not_the_rank_that_only_lost_its_connection(run):
    verdict(run, 0, "failed", time=4.0, error="[gloo/transport/tcp/pair.cc] Connection closed by peer [127.0.0.1]")
    verdict(run, 1, "failed", time=5.0, error="a bad label")
    assert first_failure(run, 1)[0] == 1


def test_a_killed_rank_where_the_others_only_lost_their_connection(run):
    verdict(run, 0, "failed", time=4.0, error="Connection reset by peer")
    verdict(run, 1, "running")
    rank, found = first_failure(run, 1)
    assert rank == 1 and found["verdict"] == "killed" and "out of memory" in found["error"]


def test_the_lost_connection_where_nothing_else_is_known(run):
    verdict(run, 0, "failed", time=4.0, error="Connection reset by peer")
    verdict(run, 1, "finished")
    assert first_failure(run, 1)[0] == 0


def test_a_rank_that_still_runs_is_not_to_blame(run):
    verdict(run, 0, "running", pid=os.getpid(), time=1e12)
    assert first_failure(run, 1) is None


def test_a_killed_rank_where_the_other_was_only_asked_to_end(run):
    """torchrun asks the ranks that are left."""
    verdict(run, 0, "interrupted", time=4.0, error="stopped by SIGTERM at step 3")
    verdict(run, 1, "running")
    assert first_failure(run, 1)[0] == 1


def test_a_rank_that_stood_still_whatever_else_is_said(run):
    verdict(run, 0, "failed", time=4.0, error="a late one")
    verdict(run, 1, "stalled", time=5.0, error="stopped")
    verdict(run, 2, "ended", time=3.0, error="ended by the launcher")
    assert first_failure(run, 1)[0] == 1


def test_torchrun_says_which_signal_ended_a_rank():
    line = (
        "E1122 07:15:41.1 22170 torch/x/api.py:1002] failed (exitcode: -9) local_rank: 1 (pid: 24488) of binary: python"
    )
    assert report_of_torchrun(f"noise\n{line}\nmore") == {24488: -9}


def test_no_verdict_yet(run):
    assert first_failure(run, 1) is None


# --- submit ----------------------------------------------------------------------------------------------------------

RANK = """
import json, os, sys, time
run, action = sys.argv[1], sys.argv[2]
path = f"{run}/attempts/1/verdict.rank-0.json"
def say(**values):
    open(path + ".new", "w").write(json.dumps({"time": time.time(), **values}))
    os.replace(path + ".new", path)
say(verdict="running", pid=os.getpid())
if action == "finish":
    say(verdict="finished", exit_code=0)
elif action == "fail":
    say(verdict="failed", exit_code=3, error="a bad label")
    sys.exit(1)
elif action == "die":
    os.kill(os.getpid(), 9)
elif action == "obey":
    while not os.path.exists(f"{run}/attempts/1/stop"):
        time.sleep(0.01)
    say(verdict="interrupted", exit_code=130, error="stopped")
    sys.exit(130)
elif action == "hang":
    import signal
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(60)
elif action in ("stand still", "be stopped", "end late"):
    import signal
    from pathlib import Path
    from launcher.engine.heartbeat import Heartbeat
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.makedirs(os.path.dirname(f"{run}/attempts/1/logs/"), exist_ok=True)
    os.dup2(os.open(f"{run}/attempts/1/logs/rank-0.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
    beat = Heartbeat(Path(f"{run}/attempts/1/heartbeat.rank-0.json"))
    beat.set_deadlines(timeout=2.0, startup_timeout=2.0)
    beat.beat("training", step=12)
    beat.start()
    if action == "be stopped":
        os.kill(os.getpid(), signal.SIGSTOP)
    if action == "end late":
        say(verdict="finished", exit_code=0, pid=os.getpid())
    def wait_for_nothing():
        time.sleep(60)
    wait_for_nothing()
elif action == "die early":
    os.remove(path)
    os.kill(os.getpid(), 11)
"""


@pytest.fixture
def submit(run, monkeypatch, tmp_path):
    script = tmp_path / "rank.py"
    script.write_text(RANK)

    def start(action: str) -> int:
        monkeypatch.setattr(
            machine, "worker_command", lambda path, **_: [sys.executable, str(script), str(path), action]
        )
        return LocalBackend().submit(run.path, attempt=1)

    return start


def later(run: RunDir, *numbers: int) -> None:
    """Send signals to this process once the rank runs."""

    def send() -> None:
        while 0 not in run.verdicts(1):
            time.sleep(0.01)
        for number in numbers:
            os.kill(os.getpid(), number)
            time.sleep(0.1)

    threading.Thread(target=send).start()


def events(run: RunDir) -> list[str]:
    return [row["event"] for row in read_jsonl(run.events)]


@pytest.mark.parametrize("action, code", [("finish", 0), ("fail", 3), ("die", 137)])
def test_the_exit_code_is_the_ranks_own(submit, run, action, code):
    assert submit(action) == code
    script = run.attempt(1) / "launch.sh"
    assert os.access(script, os.X_OK) and str(run.path) in script.read_text()
    if action == "die":
        assert events(run) == ["created", "failed"]
        assert "killed by SIGKILL" in run.status().reason
        assert run.verdicts(1)[0]["verdict"] == "killed", "none stays running"


def pid_is_gone(run: RunDir) -> bool:
    return not run.processes(1)


@pytest.mark.parametrize(
    "action, words",
    [("stand still", ["has not advanced", "wait_for_nothing"]), ("be stopped", ["has been stopped (SIGSTOP)"])],
)
def test_a_rank_that_stands_still_is_named_and_ended_within_the_deadline(submit, run, capfd, action, words):
    started = time.monotonic()
    assert submit(action) == 9
    assert time.monotonic() - started < 2 + 20
    verdict = run.verdicts(1)[0]
    assert (verdict["verdict"], verdict["exit_code"]) == ("stalled", 9)
    for word in [*words, f"rank 0 (pid {verdict['pid']} on", "training after step 12"]:
        assert word in verdict["error"], verdict["error"]
    assert verdict["error"] in capfd.readouterr().err
    assert run.status().state == "failed" and "stalled" in run.status().reason
    assert pid_is_gone(run)
    if action == "stand still":
        assert "in wait_for_nothing" in run.log(1, 0).read_text()
    else:
        assert "rank_stopped" in events(run), "it is named at once, not only at the deadline"


def test_a_rank_that_does_not_end_after_its_verdict_is_ended(submit, run, monkeypatch):
    monkeypatch.setattr(machine, "_LINGER_SECONDS", 1.0)
    assert submit("end late") == 0
    assert run.verdicts(1)[0]["verdict"] == "finished" and pid_is_gone(run)


def test_a_rank_that_is_killed_before_it_begins_has_a_verdict_too(submit, run):
    assert submit("die early") == 139
    assert run.verdicts(1)[0]["verdict"] == "killed" and run.verdicts(1)[0]["signal"] == "SIGSEGV"
    assert run.status().state == "failed" and "SIGSEGV" in run.status().reason


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_one_signal_asks_the_ranks_to_stop(submit, run, number):
    before = signal.getsignal(number)
    later(run, number)
    assert submit("obey") == 130
    assert signal.getsignal(number) is before, "the handler stays behind"


def test_a_second_ctrl_c_kills_at_once(submit, run):
    later(run, signal.SIGINT, signal.SIGINT)
    started = time.monotonic()
    assert submit("hang") == 137
    assert time.monotonic() - started < 5
    assert events(run)[-1] == "interrupted"


def test_status_logs_and_cancel(run):
    backend = LocalBackend()
    run.log(1, 0).write_bytes(b"first\nsec\xffond\n")
    assert list(backend.logs(run.path)) == ["first\n", "sec\ufffdond\n"]
    assert backend.status(run.path).state == "created"
    backend.cancel(run.path)
    assert run.stop_request(1).exists()


def test_status_sees_ranks_that_are_stopped_or_gone(run):
    import subprocess

    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    run.add_event("running", attempt=1, total_steps=9)
    host = os.uname().nodename
    beat = {"rank": 0, "pid": child.pid, "host": host, "doing": "training", "step": 3, "part": 0, "time": 0.0}
    write_json(run.heartbeat(1, 0), {**beat, "deadline": 9.0, "timeout": 9.0, "alive": time.time()})
    verdict(run, 0, "running", pid=child.pid, time=1e12)
    try:
        assert LocalBackend().status(run.path).state == "running"
        child.send_signal(signal.SIGSTOP)
        end = time.monotonic() + 10
        while not (reason := LocalBackend().status(run.path).reason) and time.monotonic() < end:
            time.sleep(0.02)
        assert f"rank 0 (pid {child.pid}" in reason and "SIGSTOP" in reason
    finally:
        child.kill()
        child.wait()
    gone = LocalBackend().status(run.path)
    assert gone.state == "failed" and "gone" in gone.reason


def test_a_port_is_free():
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", free_port()))


# --- threads ---------------------------------------------------------------------------------------------------------


def test_ranks_on_the_processor_share_its_cores_and_the_users_settings_stay(monkeypatch):
    plan = LaunchPlan("ddp", None, "fp32", "cpu", 1, 2, BatchPlan(8, 2, 4, 1))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    cores = len(os.sched_getaffinity(0))
    assert machine._thread_settings(plan)["OMP_NUM_THREADS"] == str(max(1, cores // 2))
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert "OMP_NUM_THREADS" not in machine._thread_settings(plan)
