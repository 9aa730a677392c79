"""What the engine really has, held to the plan in every rank: a mismatch ends the run before it costs anything."""

from __future__ import annotations

from typing import Any

from launcher.engine.context import RunContext
from launcher.engine.optimizers import base_optimizer
from launcher.errors import PlanMismatch
from launcher.recipe.deepspeed_file import zero_of


def assert_launch(trainer: Any, context: RunContext) -> None:
    """Compare what accelerate really started with the plan, in every rank. Raises PlanMismatch."""
    plan, accelerator = context.launch, trainer.accelerator
    found: dict[str, Any] = {
        "processes": accelerator.num_processes,
        "engine": "ddp" if accelerator.num_processes > 1 else "single",
        "ZeRO stage": None,
        "offload": "none",
        "sequence and tensor parallel": (trainer.get_sp_size(), trainer.get_tp_size()),
    }
    if trainer.is_deepspeed_enabled:
        plugin = accelerator.state.deepspeed_plugin
        zero = zero_of(plugin.deepspeed_config)
        found |= {"engine": "deepspeed", "ZeRO stage": plugin.zero_stage, "offload": zero.offload}
    elif str(accelerator.distributed_type).endswith("FSDP"):
        # Not trainer.is_fsdp_enabled: on a processor there is a plugin for it, and DDP that runs.
        version = accelerator.state.fsdp_plugin.fsdp_version
        offloads = type(accelerator.state.fsdp_plugin.cpu_offload).__name__ == "CPUOffloadPolicy"
        found |= {"engine": "fsdp" if version == 2 else f"fsdp {version}", "offload": "all" if offloads else "none"}
    wanted = {
        "processes": plan.world_size,
        "engine": plan.engine,
        "ZeRO stage": plan.zero_stage,
        "offload": plan.offload,
        "sequence and tensor parallel": (plan.sequence_parallel_size, plan.tensor_parallel_size),
    }
    if found != wanted:
        raise PlanMismatch(f"rank {accelerator.process_index} found {found}, but the plan says {wanted}")


def assert_table(trainer: Any, context: RunContext) -> None:
    """Compare the optimizer's groups and what trains with the tuning table. Raises PlanMismatch."""
    table = context.planned.phase.table
    wanted = [(group.name, group.lr, group.weight_decay) for group in table.trainable]
    groups = trainer.optimizer.param_groups
    found = [(group.get("name"), group.get("initial_lr", group["lr"]), group["weight_decay"]) for group in groups]
    if found != wanted:
        raise PlanMismatch(f"the optimizer's groups are {found}, but the tuning table says {wanted}")
    planned = [name for group in table.trainable for name in group.parameters]
    trains = {name for name, tensor in trainer.model.named_parameters() if tensor.requires_grad}
    if len(planned) != len(set(planned)) or set(planned) != trains:
        raise PlanMismatch(f"what trains differs from the tuning table: {sorted(set(planned) ^ trains)[:5]}")


def assert_rates(trainer: Any, context: RunContext) -> None:
    """Compare the rates with which the optimizer has just stepped with the plan's. Raises PlanMismatch."""
    factor = trainer.lr_scheduler.factor
    wanted = {group.name: group.lr * factor for group in context.planned.phase.table.trainable}
    found = {group["name"]: float(group["lr"]) for group in base_optimizer(trainer.optimizer).param_groups}
    wrong = sorted(name for name in wanted.keys() | found.keys() if not _close(wanted.get(name), found.get(name)))
    if wrong:
        name = wrong[0]
        raise PlanMismatch(
            f"step {trainer.state.global_step + 1} used the rate {found.get(name)} for {name}, but the tuning table and the "
            f"schedule make it {wanted.get(name)}"
        )


def _close(one: float | None, other: float | None) -> bool:
    return one is not None and other is not None and abs(one - other) <= 1e-6 * max(abs(one), abs(other))
