"""Decide processes, engine, precision and batch from a recipe and a machine, without torch."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from typing import Any, Literal

from launcher.errors import InstallationError, PlanMismatch
from launcher.launching.batch import plan_batch
from launcher.launching.deepspeed import check_batch, check_file, named_file
from launcher.plans import Engine, Hardware, LaunchPlan, Precision
from launcher.recipe.deepspeed_file import precision_of, settled, stage_of
from launcher.recipe.schema import DistributedSection, Recipe

# Packages that accelerate computes fp8 with, by their import names.
FP8_PACKAGES = ("torchao", "transformer_engine", "msamp")


def plan_launch(
    recipe: Recipe, hardware: Hardware, *, world_size: int | None = None, deepspeed: Mapping[str, Any] | None = None
) -> LaunchPlan:
    """Return how the run is spread over processes.

    Args:
        world_size: number of processes that are already running (under ``accelerate launch``); None: to be decided.
        deepspeed: a DeepSpeed configuration that goes before the one that the recipe names: the user's own under
            ``accelerate launch``, or the one with which a run that is resumed began.

    Raises:
        InstallationError: more processes than GPUs, a precision or an engine that the device cannot run, a package or a
            compiler that is missing.
        PlanMismatch: the DeepSpeed file contradicts the recipe, or sizes do not divide the number of processes.
    """
    file = deepspeed if deepspeed is not None else named_file(recipe)
    recipe = settle(recipe, file)
    distributed = recipe.distributed
    processes = _processes_per_node(distributed, hardware, world_size)
    world = processes * distributed.nodes
    engine = _engine(distributed, world)
    _refuse_engine(engine, recipe, hardware)
    divided = _divide(distributed, hardware, world)
    precision = _precision(recipe, hardware)
    cap = recipe.training.per_device_train_batch_size
    if file is not None and isinstance(micro := file.get("train_micro_batch_size_per_gpu"), int):
        cap = micro
    plan = LaunchPlan(
        engine=engine,
        zero_stage=stage_of(distributed) if engine == "deepspeed" else None,
        precision=precision,
        device="cuda" if hardware.gpus else "cpu",
        nodes=distributed.nodes,
        processes_per_node=processes,
        batch=plan_batch(
            global_batch_size=recipe.training.step_size,
            world_size=world // divided,
            cap=cap,
            multiple_of=distributed.sequence_parallel_size,
            tokens=recipe.training.tokens_per_batch,
        ),
        offload=distributed.offload,
        offload_device=distributed.offload_device,
        sequence_parallel_size=distributed.sequence_parallel_size,
        tensor_parallel_size=distributed.tensor_parallel_size,
    )
    if file is not None:
        check_batch(file, recipe, plan)
    return plan


def settle(recipe: Recipe, deepspeed: Mapping[str, Any] | None) -> Recipe:
    """Return the recipe with stage, offload and precision as its DeepSpeed file says them. Raises PlanMismatch where they contradict."""
    if deepspeed is None:
        return recipe
    check_file(deepspeed, recipe)
    precision = recipe.precision if recipe.precision != "auto" else precision_of(deepspeed)
    return recipe.model_copy(
        update={"distributed": settled(recipe.distributed, deepspeed), "precision": precision or "auto"}
    )


def _processes_per_node(distributed: DistributedSection, hardware: Hardware, world_size: int | None) -> int:
    wanted = distributed.processes_per_node
    if world_size is not None:
        return -(-world_size // distributed.nodes)
    if distributed.engine == "single":
        return 1
    if wanted is None:
        return max(1, len(hardware.gpus))
    if hardware.gpus and wanted > len(hardware.gpus):
        raise InstallationError(
            f"distributed.processes_per_node is {wanted}, but {len(hardware.gpus)} GPU(s) are visible here; lower it, or "
            "make more visible with CUDA_VISIBLE_DEVICES"
        )
    return wanted


def _engine(distributed: DistributedSection, world: int) -> Engine:
    if distributed.engine == "ddp":
        # One process has no other to average gradients with.
        return "ddp" if world > 1 else "single"
    if distributed.engine != "auto":
        return distributed.engine
    if stage_of(distributed) is not None:
        return "deepspeed"
    return "ddp" if world > 1 else "single"


def _refuse_engine(engine: Engine, recipe: Recipe, hardware: Hardware) -> None:
    """Raise InstallationError where this machine cannot run the engine."""
    on_cpu, distributed = not hardware.gpus, recipe.distributed
    if engine == "fsdp" and on_cpu:
        raise InstallationError(
            "distributed.engine is fsdp, which needs GPUs, and none is visible here: accelerate does not start FSDP2 on a "
            "processor, and would train with DDP without a word; use zero_stage: 3 or engine: ddp"
        )
    if engine == "deepspeed" and on_cpu and not hardware.has_cxx_compiler:
        raise InstallationError(
            "DeepSpeed on the processor builds its communication on first use, and there is no C++ compiler here; install "
            "one (apt-get install g++), or leave distributed.zero_stage out"
        )
    is_on_nvme = distributed.offload != "none" and distributed.offload_device == "nvme"
    if engine == "deepspeed" and is_on_nvme and not hardware.has_libaio:
        raise InstallationError(
            "distributed.offload_device is nvme, for which DeepSpeed builds an operation with libaio, and its headers are not "
            "here; install them (apt-get install libaio-dev), or write offload_device: cpu"
        )
    if engine == "deepspeed" and on_cpu and distributed.deepspeed_config == "zeropp":
        raise InstallationError(
            "distributed.deepspeed_config is zeropp (ZeRO++), which quantises with CUDA operations, and no GPU is visible here; "
            "use zero_stage: 3"
        )


def _divide(distributed: DistributedSection, hardware: Hardware, world: int) -> int:
    """Return how many processes share each row. Raises InstallationError on a CPU, PlanMismatch for sizes that do not divide."""
    for key in ("sequence_parallel_size", "tensor_parallel_size"):
        size = getattr(distributed, key)
        if size == 1:
            continue
        if not hardware.gpus:
            # Ulysses gathers batches of different lengths, which gloo, the processor's communication, cannot.
            raise InstallationError(
                f"distributed.{key} is {size}, which needs GPUs, and none is visible here; remove it, or write 1"
            )
        if world % size:
            raise PlanMismatch(
                f"distributed.{key} is {size}, which does not divide the {world} process(es); write a divisor of {world}, or "
                "change processes_per_node"
            )
    size = distributed.tensor_parallel_size
    if size not in (1, world):
        raise PlanMismatch(
            f"distributed.tensor_parallel_size is {size}, but there are {world} processes; with accelerate 1.15 it goes with no "
            f"other way of spreading a run but FSDP: write {world}, or 1"
        )
    return distributed.sequence_parallel_size * size


def refuse_tensor_parallel(plan: LaunchPlan) -> None:
    """Raise InstallationError for what can be planned, but is not trained with: saving such a model is not verified."""
    if plan.tensor_parallel_size > 1:
        raise InstallationError(
            f"distributed.tensor_parallel_size is {plan.tensor_parallel_size}; launcher plans tensor parallelism but does not "
            "train with it yet; use zero_stage: 3 or engine: fsdp, which also divide the weights"
        )


def _precision(recipe: Recipe, hardware: Hardware) -> Precision:
    wanted = recipe.precision
    capability = min((gpu.compute_capability for gpu in hardware.gpus), default=0.0)
    if wanted in ("fp16", "tf32", "fp8") and not hardware.gpus:
        raise InstallationError(
            f"precision is {wanted}, which needs a GPU, and none is visible here; use bf16, fp32 or auto"
        )
    if wanted == "tf32" and capability < 8.0:
        raise InstallationError(_too_old("tf32", capability, 8.0, "Ampere", "fp32 or fp16"))
    if wanted == "fp8":
        _refuse_fp8(capability)
    if wanted != "auto":
        return wanted
    if hardware.gpus:
        return "bf16" if capability >= 8.0 else "fp32"
    return "bf16" if hardware.cpu_has_fast_bf16 else "fp32"


def _refuse_fp8(capability: float) -> None:
    if capability < 8.9:
        raise InstallationError(_too_old("fp8", capability, 8.9, "Ada or Hopper", "bf16"))
    if not any(importlib.util.find_spec(name) for name in FP8_PACKAGES):
        raise InstallationError(
            "precision is fp8, which accelerate computes with torchao, transformer-engine or ms-amp, and none of them is "
            "installed; pip install torchao, or use bf16"
        )


def _too_old(
    precision: str, found: float, least: float, generation: Literal["Ampere", "Ada or Hopper"], use: str
) -> str:
    return (
        f"precision is {precision}, which needs GPUs of compute capability {least} or more ({generation}), and one here has "
        f"{found}; use {use}"
    )
