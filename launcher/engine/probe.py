"""The probe of discriminative fine-tuning: a short training (or a look at gradients or inputs) whose scores say what matters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from launcher.contracts import Probe
from launcher.engine.context import RunContext
from launcher.engine.optimizers import base_optimizer
from launcher.engine.phases import Ending, first_phase, run_phase
from launcher.engine.resuming import newest_valid
from launcher.engine.schedule import RunSchedule
from launcher.engine.sensitivity import (
    GradientSum,
    InputVariance,
    sensitivity_scores,
    summed_gradient_scores,
    track_sensitivity,
)
from launcher.engine.trainer import RunTrainer
from launcher.launching.batch import share_of_steps
from launcher.plans import PlannedPhase, RunPlan

_WARMUP = 0.06
# The probe is short: a few checkpoints suffice, and what they cost does not show.
_CHECKPOINTS = 4


def probe_plan(probe: Probe, plan: RunPlan) -> RunPlan:
    """Return the plan of a probe as a run of its own, in the batches with which the run ``plan`` begins."""
    first = plan.phases[0]
    planned = PlannedPhase(
        probe.phase, 0, probe.steps, first.batch, first.rows, epoch_batch_size=first.batch.global_batch_size
    )
    warmup = share_of_steps(_WARMUP, probe.steps)
    return replace(plan, phases=(planned,), total_steps=probe.steps, warmup_steps=warmup, probe=probe)


def run_probe(context: RunContext, model: Any, arguments: Any) -> tuple[RunTrainer, Ending, dict[str, np.ndarray]]:
    """Run the probe of ``context.plan``, from its newest checkpoint; return the trainer, how it ended, and the scores.

    Scores: module name -> float64, descending; empty unless it ended as "done". All ranks get the same.
    """
    probe = context.plan.probe
    assert probe is not None
    arguments.eval_strategy, arguments.eval_on_start = "no", False
    arguments.save_strategy, arguments.save_steps = "steps", -(-probe.steps // _CHECKPOINTS)
    # EVA's sums lie outside the optimizer and in no checkpoint: it begins anew.
    again = probe.score != "eva"
    # What is measured can be measured anew: a damaged checkpoint is no reason to stop.
    checkpoint = newest_valid(context.run.checkpoints, say=context.progress.warn, from_start=True) if again else None
    _, beginning = first_phase(context.plan, checkpoint)
    trainer, ending = run_phase(context, model, arguments, beginning=beginning, trainer_class=_TRAINERS[probe.score])
    assert isinstance(trainer, ProbeTrainer)
    return trainer, ending, trainer.scores() if ending == "done" else {}


class ProbeTrainer(RunTrainer):
    """A phase at the run's peak rate after a short rise, without evaluations."""

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Return the probe's own schedule: what it finds must not depend on the length of the run."""
        if self.lr_scheduler is None:
            warmup = self.context.plan.warmup_steps
            self.lr_scheduler = RunSchedule(self.optimizer, _rise(warmup))
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def scores(self) -> dict[str, np.ndarray]:
        """Return module name -> scores. Collective."""
        raise NotImplementedError


class SensitivityProbe(ProbeTrainer):
    """AdaLoRA's sensitivity of adapters that train."""

    def new_optimizer(self, groups: list[dict[str, Any]]) -> Any:
        """Return the recipe's optimizer, which also keeps the statistics."""
        optimizer = super().new_optimizer(groups)
        track_sensitivity(base_optimizer(optimizer))
        return optimizer

    def scores(self) -> dict[str, np.ndarray]:
        """Return the scores of each adapter's ranks. Collective."""
        return sensitivity_scores(self.optimizer, self.model)


class GradientProbe(ProbeTrainer):
    """Gradients of the target weights, none of which changes."""

    def new_optimizer(self, groups: list[dict[str, Any]]) -> Any:
        """Return an optimizer that only sums."""
        return GradientSum(groups)

    def scores(self) -> dict[str, np.ndarray]:
        """Return the squared singular values of each mean gradient. Collective."""
        probe = self.context.plan.probe
        assert probe is not None
        return summed_gradient_scores(
            self.optimizer, self.model, weights=probe.weights, steps=self.context.plan.total_steps
        )


class InputProbe(ProbeTrainer):
    """Variance of the target modules' inputs (EVA); no weight changes."""

    observer: InputVariance

    def new_optimizer(self, groups: list[dict[str, Any]]) -> Any:
        """Return an optimizer that changes nothing, and begin to look at inputs."""
        probe = self.context.plan.probe
        assert probe is not None
        self.observer = InputVariance(self.model, [name.removesuffix(".weight") for name in probe.weights])
        return GradientSum(groups)

    def compute_loss(self, model: Any, inputs: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Compute the loss, with this batch's padding left out of what is looked at."""
        self.observer.mask = inputs.get("attention_mask")
        return super().compute_loss(model, inputs, *args, **kwargs)  # type: ignore[arg-type]

    def scores(self) -> dict[str, np.ndarray]:
        """Return the explained variance of each input's components. Collective."""
        self.observer.close()
        return self.observer.scores()


_TRAINERS: dict[str, type[ProbeTrainer]] = {
    "sensitivity": SensitivityProbe,
    "gradient": GradientProbe,
    "eva": InputProbe,
}


def _rise(warmup: int) -> Callable[[int], float]:
    return lambda step: min(1.0, (step + 1) / (warmup + 1))
