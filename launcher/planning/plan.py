"""The plan of a run: phases, steps, warm-up, and the facts they rest on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from launcher import registry
from launcher.contracts import Phase, Probe
from launcher.launching.batch import share_of_steps, steps_per_epoch
from launcher.launching.timeline import plan_timeline
from launcher.plans import LaunchPlan, RunPlan
from launcher.recipe.schedule_keys import WITHOUT_WARMUP
from launcher.recipe.schema import Recipe
from launcher.strategies.prefix import Refusal, is_considered, plan_cache
from launcher.strategies.prefix_facts import cache_facts, cached_splits, free_room


def plan_run(
    recipe: Recipe,
    launch: LaunchPlan,
    phases: tuple[Phase, ...],
    *,
    train_rows: int,
    facts: Mapping[str, Any],
    probe: Probe | None = None,
) -> RunPlan:
    """Return the plan of a run over ``train_rows`` rows; a pure function.

    Raises:
        RecipeError: the run ends before one of its phases begins.
    """
    planned = plan_timeline(phases, recipe, launch, rows=train_rows)
    total = planned[-1].last_step
    rises_by_itself = recipe.training.lr_scheduler_type in WITHOUT_WARMUP
    return RunPlan(
        launch=launch,
        phases=planned,
        train_rows=train_rows,
        steps_per_epoch=steps_per_epoch(rows=train_rows, global_batch_size=recipe.training.global_batch_size),
        total_steps=total,
        warmup_steps=0 if rises_by_itself else share_of_steps(recipe.training.warmup_steps, total),
        probe=probe,
        facts=facts,
    )


def preview_run(recipe: Recipe, launch: LaunchPlan, *, base_folder: Path) -> RunPlan:
    """Return the plan without loading weights: the model is built on the meta device, the data are read and prepared.

    ``facts["prefix_cache"]`` says what would be cached of a frozen prefix on this machine, and what that should bring.
    """
    from launcher.strategies.layers import list_parameters

    task = registry.load(registry.TASKS, recipe.task.type)(recipe, base_folder=base_folder)
    _, prepared = task.prepare_data()
    loaded = task.build_model(prepared, skeleton=True)
    strategy = registry.load(registry.STRATEGIES, recipe.strategy.type)()
    parameters = list_parameters(loaded.model, newly_initialized=loaded.newly_initialized)
    phases = strategy.phases(parameters, recipe)
    probe = strategy.probe(parameters, recipe)
    plan = plan_run(recipe, launch, phases, train_rows=len(prepared.train), facts=prepared.facts, probe=probe)
    if not is_considered(parameters, plan.phases[0].phase, recipe):
        return plan
    facts = cache_facts(
        loaded.model,
        cached_splits(prepared.train, prepared.validation, eval_strategy=recipe.training.eval_strategy),
        launch=launch,
        epochs=plan.phases[-1].epochs_at(plan.total_steps),
        phases=len(plan.phases),
        free=free_room(base_folder),
        padding_side=task.tokenizer.padding_side,
    )
    cache = plan_cache(parameters, plan.phases[0].phase, recipe, facts)
    told = f"off: {cache.reason}" if isinstance(cache, Refusal) else cache.describe().removeprefix("prefix cache: ")
    return replace(plan, facts={**plan.facts, "prefix_cache": told})
