"""Ctrl-C, a killed launcher and a killed rank: nothing is left behind, and the run goes on where it stopped."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny
from started import Started, processes_of, wait_for

STEPS = 102


@pytest.fixture(autouse=True)
def nothing_left(place) -> Iterator[None]:
    """Whatever a test does, its processes end with it."""
    yield
    for process in processes_of(place.folder / "runs"):
        process.kill()


def weights(run: Path) -> dict:
    from safetensors.torch import load_file

    return load_file(run / "model/model.safetensors")


def test_ctrl_c_leaves_a_checkpoint_and_resume_ends_as_if_nothing_had_been(place, finished):
    import torch

    recipe = place.recipe(
        "whole", name="whole", tracking={"wandb": {"project": "tests", "group": "g", "tags": ["t"], "mode": "offline"}}
    )
    started = Started("run", recipe, cwd=place.folder)
    run = started.run
    started.wait_for_step(run, 5)
    started.process.send_signal(signal.SIGINT)
    code, _, err = started.end()
    assert code == 130, err
    assert "launcher resume" in err.strip().splitlines()[-1] and "Traceback" not in err
    assert processes_of(run) == []
    events = tiny.jsonl(run / "events.jsonl")
    assert events[-1]["event"] == "interrupted"
    from launcher.rundir import RunDir

    checkpoint = RunDir.open(run).latest_checkpoint()
    stopped_at = int(checkpoint.name.removeprefix("step-"))
    assert 5 <= stopped_at < STEPS and max(tiny.ledger(run)) == stopped_at
    assert not (run / "model").exists() and RunDir.open(run).status().state == "interrupted"

    done = tiny.launcher("resume", run, cwd=place.folder)
    assert done.returncode == 0, done.stderr
    assert f"continuing from step-{stopped_at}" in done.stdout
    assert RunDir.open(run).status().state == "finished" and (run / "attempts/2/verdict.rank-0.json").exists()
    rows = tiny.ledger(run)
    assert sorted(rows) == list(range(1, STEPS + 1)) and rows == tiny.ledger(finished.path)
    assert tiny.losses(run) == tiny.losses(finished.path)
    ours, wanted = weights(run), weights(finished.path)
    assert ours.keys() == wanted.keys() and all(torch.equal(ours[name], wanted[name]) for name in wanted)


@pytest.mark.slow
def test_stopped_before_the_first_step_a_run_begins_anew(place):
    started = Started("run", place.recipe("early"), cwd=place.folder)
    run = started.run
    wait_for(lambda: (run / "attempts/1/verdict.rank-0.json").exists(), process=started.process)
    started.process.send_signal(signal.SIGTERM)
    code, _, err = started.end()
    assert code == 130 and "launcher resume" in err, err
    assert tiny.ledger(run) == {}
    done = tiny.launcher("resume", run, cwd=place.folder)
    assert done.returncode == 0, done.stderr
    assert sorted(tiny.ledger(run)) == list(range(1, STEPS + 1))


@pytest.mark.slow
def test_second_ctrl_c_stops_at_once(place):
    started = Started("run", place.recipe("twice"), cwd=place.folder)
    run = started.run
    started.wait_for_step(run, 1)
    # A rank that does not come to its step's end cannot answer the first request.
    for process in processes_of(run):
        if "launcher.train" in process.cmdline():
            process.suspend()
    started.process.send_signal(signal.SIGINT)
    wait_for(lambda: (run / "attempts/1/stop").exists(), process=started.process)
    started.process.send_signal(signal.SIGINT)
    begin = time.monotonic()
    code, _, _ = started.end(timeout=20)
    assert code != 0 and time.monotonic() - begin < 5
    wait_for(lambda: processes_of(run) == [], timeout=5)


def test_a_killed_launcher_leaves_no_orphan(place):
    started = Started("run", place.recipe("killed", training={"num_train_epochs": 50}), cwd=place.folder)
    run = started.run
    started.wait_for_step(run, 2)
    os.kill(started.process.pid, signal.SIGKILL)
    started.end()
    wait_for(lambda: processes_of(run) == [], timeout=30)
    from launcher.rundir import RunDir

    assert RunDir.open(run).latest_checkpoint() is not None


@pytest.mark.slow
def test_a_killed_launcher_of_two_ranks_leaves_no_orphan(place):
    recipe = place.recipe("killed-two", training={"num_train_epochs": 200}, distributed={"processes_per_node": 2})
    started = Started("run", recipe, cwd=place.folder)
    run = started.run
    started.wait_for_step(run, 2)
    os.kill(started.process.pid, signal.SIGKILL)
    started.end()
    wait_for(lambda: processes_of(run) == [], timeout=60)


@pytest.mark.slow
def test_a_killed_rank_is_named_and_the_run_can_be_resumed(place):
    """Killed without a word, as the kernel does when memory runs out."""
    started = Started("run", place.recipe("rank-killed", training={"num_train_epochs": 50}), cwd=place.folder)
    run = started.run
    started.wait_for_step(run, 2)
    pid = json.loads((run / "attempts/1/verdict.rank-0.json").read_text())["pid"]
    os.kill(pid, signal.SIGKILL)
    code, _, err = started.end()
    assert code == 137
    assert "rank 0 killed" in err and "out of memory" in err
    from launcher.rundir import RunDir

    assert RunDir.open(run).status().state == "failed", "nobody would know that the run has ended"


@pytest.mark.slow
@pytest.mark.soak
def test_ctrl_c_of_two_ranks_can_be_resumed(place):
    values = {"distributed": {"processes_per_node": 2}, "model": {"config": {"hidden_dropout_prob": 0.0}}}
    whole = tiny.launcher("run", place.recipe("two-whole", **values), cwd=place.folder)
    assert whole.returncode == 0, whole.stderr
    reference = place.newest()
    started = Started("run", place.recipe("two", **values), cwd=place.folder)
    run = started.run
    started.wait_for_step(run, 10)
    started.process.send_signal(signal.SIGINT)
    code, _, err = started.end()
    assert code == 130, err
    assert processes_of(run) == []
    done = tiny.launcher("resume", run, cwd=place.folder)
    assert done.returncode == 0, done.stderr
    assert tiny.ledger(run) == tiny.ledger(reference)
    assert tiny.losses(run) == pytest.approx(tiny.losses(reference), rel=1e-5)
