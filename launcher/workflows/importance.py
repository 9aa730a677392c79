"""Which modules matter: measured by a probe once, kept under a key of all that it depends on, and read ever after."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from launcher.atomic import write_text
from launcher.contracts import Parameter
from launcher.data.prepare import cache_folder
from launcher.engine.context import RunContext
from launcher.engine.probe import probe_plan, run_probe
from launcher.engine.progress import Progress
from launcher.engine.release import release
from launcher.engine.tracking import NoTracker
from launcher.errors import Interrupted
from launcher.rundir import RunDir
from launcher.strategies.discriminative import measured, with_allocation
from launcher.strategies.importance_file import Importance, importance_key, read_importance

_PACKAGES = ("torch", "transformers", "peft")


def find_importance(
    context: RunContext, model: Any, parameters: Sequence[Parameter], *, arguments: Callable[..., Any]
) -> Mapping[str, Any]:
    """Return importance.json's values for this run: found under the same key, or measured by a probe, which uses ``model`` up.

    Rank 0 looks and writes; the file in the run directory is what all ranks read.

    Raises:
        Interrupted: the run was asked to stop; the probe's checkpoint is kept.
    """
    run = context.run
    if context.progress.rank == 0:
        _look(context, model, parameters)
    note = context.stop.wait_for(run.probe_note(context.attempt))
    if not note["found"]:
        scores = _measure(context, model, arguments)
        if context.progress.rank == 0:
            _keep(context, measured(parameters, context.recipe, scores, key_parts=note["key_parts"]))
    result: Mapping[str, Any] = context.stop.wait_for(run.importance)
    if context.progress.rank == 0:
        context.progress.tracker.log_table("importance", _table(result))
    return result


def _look(context: RunContext, model: Any, parameters: Sequence[Parameter]) -> None:
    """Find the importance that has this run's key: the run's own, or one that an earlier run has kept."""
    parts = _key_parts(context, model)
    key, run = importance_key(parts), context.run
    places = {run.importance: "this run's", _kept(context, key): "an earlier run's"}
    found = next((path for path in places if path.is_file() and read_importance(path).key == key), None)
    if found is not None:
        context.progress.say(f"importance: {places[found]} {found}; same model, data, options, seed and versions")
        importance = with_allocation(read_importance(found), parameters, context.recipe)
        write_text(run.importance, importance.to_text())
    else:
        run.importance.unlink(missing_ok=True)
    write_text(run.probe_note(context.attempt), json.dumps({"found": found is not None, "key_parts": parts}))


def _key_parts(context: RunContext, model: Any) -> dict[str, Any]:
    """Return all that a measurement depends on, as plain values."""
    recipe, probe = context.recipe, context.plan.probe
    assert probe is not None
    training, batch = recipe.training.model_dump(mode="json"), context.plan.phases[0].batch
    lasting = ("num_train_epochs", "max_steps", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps")
    watching = (
        "logging_",
        "eval_",
        "save_",
        "load_best",
        "metric_for",
        "greater_",
        "early_",
        "per_device_eval",
        "log_level",
    )
    return {
        "model": context.task.model_revision(model),
        "data": context.prepared.fingerprint,
        "max_length": context.prepared.facts["max_length"],
        "task": recipe.task.model_dump(mode="json"),
        "options": dict(probe.options),
        # How long the run is and what it is judged by does not reach the probe.
        "training": {k: v for k, v in training.items() if k not in lasting and not k.startswith(watching)},
        "rows_at_a_time": batch.global_batch_size if batch.budget is None else batch.step,
        "model_config": recipe.model.config,
        "dtype": recipe.model.dtype,
        "precision": context.launch.precision,
        "versions": {name: version(name).partition("+")[0] for name in _PACKAGES},
    }


def _measure(context: RunContext, model: Any, arguments: Callable[..., Any]) -> dict[str, np.ndarray]:
    """Run the probe in a folder of its own."""
    probe = context.plan.probe
    assert probe is not None
    folder = RunDir(context.run.path / "probe")
    folder.attempt(context.attempt).mkdir(parents=True, exist_ok=True)
    told = context.progress
    told.say(f"probe: {probe.steps} steps to measure importance ({probe.score}); its weights are discarded")
    before = folder.latest_checkpoint() if probe.score != "eva" else None
    if before is not None:
        told.say(f"continuing the probe from {before.name}")
    progress = Progress(
        folder,
        attempt=context.attempt,
        rank=told.rank,
        terminal=told.terminal,
        tracker=NoTracker(),
        heartbeat=told.heartbeat,
    )
    plan = probe_plan(probe, context.plan)
    inside = replace(context, run=folder, plan=plan, progress=progress)
    # A gradient that is measured, and moves nothing, is not to be scaled.
    unclipped = {} if probe.score == "sensitivity" else {"max_grad_norm": 0.0}
    trainer, ending, scores = run_probe(inside, model, arguments(plan.phases[0].batch, **unclipped))
    if ending == "stopped":
        raise Interrupted(
            f"stopped by {context.stop.reason or 'another rank'} in the probe, at step {trainer.state.global_step}"
        )
    release(trainer)
    return scores


def _keep(context: RunContext, importance: Importance) -> None:
    """Write importance.json into the run and, for later runs, beside the prepared data; then drop the probe's checkpoints."""
    text = importance.to_text()
    write_text(_kept(context, importance.key), text)
    write_text(context.run.importance, text)
    shutil.rmtree(context.run.path / "probe" / "checkpoints", ignore_errors=True)


def _table(values: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a row for each module, in the order of depth: its importance and what follows from it."""
    allocation = values["allocation"]
    ranks, scales = allocation.get("ranks", {}), allocation.get("scales", {})
    trainable = frozenset(allocation.get("trainable", ()))
    return [
        {
            "module": name,
            "depth": module["depth"],
            "importance": sum(module["scores"]),
            "rank": ranks.get(name),
            "rate scale": scales.get(name),
            "trains": name in trainable if allocation["apply"] == "freeze" else True,
        }
        for name, module in sorted(values["modules"].items(), key=lambda item: (item[1]["depth"], item[0]))
    ]


def _kept(context: RunContext, key: str) -> Path:
    return cache_folder(context.recipe.data.cache_dir) / "importance" / f"{key}.json"
