"""Batches that are bounded by tokens, once the lengths of the rows are known: how many there are, in how many passes, and what a rank holds."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from launcher.contracts import Prepared
from launcher.data.token_batches import MULTIPLE, TokenBatches, padded
from launcher.errors import DataError
from launcher.plans import BatchPlan, LaunchPlan, TokenBudget
from launcher.recipe.schema import Recipe
from launcher.recipe.task_options import PAIR_TASKS

STEPS_OF_UNKNOWN_ROWS = 1000
"""Steps of a plan where neither the rows nor training.max_steps say how many there are."""


def with_settled_batch(recipe: Recipe, launch: LaunchPlan, prepared: Prepared) -> LaunchPlan:
    """Return the plan with its batch as ``settle_batch`` returns it."""
    return replace(launch, batch=settle_batch(recipe, launch.batch, prepared))


def settle_batch(recipe: Recipe, batch: BatchPlan, prepared: Prepared) -> BatchPlan:
    """Return the batch as the rows' lengths make it; as it is where a step is counted in rows.

    Every step has the same number of passes: the fewest with which no rank ever holds more than training.per_device_train_tokens.

    Raises:
        DataError: a row is longer than a batch, or than what a rank may hold.
    """
    budget, training = batch.budget, recipe.training
    if budget is None:
        return batch
    is_known = len(prepared.train) > 0
    lengths = np.asarray(prepared.train["length"][:]) if is_known else _unknown_lengths(recipe, prepared)
    for key in ("tokens_per_batch", "per_device_train_tokens"):
        _refuse_long_rows(f"training.{key}", getattr(training, key), lengths, recipe, prepared)
    batches = TokenBatches(lengths, budget.tokens)
    world, cap = batch.world_size, training.per_device_train_tokens
    passes = 1 if cap is None else batches.passes(world_size=world, cap=cap)
    rows, tokens = batches.held(world_size=world, accumulation=passes)
    found = TokenBudget(
        tokens=budget.tokens,
        batches=len(batches) if is_known else training.max_steps or STEPS_OF_UNKNOWN_ROWS,
        least_rows=int(batches.shapes[:, 0].min()),
        most_rows=int(batches.shapes[:, 0].max()),
        longest=int(batches.shapes[0, 1]),
        held_tokens=tokens,
    )
    return replace(batch, micro_batch_size=rows, accumulation=passes, budget=found)


def made_up_rows(recipe: Recipe, *, row_tokens: int) -> int:
    """Return a number of rows with which every phase has its place: one epoch of max_steps, or a thousand steps."""
    training = recipe.training
    steps = training.max_steps or STEPS_OF_UNKNOWN_ROWS
    if training.tokens_per_batch is None:
        return training.step_size * steps
    return steps * max(1, training.tokens_per_batch // int(padded(np.array(row_tokens))))


def _unknown_lengths(recipe: Recipe, prepared: Prepared) -> np.ndarray:
    """Return the rows of one step, each as long as a row may be."""
    row_tokens, training = int(prepared.facts["row_tokens"]), recipe.training
    rows = made_up_rows(recipe, row_tokens=row_tokens) // (training.max_steps or STEPS_OF_UNKNOWN_ROWS)
    least = min(cap for cap in (training.tokens_per_batch, training.per_device_train_tokens) if cap is not None)
    return np.full(rows, min(row_tokens, least // MULTIPLE * MULTIPLE))


def _refuse_long_rows(key: str, tokens: int | None, lengths: np.ndarray, recipe: Recipe, prepared: Prepared) -> None:
    longest = int(lengths.argmax())
    places = int(padded(lengths[longest]))
    if tokens is None or places <= tokens:
        return
    texts = 2 if recipe.task.type in PAIR_TASKS else 1
    raise DataError(
        f"{key} is {tokens:,}, but row {prepared.train[longest]['row_id']} of train has {int(lengths[longest]):,} tokens, "
        f"{places:,} as it is padded, and fits into no batch; write at least {places:,}, or lower data.max_length to at most "
        f"{tokens // texts // MULTIPLE * MULTIPLE:,}"
    )
