"""Run by torchrun: the statistics of one small training under DDP and DeepSpeed's stages, written by each rank to a folder.

Argument: the folder. Every engine's run is stopped in its middle and continued from its checkpoint in a new engine.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from launcher.engine.sensitivity import (
    GRADIENT_SUM,
    IMPORTANCE,
    UNCERTAINTY,
    GradientSum,
    gather_statistics,
    track_sensitivity,
)

STEPS, ROWS, CLIP = 8, 8, 0.05
KEYS = {"sensitivity": (IMPORTANCE, UNCERTAINTY), "gradient": (GRADIENT_SUM,)}


class Net(nn.Module):
    """Sizes that two ranks cannot share evenly, and a frozen part."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.frozen = nn.Linear(6, 10).requires_grad_(False)
        self.first, self.second, self.last = nn.Linear(10, 7), nn.Linear(7, 5, bias=False), nn.Linear(5, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.tanh(self.second(torch.tanh(self.first(self.frozen(x))))))


def make_optimizer(model: Net, score: str) -> torch.optim.Optimizer:
    groups = [
        {"params": [model.first.weight, model.second.weight], "lr": 1e-2},
        {"params": [model.first.bias, *model.last.parameters()], "lr": 1e-3},
    ]
    if score == "gradient":
        return GradientSum(groups)
    optimizer = torch.optim.AdamW(groups, weight_decay=0.01)
    track_sensitivity(optimizer)
    return optimizer


def batch(step: int, *, rank: int, world: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    x, y = torch.randn(ROWS, 6, generator=generator), torch.randn(ROWS, 3, generator=generator)
    return x[rank::world], y[rank::world]


def trained(model: Net) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def train_plainly(score: str, *, wrapped: Any = lambda model: model, rank: int = 0, world: int = 1) -> Any:
    model = Net()
    optimizer, forward = make_optimizer(model, score), wrapped(model)
    for step in range(STEPS):
        x, y = batch(step, rank=rank, world=world)
        optimizer.zero_grad()
        nn.functional.mse_loss(forward(x), y).backward()
        nn.utils.clip_grad_norm_(list(trained(model).values()), CLIP)
        optimizer.step()
    return gather_statistics(optimizer, trained(model), keys=KEYS[score])


def train_with_deepspeed(stage: int, score: str, folder: Path, *, rank: int, world: int) -> Any:
    engine = _engine(stage, score, world=world)
    for step in range(STEPS):
        if step == STEPS // 2:
            before = gather_statistics(engine.optimizer, trained(engine.module), keys=KEYS[score])
            engine.save_checkpoint(str(folder), tag="middle")
            engine.destroy()
            engine = _engine(stage, score, world=world)
            engine.load_checkpoint(str(folder), tag="middle")
            after = gather_statistics(engine.optimizer, trained(engine.module), keys=KEYS[score])
            for name, values in before.items():
                for key, value in values.items():
                    np.testing.assert_array_equal(after[name][key], value)
        x, y = batch(step, rank=rank, world=world)
        engine.backward(nn.functional.mse_loss(engine(x), y))
        engine.step()
    found = gather_statistics(engine.optimizer, trained(engine.module), keys=KEYS[score])
    engine.destroy()
    return found


def _engine(stage: int, score: str, *, world: int) -> Any:
    import deepspeed

    model = Net()
    config = {
        "train_batch_size": ROWS,
        "train_micro_batch_size_per_gpu": ROWS // world,
        "gradient_clipping": CLIP,
        "zero_optimization": {"stage": stage, "stage3_param_persistence_threshold": 0, "reduce_bucket_size": 1000},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**9,
    }
    return deepspeed.initialize(model=model, optimizer=make_optimizer(model, score), config=config)[0]


def main(folder: Path) -> None:
    import deepspeed

    deepspeed.init_distributed("gloo", auto_mpi_discovery=False)
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    for score in KEYS:
        found = {"ddp": train_plainly(score, wrapped=nn.parallel.DistributedDataParallel, rank=rank, world=world)}
        for stage in range(4):
            checkpoints = folder / f"{score}-{stage}"
            found[f"zero{stage}"] = train_with_deepspeed(stage, score, checkpoints, rank=rank, world=world)
        flat = {
            f"{engine}/{name}/{key}": value
            for engine, statistics in found.items()
            for name, values in statistics.items()
            for key, value in values.items()
        }
        np.savez(folder / f"{score}.{rank}.npz", **flat)
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
