"""Rules of batches that are bounded by tokens: what a step is counted in, and what needs steps of equally many rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from launcher.recipe.keys import shown
from launcher.recipe.task_options import IMAGE_TASKS
from launcher.recipe.view import Finding, View

_KEY = "training.tokens_per_batch"
# Tasks whose rows have two texts, each padded to the longest of its side.
_TWO_SIDED = ("translation", "summarization")


def can_count_tokens(task: str) -> bool:
    """Whether rows of a task are one text each, whose tokens can bound a batch."""
    return task not in (*IMAGE_TASKS, *_TWO_SIDED)


def by_tokens(v: View) -> str | bool:
    """Return why a size in rows has no effect; False where it has one."""
    return v.t.tokens_per_batch is not None and f"{_KEY} is {v.t.tokens_per_batch}, which bounds a step by tokens"


def not_by_tokens(v: View) -> str | bool:
    """Return why a size in tokens has no effect; False where it has one."""
    return v.t.tokens_per_batch is None and f"{_KEY} is not given"


# Key, whether its value does not go with token batches, why, and the remedy.
_NOT_WITH_TOKENS: tuple[tuple[str, Callable[[View], object], str, str], ...] = (
    (
        "training.batch_size_schedule",
        lambda v: v.t.batch_size_schedule,
        "changes the rows of a step",
        "keep one of the two",
    ),
    (
        "training.train_sampling_strategy",
        lambda v: v.t.train_sampling_strategy != "group_by_length",
        "puts texts of any length together",
        "write group_by_length, or remove it",
    ),
    ("data.streaming", lambda v: v.recipe.data.streaming, "knows no lengths before training", "keep one of the two"),
    (
        "data.train",
        lambda v: v.recipe.data.weighted,
        "has weights, by which every epoch draws other rows",
        f"remove the weights, or {_KEY}",
    ),
    (
        "task.class_sampling",
        lambda v: v.value("task.class_sampling") not in (None, "natural"),
        "draws other rows in every epoch",
        "keep one of the two",
    ),
    (
        "task.augmentation.synonyms",
        lambda v: v.value("task.augmentation.synonyms") is not None,
        "makes rows longer than they were counted",
        "keep one of the two",
    ),
    (
        "distributed.sequence_parallel_size",
        lambda v: v.recipe.distributed.sequence_parallel_size > 1,
        "shares rows among ranks, which then need equally many",
        "keep one of the two",
    ),
)


def token_batches_fit(v: View) -> Iterator[Finding]:
    """Yield a step of no size, and what does not go with batches that are bounded by tokens."""
    budget, task = v.t.tokens_per_batch, v.recipe.task.type
    if budget is None:
        if v.t.global_batch_size is None:
            key = "training.global_batch_size"
            message = f"{key} is null and {_KEY} is not given: nothing says how large a step is"
            yield Finding(key, message, "give one of the two, or remove global_batch_size: it is 32 then")
        return
    if task in IMAGE_TASKS:
        yield Finding(
            _KEY, f"{shown(_KEY, budget)}, and the task is {task}, whose rows are images", "write global_batch_size"
        )
    if task in _TWO_SIDED:
        message = f"{shown(_KEY, budget)}, and the task is {task}, whose rows have two texts that are padded apart"
        yield Finding(_KEY, message, "write global_batch_size")
    for key, does_not_fit, why, remedy in _NOT_WITH_TOKENS:
        if does_not_fit(v):
            yield Finding(key, f"{key} {why}, and {shown(_KEY, budget)}", remedy)
