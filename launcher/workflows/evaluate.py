"""The final evaluation: predictions, baselines, metrics with intervals, and the report."""

from __future__ import annotations

from typing import Any

from launcher.atomic import write_json
from launcher.contracts import Predictions, Prepared, Task
from launcher.engine.context import RunContext
from launcher.engine.release import release
from launcher.engine.samples import write_samples
from launcher.evaluation.assessment import Evaluation, evaluate_predictions
from launcher.evaluation.predictions_io import write_predictions
from launcher.evaluation.verdict import verdict_sentence
from launcher.recipe.schema import Recipe
from launcher.recipe.task_options import BASELINES
from launcher.rundir import RunDir
from launcher.workflows.label_errors import splits_to_judge, write_label_errors
from launcher.workflows.report import METRICS_FILE, PREDICTIONS_FILE, write_report, write_report_without_texts
from launcher.workflows.saved_model import SavedModelCheck
from launcher.workflows.verify import raise_if_it_differs


def evaluate_and_report(trainer: Any, check: SavedModelCheck, *, worker_seconds: float) -> None:
    """Evaluate a trained model on all ranks; rank 0 writes evaluation/ and report.html, and ends the tracker's run.

    The trainer is used up: ``check`` loads the saved model where the live one was.

    Raises:
        SavedModelDiffers: the saved model is not the trained one; everything is written all the same.
    """
    context: RunContext = trainer.context
    prepared, progress, run = context.prepared, context.progress, context.run
    name, split = final_split(prepared)
    logits, _ = trainer.logits(split, with_loss=False)
    write_samples(context, trainer.evaluation_model(), step=trainer.state.global_step, is_whole=True, is_final=True)
    others = {other: getattr(prepared, other) for other in splits_to_judge(context) if other != name}
    of_others = {other: trainer.logits(rows, with_loss=False)[0] for other, rows in others.items()}
    progress.heartbeat.beat("finishing", may_be_silent=True)
    release(trainer)
    if progress.rank != 0:
        return
    check.begin()
    predictions = context.task.predictions(logits, split, prepared)
    evaluation = assess(context.task, context.recipe, prepared, predictions, split=name)
    facts: dict[str, Any] = {"worker_seconds": worker_seconds}
    if context.recipe.evaluation.label_errors:
        found = {other: context.task.predictions(of_others[other], rows, prepared) for other, rows in others.items()}
        facts["label_errors"] = write_label_errors(context, {**found, name: predictions})
    chosen_by = trainer.args.metric_for_best_model if context.recipe.training.chooses_best else ""
    check.result()
    save_evaluation(run, evaluation, predictions, **facts, metric_for_best_model=chosen_by)
    report = write_report(run)
    sentence = verdict_sentence(evaluation)
    progress.say(f"{sentence}\nreport: {report}")
    progress.tracker.alert("has finished", sentence)
    wandb = context.recipe.tracking.wandb
    line = progress.tracker.finish(
        summary={f"{name}/{metric}": value for metric, value in evaluation.metrics.items()} | {"verdict": sentence},
        report=None if wandb is None else report if wandb.log_predictions else write_report_without_texts(run),
        predictions=run.evaluation / PREDICTIONS_FILE,
    )
    if line:
        progress.say(line)
    raise_if_it_differs(run)


def final_split(prepared: Prepared) -> tuple[str, Any]:
    """Return the rows of the final evaluation: test, or validation where there is no labelled test."""
    if prepared.test is not None and prepared.facts["splits"]["test"]["labelled"]:
        return "test", prepared.test
    return "validation", prepared.validation


def assess(task: Task, recipe: Recipe, prepared: Prepared, predictions: Predictions, *, split: str) -> Evaluation:
    """Compare predictions with the recipe's baselines, trained on the same rows and tuned on validation."""
    options, chosen = recipe.evaluation, recipe.evaluation.baselines
    # What is streamed is nowhere whole to learn from.
    usual = () if prepared.stream is not None else BASELINES[recipe.task.type]
    names = usual if chosen is None else chosen
    return evaluate_predictions(
        predictions, task.baselines(names, prepared, predictions, split=split),
        bootstrap=options.bootstrap, confidence=options.confidence, seed=recipe.training.seed, split=split,
    )  # fmt: skip


def save_evaluation(run: RunDir, evaluation: Evaluation, predictions: Predictions, **facts: Any) -> None:
    """Write evaluation/metrics.json, with ``facts``, and evaluation/predictions.parquet."""
    write_json(run.evaluation / METRICS_FILE, {**evaluation.to_json(), **facts})
    write_predictions(predictions, run.evaluation / PREDICTIONS_FILE)
