"""Whether a phase gets a frozen-prefix cache, decided where the model and the machine are known, and the same on all ranks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from launcher.atomic import read_jsonl
from launcher.engine.prefix_cache import PrefixCache, build_cache
from launcher.engine.ranks import everyone, share
from launcher.strategies.layers import list_parameters
from launcher.strategies.prefix import CachePlan, Refusal, is_considered, plan_cache
from launcher.strategies.prefix_facts import cache_facts, cached_splits, free_room

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
    parameters = list_parameters(model)
    if not is_considered(parameters, context.planned.phase, recipe):
        return None
    folder = context.run.path / _FOLDER
    data = context.prepared
    splits = cached_splits(data.train, data.validation, eval_strategy=recipe.training.eval_strategy)
    facts = cache_facts(
        model,
        splits,
        launch=context.launch,
        epochs=context.planned.epochs_at(context.planned.last_step),
        phases=len(context.plan.phases),
        free=_least_room(folder),
        padding_side=context.task.padding_side,
        inputs_vary=context.task.inputs_vary,
    )
    decided = share(lambda: _decided(context.run))
    if decided is not None:
        strategy = recipe.strategy.model_copy(update={"prefix_cache": decided})
        recipe = recipe.model_copy(update={"strategy": strategy})
        facts = replace(facts, free_memory=_ANY_SIZE, free_disk=_ANY_SIZE)
    plan = plan_cache(parameters, context.planned.phase, recipe, facts)
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


def _least_room(folder: Path) -> tuple[float, float]:
    """Return the least memory and disk that is free to any rank, so that all decide the same."""
    rooms = everyone(free_room(folder))
    return min(memory for memory, _ in rooms), min(disk for _, disk in rooms)
