"""A signal to any rank, or to several at different moments, stops all of them at one step."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import threading
import time

import pytest
import tiny

from launcher.atomic import read_jsonl
from launcher.rundir import RunDir

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


@pytest.mark.parametrize("times", [2, pytest.param(50, marks=pytest.mark.soak)])
def test_signals_with_any_skew_stop_all_ranks_at_one_step(tmp_path, times):
    size = {"hidden_size": 256, "num_hidden_layers": 4, "intermediate_size": 1024, "num_attention_heads": 4}
    tiny.save_bert(tmp_path / "bert", **size)
    tiny.write_data(tmp_path / "data")
    training = {
        "global_batch_size": 16,
        "max_steps": 5000,
        "num_train_epochs": 1,
        "eval_strategy": "no",
        "save_strategy": "no",
    }
    values = tiny.recipe_values(
        tmp_path / "bert", tmp_path / "data", distributed={"processes_per_node": 2, "zero_stage": 2}, training=training
    )
    del values["training"]["num_train_epochs"]
    recipe = tiny.write_recipe(tmp_path / "signals.yaml", values)
    chance, run = random.Random(times), RunDir(tmp_path / "runs" / "tiny-001")
    done = 0
    for attempt in range(1, times + 1):
        verb = ["run", recipe] if attempt == 1 else ["resume", run.path]
        with (tmp_path / "out.txt").open("w") as out:
            started = subprocess.Popen(
                [tiny.LAUNCHER, *map(str, verb)], cwd=tmp_path, env=tiny.environment(), stdout=out, stderr=out
            )
            _wait_for_step(run, attempt, done + chance.randint(1, 4), started)
            ranks = run.processes(attempt)
            _send(ranks, chance, both=attempt % 2 == 0)
            started.wait(timeout=120)
        said = {verdict["error"].rpartition(" ")[2] for verdict in run.verdicts(attempt).values()}
        assert {verdict["verdict"] for verdict in run.verdicts(attempt).values()} == {"interrupted"}
        assert len(said) == 1, f"attempt {attempt}: the ranks stopped at steps {said}"
        done = int(said.pop())
        assert run.latest_checkpoint() == run.checkpoints / f"step-{done}"
    steps = [row["step"] for attempt in range(1, times + 1) for row in read_jsonl(run.ledger(attempt, 1))]
    assert steps == list(range(1, done + 1))


def _wait_for_step(run: RunDir, attempt: int, step: int, started: subprocess.Popen) -> None:
    ends = time.monotonic() + 120
    while not any(r.get("step", 0) >= step and r["attempt"] == attempt for r in read_jsonl(run.progress)):
        assert time.monotonic() < ends and started.poll() is None, "it did not come to train"
        time.sleep(0.02)


def _send(ranks: dict[int, int], chance: random.Random, *, both: bool) -> None:
    """Send USR2 to one rank, or to both with up to a second between."""
    chosen = list(ranks.values()) if both else [chance.choice(list(ranks.values()))]
    for pid in chosen:
        threading.Timer(chance.random(), os.kill, (pid, signal.SIGUSR2)).start()
