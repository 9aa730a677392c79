"""A DeepSpeed file held to the recipe: what the two say differently."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from launcher.recipe.deepspeed_file import block_of, is_shipped, zero_of
from launcher.recipe.optimizer_keys import DEFAULT_OPTIMIZER
from launcher.recipe.schema import Recipe
from launcher.recipe.strategy_options import (
    DiscriminativeOptions,
    EncoderOptions,
    FullOptions,
    LayerwiseOptions,
    LoraOptions,
)


@dataclass(frozen=True)
class Contradiction:
    """An entry of the file and a key of the recipe that say different things."""

    entry: str
    """Dotted, such as ``zero_optimization.stage``."""
    key: str
    message: str
    """Without the file's name."""
    remedy: str = 'change one of them, or write "auto" in the file'


def contradictions(config: Mapping[str, Any], recipe: Recipe) -> Iterator[Contradiction]:
    """Yield what a file and a recipe say differently, as far as no machine is needed to tell. ``auto`` agrees with all.

    Raises BadDeepSpeedFile for what launcher does not run.
    """
    yield from _sharding(config, recipe)
    yield from _differs(config, "gradient_clipping", "training.max_grad_norm", recipe.training.max_grad_norm)
    if recipe.precision != "auto":
        for name in ("bf16", "fp16"):
            yield from _differs(config, f"{name}.enabled", "precision", recipe.precision == name, recipe.precision)
    yield from _batch(config, recipe)
    if _said(config, "zero_force_ds_cpu_optimizer") and zero_of(config).offload != "none":
        message = (
            "zero_force_ds_cpu_optimizer is true, which puts DeepSpeed's Adam in the place of the optimizer that training.optim "
            "names"
        )
        yield Contradiction("zero_force_ds_cpu_optimizer", "training.optim", message, "write false")
    if (_said(config, "tensor_parallel.autotp_size") or 1) > 1:
        entry = "tensor_parallel.autotp_size"
        message = f"{entry} is {_said(config, entry)}, but distributed.tensor_parallel_size is the owner"
        yield Contradiction(entry, "distributed.tensor_parallel_size", message, "remove it from the file")
    yield from _blocks(config, recipe)


def _sharding(config: Mapping[str, Any], recipe: Recipe) -> Iterator[Contradiction]:
    zero, distributed = zero_of(config), recipe.distributed
    offload = None if distributed.offload == "none" else distributed.offload
    device = distributed.offload_device if "none" not in (zero.offload, distributed.offload) else None
    # The path in a shipped file only keeps the place.
    path = None if is_shipped(distributed.deepspeed_config or "") or zero.nvme_path is None else distributed.nvme_path
    optimizer = "zero_optimization.offload_optimizer"
    for entry, found, key, wanted in (
        ("zero_optimization.stage", zero.stage, "zero_stage", distributed.zero_stage),
        ("the offload", zero.offload, "offload", offload),
        (f"{optimizer}.device", zero.device, "offload_device", device),
        (f"{optimizer}.nvme_path", zero.nvme_path, "nvme_path", path),
    ):
        if wanted is not None and wanted != found:
            message = f"{entry} is {found}, but the recipe's distributed.{key} is {wanted}"
            remedy = f"change one of them, or leave distributed.{key} out of the recipe"
            yield Contradiction(entry, f"distributed.{key}", message, remedy)


def _batch(config: Mapping[str, Any], recipe: Recipe) -> Iterator[Contradiction]:
    training = recipe.training
    entries = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
    changing = next(
        (key for key in ("batch_size_schedule", "tokens_per_batch") if getattr(training, key) is not None), None
    )
    if changing is not None:
        for entry in entries:
            if _said(config, entry) is not None:
                message = f"{entry} is {_said(config, entry)}, but the recipe's training.{changing} changes it"
                yield Contradiction(entry, f"training.{changing}", message, 'write "auto" in the file')
        return
    yield from _differs(config, "train_batch_size", "training.global_batch_size", training.global_batch_size)
    cap, micro = training.per_device_train_batch_size, _said(config, entries[1])
    if cap is not None and isinstance(micro, int) and micro > cap:
        key = "training.per_device_train_batch_size"
        yield Contradiction(entries[1], key, f"{entries[1]} is {micro}, but the recipe's {key} is {cap}")


def _said(config: Mapping[str, Any], entry: str) -> Any:
    value: Any = config
    for part in entry.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return None if value == "auto" else value


def _differs(
    config: Mapping[str, Any], entry: str, key: str, wanted: object, said: object = None
) -> Iterator[Contradiction]:
    found = _said(config, entry)
    if found is not None and found != wanted:
        shown = wanted if said is None else said
        message = f"{entry} is {json.dumps(found)}, but the recipe's {key} is {shown}"
        yield Contradiction(entry, key, message)


# --- blocks that decide what the tuning table decides ----------------------------------------------------------------

_SCHEDULES = {"WarmupLR": "constant_with_warmup", "WarmupDecayLR": "linear", "WarmupCosineLR": "cosine"}
_OPTIMIZERS = {
    "adam": ("adamw_torch", "adamw_torch_fused", "adamw", "adam"),
    "adamw": ("adamw_torch", "adamw_torch_fused", "adamw"),
}


def _blocks(config: Mapping[str, Any], recipe: Recipe) -> Iterator[Contradiction]:
    """An optimizer or scheduler of the file may only say what the recipe says: both are built from the recipe."""
    rates = several_rates(recipe)
    if rates is None:
        yield from _optimizer(config, recipe)
        yield from _scheduler(config, recipe)
        return
    for name in ("optimizer", "scheduler"):
        if config.get(name):
            message = (
                f"the DeepSpeed file has a block {name!r}, but the recipe's {rates} trains parameters at several rates; with the block "
                "all would share one, whatever the tuning table says"
            )
            yield Contradiction(name, rates, message, "remove the block; optimizer and schedule are the recipe's")


def several_rates(recipe: Recipe) -> str | None:
    """Return the key by which parameters train at different rates; None: all that train share one."""
    strategy = recipe.strategy
    if isinstance(strategy, LayerwiseOptions) and strategy.layer_decay != 1:
        return "strategy.layer_decay" if strategy.layer_decay is not None else "strategy.type"
    if isinstance(strategy, LayerwiseOptions) and strategy.head_lr_mult != 1:
        return "strategy.head_lr_mult"
    if isinstance(strategy, LoraOptions) and strategy.layer_decay != 1:
        return "strategy.layer_decay"
    if isinstance(strategy, LoraOptions) and strategy.loraplus_lr_ratio not in (None, 1):
        return "strategy.loraplus_lr_ratio"
    if isinstance(strategy, DiscriminativeOptions) and strategy.apply == "lr":
        return "strategy.apply"
    if isinstance(strategy, FullOptions) and strategy.embedding_lr not in (None, recipe.training.learning_rate):
        return "strategy.embedding_lr"
    with_head = FullOptions | EncoderOptions | LoraOptions | DiscriminativeOptions
    if isinstance(strategy, with_head) and strategy.head_lr not in (None, recipe.training.learning_rate):
        return "strategy.head_lr"
    return None


def _optimizer(config: Mapping[str, Any], recipe: Recipe) -> Iterator[Contradiction]:
    training = recipe.training
    block = block_of(config, "optimizer")
    if not block:
        return
    kind, optim = str(block.get("type", "")).lower(), str(training.passthrough.get("optim", DEFAULT_OPTIMIZER))
    if optim not in _OPTIMIZERS.get(kind, ()):
        message = f"optimizer.type is {block.get('type')}, but the recipe's training.optim is {optim}"
        yield Contradiction("optimizer.type", "training.optim", message, "remove the block, or change one of them")
    yield from _differs(config, "optimizer.params.lr", "training.learning_rate", training.learning_rate)
    if training.weight_decay is not None:
        yield from _differs(config, "optimizer.params.weight_decay", "training.weight_decay", training.weight_decay)
    extra = training.passthrough
    betas = [extra.get("adam_beta1", 0.9), extra.get("adam_beta2", 0.999)]
    yield from _differs(config, "optimizer.params.betas", "training.adam_beta1", betas)
    yield from _differs(config, "optimizer.params.eps", "training.adam_epsilon", extra.get("adam_epsilon", 1e-8))


def _scheduler(config: Mapping[str, Any], recipe: Recipe) -> Iterator[Contradiction]:
    training = recipe.training
    block = block_of(config, "scheduler")
    if not block:
        return
    kind = str(block.get("type", ""))
    if _SCHEDULES.get(kind) != training.lr_scheduler_type:
        key = "training.lr_scheduler_type"
        message = f"scheduler.type is {kind}, but the recipe's {key} is {training.lr_scheduler_type}"
        yield Contradiction("scheduler.type", key, message, "remove the block, or change one of them")
    yield from _differs(config, "scheduler.params.warmup_max_lr", "training.learning_rate", training.learning_rate)
    yield from _differs(config, "scheduler.params.warmup_min_lr", "training.warmup_steps", 0)
    yield from _differs(config, "scheduler.params.warmup_num_steps", "training.warmup_steps", training.warmup_steps)
    yield from _differs(config, "scheduler.params.total_num_steps", "training.max_steps", training.max_steps)
    # Transformers has no other: its schedules rise in a straight line.
    yield from _differs(config, "scheduler.params.warmup_type", "training.lr_scheduler_type", "linear")
