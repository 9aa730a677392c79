"""The DeepSpeed configuration of a run: found, held to recipe and plan, and resolved."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from launcher.errors import PlanMismatch
from launcher.plans import BatchPlan, LaunchPlan
from launcher.recipe.deepspeed_agreement import contradictions
from launcher.recipe.deepspeed_file import BadDeepSpeedFile, is_shipped, read_deepspeed_file
from launcher.recipe.schema import Recipe

_BATCH = ("train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "train_batch_size")


def named_file(recipe: Recipe) -> dict[str, Any] | None:
    """Return the configuration that ``distributed.deepspeed_config`` names, or None. Raises PlanMismatch."""
    name = recipe.distributed.deepspeed_config
    if name is None:
        return None
    try:
        return read_deepspeed_file(name)
    except BadDeepSpeedFile as error:
        raise PlanMismatch(f"distributed.deepspeed_config is {name}; {error}") from error


def check_file(config: Mapping[str, Any], recipe: Recipe) -> None:
    """Raise PlanMismatch where a DeepSpeed file says what launcher does not run, or something else than the recipe."""
    try:
        found = list(contradictions(config, recipe))
    except BadDeepSpeedFile as error:
        raise PlanMismatch(f"{_name(recipe)}: {error}") from error
    if found:
        raise PlanMismatch("\n".join(f"{_name(recipe)}: {item.message}; {item.remedy}" for item in found))


def _name(recipe: Recipe) -> str:
    return recipe.distributed.deepspeed_config or "the DeepSpeed file"


def check_batch(config: Mapping[str, Any], recipe: Recipe, plan: LaunchPlan) -> None:
    """Raise PlanMismatch where a DeepSpeed file fixes batch sizes that are not the plan's."""
    if recipe.training.batch_size_schedule is None:
        with_batch(
            {name: config[name] for name in _BATCH if name in config}, plan.batch, named=_name(recipe), check=True
        )


def deepspeed_config(recipe: Recipe, plan: LaunchPlan, *, base: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return a DeepSpeed configuration with everything resolved that does not depend on the model's size.

    Args:
        base: the user's own configuration; None: the one that the recipe names, or ds_configs/zeroN.json with the plan's
            offload.

    Raises:
        PlanMismatch: the configuration has a value that contradicts the recipe.
    """
    assert plan.zero_stage is not None
    own = base if base is not None else named_file(recipe)
    config = copy.deepcopy(dict(own)) if own is not None else _shipped(plan)
    if own is not None:
        check_file(own, recipe)
    named = _name(recipe)
    # Optimizer and schedule are built from the recipe, with which these blocks agree.
    config.pop("optimizer", None)
    config.pop("scheduler", None)
    config = with_batch(config, plan.batch, named=named, check=_has_one_size(recipe))
    _set(config, "gradient_clipping", recipe.training.max_grad_norm, "training.max_grad_norm", named)
    for name in ("bf16", "fp16"):
        _set(config.setdefault(name, {}), "enabled", plan.precision == name, "precision", f"{named}'s {name}.")
    _finish_zero(
        config, recipe, plan, is_shipped_file=own is None or is_shipped(recipe.distributed.deepspeed_config or "")
    )
    return config


def _has_one_size(recipe: Recipe) -> bool:
    """Whether all steps have as many rows."""
    return recipe.training.batch_size_schedule is None and recipe.training.tokens_per_batch is None


def _shipped(plan: LaunchPlan) -> dict[str, Any]:
    """Return the shipped file of a stage and offload; what no file is shipped for is put together from two."""
    names = {("none", "cpu"): "", ("all", "cpu"): "_offload", ("all", "nvme"): "_nvme", ("optimizer", "nvme"): "_nvme"}
    if (plan.zero_stage, plan.offload) == (2, "optimizer"):
        return read_deepspeed_file("zero2_offload")
    if plan.offload == "optimizer" and plan.offload_device == "cpu":
        config = read_deepspeed_file(f"zero{plan.zero_stage}")
        config["zero_optimization"] |= {"offload_optimizer": {"device": "cpu", "pin_memory": True}}
        return config
    device = "cpu" if plan.offload == "none" else plan.offload_device
    config = read_deepspeed_file(f"zero{plan.zero_stage}{names[plan.offload, device]}")
    if plan.offload == "optimizer":
        del config["zero_optimization"]["offload_param"]
    return config


def _finish_zero(config: dict[str, Any], recipe: Recipe, plan: LaunchPlan, *, is_shipped_file: bool) -> None:
    """Resolve what of sharding and offloading the plan knows."""
    zero = config.setdefault("zero_optimization", {})
    zero.setdefault("stage", plan.zero_stage)
    if plan.offload != "none":
        # Without this accelerate replaces the optimizer of the tuning table by DeepSpeed's own, which has to be built.
        config.setdefault("zero_force_ds_cpu_optimizer", False)
    if not is_shipped_file:
        return
    if "zero_hpz_partition_size" in zero:
        zero["zero_hpz_partition_size"] = plan.processes_per_node
    if plan.offload_device == "nvme":
        for name in ("offload_optimizer", "offload_param"):
            if name in zero:
                zero[name]["nvme_path"] = recipe.distributed.nvme_path


def with_batch(
    config: Mapping[str, Any], batch: BatchPlan, *, named: str = "the DeepSpeed file", check: bool = False
) -> dict[str, Any]:
    """Return a configuration with the sizes of ``batch``. Raises PlanMismatch where it fixes others and ``check`` is set."""
    changed = dict(config)
    rows = batch.micro_batch_size * batch.accumulation * batch.world_size
    for name, value, key in zip(
        _BATCH,
        (batch.micro_batch_size, batch.accumulation, rows),
        ("training.per_device_train_batch_size", "training.global_batch_size", "training.global_batch_size"),
        strict=True,
    ):
        if not check:
            changed[name] = "auto"
        _set(changed, name, value, key, named)
    return changed


def reopened(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a resolved configuration of an earlier attempt with what follows from recipe and plan left to them again."""
    opened = copy.deepcopy(dict(config))
    for name in (*_BATCH, "gradient_clipping"):
        opened[name] = "auto"
    for name in ("bf16", "fp16"):
        opened.setdefault(name, {})["enabled"] = "auto"
    return opened


def _set(config: dict[str, Any], name: str, value: object, key: str, named: str) -> None:
    """Resolve an entry that is left to the recipe. Raises PlanMismatch where it says something else."""
    if config.get(name, "auto") not in ("auto", value):
        entry = f"{named}{name}" if named.endswith(".") else f"{named}'s {name}"
        raise PlanMismatch(
            f"{entry} is {config[name]}, but the recipe's {key} makes it {value}; change one of them, or "
            f'write "auto" in the DeepSpeed file'
        )
    config[name] = value
