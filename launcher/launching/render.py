"""The files that start a run: DeepSpeed's and Accelerate's configuration, and a script that a person can run by hand."""

from __future__ import annotations

import copy
import json
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from launcher.errors import PlanMismatch
from launcher.plans import LaunchPlan
from launcher.recipe.schema import Recipe
from launcher.shipped import shipped_folder


def deepspeed_config(recipe: Recipe, plan: LaunchPlan, *, base: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return a DeepSpeed configuration with everything resolved that does not depend on the model's size.

    Args:
        base: the user's own configuration; None: ds_configs/zeroN.json.

    Raises:
        PlanMismatch: ``base`` has an optimizer or scheduler, or a value that contradicts the recipe.
    """
    assert plan.zero_stage is not None
    if base is None:
        base = json.loads((shipped_folder("ds_configs") / f"zero{plan.zero_stage}.json").read_text())
    for block in ("optimizer", "scheduler"):
        if block in base:
            raise PlanMismatch(
                f"the DeepSpeed file has a block {block!r}; with it all parameters would share one rate, whatever the tuning "
                "table says; remove it"
            )
    config = copy.deepcopy(dict(base))
    batch, training = plan.batch, recipe.training
    _set(config, "train_micro_batch_size_per_gpu", batch.micro_batch_size, "training.per_device_train_batch_size")
    _set(config, "gradient_accumulation_steps", batch.accumulation, "training.global_batch_size")
    rows = batch.micro_batch_size * batch.accumulation * batch.world_size
    _set(config, "train_batch_size", rows, "training.global_batch_size")
    _set(config, "gradient_clipping", training.max_grad_norm, "training.max_grad_norm")
    _set(config.setdefault("bf16", {}), "enabled", plan.precision == "bf16", "precision")
    _set(config.setdefault("fp16", {}), "enabled", plan.precision == "fp16", "precision")
    return config


def _set(config: dict[str, Any], name: str, value: object, key: str) -> None:
    """Resolve an entry that is left to the recipe. Raises PlanMismatch where it says something else."""
    if config.get(name, "auto") not in ("auto", value):
        raise PlanMismatch(
            f"the DeepSpeed file's {name} is {config[name]}, but the recipe's {key} makes it {value}; change one of them, or "
            f'write "auto" in the DeepSpeed file'
        )
    config[name] = value


def accelerate_config(plan: LaunchPlan, *, deepspeed_file: Path | None) -> dict[str, Any]:
    """Return Accelerate's configuration of one machine.

    On CPU, too, several processes are MULTI_GPU: with MULTI_CPU, accelerate 1.15 starts one process and says nothing.
    """
    config: dict[str, Any] = {
        "compute_environment": "LOCAL_MACHINE",
        "debug": False,
        "distributed_type": "DEEPSPEED" if deepspeed_file else "MULTI_GPU",
        "machine_rank": 0,
        "main_training_function": "main",
        # The ranks get their precision from the recipe; accelerate must not set another.
        "mixed_precision": plan.precision if plan.precision != "fp32" else "no",
        "num_machines": plan.nodes,
        "num_processes": plan.world_size,
        "rdzv_backend": "static",
        "same_network": True,
        "use_cpu": False,
    }
    if deepspeed_file:
        config["deepspeed_config"] = {
            "deepspeed_config_file": str(deepspeed_file),
            "deepspeed_multinode_launcher": "standard",
            # Models are built inside zero.Init by transformers itself, which reads the DeepSpeed file.
            "zero3_init_flag": plan.zero_stage == 3,
        }
        # Accelerate refuses a precision of its own beside a DeepSpeed file that names one.
        del config["mixed_precision"]
    return config


def worker_command(run: Path, *, attempt: int, plan: LaunchPlan, port: int | None = None) -> list[str]:
    """Return the command that starts every rank of this machine: the worker itself where one process suffices."""
    worker = ["-m", "launcher.train", "--run", str(run), "--attempt", str(attempt)]
    if plan.engine == "single":
        return [sys.executable, *worker]
    config = run / "attempts" / str(attempt) / "accelerate.yaml"
    command = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--config_file", str(config)]
    if port is not None:
        command += ["--main_process_port", str(port)]
    return [*command, *worker]


def launch_script(command: list[str], *, environment: dict[str, str]) -> str:
    """Return a shell script that runs ``command``; everything in it is quoted."""
    exports = "".join(f"export {name}={shlex.quote(value)}\n" for name, value in environment.items())
    return (
        "#!/bin/sh\n"
        "# Starts this attempt of the run, as `launcher run` did; Ctrl-C saves a checkpoint and stops.\n"
        f"{exports}exec {shlex.join(command)}\n"
    )
