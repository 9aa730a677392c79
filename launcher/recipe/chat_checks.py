"""Rules of tasks that predict tokens: rows that are packed, and what of a conversation is learned."""

from __future__ import annotations

from collections.abc import Iterator

from launcher.recipe.keys import shown
from launcher.recipe.view import Finding, View


def packing_fits(v: View) -> Iterator[Finding]:
    """Yield packed rows where something else needs rows as they are."""
    key = "task.packing"
    if not v.value(key):
        return
    what = shown(key, True)
    if v.recipe.data.streaming:
        yield Finding(
            key,
            f"{what}, but with data.streaming rows are read while training, and packing needs all of them",
            "keep one of the two",
        )
    if v.recipe.data.weighted:
        message = f"{what}, but sources of data.train have weights, and a packed row would be of several sources"
        yield Finding(key, message, "keep one of the two")
    if v.recipe.distributed.sequence_parallel_size > 1:
        message = (
            f"{what}, but with distributed.sequence_parallel_size ranks share a row, and do not know its sequences"
        )
        yield Finding(key, message, "keep one of the two")


def nothing_else_learned(v: View) -> str | bool:
    """Return why choosing among answers has no effect; False where it has."""
    return (
        v.value("task.assistant_only_loss") is False and "task.assistant_only_loss is false, so every token is learned"
    )


def no_prompts(v: View) -> str | bool:
    """Return why no samples of answers are written; False where they are, or are not wanted."""
    return bool(v.value("task.sample_generations")) and (
        v.value("task.assistant_only_loss") is False
        and "task.assistant_only_loss is false, so rows do not say where a prompt ends"
    )
