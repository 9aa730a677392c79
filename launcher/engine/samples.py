"""What a model writes for the same few validation rows at each evaluation, for people to read."""

from __future__ import annotations

from typing import Any

from launcher.atomic import append_json
from launcher.engine.context import RunContext
from launcher.engine.predicting import evaluating


def write_samples(context: RunContext, model: Any, *, step: int, is_whole: bool, is_final: bool = False) -> None:
    """Let ``model`` answer the task's sample prompts on all ranks; rank 0 adds the answers to generations.jsonl, and to W&B where it may.

    ``is_whole``: False while the model is cut to start from stored states, and can write nothing.
    """
    if not is_whole:
        return
    context.progress.heartbeat.beat("evaluating", may_be_silent=True)
    with evaluating(model):
        answers = context.task.sample_answers(model, context.prepared)
    if not answers or context.progress.rank != 0:
        return
    rows = [{"step": step, "final": is_final, **answer} for answer in answers]
    for row in rows:
        append_json(context.run.generations, row)
    wandb = context.recipe.tracking.wandb
    if wandb is not None and wandb.log_predictions:
        context.progress.tracker.log_table("generations", rows)
