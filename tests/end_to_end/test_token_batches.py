"""Steps that are bounded by tokens: two real ranks have the rows and the losses of one, and one goes on where two were stopped."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny
from cutting import copy_at

from launcher.rundir import RunDir

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

ROWS = 45
ONE = {"processes_per_node": 1}
ENGINES = {"ddp": {"processes_per_node": 2}, "zero-2": {"processes_per_node": 2, "zero_stage": 2}}


@pytest.fixture(scope="module")
def small(place) -> None:
    tiny.write_data(place.folder / "counted", train=ROWS)


def run(place, name: str, distributed: dict[str, Any], *more: str, **training: Any) -> Path:
    size = {
        "global_batch_size": None,
        "tokens_per_batch": 160,
        "num_train_epochs": 2,
        "save_strategy": "steps",
        "save_steps": 2,
    }
    values = {
        "model": {"config": {"hidden_dropout_prob": 0.0}}, "evaluation": {"bootstrap": 0, "baselines": []},
        "data": {"source": "./counted"}, "distributed": distributed,
        "training": {**size, "eval_strategy": "no", "load_best_model_at_end": False, "save_total_limit": 99, **training},
    }  # fmt: skip
    done = tiny.launcher("run", place.recipe(name, name=name, **values), *more, cwd=place.folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return place.newest()


@pytest.fixture(scope="module")
def one(place, small) -> Path:
    return run(place, "tokens-one", ONE)


def norms(path: Path) -> list[float]:
    return [row["grad_norm"] for row in tiny.jsonl(path / "progress.jsonl") if "grad_norm" in row]


@pytest.mark.parametrize("engine", [pytest.param("ddp", marks=pytest.mark.soak), "zero-2"])
def test_two_ranks_in_several_passes_have_the_losses_of_one(place, one, engine):
    two = run(place, f"tokens-{engine}", ENGINES[engine], per_device_train_tokens=40)
    log = (two / "attempts/1/logs/rank-0.log").read_text()
    assert "of up to 160 tokens (2 x up to" in log and "x 1)" not in log, "more passes than one"
    assert tiny.ledger(two) == tiny.ledger(one)
    sizes = {len(rows) for rows in tiny.ledger(one).values()}
    assert len(sizes) > 2 and sum(map(len, tiny.ledger(one).values())) == 2 * ROWS
    assert tiny.losses(two) == pytest.approx(tiny.losses(one), rel=1e-4)
    assert norms(two) == pytest.approx(norms(one), rel=1e-3)


def test_one_rank_goes_on_where_two_were_stopped(place, one):
    """The order of the batches knows neither ranks nor passes."""
    two = run(place, "tokens-fewer", ENGINES["ddp"], per_device_train_tokens=40)
    # As if it had been stopped behind its fourth step.
    RunDir.open(two).add_event("interrupted", attempt=1, reason="by the test")
    changes = ["distributed.processes_per_node=1", "training.per_device_train_tokens=null"]
    copy = copy_at(two, 4, "tokens-fewer-cut", changes)
    command = [sys.executable, "-m", "launcher.train", "--run", str(copy), "--attempt", "2"]
    done = subprocess.run(
        command, cwd=place.folder, env=tiny.environment(), capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert tiny.ledger(copy) == tiny.ledger(one)
    assert min(row["step"] for row in tiny.jsonl(copy / "attempts/2/ledger.rank-0.jsonl")) == 5
    assert tiny.losses(copy) == pytest.approx(tiny.losses(one), rel=1e-4)
