"""The plan of a worker that ``accelerate launch`` has started: the user's own configuration decides, or is refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.errors import PlanMismatch
from launcher.launching.launch_plan import plan_launch, refuse_tensor_parallel, settle
from launcher.plans import Hardware, LaunchPlan
from launcher.recipe.schema import DistributedSection, Recipe

_PRECISION = {"no": "fp32", "bf16": "bf16", "fp16": "fp16", "fp8": "fp8"}
_DEEPSPEED = "ACCELERATE_DEEPSPEED_"
_SIZES = {"sequence_parallel_size": "SP_SIZE", "tensor_parallel_size": "TP_SIZE"}


@dataclass(frozen=True)
class Adapted:
    """A recipe that says what accelerate has set up, its plan, and the user's own DeepSpeed file, if there is one."""

    recipe: Recipe
    launch: LaunchPlan
    deepspeed: dict[str, Any] | None


def plan_under_accelerate(recipe: Recipe, hardware: Hardware, environment: Mapping[str, str]) -> Adapted:
    """Return the plan that agrees with the recipe and with what accelerate has set up.

    Args:
        environment: as left by accelerate: WORLD_SIZE, LOCAL_WORLD_SIZE, ACCELERATE_USE_DEEPSPEED, FSDP_VERSION, ...

    Raises:
        PlanMismatch: the recipe says something else, and both places are named; or accelerate was asked for what launcher
            does not run (FSDP 1, Megatron, context parallelism).
        InstallationError: this machine cannot run it.
    """
    _refuse_unsupported(environment)
    world = int(environment.get("WORLD_SIZE", "1"))
    local = int(environment.get("LOCAL_WORLD_SIZE", str(world)))
    file = _deepspeed_file(environment)
    if file is not None and recipe.distributed.deepspeed_config is not None:
        # Two files: accelerate's runs, and the other one has to be it.
        _agree_on_file(recipe.distributed.deepspeed_config, environment[f"{_DEEPSPEED}CONFIG_FILE"])
    recipe = _with_precision(_with_engine(recipe, environment, file, world=world, local=local), environment)
    plan = plan_launch(recipe, hardware, world_size=world, deepspeed=file)
    refuse_tensor_parallel(plan)
    return Adapted(settle(recipe, file), plan, file)


def _refuse_unsupported(environment: Mapping[str, str]) -> None:
    if _is_on(environment.get("ACCELERATE_USE_FSDP")) and environment.get("FSDP_VERSION", "1") != "2":
        raise PlanMismatch(
            f"accelerate's fsdp_version is {environment.get('FSDP_VERSION', '1')}, which launcher does not run; write "
            "fsdp_version: 2 in accelerate's configuration (accelerate to-fsdp2 rewrites it), or use DEEPSPEED or MULTI_GPU"
        )
    if _is_on(environment.get("ACCELERATE_USE_MEGATRON_LM")):
        raise PlanMismatch(
            "accelerate's distributed_type is MEGATRON_LM, which launcher does not run; use DEEPSPEED or FSDP"
        )
    if _size(environment, "CP_SIZE") > 1:
        raise PlanMismatch(
            f"accelerate's parallelism_config_cp_size is {_size(environment, 'CP_SIZE')} (context parallelism), which launcher "
            "does not run; use parallelism_config_sp_size with DeepSpeed"
        )


def _is_on(value: str | None) -> bool:
    return (value or "false").lower() in ("true", "1", "yes")


def _size(environment: Mapping[str, str], name: str) -> int:
    return int(environment.get(f"PARALLELISM_CONFIG_{name}", "1"))


def _deepspeed_file(environment: Mapping[str, str]) -> dict[str, Any] | None:
    file = environment.get(f"{_DEEPSPEED}CONFIG_FILE", "")
    if not _is_on(environment.get("ACCELERATE_USE_DEEPSPEED")) or file.lower() in ("", "none"):
        return None
    config: dict[str, Any] = json.loads(Path(file).read_text())
    return config


def _agree_on_file(ours: str, theirs: str) -> None:
    if Path(ours).expanduser().resolve() != Path(theirs).expanduser().resolve():
        raise PlanMismatch(
            f"the recipe's distributed.deepspeed_config is {ours}, but accelerate's deepspeed_config_file is {theirs}; change "
            "one of them, or leave distributed.deepspeed_config out of the recipe"
        )


# --- what accelerate has set up, written into the recipe ---------------------------------------------------------------


def _with_engine(
    recipe: Recipe, environment: Mapping[str, str], file: dict[str, Any] | None, *, world: int, local: int
) -> Recipe:
    ours = recipe.distributed
    _agree("distributed.processes_per_node", ours.processes_per_node, "num_processes per machine", local)
    if "nodes" in ours.model_fields_set and ours.nodes > 1:
        _agree("distributed.nodes", ours.nodes, "num_machines", world // local)
    found = _found_engine(environment, file, world)
    if ours.engine != "auto" and (world > 1 or "deepspeed" in (ours.engine, found["engine"])):
        _agree("distributed.engine", ours.engine, "distributed_type", found["engine"])
    if ours.deepspeed_config is not None and file is None:
        _agree("distributed.deepspeed_config", ours.deepspeed_config, "deepspeed_config_file", None)
    if file is None:
        _agree("distributed.zero_stage", ours.zero_stage, "deepspeed_config zero_stage", found["zero_stage"])
        _agree_on_offload(ours, found)
        # What the file says is held to the recipe when the plan is made.
    for key, name in _SIZES.items():
        size = _size(environment, name)
        if getattr(ours, key) != 1 or size != 1:
            _agree(f"distributed.{key}", getattr(ours, key), f"parallelism_config_{name.lower()}", size)
    update = {**found, "processes_per_node": local, "nodes": world // local, "deepspeed_config": None}
    return recipe.model_copy(update={"distributed": ours.model_copy(update=update)})


def _found_engine(environment: Mapping[str, str], file: dict[str, Any] | None, world: int) -> dict[str, Any]:
    """Return engine, stage and offload as accelerate has set them up; what a DeepSpeed file says is left to it."""
    if _is_on(environment.get("ACCELERATE_USE_DEEPSPEED")):
        if file is not None:
            return {"engine": "deepspeed"}
        stage = int(environment.get(f"{_DEEPSPEED}ZERO_STAGE", "2"))
        return {"engine": "deepspeed", "zero_stage": stage, **_found_offload(environment)}
    if _is_on(environment.get("ACCELERATE_USE_FSDP")):
        offload = "all" if _is_on(environment.get("FSDP_OFFLOAD_PARAMS")) else "none"
        return {"engine": "fsdp", "zero_stage": None, "offload": offload}
    return {"engine": "ddp" if world > 1 else "single", "zero_stage": None, "offload": "none"}


def _found_offload(environment: Mapping[str, str]) -> dict[str, Any]:
    devices = {
        name: environment.get(f"{_DEEPSPEED}OFFLOAD_{name}_DEVICE", "none").lower() for name in ("OPTIMIZER", "PARAM")
    }
    optimizer, weights = ("none" if device == "" else device for device in devices.values())
    if optimizer == "none" and weights == "none":
        return {"offload": "none"}
    if weights not in ("none", optimizer):
        raise PlanMismatch(
            f"accelerate's offload_param_device is {weights} and its offload_optimizer_device is {optimizer}; launcher offloads "
            "weights together with the optimizer's state: write the same for both, or none for offload_param_device"
        )
    path = environment.get(f"{_DEEPSPEED}OFFLOAD_OPTIMIZER_NVME_PATH")
    found = {"offload": "optimizer" if weights == "none" else "all", "offload_device": optimizer}
    return found | ({"nvme_path": path} if path not in (None, "none") else {})


def _agree_on_offload(ours: DistributedSection, found: Mapping[str, Any]) -> None:
    if ours.offload != "none" or "offload" in ours.model_fields_set:
        _agree("distributed.offload", ours.offload, "offload", found["offload"])
    if ours.offload != "none":
        device = found.get("offload_device", "cpu")
        _agree("distributed.offload_device", ours.offload_device, "offload_optimizer_device", device)


def _with_precision(recipe: Recipe, environment: Mapping[str, str]) -> Recipe:
    precision = environment.get("ACCELERATE_MIXED_PRECISION")
    if precision in (None, "no") or precision not in _PRECISION:
        return recipe
    if recipe.precision != "auto":
        _agree("precision", recipe.precision, "mixed_precision", _PRECISION[precision])
    return recipe.model_copy(update={"precision": _PRECISION[precision]})


def _agree(key: str, wanted: object, accelerate_name: str, found: object) -> None:
    if wanted is not None and wanted != found:
        raise PlanMismatch(
            f"the recipe's {key} is {wanted}, but accelerate's {accelerate_name} is {found}; change one of them, or leave "
            f"{key} out of the recipe"
        )
