"""How much disk a run needs: its checkpoints at their most, and the finished model."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from launcher.plans import LaunchPlan
from launcher.recipe.optimizer_keys import DEFAULT_OPTIMIZER
from launcher.recipe.schema import Recipe

_DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "auto": 4}
_MASTER_BYTES = 4
# Bytes of state for each parameter that trains; the others keep two fp32 moments.
_STATE_BYTES = {"sgd": 4, "adagrad": 4, "rmsprop": 4, "adafactor": 0, "rmsprop_bnb": 4}
_TWO_MOMENTS = 8


@dataclass(frozen=True)
class DiskNeed:
    """Bytes of a run's directory at the moment when it holds most."""

    weights: int
    """Weights in one checkpoint."""
    optimizer: int
    """Optimizer state in one checkpoint, as the engine writes it."""
    checkpoints: int
    """Checkpoints at a time: those kept, the best one, and the one in writing."""
    model: int
    """The finished model, and its adapters."""

    @property
    def checkpoint(self) -> int:
        """Bytes of one checkpoint."""
        return self.weights + self.optimizer

    @property
    def total(self) -> int:
        """Bytes of the run's directory."""
        return self.checkpoint * self.checkpoints + self.model


def disk_need(
    recipe: Recipe,
    launch: LaunchPlan,
    *,
    total_numel: int,
    trainable_numel: int,
    has_adapters: bool,
    carries: bool = False,
) -> DiskNeed:
    """Return the disk that a run needs; logs and predictions are small beside it.

    Args:
        total_numel: parameters of the model, with its adapters.
        trainable_numel: most parameters that train in one phase; with adapters they are what is saved.
        carries: whether a later phase takes optimizer state over, which then lies in the checkpoint by name too.
    """
    width = _DTYPE_BYTES[recipe.model.dtype]
    weights = trainable_numel * 4 if has_adapters else total_numel * width
    state = _state_bytes(str(recipe.training.passthrough.get("optim") or DEFAULT_OPTIMIZER))
    optimizer = trainable_numel * state * (2 if carries else 1)
    if launch.engine == "deepspeed":
        # DeepSpeed adds its fp32 copy of what trains, and the module's weights in the precision of the computation.
        optimizer += trainable_numel * _MASTER_BYTES
        optimizer += (trainable_numel if has_adapters else total_numel) * (
            4 if launch.precision in ("fp32", "tf32") else 2
        )
    return DiskNeed(
        weights=weights,
        optimizer=optimizer,
        checkpoints=_checkpoints(recipe),
        model=total_numel * width + (trainable_numel * 4 if has_adapters else 0),
    )


def _state_bytes(optimizer: str) -> int:
    if optimizer.endswith("8bit"):
        return 1 if "lion" in optimizer else 2
    if optimizer.endswith("4bit"):
        return 1
    return 4 if "lion" in optimizer else _STATE_BYTES.get(optimizer, _TWO_MOMENTS)


def _checkpoints(recipe: Recipe) -> int:
    training = recipe.training
    if training.save_strategy == "no":
        return 0
    # The oldest goes only when the newest is whole.
    return training.save_total_limit + (1 if training.chooses_best else 0) + 1


def free_bytes(folder: Path) -> int:
    """Return the free bytes of the disk that ``folder`` lies on, or will lie on."""
    place = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    return shutil.disk_usage(place).free
