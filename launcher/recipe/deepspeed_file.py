"""A DeepSpeed configuration, the user's own or a shipped one, and what it says that a recipe can say too."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from launcher.recipe.schema import DistributedSection
from launcher.shipped import SHIPPED_DEEPSPEED as SHIPPED, shipped_folder

Offload = Literal["none", "optimizer", "all"]


@dataclass(frozen=True)
class Zero:
    """What a DeepSpeed file says of sharding and offloading."""

    stage: int
    offload: Offload
    device: Literal["cpu", "nvme"]
    nvme_path: str | None


class BadDeepSpeedFile(Exception):
    """The file is missing, is no JSON object, or says what launcher cannot do; the text says which, and the remedy."""


def is_shipped(name: str) -> bool:
    """Whether a value of ``distributed.deepspeed_config`` names a shipped file."""
    return name in SHIPPED


def read_deepspeed_file(name: str) -> dict[str, Any]:
    """Return the configuration that ``distributed.deepspeed_config`` names. Raises BadDeepSpeedFile."""
    path = shipped_folder("ds_configs") / f"{name}.json" if is_shipped(name) else Path(name).expanduser()
    if not path.is_file():
        raise BadDeepSpeedFile(f"there is no such file; shipped ones are {', '.join(SHIPPED)}")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BadDeepSpeedFile(f"it is no JSON: {error}") from error
    if not isinstance(config, dict):
        raise BadDeepSpeedFile("it holds no JSON object")
    return config


def zero_of(config: Mapping[str, Any]) -> Zero:
    """Return what a configuration says of ZeRO. Raises BadDeepSpeedFile for what launcher does not run."""
    zero = block_of(config, "zero_optimization")
    stage = zero.get("stage", 0)
    if isinstance(stage, bool) or stage not in (0, 1, 2, 3):
        raise BadDeepSpeedFile(f"its zero_optimization.stage is {stage!r}; write 0, 1, 2 or 3")
    optimizer, weights = (_device(zero, name) for name in ("offload_optimizer", "offload_param"))
    if zero.get("cpu_offload") or zero.get("cpu_offload_params"):
        raise BadDeepSpeedFile("it has zero_optimization.cpu_offload, a name of earlier years; write offload_optimizer")
    if weights and not optimizer:
        raise BadDeepSpeedFile(
            "it offloads weights but not the optimizer's state; add zero_optimization.offload_optimizer"
        )
    if weights and weights != optimizer:
        raise BadDeepSpeedFile(f"it offloads weights to {weights} and the optimizer's state to {optimizer}; write one")
    if optimizer and stage == 0:
        raise BadDeepSpeedFile("it offloads at stage 0, which shards no optimizer state; write stage 1, 2 or 3")
    if (weights or optimizer == "nvme") and stage != 3:
        what = "weights" if weights else "to nvme"
        raise BadDeepSpeedFile(f"it offloads {what} at stage {stage}; only stage 3 can; write stage 3")
    path = block_of(zero, "offload_optimizer").get("nvme_path") if optimizer == "nvme" else None
    offload: Offload = "all" if weights else "optimizer" if optimizer else "none"
    return Zero(stage, offload, "nvme" if optimizer == "nvme" else "cpu", path)


def block_of(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Return an object of a configuration, {} where it is not there. Raises BadDeepSpeedFile where it is no object."""
    block = config.get(name) or {}
    if not isinstance(block, Mapping):
        raise BadDeepSpeedFile(f"its {name} is {block!r}; it must be an object")
    return block


def _device(zero: Mapping[str, Any], name: str) -> str | None:
    block = block_of(zero, name)
    device = str(block.get("device", "none")).lower() if block else "none"
    if device not in ("none", "cpu", "nvme"):
        raise BadDeepSpeedFile(f"its zero_optimization.{name}.device is {device!r}; write none, cpu or nvme")
    return None if device == "none" else device


def precision_of(config: Mapping[str, Any]) -> Literal["fp32", "bf16", "fp16"] | None:
    """Return the precision that a configuration fixes; None where it leaves that open."""
    enabled = {name: block_of(config, name).get("enabled", "auto") for name in ("bf16", "fp16")}
    if enabled["bf16"] is True or enabled["fp16"] is True:
        return "bf16" if enabled["bf16"] is True else "fp16"
    return "fp32" if all(value is False for value in enabled.values()) else None


def stage_of(distributed: DistributedSection) -> int | None:
    """Return the stage that a section without a file asks for: its own, or the least that its offload needs."""
    if distributed.zero_stage is not None:
        return distributed.zero_stage
    least = {"none": None, "optimizer": 2, "all": 3}
    return 3 if distributed.offload != "none" and distributed.offload_device == "nvme" else least[distributed.offload]


def settled(distributed: DistributedSection, config: Mapping[str, Any]) -> DistributedSection:
    """Return the section with stage and offload as the file says them; ``nvme_path`` of the recipe goes before a shipped one."""
    zero = zero_of(config)
    path = distributed.nvme_path or zero.nvme_path if zero.device == "nvme" else None
    return distributed.model_copy(
        update={"zero_stage": zero.stage, "offload": zero.offload, "offload_device": zero.device, "nvme_path": path}
    )
