"""The plan of a run: phases, steps, warm-up, and the facts they rest on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from launcher import registry
from launcher.contracts import LaunchPlan, Phase, RunPlan
from launcher.launching.batch import share_of_steps, steps_per_epoch, total_steps
from launcher.recipe.schema import Recipe


def plan_run(
    recipe: Recipe, launch: LaunchPlan, phases: tuple[Phase, ...], *, train_rows: int, facts: Mapping[str, Any]
) -> RunPlan:
    """Return the plan of a run over ``train_rows`` rows; a pure function."""
    training = recipe.training
    per_epoch = steps_per_epoch(rows=train_rows, global_batch_size=training.global_batch_size)
    total = total_steps(steps_per_epoch=per_epoch, epochs=training.num_train_epochs, max_steps=training.max_steps)
    return RunPlan(
        launch=launch,
        phases=phases,
        train_rows=train_rows,
        steps_per_epoch=per_epoch,
        total_steps=total,
        warmup_steps=share_of_steps(training.warmup_steps, total),
        facts=facts,
    )


def preview_run(recipe: Recipe, launch: LaunchPlan, *, base_folder: Path) -> RunPlan:
    """Return the plan without loading weights: the model is built on the meta device, the data are read and prepared."""
    from launcher.strategies.layers import list_parameters

    task = registry.load(registry.TASKS, recipe.task.type)(recipe, base_folder=base_folder)
    _, prepared = task.prepare_data()
    loaded = task.build_model(prepared, skeleton=True)
    strategy = registry.load(registry.STRATEGIES, recipe.strategy.type)()
    parameters = list_parameters(loaded.model, newly_initialized=loaded.newly_initialized)
    phases = strategy.phases(parameters, recipe)
    return plan_run(recipe, launch, phases, train_rows=len(prepared.train), facts=prepared.facts)
