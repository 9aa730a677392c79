"""The final evaluation: predictions, baselines, metrics with intervals, and the report."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from launcher.contracts import Predictions, Prepared, RunPlan
from launcher.engine.trainer import RunContext
from launcher.evaluation.assessment import Evaluation, evaluate_predictions
from launcher.evaluation.baselines import Baseline, TextRows, fit_baseline
from launcher.evaluation.predictions_io import write_predictions
from launcher.evaluation.verdict import verdict_sentence
from launcher.recipe.schema import Recipe
from launcher.rundir import RunDir, write_json
from launcher.workflows.report import write_report

METRICS_FILE = "metrics.json"
PREDICTIONS_FILE = "predictions.parquet"


def evaluate_and_report(trainer: Any, plan: RunPlan, *, seconds: float) -> None:
    """Evaluate a trained model on all ranks; rank 0 writes evaluation/, report.html, and ends the tracker's run."""
    context: RunContext = trainer.context
    prepared, progress = context.prepared, context.progress
    name, split = final_split(prepared)
    logits, _ = trainer.logits(split)
    if progress.rank != 0:
        return
    predictions = context.task.predictions(logits, split, prepared)
    evaluation = assess(context.recipe, prepared, predictions, split=name)
    save_evaluation(context.run, evaluation, predictions, attempt=context.attempt, training_seconds=seconds)
    write_report(context.run)
    sentence = verdict_sentence(evaluation)
    progress.say(f"{sentence}\nreport: {context.run.report}")
    line = context.progress.tracker.finish(
        summary={f"{name}/{metric}": value for metric, value in evaluation.metrics.items()} | {"verdict": sentence},
        report=context.run.report,
        predictions=context.run.evaluation / PREDICTIONS_FILE,
    )
    if line:
        progress.say(line)


def final_split(prepared: Prepared) -> tuple[str, Any]:
    """Return the rows of the final evaluation: test, or validation where there is no test."""
    if prepared.test is not None:
        return "test", prepared.test
    return "validation", prepared.validation


def assess(recipe: Recipe, prepared: Prepared, predictions: Predictions, *, split: str) -> Evaluation:
    """Compare predictions with the recipe's baselines, trained on the same rows and tuned on validation."""
    options = recipe.evaluation
    test = TextRows(predictions.texts, predictions.labels, predictions.row_ids)
    baselines: list[Baseline] = []
    if predictions.labels is not None:
        train, validation = _text_rows(prepared.train, prepared), _text_rows(prepared.validation, prepared)
        baselines = [
            fit_baseline(
                name, train, validation, test,
                problem_type=prepared.problem_type, label_names=prepared.label_names,
            )
            for name in options.baselines
        ]  # fmt: skip
    return evaluate_predictions(
        predictions, baselines,
        bootstrap=options.bootstrap, confidence=options.confidence, seed=recipe.training.seed, split=split,
    )  # fmt: skip


def save_evaluation(
    run: RunDir, evaluation: Evaluation, predictions: Predictions, *, attempt: int, training_seconds: float | None
) -> None:
    """Write evaluation/metrics.json and evaluation/predictions.parquet."""
    facts: Mapping[str, Any] = {"attempt": attempt, "worker_seconds": training_seconds}
    write_json(run.evaluation / METRICS_FILE, {**evaluation.to_json(), **facts})
    write_predictions(predictions, run.evaluation / PREDICTIONS_FILE)


def read_evaluation(run: RunDir) -> Evaluation:
    """Return the evaluation that a run's metrics.json holds."""
    values = json.loads((run.evaluation / METRICS_FILE).read_text())
    return Evaluation.from_json({k: v for k, v in values.items() if k in Evaluation.__dataclass_fields__})


def _text_rows(split: Any, prepared: Prepared) -> TextRows:
    labels = np.asarray(split["labels"])
    dtype = np.float64 if prepared.problem_type == "regression" else np.int64
    return TextRows(list(split["text"]), labels.astype(dtype), list(split["row_id"]))
