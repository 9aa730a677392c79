"""Where runs stand: one question to Slurm for all of them, quick with many, and true without Slurm."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
import tiny

from launcher.atomic import append_json, write_json
from launcher.rundir import RunDir

# Answers what was asked about the queue, and refuses every other question.
SQUEUE = """#!/bin/bash
echo "$@" >>{log}
case "$*" in
    "--noheader --array --states=all --jobs="*" --format=%i|%T|%r|%N|%M|%L") cat {answer};;
    *) echo "squeue: unknown question: $*" >&2; exit 1;;
esac
"""


@pytest.fixture
def slurm(tmp_path) -> Path:
    """A folder with a squeue that counts its calls."""
    folder = tmp_path / "bin"
    folder.mkdir()
    script = folder / "squeue"
    script.write_text(SQUEUE.format(log=tmp_path / "calls", answer=tmp_path / "answer"))
    script.chmod(0o755)
    (tmp_path / "answer").write_text("")
    return folder


def make_run(runs: Path, name: str, *, job: str | None, events: tuple[str, ...] = (), rows: int = 0) -> RunDir:
    run = RunDir.create(runs, name, recipe_text="", resolved_text="version: 1\n")
    if job is not None:
        write_json(run.job, {})
        append_json(run.jobs, {"job": job})
    if events:
        run.new_attempt()
    for event in events:
        run.add_event(event, attempt=1, total_steps=100)
    for step in range(1, rows + 1):
        append_json(run.progress, {"step": step, "loss": 1 / step, "tokens_per_second": 9.0, "eta_seconds": 5, "attempt": 1,
                                   "time": time.time()})  # fmt: skip
    return run


def status(folder: Path, slurm: Path, *arguments: str) -> list[dict]:
    path = f"{slurm}{os.pathsep}{Path(tiny.LAUNCHER).parent}{os.pathsep}{os.environ['PATH']}"
    done = tiny.launcher("status", "--json", *arguments, cwd=folder, env={"PATH": path})
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_two_hundred_and_twenty_runs_take_one_question_and_no_time(tmp_path, slurm):
    runs = tmp_path / "runs"
    for number in range(200):
        make_run(runs, f"old-{number}", job=str(number + 1), events=("running", "finished"), rows=100)
    for number in range(20):
        make_run(runs, f"live-{number}", job=str(1000 + number), events=("running",), rows=100)
    (tmp_path / "answer").write_text("".join(f"{1000 + n}|RUNNING|None|n1|1:00|59:00\n" for n in range(20)))
    began = time.monotonic()
    found = status(tmp_path, slurm, "--all")
    seconds = time.monotonic() - began
    assert len(found) == 220 and sum(one["state"] == "running" for one in found) == 20
    assert len((tmp_path / "calls").read_text().splitlines()) == 1
    # The promise is 2 s; the machine of the tests may be busy.
    assert seconds < 6, seconds


@pytest.mark.parametrize(
    ("queue", "events", "state"),
    [
        ("5|PENDING|Resources||0:00|1:00", (), "queued"),
        ("5|RUNNING|None|n1|0:10|1:00", (), "starting"),
        ("5|RUNNING|None|n1|0:10|1:00", ("running",), "running"),
        ("5|PENDING|BeginTime||0:00|1:00", ("running", "interrupted"), "queued"),
        ("", ("running",), "lost"),
        ("5|FAILED|NonZeroExitCode|n1|0:10|0:00", ("running",), "lost"),
        ("5|NODE_FAIL|NodeDown|n1|0:10|0:00", (), "lost"),
        ("", ("running", "interrupted"), "interrupted"),
        ("", ("running", "failed"), "failed"),
        ("", ("running", "finished"), "finished"),
    ],
)
def test_a_runs_state_is_what_its_directory_and_the_queue_say_together(tmp_path, slurm, queue, events, state):
    make_run(tmp_path / "runs", "one", job="5", events=events, rows=3 if events else 0)
    (tmp_path / "answer").write_text(queue + "\n" if queue else "")
    found = status(tmp_path, slurm, "--all")[0]
    assert found["state"] == state
    if "PENDING" in queue:
        assert queue.split("|")[2] in found["queue"]


def test_an_array_has_a_job_for_each_run(tmp_path, slurm):
    for number in range(2):
        make_run(tmp_path / "runs", f"run-{number}", job=f"7_{number}", events=("running",), rows=1)
    (tmp_path / "answer").write_text("7_0|RUNNING|None|n1|0:10|1:00\n7_1|PENDING|JobArrayTaskLimit||0:00|1:00\n")
    assert [(one["state"], one["job"]) for one in status(tmp_path, slurm)] == [("running", "7_0"), ("queued", "7_1")]
    assert "--jobs=7 " in (tmp_path / "calls").read_text()


def test_a_chain_stands_where_its_running_job_does(tmp_path, slurm):
    run = make_run(tmp_path / "runs", "one", job="5", events=("running",), rows=1)
    append_json(run.jobs, {"job": "6"})
    (tmp_path / "answer").write_text("5|RUNNING|None|n1|0:10|1:00\n6|PENDING|Dependency||0:00|1:00\n")
    assert status(tmp_path, slurm)[0]["job"] == "5"


def test_without_an_answer_the_directory_is_believed_and_that_is_said(tmp_path, slurm):
    make_run(tmp_path / "runs", "one", job="5", events=("running",), rows=3)
    (slurm / "squeue").write_text("#!/bin/sh\necho 'Unable to contact slurm controller' >&2\nexit 1\n")
    found = status(tmp_path, slurm)[0]
    assert found["state"] == "running" and "Unable to contact" in found["reason"]


def test_a_folder_without_runs_says_so(tmp_path, slurm):
    done = tiny.launcher("status", cwd=tmp_path)
    assert done.returncode == 0 and "--all shows those that have ended" in done.stdout
