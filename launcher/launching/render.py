"""The files that start a run: Accelerate's configuration, and a script that a person can run by hand."""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.plans import LaunchPlan

# Accelerate's names of the precisions; TF32 is a setting of torch, and the worker makes it.
_MIXED_PRECISION = {"fp32": "no", "tf32": "no"}


def accelerate_config(plan: LaunchPlan, *, deepspeed_file: Path | None) -> dict[str, Any]:
    """Return Accelerate's configuration of one machine.

    On CPU, too, several processes are MULTI_GPU: with MULTI_CPU, accelerate 1.15 starts one process and says nothing.
    """
    config: dict[str, Any] = {
        "compute_environment": "LOCAL_MACHINE",
        "debug": False,
        "distributed_type": "DEEPSPEED" if deepspeed_file else "FSDP" if plan.engine == "fsdp" else "MULTI_GPU",
        "machine_rank": 0,
        "main_training_function": "main",
        # The ranks get their precision from the recipe; accelerate must not set another.
        "mixed_precision": _MIXED_PRECISION.get(plan.precision, plan.precision),
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
    if plan.engine == "fsdp":
        options = fsdp_options(plan)
        # The one name that accelerate's file and transformers' arguments do not share.
        options["offload_params"] = options.pop("cpu_offload")
        config["fsdp_config"] = {f"fsdp_{name}": value for name, value in options.items()}
    return config


def fsdp_options(plan: LaunchPlan) -> dict[str, Any]:
    """Return FSDP2's options by transformers' names; weights are sharded block by block.

    Blocks are the classes that the model itself names (``_no_split_modules``). Activation checkpointing is not among the
    options: the worker sets it through ``training.activation_checkpointing``, as for every engine.
    """
    return {
        "version": 2,
        "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
        "reshard_after_forward": True,
        "state_dict_type": "FULL_STATE_DICT",
        "cpu_ram_efficient_loading": False,
        "cpu_offload": plan.offload == "all",
    }


@dataclass(frozen=True)
class Node:
    """A machine's place among those of an attempt."""

    number: int
    head: str
    """Address of the first machine."""
    port: int
    """On which the first machine waits for the others."""

    def ranks(self, plan: LaunchPlan) -> range:
        """Return the numbers of the ranks that run on it."""
        return range(self.number * plan.processes_per_node, (self.number + 1) * plan.processes_per_node)


def worker_command(
    run: Path, *, attempt: int, plan: LaunchPlan, port: int | None = None, node: Node | None = None
) -> list[str]:
    """Return the command that starts every rank of this machine: the worker itself where one process suffices."""
    worker = ["-m", "launcher.train", "--run", str(run), "--attempt", str(attempt)]
    if plan.engine == "single":
        return [sys.executable, *worker]
    config = run / "attempts" / str(attempt) / "accelerate.yaml"
    command = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--config_file", str(config)]
    if node is not None:
        command += ["--machine_rank", str(node.number), "--main_process_ip", node.head]
        port = node.port
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
