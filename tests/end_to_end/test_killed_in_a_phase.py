"""A run that is killed in the probe, in a later phase or in the main phase, and resumed, is the uninterrupted run bit for bit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import tiny

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

# 101 steps an epoch, with dropout: the state of the random numbers counts too.
TRAINING = {
    "num_train_epochs": 2, "global_batch_size": 4, "eval_strategy": "no", "save_strategy": "steps", "save_steps": 20,
    "load_best_model_at_end": False, "logging_steps": 1, "lr_scheduler_type": "cosine",
}  # fmt: skip
CELLS: dict[str, dict[str, Any]] = {
    "discriminative": {
        "strategy": {"type": "discriminative", "probe_rank": 4, "rank_max": 4, "probe_steps": 200, "mean_rank": 2,
                     "uniform_above": 1.0},
        "training": {**TRAINING, "num_train_epochs": 1},
    },
    "gradual": {
        "strategy": {"type": "layerwise", "gradual_unfreezing": {"epochs_per_stage": 0.5}},
        "training": TRAINING,
    },
    "batch-sizes": {
        "strategy": {"type": "full"},
        "training": {**TRAINING, "batch_size_schedule": [{"epoch": 0.25, "global_batch_size": 8}]},
    },
}  # fmt: skip


def recipe(place, cell: str, name: str, engine: dict[str, Any]) -> Path:
    return place.recipe(
        name, name=name, **CELLS[cell], distributed=engine, evaluation={"bootstrap": 0, "baselines": []},
        data={"source": "./data", "max_length": 32, "cache_dir": f"./cache-{name}"},
    )  # fmt: skip


@pytest.fixture(scope="module")
def whole(place):
    """Return a function: cell, engine -> the finished run that nothing interrupted, made once."""
    runs: dict[str, Path] = {}

    def make(cell: str, tag: str, engine: dict[str, Any]) -> Path:
        name = f"{cell}-{tag}-whole"
        if name not in runs:
            done = tiny.launcher("run", recipe(place, cell, name, engine), cwd=place.folder, timeout=400)
            assert done.returncode == 0, done.stdout + done.stderr
            runs[name] = place.folder / "runs" / f"{name}-001"
        return runs[name]

    return make


def last_step(path: Path) -> int:
    try:
        return max((row["step"] for row in tiny.jsonl(path)), default=0)
    except (OSError, ValueError):
        return 0


def kill_at(place, path: Path, run: Path, *, progress: Path, step: int) -> None:
    """Start a run, and kill its ranks when they have told of a step."""
    process = subprocess.Popen(
        [tiny.LAUNCHER, "run", str(path)], cwd=place.folder, env=tiny.environment(), stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )  # fmt: skip
    deadline = time.monotonic() + 300
    while last_step(progress) < step:
        assert process.poll() is None and time.monotonic() < deadline, "it ended before it could be killed"
        time.sleep(0.002)
    for verdict in run.glob("attempts/1/verdict.rank-*.json"):
        os.kill(json.loads(verdict.read_text())["pid"], signal.SIGKILL)
    process.communicate(timeout=120)
    assert process.returncode != 0


def check(place, whole_run: Path, path: Path, name: str, *, inside: str, step: int) -> Path:
    run = place.folder / "runs" / f"{name}-001"
    kill_at(place, path, run, progress=run / inside, step=step)
    assert not (run / "model").exists(), "it was killed too late"
    done = tiny.launcher("resume", run, cwd=place.folder, timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr
    files = ("model/model.safetensors", "importance.json", "adapter/adapter_model.safetensors")
    for file in files:
        assert (run / file).exists() == (whole_run / file).exists()
        if (run / file).exists():
            assert (run / file).read_bytes() == (whole_run / file).read_bytes(), file
    assert tiny.losses(run) == tiny.losses(whole_run)
    return run


ONE = {"processes_per_node": 1}


def test_in_the_probe(place, whole):
    path = recipe(place, "discriminative", "in-the-probe", ONE)
    run = check(
        place, whole("discriminative", "one", ONE), path, "in-the-probe", inside="probe/progress.jsonl", step=60
    )
    steps = [row["step"] for row in tiny.jsonl(run / "probe/progress.jsonl")]
    assert steps[-1] == 200 and steps.count(1) == 1, "the probe went on from a checkpoint"
    assert not (run / "probe/checkpoints").exists()


@pytest.mark.soak
def test_in_the_main_phase_after_a_probe(place, whole):
    path = recipe(place, "discriminative", "after-the-probe", ONE)
    run = check(place, whole("discriminative", "one", ONE), path, "after-the-probe", inside="progress.jsonl", step=30)
    assert max(row["attempt"] for row in tiny.jsonl(run / "probe/progress.jsonl")) == 1, "no second probe"


@pytest.mark.parametrize("step", [60, pytest.param(120, marks=pytest.mark.soak)], ids=["second-stage", "third-stage"])
def test_in_a_later_stage_of_gradual_unfreezing(place, whole, step):
    name = f"gradual-{step}"
    path = recipe(place, "gradual", name, ONE)
    check(place, whole("gradual", "one", ONE), path, name, inside="progress.jsonl", step=step)


@pytest.mark.soak
def test_after_a_change_of_the_batch_size(place, whole):
    path = recipe(place, "batch-sizes", "sizes", ONE)
    run = check(place, whole("batch-sizes", "one", ONE), path, "sizes", inside="progress.jsonl", step=50)
    rows = [row for _, rows in sorted(tiny.ledger(run).items()) for row in rows]
    assert {len(rows) for rows in tiny.ledger(run).values()} >= {4, 8} and len(rows) >= 806


@pytest.mark.soak
@pytest.mark.parametrize("stage", [None, 1, 2, 3], ids=["ddp", "zero-1", "zero-2", "zero-3"])
@pytest.mark.parametrize(
    "cell, inside, step",
    [("gradual", "progress.jsonl", 60), ("discriminative", "probe/progress.jsonl", 60), ("discriminative", "progress.jsonl", 30)],
    ids=["second-stage", "probe", "main"],
)  # fmt: skip
def test_on_two_ranks(place, whole, cell, inside, step, stage):
    engine = {"processes_per_node": 2, **({} if stage is None else {"zero_stage": stage})}
    tag = "ddp" if stage is None else f"zero{stage}"
    name = f"{cell}-{tag}-{step}-{len(inside)}"
    check(place, whole(cell, tag, engine), recipe(place, cell, name, engine), name, inside=inside, step=step)
