"""Whether a phase gets a frozen-prefix cache, decided where the model and the machine are known, and the same on all ranks."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from launcher.contracts import LaunchPlan
from launcher.engine.prefix_cache import PrefixCache, build_cache
from launcher.engine.prefix_states import everyone, share
from launcher.rundir import read_jsonl
from launcher.strategies.layers import list_parameters
from launcher.strategies.prefix import CacheFacts, CachePlan, Refusal, plan_cache

_FOLDER = "prefix_cache"
_ANY_SIZE = 2**62


def open_cache(context: Any, model: Any, device: Any) -> PrefixCache | None:
    """Return the filled cache of a phase, with ``model`` cut to start from it, or None, with the reason told.

    What the first attempt decided holds for all that follow: free memory differs from day to day, and a checkpoint of a cut
    model fits no other.

    Args:
        context: a RunContext.
        model: prepared for the phase, and touched by no engine yet.

    Raises:
        ModelError, InstallationError: the recipe asks for a cache that cannot be.
    """
    progress, recipe = context.progress, context.recipe
    if getattr(recipe.strategy, "prefix_cache", "off") == "off":
        return None
    folder = context.run.path / _FOLDER
    data = context.prepared
    splits = {"train": data.train} | ({} if recipe.training.eval_strategy == "no" else {"validation": data.validation})
    facts = cache_facts(
        model,
        splits,
        launch=context.launch,
        epochs=context.planned.epochs_at(context.planned.last_step),
        phases=len(context.plan.phases),
        folder=folder,
        padding_side=context.task.tokenizer.padding_side,
    )
    decided = share(lambda: _decided(context.run))
    if decided is not None:
        strategy = recipe.strategy.model_copy(update={"prefix_cache": decided})
        recipe = recipe.model_copy(update={"strategy": strategy})
        facts = replace(facts, free_memory=_ANY_SIZE, free_disk=_ANY_SIZE)
    plan = plan_cache(list_parameters(model), context.planned.phase, recipe, facts)
    if progress.rank == 0:
        _tell(context, plan, is_new=decided is None)
    if isinstance(plan, Refusal):
        return None
    cache = build_cache(
        model, splits, plan,
        collate=context.task.collator(), launch=context.launch, fingerprint=data.fingerprint, device=device, folder=folder,
    )  # fmt: skip
    cache.unload(model)
    return cache


def _decided(run: Any) -> str | None:
    """Return what an earlier attempt decided; None: there was none."""
    return next((str(row["store"]) for row in read_jsonl(run.events) if row["event"] == "prefix_cache"), None)


def _tell(context: Any, plan: CachePlan | Refusal, *, is_new: bool) -> None:
    if isinstance(plan, Refusal):
        if is_new:
            context.progress.say(f"prefix cache: off: {plan.reason}")
            context.run.add_event("prefix_cache", attempt=context.attempt, store="off", reason=plan.reason)
        return
    context.progress.say(plan.describe())
    if is_new:
        context.run.add_event(
            "prefix_cache",
            attempt=context.attempt,
            store=plan.store,
            bytes=plan.bytes,
            frozen_share=plan.frozen_share,
            predicted_speed_up=plan.speed_up,
        )


def cache_facts(
    model: Any,
    splits: Mapping[str, Any],
    *,
    launch: LaunchPlan,
    epochs: float,
    phases: int,
    folder: Path,
    padding_side: str = "right",
) -> CacheFacts:
    """Return what ``plan_cache`` needs to know of a model (on any device, also meta) and of this machine.

    With several ranks all must call it: they get the least of what is free, so that they decide the same.

    Args:
        splits: what would be cached: ``train`` and, where it is evaluated between epochs, ``validation``.
        folder: where the cache's files would lie; it need not exist.
    """
    import psutil

    existing = next(path for path in [folder, *folder.absolute().parents] if path.exists())
    free = everyone(
        (min(psutil.virtual_memory().available, _memory_of_group()), float(shutil.disk_usage(existing).free))
    )
    halved = launch.engine == "deepspeed" and launch.precision != "fp32"
    return CacheFacts(
        model_type=model.config.model_type,
        architecture=type(model).__name__,
        hidden=int(model.config.hidden_size),
        # Under autocast hidden states stay in the dtype of the weights; DeepSpeed casts weights and all.
        itemsize=2 if halved else torch.finfo(model.dtype).bits // 8,
        lengths={name: np.asarray(split["length"]).tolist() for name, split in splits.items()},
        epochs=epochs,
        launch=launch,
        phases=phases,
        free_memory=int(min(memory for memory, _ in free)),
        free_disk=int(min(disk for _, disk in free)),
        padding_side=padding_side,
        has_dropout=_has_dropout(getattr(model, model.base_model_prefix, model)),
    )


def _has_dropout(backbone: nn.Module) -> bool:
    names = ("dropout", "attention_dropout", "dropout_prob")
    return any(
        getattr(module, "p", 0.0) > 0
        if isinstance(module, nn.Dropout)
        else any(isinstance(p := getattr(module, name, 0.0), float) and p > 0 for name in names)
        for module in backbone.modules()
    )


def _memory_of_group() -> float:
    """Return what the control group of this process (a container, a Slurm job) leaves free; infinity without a limit."""
    group = Path("/sys/fs/cgroup")
    try:
        limit, used = (group.joinpath(name).read_text().strip() for name in ("memory.max", "memory.current"))
        return math.inf if limit == "max" else float(limit) - float(used)
    except (OSError, ValueError):
        return math.inf
