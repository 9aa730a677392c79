"""Measurements: what they are kept under, and a short real run of two ranks' worth of nothing."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import tiny

from launcher.atomic import append_json, write_json
from launcher.launching.launch_plan import plan_launch
from launcher.plans import Hardware
from launcher.recipe.load import load_recipe
from launcher.rundir import RunDir
from launcher.workflows.measuring import find_measurement, measure, measurement_key, read_measurement

CPU = Hardware((), 8, 2**34, cpu_has_fast_bf16=False)
FACTS = {"fingerprint": "f", "max_length": 32}


def key(hardware: Hardware = CPU, facts=FACTS, **sections) -> str:
    recipe = tiny.recipe(**sections)
    return measurement_key(recipe, plan_launch(recipe, hardware), facts, hardware)


def test_what_changes_memory_or_speed_has_another_key():
    keys = [
        key(),
        key(training={"activation_checkpointing": True}),
        key(training={"per_device_train_batch_size": 2}),
        key(training={"optim": "sgd"}),
        key(strategy={"type": "head"}),
        key(model={"name_or_path": "n"}),
        key(precision="bf16"),
        key(distributed={"processes_per_node": 2}),
        key(facts={**FACTS, "max_length": 64}),
        key(replace(CPU, cpu_count=4)),
    ]
    assert len(set(keys)) == len(keys)


def test_what_does_not_has_the_same():
    assert key() == key(training={"learning_rate": 1e-3, "num_train_epochs": 9, "seed": 3})
    assert key() == key(name="other") == key(training={"save_strategy": "no", "load_best_model_at_end": False})


def test_the_rank_that_used_most_counts(tmp_path):
    run = RunDir(tmp_path)
    for rank, peak in enumerate((500, 700)):
        note = {"device": "cpu", "base_bytes": 100 + rank, "peak_bytes": peak, "moments": {"training": peak}}
        write_json(run.memory(1, rank), note)
    for step, speed in enumerate((5.0, 100.0, 120.0, 110.0), start=1):
        append_json(run.progress, {"step": step, "tokens_per_second": speed})
    found = read_measurement(run, 1)
    assert (found.base, found.needed, found.moments, found.steps) == (101, 700, {"training": 700}, 4)
    assert found.tokens_per_second == 110.0, "the first step is left out"


@pytest.mark.slow
def test_a_short_run_is_measured_and_its_numbers_are_kept(tmp_path: Path):
    """Through the command, as a user measures."""
    tiny.save_bert(tmp_path / "bert")
    tiny.write_data(tmp_path / "data", train=21, validation=9, test=6)
    values = tiny.recipe_values("./bert", "./data")
    recipe = tiny.write_recipe(tmp_path / "r.yaml", values)
    environment = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    done = tiny.launcher("plan", recipe, "--measure", "--json", cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)["whole"]
    assert found["measured"]["needed"] > found["measured"]["base"] > 0 and found["measured"]["steps"] == 8
    assert found["forecast"]["speed"]["source"] == "measured"
    assert not (tmp_path / "runs").exists(), "nothing is left behind"
    again = tiny.launcher("plan", recipe, "training.learning_rate=1e-4", cwd=tmp_path, env=environment)
    assert "measured    " in again.stdout and "measured on" in again.stdout


def test_a_run_that_fails_is_not_measured(tmp_path, monkeypatch):
    from launcher.backends.local import LocalBackend
    from launcher.errors import InstallationError

    loaded = load_recipe(tiny.write_recipe(tmp_path / "r.yaml", tiny.recipe_values("./bert", "./data")))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(LocalBackend, "submit", lambda *_, **__: 4)
    launch = plan_launch(loaded.recipe, CPU)
    with pytest.raises(InstallationError, match="nothing was measured"):
        measure(loaded, CPU, launch=launch, facts=FACTS)
    assert find_measurement(loaded.recipe, launch, FACTS, CPU) is None
