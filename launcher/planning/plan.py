"""The plan of a run: phases, steps, warm-up, and the facts they rest on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from launcher import registry
from launcher.contracts import BuiltModel, Parameter, Phase, Prepared, Probe
from launcher.errors import DataUnreachable, ModelUnreachable
from launcher.launching.batch import share_of_steps, steps_per_epoch
from launcher.launching.timeline import plan_timeline
from launcher.planning.token_budget import made_up_rows, with_settled_batch
from launcher.plans import LaunchPlan, RunPlan
from launcher.recipe.schedule_keys import WITHOUT_WARMUP
from launcher.recipe.schema import Recipe
from launcher.recipe.task_options import PAIR_TASKS, TASKS_WITHOUT_LABELS
from launcher.strategies.prefix import Refusal, is_considered, plan_cache
from launcher.strategies.prefix_facts import cache_facts, cached_splits, free_room

DEFAULT_MAX_LENGTH = 512
"""Tokens of a row where neither the recipe nor the data say."""


def plan_run(
    recipe: Recipe,
    launch: LaunchPlan,
    phases: tuple[Phase, ...],
    *,
    train_rows: int,
    facts: Mapping[str, Any],
    probe: Probe | None = None,
) -> RunPlan:
    """Return the plan of a run over epochs of ``train_rows`` rows; a pure function. Batch of ``launch``: as ``settle_batch`` returns it.

    Raises:
        RecipeError: the run ends before one of its phases begins.
    """
    units = launch.batch.units(train_rows)
    planned = plan_timeline(phases, recipe, launch, rows=units)
    total = planned[-1].last_step
    rises_by_itself = recipe.training.lr_scheduler_type in WITHOUT_WARMUP
    return RunPlan(
        launch=launch,
        phases=planned,
        train_rows=train_rows,
        steps_per_epoch=steps_per_epoch(rows=units, global_batch_size=recipe.training.step_size),
        total_steps=total,
        warmup_steps=0 if rises_by_itself else share_of_steps(recipe.training.warmup_steps, total),
        probe=probe,
        facts=facts,
    )


@dataclass(frozen=True)
class Preview:
    """A plan that was made without weights, and what it was made from."""

    plan: RunPlan
    task: Any
    prepared: Prepared
    built: BuiltModel
    """The model on the meta device."""
    parameters: tuple[Parameter, ...]


def preview_run(recipe: Recipe, launch: LaunchPlan, *, base_folder: Path) -> RunPlan:
    """Return the plan without loading weights: the model is built on the meta device, the data are read and prepared."""
    return preview(recipe, launch, base_folder=base_folder).plan


def preview(recipe: Recipe, launch: LaunchPlan, *, base_folder: Path) -> Preview:
    """Return the plan without loading weights: the model is built on the meta device, the data are read and prepared.

    ``facts["prefix_cache"]`` says what would be cached of a frozen prefix on this machine, and what that should bring.
    Data on a hub that cannot be reached are left unread: ``unread`` of the plan then says why, and steps are known only
    where training.max_steps sets them.
    """
    from launcher.strategies.layers import list_parameters

    task = registry.load(registry.TASKS, recipe.task.type)(recipe, base_folder=base_folder)
    prepared, rows = _rows(task, recipe)
    launch = with_settled_batch(recipe, launch, prepared)
    try:
        loaded = task.build_model(prepared, skeleton=True)
    except ModelUnreachable as error:
        hint = "; for a plan its architecture's numbers suffice: write them into model.config (docs/guide/causal-lm.md)"
        raise ModelUnreachable(f"{error}{hint}") from error
    strategy = registry.load(registry.STRATEGIES, recipe.strategy.type)()
    parameters = tuple(list_parameters(loaded.model, newly_initialized=loaded.newly_initialized))
    phases = strategy.phases(parameters, recipe)
    probe = strategy.probe(parameters, recipe)
    plan = plan_run(recipe, launch, phases, train_rows=rows, facts=prepared.facts, probe=probe)
    if not plan.unread and is_considered(parameters, plan.phases[0].phase, recipe):
        told = _prefix_cache(recipe, launch, plan, task, prepared, loaded.model, parameters, base_folder)
        plan = replace(plan, facts={**plan.facts, "prefix_cache": told})
    return Preview(plan, task, prepared, loaded, parameters)


def _rows(task: Any, recipe: Recipe) -> tuple[Prepared, int]:
    """Return the prepared data and the rows of an epoch; made up where a hub that has them, or their tokenizer, cannot be reached."""
    try:
        _, prepared = task.prepare_data()
        return prepared, rows_to_plan(recipe, prepared)
    except (DataUnreachable, ModelUnreachable) as error:
        what = "they are" if isinstance(error, DataUnreachable) else "their tokenizer is"
        reason = f"{what} not in the local cache, and the hub or address cannot be reached"
        prepared = unknown_rows(recipe, reason=reason)
        return prepared, made_up_rows(recipe, row_tokens=prepared.facts["row_tokens"])


def rows_to_plan(recipe: Recipe, prepared: Prepared) -> int:
    """Return the rows of an epoch; of a stream, whose rows nobody has counted, those of the whole run."""
    if prepared.stream is not None:
        return made_up_rows(recipe, row_tokens=prepared.facts["max_length"])
    return prepared.epoch_rows


def unknown_rows(recipe: Recipe, *, reason: str) -> Prepared:
    """Return data of no rows, as the recipe describes them: as long as they may be, with its labels or two."""
    labels = recipe.data.labels if isinstance(recipe.data.labels, list) else ["0", "1"]
    problem = getattr(recipe.task, "problem_type", recipe.task.type.replace("-", "_"))
    problem = "single_label_classification" if problem == "auto" else problem
    read = recipe.data.max_length or DEFAULT_MAX_LENGTH
    facts = {
        "splits": {},
        "warnings": [],
        "max_length": read,
        # What a task writes comes on top of what it reads.
        "row_tokens": read * (2 if recipe.task.type in PAIR_TASKS else 1)
        + getattr(recipe.task, "max_target_length", 0),
        "unread": reason,
        "steps_are_set": recipe.training.max_steps is not None,
    }
    return Prepared(
        [],
        [],
        None,
        "",
        () if recipe.task.type in TASKS_WITHOUT_LABELS else tuple(labels),
        problem,
        facts,
    )


def _prefix_cache(
    recipe: Recipe, launch: LaunchPlan, plan: RunPlan, task: Any, prepared: Prepared, model: Any,
    parameters: tuple[Parameter, ...], base_folder: Path,
) -> str:  # fmt: skip
    facts = cache_facts(
        model,
        cached_splits(prepared.train, prepared.validation, eval_strategy=recipe.training.eval_strategy),
        launch=launch,
        epochs=plan.phases[-1].epochs_at(plan.total_steps),
        phases=len(plan.phases),
        free=free_room(base_folder),
        padding_side=task.padding_side,
        inputs_vary=task.inputs_vary,
    )
    cache = plan_cache(parameters, plan.phases[0].phase, recipe, facts)
    return f"off: {cache.reason}" if isinstance(cache, Refusal) else cache.describe().removeprefix("prefix cache: ")
