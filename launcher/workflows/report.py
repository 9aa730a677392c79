"""Write a run's report from the files of its directory alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

from launcher.atomic import read_jsonl, write_text
from launcher.errors import RecipeError, RunStateError
from launcher.evaluation.assessment import Evaluation
from launcher.evaluation.plots_training import used_rates
from launcher.evaluation.report import ReportFacts, render_report
from launcher.plans import RunPlan
from launcher.recipe.load import load_recipe
from launcher.recipe.schema import Recipe
from launcher.recipe.task_options import IMAGE_TASKS
from launcher.rundir import RunDir
from launcher.workflows.importance_view import importance_facts
from launcher.workflows.label_errors import label_error_facts
from launcher.workflows.plan_view import group_row, plan_from_json, rate_lines, table_views
from launcher.workflows.verify import describe, verification_of

METRICS_FILE = "metrics.json"
PREDICTIONS_FILE = "predictions.parquet"


def write_report(run: RunDir) -> Path:
    """Write report.html and return its path. Raises RunStateError before the run has a plan."""
    write_text(run.report, render_report(report_facts(run)))
    return run.report


def write_report_without_texts(run: RunDir) -> Path:
    """Write a copy of the report that quotes no row of the data, to be uploaded, and return its path."""
    facts = report_facts(run)
    evaluation = {**facts.evaluation, "mistakes": []} if facts.evaluation else None
    shared = replace(facts, evaluation=evaluation, label_errors={}, samples=(), data={**facts.data, "warnings": []})
    path = run.path / "wandb" / "report-without-texts.html"
    write_text(path, render_report(shared))
    return path


def read_evaluation(run: RunDir) -> tuple[Evaluation, Mapping[str, Any]]:
    """Return the evaluation that a run's metrics.json holds, and the facts beside it."""
    path = run.evaluation / METRICS_FILE
    if not path.is_file():
        raise RunStateError(f"{run.path} has not been evaluated; finish it with `launcher resume {run.path}`")
    values = json.loads(path.read_text())
    known = {name: value for name, value in values.items() if name in Evaluation.__dataclass_fields__}
    return Evaluation.from_json(known), {name: value for name, value in values.items() if name not in known}


def report_facts(run: RunDir) -> ReportFacts:
    """Collect what the report shows."""
    if not run.plan.is_file():
        raise RunStateError(
            f"{run.path} has no plan yet: it ended before its first step; see {run.log(run.last_attempt, 0)}"
        )
    values = json.loads(run.plan.read_text())
    plan = plan_from_json(values)
    progress, recipe = _without_replayed(read_jsonl(run.progress)), _recipe(run)
    evaluation, extra = read_evaluation(run) if (run.evaluation / METRICS_FILE).is_file() else (None, {})
    events = read_jsonl(run.events)
    return ReportFacts(
        run_name=run.id,
        created=datetime.fromtimestamp(events[0]["time"]).strftime("%Y-%m-%d %H:%M"),
        recipe_text=run.recipe.read_text(),
        evaluation=evaluation.to_json() if evaluation else None,
        progress=progress,
        tuning_tables=_tables(plan),
        rates=_rates(plan, recipe, progress) if recipe else {},
        importance=_importance(run, recipe),
        label_errors=label_error_facts(run, extra.get("label_errors", {})),
        samples=_samples(run),
        data=_data_facts(plan.facts),
        environment=_environment(run, values),
        commands=_commands(run, example="a.jpg" if recipe and recipe.task.type in IMAGE_TASKS else "'a text'"),
        timing={"training": _training_seconds(events), "whole_run": extra.get("worker_seconds")},
        metric_for_best_model=extra.get("metric_for_best_model", ""),
    )


def _tables(plan: RunPlan) -> list[dict[str, Any]]:
    return [
        {"headings": view.headings, "note": view.phase.note, "is_probe": view.is_probe,
         "rows": [group_row(group) for group in view.groups]}
        for view in table_views(plan)
    ]  # fmt: skip


def _recipe(run: RunDir) -> Recipe | None:
    """Return the run's recipe; None where it was written for another version of this program."""
    try:
        return load_recipe(run.resolved).recipe
    except RecipeError:
        return None


def _rates(plan: RunPlan, recipe: Recipe, progress: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the rates as planned, and as used at the steps that were logged."""
    planned = rate_lines(plan, recipe)
    depths = {line["name"]: line["depth"] for line in planned["lines"]}
    return {**planned, "used": used_rates(progress, depths)}


def _importance(run: RunDir, recipe: Recipe | None) -> dict[str, Any]:
    if not run.importance.is_file():
        return {}
    bound = recipe.strategy.uniform_above if recipe and recipe.strategy.type == "discriminative" else None
    return importance_facts(json.loads(run.importance.read_text()), uniform_above=bound)


def _without_replayed(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Leave out rows of steps that a later attempt trained again."""
    kept: list[dict[str, Any]] = []
    for row in rows:
        while kept and kept[-1]["attempt"] < row["attempt"] and kept[-1]["step"] >= row["step"]:
            kept.pop()
        kept.append(row)
    return kept


def _samples(run: RunDir) -> list[dict[str, Any]]:
    """Return for each sample prompt what the model answered at first, half-way and at the end."""
    rows = read_jsonl(run.generations) if run.generations.is_file() else []
    # Steps that a resumed run took again have the answers of the last time.
    by_row: dict[int, dict[tuple[int, bool], dict[str, Any]]] = {}
    for row in rows:
        by_row.setdefault(row["row_id"], {})[row["step"], row["final"]] = row
    found = []
    for answers in by_row.values():
        moments = sorted(answers)
        shown = [answers[moment] for moment in sorted({moments[0], moments[(len(moments) - 1) // 2], moments[-1]})]
        told = [
            {
                "when": "trained" if row["final"] else f"step {row['step']:,}",
                "answer": row["answer"],
                "ended": row["ended"],
            }
            for row in shown
        ]
        found.append({"prompt": shown[0]["prompt"], "reference": shown[0]["reference"], "answers": told})
    return found


def _data_facts(facts: Mapping[str, Any]) -> dict[str, Any]:
    splits = facts["splits"]
    # An image counts one.
    return {
        "splits": {name: split["rows"] for name, split in splits.items()},
        "truncated": {name: split["cut"] for name, split in splits.items()},
        "fingerprint": facts["fingerprint"],
        "warnings": facts["warnings"],
        "max_length": facts["max_length"] if facts["max_length"] > 1 else None,
        "provenance": facts["provenance"],
        "class_sampling": facts.get("class_sampling"),
        "mixture": facts.get("mixture", {}).get("told"),
    }


def _environment(run: RunDir, plan: Mapping[str, Any]) -> dict[str, Any]:
    path = run.attempt(run.last_attempt) / "environment.json"
    found = json.loads(path.read_text()) if path.is_file() else {}
    launch, verification = plan["launch"], verification_of(run)
    return {
        **({"saved_model": describe(verification)} if verification else {}),
        "processes": launch["nodes"] * launch["processes_per_node"],
        "engine": launch["engine"] + (f" ZeRO-{launch['zero_stage']}" if launch["zero_stage"] is not None else ""),
        "precision": launch["precision"],
        "device": launch["device"],
        "model_revision": plan["facts"].get("model_revision"),
        **found,
    }


def _commands(run: RunDir, *, example: str) -> list[str]:
    folder = Path("runs") / run.id
    return [f"launcher run {folder}/resolved.yaml", f"launcher predict {folder} {example}"]


def _training_seconds(events: list[dict[str, Any]]) -> float | None:
    """Seconds between the start of training and its end, over all attempts."""
    total, started = 0.0, None
    for row in events:
        if row["event"] == "running":
            started = row["time"]
        elif row["event"] in ("trained", "interrupted", "failed") and started is not None:
            total, started = total + row["time"] - started, None
    return total or None
