"""Trains a cell of the strategies benchmark through launcher's own line, in this process, and measures it."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import resource
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from accelerate.state import AcceleratorState
from strategies_adalora import train_adalora
from strategies_cells import (
    Cell,
    DataSet,
    Settings,
    micro_f1,
    pack_counts,
    permuted_scores,
    recipe_values,
    short_names,
    take_rows,
)

from launcher.contracts import Predictions
from launcher.engine.signals import StopFlag
from launcher.engine.tracking import NoTracker
from launcher.errors import TrainingDiverged
from launcher.evaluation.kinds import metrics_for
from launcher.evaluation.predictions_io import read_predictions
from launcher.planning.hardware import detect_hardware
from launcher.plans import LaunchPlan
from launcher.recipe.examine import examine
from launcher.recipe.load import load_recipe
from launcher.rundir import RunDir
from launcher.train import train
from launcher.workflows.rank import Session, start_ranks
from launcher.workflows.start import create_run

_UNUSED_ROWS = 8


@dataclass(frozen=True)
class Workshop:
    """Where cells are trained."""

    settings: Settings
    folder: Path
    """For data, caches and runs; whoever made it removes it."""
    kept: Path
    """Where what discriminative measures is kept for permuted."""

    def importance(self, cell: Cell) -> Path:
        """Return the file of what a cell of discriminative has measured."""
        return self.kept / f"{cell.data}-rate{cell.rate:g}-seed{cell.seed}.json"


@dataclass
class Clock(io.TextIOBase):
    """A terminal that notes when each line was told: the line of a run says what it does as it goes."""

    lines: list[tuple[str, float, float, int]] = field(default_factory=list)
    """Text, wall seconds, CPU-seconds, and peak of resident memory in KiB until then."""

    def write(self, text: str) -> int:
        """Note a line."""
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        self.lines += [(line, time.perf_counter(), time.process_time(), peak) for line in text.splitlines() if line]
        return len(text)

    def isatty(self) -> bool:
        """Return that no bar is wanted."""
        return False

    def first(self, *beginnings: str) -> tuple[str, float, float, int]:
        """Return the first line that begins so."""
        return next(line for line in self.lines if line[0].startswith(beginnings))

    def times(self) -> dict[str, float]:
        """Return the seconds from the plan, or the probe before it, to the end of training."""
        start, end = self.first("probe:", "plan:"), self.first("adapter:", "model:")
        plan = self.first("plan:")
        return {
            "seconds": round(end[1] - start[1], 2),
            "cpu_seconds": round(end[2] - start[2], 2),
            "probe_cpu_seconds": round(plan[2] - start[2], 2),
        }


def write_data(settings: Settings, source: Path, target: Path) -> None:
    """Write the rows that are used of every set as train.jsonl, validation.jsonl and test.jsonl.

    A run evaluates test once, with predictions for each row: validation rows stand before the test rows there. Training itself
    looks at no validation row, so its own file of them has a few only.
    """
    for data in settings.sets:
        rows = {split: take_rows(list(_rows(source / data.name, split)), number) for split, number in data.rows.items()}
        rows["test"] = rows["validation"] + rows["test"]
        rows["validation"] = rows["validation"][:_UNUSED_ROWS]
        for split, chosen in rows.items():
            path = target / data.name / f"{split}.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(json.dumps(row) + "\n" for row in chosen))


def _rows(folder: Path, split: str) -> Iterator[dict[str, Any]]:
    """Yield text and label of Banking77 (csv), or text and labels of GoEmotions (tsv without quotes)."""
    if (folder / f"{split}.csv").is_file():
        with (folder / f"{split}.csv").open(newline="", encoding="utf-8") as file:
            yield from ({"text": row["text"], "label": row["category"]} for row in csv.DictReader(file))
        return
    names = (folder / "labels.txt").read_text().split()
    with (folder / f"{split}.tsv").open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE):
            yield {"text": row["text"], "label": [names[int(number)] for number in row["labels"].split(",")]}


# --- a cell ----------------------------------------------------------------------------------------------------------


def train_cell(shop: Workshop, cell: Cell, *, importance_of: Cell | None = None) -> dict[str, Any]:
    """Train a cell and return its row of the results.

    Args:
        importance_of: the cell of discriminative whose ranks ``permuted`` takes.
    """
    data = shop.settings.data(cell.data)
    session, clock = start(shop, cell, importance_of=importance_of)
    row: dict[str, Any] = {"settings": shop.settings.key(cell.data), **vars(cell), "date": time.strftime("%Y-%m-%d")}
    load = os.getloadavg()[0]
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            found = _run_adalora(session, shop.settings, clock) if cell.arm == "adalora" else _run(session)
        row |= results(data, found.pop("predictions")) | found | clock.times()
        row |= {"precision": session.launch.precision, "load": round(load, 1)}
        if cell.arm == "discriminative":
            _keep_importance(session.run, shop.importance(cell))
    except TrainingDiverged as error:
        row["error"] = str(error)
    finally:
        shutil.rmtree(session.run.path, ignore_errors=True)
    return row


def start(
    shop: Workshop, cell: Cell, *, importance_of: Cell | None = None, max_steps: int | None = None
) -> tuple[Session, Clock]:
    """Return the session of a new run of a cell, and the clock that is its terminal."""
    importance = None
    if cell.arm == "permuted":
        assert importance_of is not None
        importance = _permute(shop.importance(importance_of), shop.folder / "permuted.json", seed=cell.seed)
    values = recipe_values(
        shop.settings, cell,
        source=shop.folder / "data" / cell.data, cache=shop.folder / "cache", importance=importance, max_steps=max_steps,
    )  # fmt: skip
    path = shop.folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(values))
    loaded, problems = examine(str(path), [])
    assert loaded is not None and not problems, problems
    run, attempt = create_run(loaded, runs=shop.folder / "runs", hardware=detect_hardware())
    recipe = load_recipe(run.resolved).recipe
    noted = json.loads(run.launch_plan(attempt).read_text())
    launch, clock = LaunchPlan.from_json(noted["plan"]), Clock()
    AcceleratorState._reset_state()
    session = Session(
        run=run, attempt=attempt, rank=0, recipe=recipe, base_folder=Path(noted["base_folder"]), launch=launch,
        stop=StopFlag(run.stop_request(attempt)), terminal=clock, started=time.time(),
        arguments=start_ranks(recipe, launch, run.path),
    )  # fmt: skip
    return session, clock


def _run(session: Session) -> dict[str, Any]:
    train(session, NoTracker())
    run = session.run
    plan = json.loads(run.plan.read_text())
    phases = [phase["phase"]["table"]["groups"] for phase in plan["phases"]]
    trainable = [sum(group["numel"] for group in groups if group["trainable"]) for groups in phases]
    found = {"trainable": max(trainable), "steps": plan["total_steps"]}
    if run.importance.is_file():
        values = json.loads(run.importance.read_text())
        found |= {
            "effective_share": round(values["effective_share"], 4),
            "is_uniform": values["allocation"]["is_uniform"],
        }
    adapters = plan["phases"][-1]["phase"]["adapters"]
    found |= {"ranks": short_names(adapters["ranks"])} if adapters else {}
    return found | {"predictions": read_predictions(run.evaluation / "predictions.parquet")}


def results(data: DataSet, predictions: Predictions) -> dict[str, Any]:
    """Return what a row says about quality; ``counts`` are those from which the metric of any choice of test rows follows.

    Several labels: what is predicted is every label above a threshold, the one with which validation's micro F1 is best.
    """
    validation = data.rows["validation"]
    scores, labels = np.asarray(predictions.scores), np.asarray(predictions.labels)
    threshold = None
    if labels.ndim == 2:
        threshold = best_threshold(scores[:validation], labels[:validation])
    counts = count_rows(scores, labels, threshold=threshold)
    test = replace(predictions, scores=scores[validation:], labels=labels[validation:])
    return {
        "validation": round(micro_f1(counts[:validation]), 6),
        "test": round(micro_f1(counts[validation:]), 6),
        "test_log_loss": round(metrics_for(test)["log_loss"], 6),
        "threshold": threshold,
        "counts": pack_counts(counts[validation:]),
    }


def count_rows(scores: np.ndarray, labels: np.ndarray, *, threshold: float | None) -> np.ndarray:
    """Return for each row how many labels are found, predicted, and there: int [rows, 3]."""
    if threshold is None:
        right = scores.argmax(axis=1) == labels
        return np.stack([right, np.ones_like(right), np.ones_like(right)], axis=1).astype(int)
    decided = scores > threshold
    return np.stack([(decided & (labels > 0)).sum(1), decided.sum(1), labels.sum(1)], axis=1).astype(int)


def best_threshold(scores: np.ndarray, labels: np.ndarray) -> float:
    """Return the threshold, of 0.01 to 0.99, with the best micro F1; the lowest of equal ones."""
    candidates = [number / 100 for number in range(1, 100)]
    return max(candidates, key=lambda threshold: micro_f1(count_rows(scores, labels, threshold=threshold)))


def _run_adalora(session: Session, settings: Settings, clock: Clock) -> dict[str, Any]:
    def say(text: str) -> None:
        clock.write(text + "\n")

    values = {"rank": settings.rank, "scale": settings.scale, "head_rate": settings.head_rate}
    return train_adalora(session, **values, say=say)


def _keep_importance(run: RunDir, path: Path) -> None:
    """Keep what a probe has measured: scores, and what the run made of them."""
    values = json.loads(run.importance.read_text())
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = {name: values[name] for name in ("format", "score", "effective_share", "modules", "allocation")}
    path.write_text(json.dumps(kept, sort_keys=True) + "\n")


def _permute(source: Path, target: Path, *, seed: int) -> Path:
    values = json.loads(source.read_text())
    target.write_text(
        json.dumps({"format": values["format"], "modules": permuted_scores(values["modules"], seed=seed)})
    )
    return target


# --- memory ----------------------------------------------------------------------------------------------------------


def measure_memory(shop: Workshop, cell: Cell, *, steps: int, importance_of: Cell | None = None) -> dict[str, Any]:
    """Return the peak of resident memory in MiB over a few steps of a cell, and what there was before its model was built.

    Of a process of its own: the peak of a process never falls.
    """
    session, clock = start(shop, cell, importance_of=importance_of, max_steps=steps)
    with contextlib.redirect_stdout(io.StringIO()):
        if cell.arm == "adalora":
            _run_adalora(session, shop.settings, clock)
        else:
            train(session, NoTracker())
    before = clock.first("data:")[3]
    peak = [line for line in clock.lines if line[0].startswith("step ")][-1][3]
    return {"data": cell.data, "arm": cell.arm, "peak_mib": round(peak / 1024), "before_mib": round(before / 1024)}
