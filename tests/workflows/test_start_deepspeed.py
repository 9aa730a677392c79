"""The DeepSpeed configuration of a run over its attempts: resolved, kept, and gone on with."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import tiny

from launcher.atomic import write_json
from launcher.errors import PlanMismatch
from launcher.launching.under_accelerate import plan_under_accelerate
from launcher.plans import Hardware
from launcher.recipe.examine import examine
from launcher.recipe.load import load_recipe, resolved_text
from launcher.rundir import RunDir
from launcher.workflows.start import create_run, resume_run, write_configuration

CPU = Hardware((), 8, 2**34, cpu_has_fast_bf16=False)
OWN = {"zero_optimization": {"stage": 2, "reduce_bucket_size": 7, "offload_optimizer": {"device": "cpu"}}}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert/config.json").write_text("{}")
    (tmp_path / "bert/tokenizer.json").write_text("{}")
    tiny.write_data(tmp_path / "data")
    (tmp_path / "own.json").write_text(json.dumps(OWN))
    return tmp_path


def load(folder: Path, **distributed: object):
    values = tiny.recipe_values("./bert", "./data", distributed={"processes_per_node": 2, **distributed})
    return load_recipe(tiny.write_recipe(folder / "recipe.yaml", values))


def config(run: RunDir, attempt: int) -> dict:
    return json.loads(run.deepspeed(attempt).read_text())


def test_an_own_file_lies_resolved_in_the_attempt(folder):
    run, _ = create_run(load(folder, deepspeed_config="own.json"), runs=folder / "runs", hardware=CPU)
    found = config(run, 1)
    assert found["zero_optimization"]["reduce_bucket_size"] == 7
    assert (found["train_batch_size"], found["bf16"], found["gradient_clipping"]) == (8, {"enabled": False}, 1.0)
    assert found["zero_force_ds_cpu_optimizer"] is False
    assert '"auto"' not in json.dumps(found)


def test_the_written_recipe_says_what_the_file_says(folder):
    run, _ = create_run(load(folder, deepspeed_config="own.json"), runs=folder / "runs", hardware=CPU)
    written, problems = examine(run.resolved)
    assert not problems and written is not None
    distributed = written.recipe.distributed
    assert (distributed.zero_stage, distributed.offload, distributed.deepspeed_config) == (2, "optimizer", "own.json")


def test_a_resumed_run_goes_on_with_its_own_file_though_it_is_gone(folder):
    run, _ = create_run(load(folder, deepspeed_config="own.json"), runs=folder / "runs", hardware=CPU)
    run.add_event("interrupted", attempt=1)
    (folder / "own.json").unlink()
    _, attempt = resume_run(run.path, recipe=load_recipe(run.resolved).recipe, hardware=CPU)
    assert attempt == 2 and config(run, 2) == config(run, 1)
    plans = [json.loads(run.launch_plan(number).read_text())["plan"] for number in (1, 2)]
    assert plans[0] == plans[1]


def test_a_run_begun_under_accelerate_goes_on_with_the_users_file(folder):
    """What `accelerate launch -m launcher.train` leaves behind, and then `launcher resume`."""
    environment = {
        "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "ACCELERATE_USE_DEEPSPEED": "true",
        "ACCELERATE_DEEPSPEED_CONFIG_FILE": str(folder / "own.json"),
    }  # fmt: skip
    adapted = plan_under_accelerate(load(folder).recipe, CPU, environment)
    run = RunDir.create(folder / "runs", "r", recipe_text="", resolved_text=resolved_text(adapted.recipe))
    attempt = run.new_attempt()
    write_json(run.launch_plan(attempt), {"plan": asdict(adapted.launch), "base_folder": str(folder)})
    write_configuration(run, attempt, adapted.recipe, adapted.launch, deepspeed=adapted.deepspeed)
    started = json.loads((run.attempt(1) / "accelerate.yaml").read_text())
    assert started["deepspeed_config"]["deepspeed_config_file"] == str(run.deepspeed(1))
    run.add_event("interrupted", attempt=1)
    (folder / "own.json").unlink()
    resume_run(run.path, recipe=load_recipe(run.resolved).recipe, hardware=CPU)
    assert config(run, 2)["zero_optimization"] == config(run, 1)["zero_optimization"]
    assert config(run, 2)["zero_optimization"]["reduce_bucket_size"] == 7


def test_fewer_processes_change_the_batch_of_the_file_alone(folder):
    run, _ = create_run(load(folder, deepspeed_config="own.json"), runs=folder / "runs", hardware=CPU)
    run.add_event("interrupted", attempt=1)
    alone = load_recipe(run.resolved, ["distributed.processes_per_node=1"]).recipe
    resume_run(run.path, recipe=alone, hardware=CPU)
    changed = {key for key, value in config(run, 1).items() if config(run, 2)[key] != value}
    assert changed <= {"train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "train_batch_size"} and changed


def test_a_contradicting_file_leaves_no_directory(folder):
    with pytest.raises(
        PlanMismatch, match=r"own.json: zero_optimization.stage is 2, but the recipe's distributed.zero_stage is 3"
    ):
        create_run(load(folder, deepspeed_config="own.json", zero_stage=3), runs=folder / "runs", hardware=CPU)
    assert not (folder / "runs").exists()
