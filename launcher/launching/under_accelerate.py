"""The plan of a worker that ``accelerate launch`` has started: the user's own configuration decides, or is refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from launcher.contracts import Hardware, LaunchPlan
from launcher.errors import PlanMismatch
from launcher.launching.launch_plan import plan_launch
from launcher.recipe.schema import Recipe

_PRECISION = {"no": "fp32", "bf16": "bf16", "fp16": "fp16"}


def plan_under_accelerate(recipe: Recipe, hardware: Hardware, environment: Mapping[str, str]) -> tuple[Recipe, LaunchPlan]:
    """Return the launch plan that agrees with the recipe and with what accelerate has set up, and the recipe that says so.

    Args:
        environment: as left by accelerate: WORLD_SIZE, LOCAL_WORLD_SIZE, ACCELERATE_USE_DEEPSPEED, ...

    Raises:
        PlanMismatch: the recipe says something else; both places are named.
    """
    world = int(environment.get("WORLD_SIZE", "1"))
    local = int(environment.get("LOCAL_WORLD_SIZE", str(world)))
    stage = _zero_stage(environment)
    _agree("distributed.processes_per_node", recipe.distributed.processes_per_node, "num_processes per machine", local)
    if recipe.distributed.nodes != 1 or world != local:
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
    return adapted, plan_launch(adapted, hardware, world_size=world)


def _zero_stage(environment: Mapping[str, str]) -> int | None:
    if environment.get("ACCELERATE_USE_DEEPSPEED", "false").lower() not in ("true", "1", "yes"):
        return None
    file = environment.get("ACCELERATE_DEEPSPEED_CONFIG_FILE", "")
    if file and file.lower() != "none":
        return int(json.loads(Path(file).read_text()).get("zero_optimization", {}).get("stage", 0))
    return int(environment.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2"))


def _agree(key: str, wanted: object, accelerate_name: str, found: object) -> None:
    if wanted is not None and wanted != found:
        raise PlanMismatch(
            f"the recipe's {key} is {wanted}, but accelerate's {accelerate_name} is {found}; change one of them, or leave "
            f"{key} out of the recipe"
        )
