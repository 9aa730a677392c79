"""A short real run that says what a recipe needs and how fast it is, and the place where such measurements are kept."""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from launcher.atomic import read_jsonl, write_json
from launcher.data.prepare import cache_folder, fingerprint_of
from launcher.errors import InstallationError
from launcher.plans import Hardware, LaunchPlan
from launcher.recipe.load import LoadedRecipe
from launcher.recipe.schema import Recipe
from launcher.rundir import RunDir

STEPS = 8
"""Optimizer steps of a measurement; the first is left out of the speed, since it builds what later ones find ready."""

# What changes neither memory nor speed of a step.
_IDLE_TRAINING = {
    "num_train_epochs", "max_steps", "learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "weight_decay",
    "momentum", "metric_for_best_model", "greater_is_better", "early_stopping_patience", "logging_steps", "seed", "eval_strategy",
    "eval_steps", "save_strategy", "save_steps", "save_total_limit", "load_best_model_at_end", "label_smoothing_factor",
}  # fmt: skip


@dataclass(frozen=True)
class Measurement:
    """What a short run on this machine has used, the rank that used most."""

    base: int
    """Bytes before a model was built."""
    needed: int
    """Bytes at the peak, ``base`` included."""
    moments: Mapping[str, int]
    """Moment of the run -> bytes at its peak, ``base`` included."""
    tokens_per_second: float
    """Of all ranks together, evaluations and saves left out; 0 where too few steps were timed."""
    steps: int
    when: str


def measurement_key(recipe: Recipe, launch: LaunchPlan, facts: Mapping[str, Any], hardware: Hardware) -> str:
    """Return what a measurement is kept under: everything that memory and speed of a step depend on."""
    training = {k: v for k, v in recipe.training.model_dump(mode="json").items() if k not in _IDLE_TRAINING}
    return fingerprint_of(
        {
            "task": recipe.task.model_dump(mode="json"),
            "model": recipe.model.model_dump(mode="json"),
            "strategy": recipe.strategy.model_dump(mode="json"),
            "training": training,
            "distributed": recipe.distributed.model_dump(mode="json", exclude={"engine", "zero_stage"}),
            "launch": asdict(launch),
            "data": [facts.get("fingerprint"), facts.get("max_length")],
            "hardware": [[gpu.name for gpu in hardware.gpus], hardware.cpu_count, hardware.memory_bytes],
        }
    )[:32]


def find_measurement(
    recipe: Recipe, launch: LaunchPlan, facts: Mapping[str, Any], hardware: Hardware
) -> Measurement | None:
    """Return what was measured of such a run on such a machine, or None."""
    path = _kept(recipe, measurement_key(recipe, launch, facts, hardware))
    try:
        return Measurement(**json.loads(path.read_text())["measurement"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _kept(recipe: Recipe, key: str) -> Path:
    return cache_folder(recipe.data.cache_dir) / "measured" / f"{key}.json"


def measure(
    loaded: LoadedRecipe,
    hardware: Hardware,
    *,
    launch: LaunchPlan,
    facts: Mapping[str, Any],
    tell: Callable[[str], object] = lambda text: None,
) -> Measurement:
    """Train a few steps with the recipe's own batches (the longest first) in a folder that is removed, and keep what was seen.

    Evaluation on the test rows and the saving of the model are part of it, as in any run.

    Args:
        loaded: the recipe with the sharding that it is planned with.
        facts: of its prepared data.

    Raises:
        InstallationError: the short run failed; the text has its last words.
        RecipeError: the recipe has phases that begin only later.
    """
    from launcher.backends.endings import first_failure
    from launcher.backends.local import LocalBackend
    from launcher.workflows.start import create_attempt

    short = replace(loaded, recipe=_short(loaded.recipe))
    with tempfile.TemporaryDirectory(prefix="launcher-measure-") as folder:
        run, attempt = create_attempt(short, runs=Path(folder), hardware=hardware)
        tell(f"measuring {STEPS} steps in {run.path}")
        code = LocalBackend().submit(run.path, attempt=attempt)
        failed = first_failure(run, attempt)
        if code or failed:
            _, verdict = failed or (0, {"error": f"exit code {code}"})
            raise InstallationError(f"the short run failed, so nothing was measured: {verdict['error']}")
        found = read_measurement(run, attempt)
    write_json(
        _kept(loaded.recipe, measurement_key(loaded.recipe, launch, facts, hardware)),
        {"recipe": loaded.recipe.model_dump(mode="json"), "launch": asdict(launch), "measurement": asdict(found)},
    )
    return found


def _short(recipe: Recipe) -> Recipe:
    """Return the recipe for a few steps that leave nothing behind: no trackers, no checkpoints, no baselines."""
    training = recipe.training.model_copy(
        update={"max_steps": STEPS, "eval_strategy": "no", "save_strategy": "no", "logging_steps": 1.0,
                "early_stopping_patience": None, "eval_steps": None, "save_steps": None}
    )  # fmt: skip
    tracking = recipe.tracking.model_copy(update={"wandb": None, "report_to": []})
    evaluation = recipe.evaluation.model_copy(update={"bootstrap": 0, "baselines": []})
    return recipe.model_copy(update={"training": training, "tracking": tracking, "evaluation": evaluation})


def read_measurement(run: RunDir, attempt: int) -> Measurement:
    """Return what a run that has ended used, from its files."""
    notes = [json.loads(path.read_text()) for path in sorted(run.attempt(attempt).glob("memory.rank-*.json"))]
    if not notes:
        raise InstallationError(f"{run.path} has no memory.rank-R.json: its ranks wrote down no memory")
    most = max(notes, key=lambda note: note["peak_bytes"])
    rows = [row for row in read_jsonl(run.progress) if "tokens_per_second" in row]
    speeds = [row["tokens_per_second"] for row in rows if row["step"] > 1 and row["tokens_per_second"]]
    return Measurement(
        base=most["base_bytes"],
        needed=most["peak_bytes"],
        moments=most["moments"],
        tokens_per_second=statistics.median(speeds) if speeds else 0.0,
        steps=max((row["step"] for row in rows), default=0),
        when=time.strftime("%Y-%m-%d"),
    )
