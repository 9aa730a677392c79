"""Run one phase: an engine of its own for its tuning table, trained, and how it ended."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from transformers import PrinterCallback

from launcher.engine.asserting import assert_launch
from launcher.engine.callbacks import RunCallback
from launcher.engine.checkpoint_files import read_manifest
from launcher.engine.checkpoints import load_weights
from launcher.engine.context import Beginning, RunContext
from launcher.engine.early_stopping import RunIsOver
from launcher.engine.half_weights import convert_statistics
from launcher.engine.kept_memory import KeepsFreedMemory
from launcher.engine.memory_note import NotesMemory
from launcher.engine.prefix_decision import open_cache
from launcher.engine.trainer import RunTrainer
from launcher.evaluation.metric_names import greater_is_better
from launcher.launching.batch import share_of_steps
from launcher.launching.continuing import way_to_continue
from launcher.plans import RunPlan
from launcher.strategies.preparing import prepare_model

Ending = Literal["done", "stopped", "finished_early"]
"""``stopped``: it was asked to; ``finished_early``: the metric no longer improved, which ends the run in any phase."""


def first_phase(plan: RunPlan, checkpoint: Path | None) -> tuple[int, Beginning]:
    """Return the number of the phase with which a run begins or goes on, and from where."""
    if checkpoint is None:
        return 0, Beginning()
    manifest = read_manifest(checkpoint)
    number = manifest["phase_number"]
    is_over = manifest["step"] >= plan.phases[number].last_step
    if is_over and number < len(plan.phases) - 1:
        return number + 1, Beginning(carry_from=checkpoint)
    return number, Beginning(resume_from=checkpoint, by_name=way_to_continue(manifest, plan.launch) == "by_name")


def run_phase(
    context: RunContext,
    model: Any,
    arguments: Any,
    *,
    beginning: Beginning,
    trainer_class: type[RunTrainer] = RunTrainer,
) -> tuple[RunTrainer, Ending]:
    """Train ``model``, which no engine has touched yet, through a phase; return the trainer, and how it ended.

    Args:
        arguments: TrainingArguments made for this phase's batch; they are used up.

    Raises:
        PlanMismatch: world size, engine, stage, groups or rates differ from the plan.
        TrainingDiverged: the loss is not finite.
    """
    context.progress.heartbeat.beat("starting the engine", may_be_silent=True)
    _complete(arguments, context, beginning)
    model = prepare_model(model, context.planned.phase)
    weights_from = beginning.resume_from if beginning.by_name else beginning.carry_from
    if weights_from is not None:
        load_weights(model, weights_from, zero_stage=context.launch.zero_stage)
    convert_statistics(model, context.launch)
    cache = open_cache(context, model, arguments.device)
    data = context.prepared
    trainer = trainer_class(model=model, args=arguments, train_dataset=data.train, eval_dataset=data.validation)
    trainer.cache = cache
    trainer.start(context, beginning=beginning)
    assert_launch(trainer, context)
    trainer.remove_callback(PrinterCallback)
    callback = RunCallback(trainer)
    trainer.add_callback(callback)
    trainer.add_callback(trainer.stopping)
    if context.memory is not None:
        trainer.add_callback(NotesMemory(context.memory))
    if context.launch.device == "cpu":
        trainer.add_callback(KeepsFreedMemory(ranks=context.launch.processes_per_node))
    resume_from = None if beginning.by_name else beginning.resume_from
    trainer.refuse_foreign_code()
    try:
        with suppress(RunIsOver):
            trainer.train(resume_from_checkpoint=str(resume_from) if resume_from else None)
    finally:
        trainer.finish_saving()
        context.progress.end()
    if callback.stopped_early:
        return trainer, "stopped"
    return trainer, "finished_early" if trainer.stopping.has_stopped else "done"


def _complete(arguments: Any, context: RunContext, beginning: Beginning) -> None:
    """Set what depends on the data, the length of the run, and the phase."""
    training, total = context.recipe.training, context.plan.total_steps
    arguments.metric_for_best_model = training.metric_for_best_model or context.task.default_metric
    if training.greater_is_better is None:
        arguments.greater_is_better = greater_is_better(arguments.metric_for_best_model)
    arguments.max_steps = context.planned.last_step
    for name in ("logging_steps", "eval_steps", "save_steps"):
        # To Trainer, a share would be one of this phase's steps.
        value = getattr(arguments, name)
        if value is not None and value < 1:
            setattr(arguments, name, max(1, share_of_steps(value, total)))
    arguments.eval_on_start = arguments.eval_on_start and beginning.checkpoint is None
    # The best checkpoint may be of another phase, whose engine is another: it is loaded by name after the last one.
    arguments.load_best_model_at_end = False
