"""The plan of a worker that ``accelerate launch`` has started: the user's own configuration decides, or is refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.errors import PlanMismatch
from launcher.launching.launch_plan import plan_launch
from launcher.plans import Hardware, LaunchPlan
from launcher.recipe.schema import Recipe

_PRECISION = {"no": "fp32", "bf16": "bf16", "fp16": "fp16"}


@dataclass(frozen=True)
class Adapted:
    """A recipe that says what accelerate has set up, its plan, and the user's own DeepSpeed file, if there is one."""

    recipe: Recipe
    launch: LaunchPlan
    deepspeed: dict[str, Any] | None


def plan_under_accelerate(recipe: Recipe, hardware: Hardware, environment: Mapping[str, str]) -> Adapted:
    """Return the plan that agrees with the recipe and with what accelerate has set up.

    Args:
        environment: as left by accelerate: WORLD_SIZE, LOCAL_WORLD_SIZE, ACCELERATE_USE_DEEPSPEED, ...

    Raises:
        PlanMismatch: the recipe says something else, and both places are named; or accelerate was asked for what this
            version does not do (FSDP, offload without a DeepSpeed file).
    """
    _refuse_unsupported(environment)
    world = int(environment.get("WORLD_SIZE", "1"))
    local = int(environment.get("LOCAL_WORLD_SIZE", str(world)))
    deepspeed = _deepspeed_file(environment)
    stage = _zero_stage(environment, deepspeed)
    _agree("distributed.processes_per_node", recipe.distributed.processes_per_node, "num_processes per machine", local)
    if "nodes" in recipe.distributed.model_fields_set and recipe.distributed.nodes > 1:
        _agree("distributed.nodes", recipe.distributed.nodes, "num_machines", world // local)
    engine = "deepspeed" if stage is not None else "ddp" if world > 1 else "single"
    if recipe.distributed.engine != "auto" and (world > 1 or recipe.distributed.engine == "deepspeed"):
        _agree("distributed.engine", recipe.distributed.engine, "distributed_type", engine)
    _agree("distributed.zero_stage", recipe.distributed.zero_stage, "deepspeed_config zero_stage", stage)
    precision = environment.get("ACCELERATE_MIXED_PRECISION")
    if recipe.precision != "auto" and precision not in (None, "no") and precision in _PRECISION:
        _agree("precision", recipe.precision, "mixed_precision", _PRECISION[precision])
    distributed = recipe.distributed.model_copy(
        update={"engine": engine, "zero_stage": stage, "processes_per_node": local, "nodes": world // local}
    )
    chosen = _PRECISION[precision] if recipe.precision == "auto" and precision in ("bf16", "fp16") else recipe.precision
    adapted = recipe.model_copy(update={"distributed": distributed, "precision": chosen})
    return Adapted(adapted, plan_launch(adapted, hardware, world_size=world), deepspeed)


def _refuse_unsupported(environment: Mapping[str, str]) -> None:
    if _is_on(environment.get("ACCELERATE_USE_FSDP")):
        raise PlanMismatch(
            "accelerate's distributed_type is FSDP, which this version of launcher does not run; use DEEPSPEED or MULTI_GPU"
        )
    for name in ("ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE", "ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE"):
        device = environment.get(name, "none")
        if device.lower() not in ("", "none"):
            raise PlanMismatch(
                f"accelerate's configuration offloads to {device}; name that in a DeepSpeed file instead, and give it as "
                "deepspeed_config_file"
            )


def _is_on(value: str | None) -> bool:
    return (value or "false").lower() in ("true", "1", "yes")


def _deepspeed_file(environment: Mapping[str, str]) -> dict[str, Any] | None:
    file = environment.get("ACCELERATE_DEEPSPEED_CONFIG_FILE", "")
    if not _is_on(environment.get("ACCELERATE_USE_DEEPSPEED")) or file.lower() in ("", "none"):
        return None
    config: dict[str, Any] = json.loads(Path(file).read_text())
    return config


def _zero_stage(environment: Mapping[str, str], deepspeed: Mapping[str, Any] | None) -> int | None:
    if not _is_on(environment.get("ACCELERATE_USE_DEEPSPEED")):
        return None
    if deepspeed is not None:
        return int(deepspeed.get("zero_optimization", {}).get("stage", 0))
    return int(environment.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2"))


def _agree(key: str, wanted: object, accelerate_name: str, found: object) -> None:
    if wanted is not None and wanted != found:
        raise PlanMismatch(
            f"the recipe's {key} is {wanted}, but accelerate's {accelerate_name} is {found}; change one of them, or leave "
            f"{key} out of the recipe"
        )
