"""What the decision on a prefix cache rests on: facts of a model, of its rows, and of this machine."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from launcher.plans import LaunchPlan
from launcher.strategies.prefix import CacheFacts


def cache_facts(
    model: Any,
    splits: Mapping[str, Any],
    *,
    launch: LaunchPlan,
    epochs: float,
    phases: int,
    free: tuple[float, float],
    padding_side: str = "right",
    inputs_vary: bool = False,
) -> CacheFacts:
    """Return what ``plan_cache`` needs to know of a model, on any device, also meta.

    Args:
        splits: what would be cached: ``train`` and, where it is evaluated between epochs, ``validation``.
        inputs_vary: whether a row's input differs between epochs.
        free: bytes of memory and disk, as ``free_room`` returns them.
    """
    import torch

    halved = launch.engine == "deepspeed" and launch.half is not None
    memory, disk = free
    return CacheFacts(
        model_type=model.config.model_type,
        architecture=type(model).__name__,
        hidden=int(getattr(model.config, "hidden_size", 0)),
        # Under autocast hidden states stay in the dtype of the weights; DeepSpeed casts weights and all.
        itemsize=2 if halved else torch.finfo(model.dtype).bits // 8,
        lengths={name: np.asarray(split["length"][:]).tolist() for name, split in splits.items()},
        epochs=epochs,
        launch=launch,
        phases=phases,
        free_memory=int(memory),
        free_disk=int(disk),
        padding_side=padding_side,
        has_dropout=_has_dropout(getattr(model, model.base_model_prefix, model)),
        inputs_vary=inputs_vary,
    )


def cached_splits(train: Any, validation: Any, *, eval_strategy: str) -> dict[str, Any]:
    """Return the splits that a run would cache."""
    return {"train": train} | ({} if eval_strategy == "no" else {"validation": validation})


def free_room(folder: Path) -> tuple[float, float]:
    """Return the bytes that are free in this machine's memory, and on the disk of ``folder``, which need not exist."""
    import psutil

    existing = next(path for path in [folder, *folder.absolute().parents] if path.exists())
    return min(psutil.virtual_memory().available, _memory_of_group()), float(shutil.disk_usage(existing).free)


def _has_dropout(backbone: Any) -> bool:
    from torch import nn

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
