"""Runs that read their rows while training: killed and resumed, and on two ranks."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import tiny

from launcher.atomic import read_jsonl

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

STEPS = 120
SIZES = (90, 40, 77)
ONE, TWO = {"processes_per_node": 1}, {"processes_per_node": 2}


@pytest.fixture(scope="module")
def streamed(place) -> Path:
    """Files of 207 rows in three formats that are 52 steps of four rows."""
    folder = place.folder / "streamed"
    folder.mkdir()
    tables = [tiny.rows(size, seed=number) for number, size in enumerate(SIZES)]
    (folder / "a.jsonl").write_text("".join(json.dumps({"text": t, "label": n}) + "\n" for t, n in tables[0]))
    tiny.write_csv(folder / "b.csv", tables[1])
    from datasets import Dataset

    columns = {"text": [text for text, _ in tables[2]], "label": [label for _, label in tables[2]]}
    Dataset.from_dict(columns).to_parquet(str(folder / "c.parquet"), batch_size=20)
    return folder


def recipe(place, name: str, engine: dict[str, Any], **changes: Any) -> Path:
    values = tiny.recipe_values(
        "./bert", "", name=name, distributed=engine, evaluation={"bootstrap": 0},
        model={"config": {"hidden_dropout_prob": 0.0}} if changes.pop("exact", False) else {},
        training={"max_steps": STEPS, "global_batch_size": 4, "save_strategy": "steps", "save_steps": 10,
                  "eval_strategy": "no", "load_best_model_at_end": False, **changes.pop("training", {})},
    )  # fmt: skip
    del values["training"]["num_train_epochs"]
    values["data"] = {
        "train": "./streamed", "validation": "./data/validation.csv", "streaming": True, "shuffle_buffer_size": 30,
        "labels": list(tiny.TOPICS), "max_length": 32, "cache_dir": f"./cache-{name}", **changes,
    }  # fmt: skip
    return tiny.write_recipe(place.folder / f"{name}.yaml", values)


def run(place, name: str, engine: dict[str, Any], **changes: Any) -> Path:
    done = tiny.launcher("run", recipe(place, name, engine, **changes), cwd=place.folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return place.folder / "runs" / f"{name}-001"


@pytest.fixture(scope="module")
def whole(place, streamed) -> Path:
    return run(place, "streamed-whole", ONE)


def last_step(path: Path) -> int:
    # Its last line may be half written.
    return max((row["step"] for row in read_jsonl(path)), default=0)


def kill_at(place, path: Path, found: Path, *, step: int) -> None:
    """Start a run, and kill its rank with SIGKILL once it has told of a step."""
    process = subprocess.Popen(
        [tiny.LAUNCHER, "run", str(path)], cwd=place.folder, env=tiny.environment(), stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )  # fmt: skip
    deadline = time.monotonic() + 300
    while last_step(found / "progress.jsonl") < step:
        assert process.poll() is None and time.monotonic() < deadline, "it ended before it could be killed"
        time.sleep(0.002)
    os.kill(json.loads((found / "attempts/1/verdict.rank-0.json").read_text())["pid"], signal.SIGKILL)
    process.communicate(timeout=120)
    assert process.returncode != 0


def used(path: Path) -> dict[int, list[int]]:
    """Step -> numbers of its rows, those of the attempt that took it last."""
    steps: dict[int, list[int]] = {}
    for attempt in sorted((path / "attempts").iterdir(), key=lambda one: int(one.name)):
        of_attempt: dict[int, list[int]] = {}
        for ledger in sorted(attempt.glob("ledger.rank-*.jsonl")):
            for row in tiny.jsonl(ledger):
                of_attempt[row["step"]] = sorted([*of_attempt.get(row["step"], []), *row["rows"]])
        steps |= of_attempt
    return steps


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.soak)])
def test_a_run_that_is_killed_reads_on_where_it_was(place, whole, workers):
    step = random.randrange(15, 80)
    name = f"streamed-killed-{workers}"
    training = {"dataloader_num_workers": workers}
    path = recipe(place, name, ONE, training=training)
    found = place.folder / "runs" / f"{name}-001"
    kill_at(place, path, found, step=step)
    assert not (found / "model").exists(), f"it was killed too late, at step {step}"
    done = tiny.launcher("resume", found, cwd=place.folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert used(found) == used(whole) and len(used(found)) == STEPS, f"killed at step {step}"
    assert tiny.losses(found) == tiny.losses(whole)
    assert (found / "model/model.safetensors").read_bytes() == (whole / "model/model.safetensors").read_bytes()


@pytest.mark.parametrize(
    "engine", [TWO, pytest.param({**TWO, "zero_stage": 3}, marks=pytest.mark.soak)], ids=["ddp", "zero-3"]
)
def test_two_ranks_read_what_one_reads_each_its_share(place, streamed, engine):
    one = place.folder / "runs" / "streamed-one-001"
    if not one.exists():
        run(place, "streamed-one", ONE, exact=True)
    two = run(place, f"streamed-two-{engine.get('zero_stage', 'ddp')}", engine, exact=True)
    assert used(two) == used(one) and len(used(two)) == STEPS
    assert tiny.losses(two) == pytest.approx(tiny.losses(one), rel=1e-4)
    shares = [
        {row["step"]: set(row["rows"]) for row in tiny.jsonl(two / f"attempts/1/ledger.rank-{rank}.jsonl")}
        for rank in (0, 1)
    ]
    assert all(shares[0][step].isdisjoint(shares[1][step]) and shares[1][step] for step in range(1, STEPS + 1))
    # Each row once in each of the first two epochs of 52 steps.
    rows = used(two)
    for first in (1, 53):
        assert sorted(row for step in range(first, first + 52) for row in rows[step]) == sorted(
            file * 10**10 + row for file, size in enumerate(SIZES) for row in range(size)
        )


def test_a_run_of_two_ranks_goes_on_with_one(place, whole):
    path = recipe(place, "streamed-fewer", TWO)
    found = place.folder / "runs" / "streamed-fewer-001"
    kill_at(place, path, found, step=55)
    done = tiny.launcher("resume", found, "distributed.processes_per_node=1", cwd=place.folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert used(found) == used(whole) and len(list(found.glob("attempts/2/ledger.rank-*.jsonl"))) == 1


def test_more_files_than_before_are_other_data(place, streamed):
    name = "streamed-other"
    path = recipe(place, name, ONE, training={"logging_steps": 1})
    found = place.folder / "runs" / f"{name}-001"
    more = streamed / "d.jsonl"
    kill_at(place, path, found, step=12)
    try:
        more.write_text('{"text": "apple", "label": "fruit"}\n')
        done = tiny.launcher("resume", found, cwd=place.folder)
    finally:
        more.unlink()
    assert done.returncode != 0 and "the data have changed" in done.stdout + done.stderr, done.stdout + done.stderr
