"""The final evaluation: predictions, baselines, metrics with intervals, and the report."""

from __future__ import annotations

from typing import Any

import numpy as np

from launcher.contracts import Predictions, Prepared
from launcher.engine.context import RunContext
from launcher.evaluation.assessment import Evaluation, evaluate_predictions
from launcher.evaluation.baselines import TextRows, fit_baseline
from launcher.evaluation.predictions_io import write_predictions
from launcher.evaluation.verdict import verdict_sentence
from launcher.recipe.schema import Recipe
from launcher.rundir import RunDir, write_json
from launcher.workflows.report import METRICS_FILE, PREDICTIONS_FILE, write_report, write_report_without_texts


def evaluate_and_report(trainer: Any, *, worker_seconds: float) -> None:
    """Evaluate a trained model on all ranks; rank 0 writes evaluation/ and report.html, and ends the tracker's run."""
    context: RunContext = trainer.context
    prepared, progress, run = context.prepared, context.progress, context.run
    name, split = final_split(prepared)
    logits, _ = trainer.logits(split)
    if progress.rank != 0:
        return
    predictions = context.task.predictions(logits, split, prepared)
    evaluation = assess(context.recipe, prepared, predictions, split=name)
    chosen_by = trainer.args.metric_for_best_model if context.recipe.training.chooses_best else ""
    save_evaluation(run, evaluation, predictions, worker_seconds=worker_seconds, metric_for_best_model=chosen_by)
    report = write_report(run)
    sentence = verdict_sentence(evaluation)
    progress.say(f"{sentence}\nreport: {report}")
    wandb = context.recipe.tracking.wandb
    line = progress.tracker.finish(
        summary={f"{name}/{metric}": value for metric, value in evaluation.metrics.items()} | {"verdict": sentence},
        report=None if wandb is None else report if wandb.log_predictions else write_report_without_texts(run),
        predictions=run.evaluation / PREDICTIONS_FILE,
    )
    if line:
        progress.say(line)


def final_split(prepared: Prepared) -> tuple[str, Any]:
    """Return the rows of the final evaluation: test, or validation where there is no labelled test."""
    if prepared.test is not None and "labels" in prepared.test.column_names:
        return "test", prepared.test
    return "validation", prepared.validation


def assess(recipe: Recipe, prepared: Prepared, predictions: Predictions, *, split: str) -> Evaluation:
    """Compare predictions with the recipe's baselines, trained on the same rows and tuned on validation."""
    options = recipe.evaluation
    test = TextRows(predictions.texts, predictions.labels, predictions.row_ids)
    train, validation = _text_rows(prepared.train, prepared), _text_rows(prepared.validation, prepared)
    kind = {"problem_type": prepared.problem_type, "label_names": prepared.label_names}
    baselines = [fit_baseline(name, train, validation, test, **kind) for name in options.baselines]  # type: ignore[arg-type]
    return evaluate_predictions(
        predictions, baselines,
        bootstrap=options.bootstrap, confidence=options.confidence, seed=recipe.training.seed, split=split,
    )  # fmt: skip


def save_evaluation(run: RunDir, evaluation: Evaluation, predictions: Predictions, **facts: Any) -> None:
    """Write evaluation/metrics.json, with ``facts``, and evaluation/predictions.parquet."""
    write_json(run.evaluation / METRICS_FILE, {**evaluation.to_json(), **facts})
    write_predictions(predictions, run.evaluation / PREDICTIONS_FILE)


def _text_rows(split: Any, prepared: Prepared) -> TextRows:
    dtype = np.float64 if prepared.problem_type == "regression" else np.int64
    return TextRows(list(split["text"]), np.asarray(split["labels"]).astype(dtype), list(split["row_id"]))
