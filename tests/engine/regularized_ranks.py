"""Train a tiny network under Trainer with penalties, clipping by value and a schedule; every rank runs this file.

Arguments: the engine (ddp, or a ZeRO stage), fp32 or bf16, and the file for rank 0's final weights and rates.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from transformers import PretrainedConfig, Trainer

from launcher.engine.arguments import training_arguments
from launcher.engine.optimizers import base_optimizer, make_optimizer, regularize_before_step
from launcher.engine.schedule import RunSchedule
from launcher.plans import BatchPlan, LaunchPlan
from launcher.recipe.schema import Recipe
from launcher.strategies.schedules import schedule_factor

RANKS, STEPS = 2, 6
# (rate, L1, L2) of the first and of the second layer.
GROUPS = {"low": (0.02, 0.05, 0.0), "high": (0.05, 0.01, 0.3)}


class Net(torch.nn.Module):
    """Two layers of odd sizes, so that ZeRO pads and splits them unevenly."""

    def __init__(self) -> None:
        super().__init__()
        # Trainer derives DeepSpeed's bucket sizes from it.
        self.config = PretrainedConfig(hidden_size=8)
        self.low, self.high = torch.nn.Linear(5, 7), torch.nn.Linear(7, 3)

    def forward(self, x: Any, y: Any) -> dict[str, Any]:
        out = self.high(torch.tanh(self.low(x.to(self.low.weight.dtype))))
        return {"loss": ((out - y) ** 2).mean()}


class Rows(torch.utils.data.Dataset):
    def __init__(self) -> None:
        numbers = torch.Generator().manual_seed(1)
        self.x, self.y = (torch.randn(STEPS * 4, size, generator=numbers) for size in (5, 3))

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"x": self.x[index], "y": self.y[index]}


class Run(Trainer):
    recipe: Recipe

    def create_optimizer(self, model: Any = None) -> Any:
        groups = [
            {
                "params": list(getattr(self.model, name).parameters()), "lr": lr, "weight_decay": 0.01, "name": name,
                "l1_penalty": l1, "l2_penalty": l2,
            }
            for name, (lr, l1, l2) in GROUPS.items()
        ]  # fmt: skip
        self.optimizer = make_optimizer(self.args, groups, self.model)
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        factor = schedule_factor(self.recipe, total_steps=STEPS, warmup_steps=0)
        self.lr_scheduler, self._created_lr_scheduler = RunSchedule(self.optimizer, factor), True
        regularize_before_step(self.optimizer, max_grad_value=self.recipe.training.max_grad_value)
        return self.lr_scheduler

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        RATES.append([group["lr"] for group in base_optimizer(self.optimizer).param_groups])
        return super().training_step(*args, **kwargs)


RATES: list[list[float]] = []


def recipe(optim: str) -> Recipe:
    return Recipe.model_validate(
        {
            "version": 1,
            "name": "r",
            "task": {"type": "text-classification"},
            "model": {"name_or_path": "m"},
            "data": {"source": "s"},
            "training": {
                "lr_scheduler_type": "one_cycle", "max_grad_norm": 1.0, "max_grad_value": 0.3, "optim": optim,
                "eval_strategy": "no", "save_strategy": "no", "max_steps": STEPS, "logging_steps": STEPS,
                "train_sampling_strategy": "sequential", "dataloader_pin_memory": False,
            },
        }
    )  # fmt: skip


def main(engine: str, precision: str, optim: str, target: str) -> None:
    stage = None if engine in ("single", "ddp") else int(engine)
    kind: Any = "deepspeed" if stage is not None else engine
    ranks = 1 if engine == "single" else RANKS
    launch = LaunchPlan(kind, stage, precision, "cpu", 1, ranks, BatchPlan(4, ranks, 4 // ranks, 1))  # type: ignore[arg-type]
    run_recipe = recipe(optim)
    arguments = training_arguments(run_recipe, launch, output_dir=str(Path(target).parent / "out"))
    arguments.train_sampling_strategy = "sequential"
    torch.manual_seed(0)
    trainer = Run(model=Net(), args=arguments, train_dataset=Rows())
    trainer.recipe = run_recipe
    assert trainer.accelerator.num_processes == ranks
    trainer.train()
    weights = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    if trainer.args.process_index == 0:
        torch.save({"weights": {k: v.float() for k, v in weights.items()}, "rates": RATES}, target)
    trainer.accelerator.end_training()


if __name__ == "__main__":
    main(*sys.argv[1:])
