"""The schedule of a run, as Trainer steps it: one factor of the run's step on every group's own peak rate."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau
from transformers.optimization import GreedyLR

from launcher.errors import PlanMismatch
from launcher.recipe.schedule_keys import FOLLOW_METRIC, schedule_options
from launcher.recipe.schema import Recipe


class PlateauFactor:
    """A factor of all rates that follows a metric: the rate of a stand-in optimizer whose peak is 1.

    One number for all groups: with a scheduler on the run's own optimizer, each group would have a floor of its own.
    """

    def __init__(self, make: Callable[[Optimizer], Any]) -> None:
        self._optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        self._scheduler = make(self._optimizer)

    @property
    def value(self) -> float:
        """The factor now."""
        return float(self._optimizer.param_groups[0]["lr"])

    def on_metric(self, value: float) -> None:
        """Take in the metric of an evaluation."""
        self._scheduler.step(value)

    def state_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return {"value": self.value, "scheduler": self._scheduler.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from ``state_dict()``'s values."""
        self._scheduler.load_state_dict(state["scheduler"])
        self._optimizer.param_groups[0]["lr"] = state["value"]


def plateau_factor(recipe: Recipe, *, greater_is_better: bool) -> PlateauFactor | None:
    """Return the factor of a recipe whose schedule follows a metric, else None.

    Args:
        recipe: a checked recipe.
        greater_is_better: which way the metric improves.
    """
    name = recipe.training.lr_scheduler_type
    if name not in FOLLOW_METRIC:
        return None
    # The stand-in's peak is 1, so its bounds are shares of every group's peak.
    theirs = {"min_scale": "min_lr", "max_scale": "max_lr"}
    options = {theirs.get(key, key): value for key, value in schedule_options(recipe.training).items()}
    make: Any = ReduceLROnPlateau if name == "reduce_lr_on_plateau" else GreedyLR
    mode = "max" if greater_is_better else "min"
    return PlateauFactor(lambda optimizer: make(optimizer, mode=mode, **options))


class RunSchedule(LRScheduler):
    """Sets every group's rate to its ``initial_lr`` times the run's factor; one object for each phase of a run.

    After k steps of this object the factor is that of step ``first_step + k`` of the run.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        factor: Callable[[int], float],
        *,
        first_step: int = 0,
        plateau: PlateauFactor | None = None,
    ) -> None:
        self._factor = factor
        self._first_step = first_step
        self._plateau = plateau
        super().__init__(optimizer)

    @property
    def factor(self) -> float:
        """Factor of the rates of the next step."""
        plateau = 1.0 if self._plateau is None else self._plateau.value
        return float(self._factor(self._first_step + self.last_epoch)) * plateau

    def get_lr(self) -> list[Any]:
        """Return each group's rate for the next step."""
        factor = self.factor
        return [rate * factor for rate in self.base_lrs]

    def on_metric(self, value: float) -> None:
        """Take in the metric of an evaluation; the rates follow at once. Without effect unless the schedule follows one."""
        if self._plateau is not None:
            self._plateau.on_metric(value)
            self._set_rates()

    def state_dict(self) -> dict[str, Any]:
        """Return plain values; rates and the schedule's shape are the plan's and are not among them."""
        plateau = None if self._plateau is None else self._plateau.state_dict()
        return {"first_step": self._first_step, "steps": self.last_epoch, "plateau": plateau}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from ``state_dict()``'s values and set the rates. Raises PlanMismatch for another place in the run."""
        if state["first_step"] != self._first_step:
            raise PlanMismatch(
                f"the checkpoint's schedule begins at step {state['first_step']}, but this phase at {self._first_step}"
            )
        if (state["plateau"] is None) != (self._plateau is None):
            raise PlanMismatch("the checkpoint's schedule follows a metric and the plan's does not, or the reverse")
        if self._plateau is not None:
            self._plateau.load_state_dict(state["plateau"])
        self.last_epoch = state["steps"]
        self._step_count = self.last_epoch + 1
        self._set_rates()

    def take_over(self, state: dict[str, Any]) -> None:
        """Go on with what a metric has done to the rates in an earlier phase; ``state``: that phase's ``state_dict()``."""
        if self._plateau is not None and state["plateau"] is not None:
            self._plateau.load_state_dict(state["plateau"])
            self._set_rates()

    def _set_rates(self) -> None:
        for group, rate in zip(self.optimizer.param_groups, self.get_lr(), strict=True):
            group["lr"] = rate
        self._last_lr = [group["lr"] for group in self.optimizer.param_groups]
