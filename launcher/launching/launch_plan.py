"""Decide processes, engine, precision and batch from a recipe and a machine, without torch."""

from __future__ import annotations

from typing import Literal

from launcher.errors import InstallationError
from launcher.launching.batch import plan_batch
from launcher.plans import Engine, Hardware, LaunchPlan
from launcher.recipe.schema import Recipe


def plan_launch(recipe: Recipe, hardware: Hardware, *, world_size: int | None = None) -> LaunchPlan:
    """Return how the run is spread over processes.

    Args:
        world_size: number of processes that are already running (under ``accelerate launch``); None: to be decided.

    Raises:
        InstallationError: more processes than GPUs, a precision that the device cannot compute in, or no compiler.
    """
    processes = _processes_per_node(recipe, hardware, world_size)
    world = processes * recipe.distributed.nodes
    device: Literal["cpu", "cuda"] = "cuda" if hardware.gpus else "cpu"
    engine = _engine(recipe, world)
    if engine == "deepspeed" and device == "cpu" and not hardware.has_cxx_compiler:
        raise InstallationError(
            "DeepSpeed on the processor builds its communication on first use, and there is no C++ compiler here; install "
            "one (apt-get install g++), or leave distributed.zero_stage out"
        )
    return LaunchPlan(
        engine=engine,
        zero_stage=recipe.distributed.zero_stage if engine == "deepspeed" else None,
        precision=_precision(recipe, hardware),
        device=device,
        nodes=recipe.distributed.nodes,
        processes_per_node=processes,
        batch=plan_batch(
            global_batch_size=recipe.training.global_batch_size,
            world_size=world,
            cap=recipe.training.per_device_train_batch_size,
        ),
    )


def _processes_per_node(recipe: Recipe, hardware: Hardware, world_size: int | None) -> int:
    wanted = recipe.distributed.processes_per_node
    if world_size is not None:
        return -(-world_size // recipe.distributed.nodes)
    if recipe.distributed.engine == "single":
        return 1
    if wanted is None:
        return max(1, len(hardware.gpus))
    if hardware.gpus and wanted > len(hardware.gpus):
        raise InstallationError(
            f"distributed.processes_per_node is {wanted}, but {len(hardware.gpus)} GPU(s) are visible here; lower it, or "
            "make more visible with CUDA_VISIBLE_DEVICES"
        )
    return wanted


def _engine(recipe: Recipe, world: int) -> Engine:
    if recipe.distributed.engine == "ddp":
        # One process has no other to average gradients with.
        return "ddp" if world > 1 else "single"
    if recipe.distributed.engine != "auto":
        return recipe.distributed.engine
    if recipe.distributed.zero_stage is not None:
        return "deepspeed"
    return "ddp" if world > 1 else "single"


def _precision(recipe: Recipe, hardware: Hardware) -> Literal["fp32", "bf16", "fp16"]:
    if recipe.precision == "fp16" and not hardware.gpus:
        raise InstallationError(
            "precision is fp16, which needs a GPU, and none is visible here; use bf16, fp32 or auto"
        )
    if recipe.precision != "auto":
        return recipe.precision
    if hardware.gpus:
        return "bf16" if min(gpu.compute_capability for gpu in hardware.gpus) >= 8.0 else "fp32"
    return "bf16" if hardware.cpu_has_fast_bf16 else "fp32"
