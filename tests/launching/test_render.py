from __future__ import annotations

import json
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from launcher.launching.deepspeed import deepspeed_config
from launcher.launching.render import accelerate_config, launch_script, worker_command
from launcher.plans import BatchPlan, LaunchPlan
from launcher.recipe.schema import Recipe
from launcher.shipped import shipped_folder

STAGES = (0, 1, 2, 3)


def plan(
    engine: str, stage: int | None = None, *, world: int = 2, precision: str = "fp32", device: str = "cpu"
) -> LaunchPlan:
    return LaunchPlan(engine, stage, precision, device, 1, world, BatchPlan(32, world, 8, 2))  # type: ignore[arg-type]


@pytest.fixture
def recipe() -> Recipe:
    return Recipe.model_validate(
        {"version": 1, "name": "a", "task": {"type": "text-classification"}, "model": {"name_or_path": "m"},
         "data": {"source": "d"}, "training": {"max_grad_norm": 0.5}}
    )  # fmt: skip


# --- ds_configs ------------------------------------------------------------------------------------------------------

# All that depends on a script's own settings: each must be left to the Trainer that reads the file.
AUTO = {
    "train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping", "bf16.enabled",
    "fp16.enabled",
}  # fmt: skip


@pytest.mark.parametrize("stage", STAGES)
def test_shipped_deepspeed_files_suit_any_script(stage):
    config = json.loads((shipped_folder("ds_configs") / f"zero{stage}.json").read_text())
    assert not {"optimizer", "scheduler"} & set(config), "either would flatten the rates of the groups"
    assert config["zero_optimization"]["stage"] == stage
    flat = {**config, **{f"{k}.{name}": v for k in ("bf16", "fp16") for name, v in config[k].items()}}
    assert {name: flat[name] for name in AUTO} == dict.fromkeys(AUTO, "auto")
    # Without the gathered save, ZeRO-3 leaves no model that could be loaded.
    assert stage != 3 or config["zero_optimization"]["stage3_gather_16bit_weights_on_model_save"] is True


# --- golden files ----------------------------------------------------------------------------------------------------

GOLDEN_ACCELERATE = {
    "compute_environment": "LOCAL_MACHINE", "debug": False, "distributed_type": "MULTI_GPU", "machine_rank": 0,
    "main_training_function": "main", "mixed_precision": "no", "num_machines": 1, "num_processes": 2,
    "rdzv_backend": "static", "same_network": True, "use_cpu": False,
}  # fmt: skip


def test_golden_accelerate_configuration():
    assert accelerate_config(plan("ddp"), deepspeed_file=None) == GOLDEN_ACCELERATE
    assert accelerate_config(plan("ddp", precision="bf16"), deepspeed_file=None)["mixed_precision"] == "bf16"
    for stage in STAGES:
        file = Path("/a b/deepspeed.json")
        wanted = {**GOLDEN_ACCELERATE, "distributed_type": "DEEPSPEED", "deepspeed_config": {
            "deepspeed_config_file": str(file), "deepspeed_multinode_launcher": "standard", "zero3_init_flag": stage == 3,
        }}  # fmt: skip
        del wanted["mixed_precision"]
        assert accelerate_config(plan("deepspeed", stage), deepspeed_file=file) == wanted


def test_golden_accelerate_configuration_of_fsdp():
    assert accelerate_config(plan("fsdp", precision="bf16", device="cuda"), deepspeed_file=None) == {
        **GOLDEN_ACCELERATE, "distributed_type": "FSDP", "mixed_precision": "bf16",
        "fsdp_config": {
            "fsdp_version": 2, "fsdp_auto_wrap_policy": "TRANSFORMER_BASED_WRAP", "fsdp_reshard_after_forward": True,
            "fsdp_state_dict_type": "FULL_STATE_DICT", "fsdp_cpu_ram_efficient_loading": False, "fsdp_offload_params": False,
        },
    }  # fmt: skip


def test_accelerate_takes_the_fsdp_configuration(tmp_path):
    """What ``accelerate launch`` makes of the file is what the worker's TrainingArguments make of the plan."""
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils import FullyShardedDataParallelPlugin
    from transformers import TrainingArguments

    from launcher.launching.render import fsdp_options

    shape = replace(plan("fsdp", device="cuda"), offload="all")
    file = tmp_path / "accelerate.yaml"
    file.write_text(json.dumps(accelerate_config(shape, deepspeed_file=None)))
    asked = launch_command_parser().parse_args(["--config_file", str(file), "script.py"])
    found, _, _ = _validate_launch_command(asked)
    assert found.use_fsdp and str(found.fsdp_version) == "2" and found.num_processes == 2
    arguments = TrainingArguments(
        str(tmp_path), use_cpu=True, report_to="none", fsdp=True, fsdp_config=fsdp_options(shape)
    )
    plugin = FullyShardedDataParallelPlugin(**arguments.fsdp_plugin_args)
    assert (plugin.fsdp_version, plugin.reshard_after_forward) == (2, True)
    assert type(plugin.cpu_offload).__name__ == "CPUOffloadPolicy"
    assert "FULL_STATE_DICT" in str(plugin.state_dict_type)
    assert plugin.auto_wrap_policy.__name__ == "transformer_auto_wrap_policy"


@pytest.mark.parametrize("precision, theirs", [("tf32", "no"), ("fp8", "fp8"), ("fp16", "fp16")])
def test_accelerates_name_of_a_precision(precision, theirs):
    assert accelerate_config(plan("ddp", precision=precision), deepspeed_file=None)["mixed_precision"] == theirs


def test_golden_deepspeed_configuration(recipe):
    assert deepspeed_config(recipe, plan("deepspeed", 2, precision="bf16")) == {
        "train_batch_size": 32, "train_micro_batch_size_per_gpu": 8, "gradient_accumulation_steps": 2, "gradient_clipping": 0.5,
        "bf16": {"enabled": True},
        "fp16": {"enabled": False, "loss_scale": 0, "initial_scale_power": 16, "loss_scale_window": 1000, "hysteresis": 2,
                 "min_loss_scale": 1},
        "zero_optimization": {"stage": 2, "overlap_comm": True, "contiguous_gradients": True, "reduce_scatter": True,
                              "reduce_bucket_size": "auto", "allgather_partitions": True, "allgather_bucket_size": 200000000},
        "steps_per_print": 1000000000, "wall_clock_breakdown": False,
    }  # fmt: skip


@pytest.mark.parametrize("stage", STAGES)
def test_deepspeed_takes_the_rendered_configuration(recipe, stage):
    """Batch sizes must multiply up, or DeepSpeed refuses to start."""
    config = deepspeed_config(recipe, plan("deepspeed", stage))
    product = config["train_micro_batch_size_per_gpu"] * config["gradient_accumulation_steps"] * 2
    assert config["train_batch_size"] == product
    assert not {"optimizer", "scheduler"} & set(config)


# --- commands --------------------------------------------------------------------------------------------------------


def test_one_process_is_started_directly_and_several_by_accelerate():
    run = Path("/runs/a-001")
    worker = ["-m", "launcher.train", "--run", "/runs/a-001", "--attempt", "3"]
    assert worker_command(run, attempt=3, plan=plan("single", world=1)) == [sys.executable, *worker]
    command = worker_command(run, attempt=3, plan=plan("ddp"), port=29511)
    assert command == [
        sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--config_file",
        "/runs/a-001/attempts/3/accelerate.yaml", "--main_process_port", "29511", *worker,
    ]  # fmt: skip


def test_golden_script():
    text = launch_script(
        ["python", "-m", "a module", "--run", "it's"], environment={"OMP_NUM_THREADS": "2", "B": "x y"}
    )
    assert text == (
        "#!/bin/sh\n"
        "# Starts this attempt of the run, as `launcher run` did; Ctrl-C saves a checkpoint and stops.\n"
        "export OMP_NUM_THREADS=2\nexport B='x y'\n"
        "exec python -m 'a module' --run 'it'\"'\"'s'\n"
    )


@pytest.mark.parametrize("hostile", ["a b", "it's", '"quoted"', "$HOME", "`id`", "a;b", "a\nb", "*", "ü"])
def test_a_shell_sees_the_same_words(hostile):
    script = launch_script(["printf", "%s|%s", hostile, "end"], environment={"NAME": hostile})
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == f"{hostile}|end"
    assert shlex.split(script.splitlines()[0], comments=True) == []
