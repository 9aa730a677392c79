"""Run one phase: build the trainer for its tuning table, train, and say how it ended."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import EarlyStoppingCallback, PrinterCallback

from launcher.engine.callbacks import RunCallback
from launcher.engine.trainer import RunContext, RunTrainer
from launcher.errors import PlanMismatch
from launcher.evaluation.metrics import greater_is_better


def run_phase(context: RunContext, model: Any, arguments: Any, *, resume_from: Path | None) -> tuple[RunTrainer, bool]:
    """Train ``model`` through a phase; return the trainer, and whether it was asked to stop before the end.

    Raises:
        PlanMismatch: world size, engine or stage differ from the plan.
        TrainingDiverged: the loss is not finite.
    """
    training = context.recipe.training
    arguments.metric_for_best_model = training.metric_for_best_model or context.task.default_metric
    if training.greater_is_better is None:
        arguments.greater_is_better = greater_is_better(arguments.metric_for_best_model)
    data = context.prepared
    trainer = RunTrainer(model=model, args=arguments, train_dataset=data.train, eval_dataset=data.validation)
    trainer.start(context, resume_from=resume_from)
    assert_launch(trainer, context)
    trainer.remove_callback(PrinterCallback)
    callback = RunCallback(trainer)
    trainer.add_callback(callback)
    if training.early_stopping_patience is not None:
        trainer.add_callback(EarlyStoppingCallback(training.early_stopping_patience))
    try:
        trainer.train(resume_from_checkpoint=str(resume_from) if resume_from else None)
    finally:
        context.progress.end()
    return trainer, callback.stopped_early


def assert_launch(trainer: Any, context: RunContext) -> None:
    """Compare what accelerate really started with the plan, in every rank. Raises PlanMismatch."""
    plan, accelerator = context.launch, trainer.accelerator
    stage = None
    if trainer.is_deepspeed_enabled:
        stage = accelerator.state.deepspeed_plugin.zero_stage
    engine = "ddp" if accelerator.num_processes > 1 else "single"
    if trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled:
        engine = "deepspeed" if trainer.is_deepspeed_enabled else "fsdp"
    found = {"processes": accelerator.num_processes, "engine": engine, "ZeRO stage": stage}
    wanted = {"processes": plan.world_size, "engine": plan.engine, "ZeRO stage": plan.zero_stage}
    if found != wanted:
        raise PlanMismatch(f"rank {accelerator.process_index} found {found}, but the plan says {wanted}")
