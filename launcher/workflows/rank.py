"""One rank of a run: how it comes to its session, started by `launcher` or by `accelerate launch`, and how it ends."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TextIO

from launcher.atomic import write_json
from launcher.engine.heartbeat import Heartbeat
from launcher.engine.session import (
    as_full_disk,
    describe_environment,
    take_reserve,
    write_output_to,
    write_start,
    write_verdict,
)
from launcher.engine.signals import StopFlag
from launcher.engine.tracking import Tracker, start_tracker
from launcher.errors import Interrupted, LauncherError, RecipeError
from launcher.launching.locks import Lock, hold_rank
from launcher.launching.processes import die_with_parent
from launcher.plans import BatchPlan, LaunchPlan
from launcher.recipe.load import load_recipe, resolved_text
from launcher.recipe.schema import Recipe
from launcher.rundir import RunDir

_RANK_0_SPEAKS_SECONDS = 5.0


@dataclass(frozen=True)
class Place:
    """Where a rank writes."""

    run: RunDir
    attempt: int
    rank: int


@dataclass(frozen=True)
class Session:
    """One rank of one attempt."""

    run: RunDir
    attempt: int
    rank: int
    recipe: Recipe
    base_folder: Path
    launch: LaunchPlan
    stop: StopFlag
    terminal: TextIO | None
    started: float
    arguments: Callable[..., Any]
    """Makes TrainingArguments for a batch, with changes of the recipe's section ``training``."""
    heartbeat: Heartbeat = field(default_factory=Heartbeat)
    lock: Lock | None = None
    """Of this rank's place in the run; held until the process ends."""


def started_by_launcher(place: Place, lock: Lock | None, started: float) -> Session:
    """Return the session of a rank of a run that lies there already; its output goes to its log from here on."""
    die_with_parent()
    run, attempt, rank = place.run, place.attempt, place.rank
    stop, terminal, heartbeat = _show_up(run, attempt, rank)
    noted = json.loads(run.launch_plan(attempt).read_text())
    recipe, launch = load_recipe(run.resolved).recipe, LaunchPlan.from_json(noted["plan"])
    _set_deadlines(heartbeat, recipe)
    session = Session(
        run=run,
        attempt=attempt,
        rank=rank,
        recipe=recipe,
        base_folder=Path(noted["base_folder"]),
        launch=launch,
        stop=stop,
        terminal=terminal if rank == 0 else None,
        started=started,
        arguments=_joined(heartbeat, recipe, launch, run.path, deepspeed=read_deepspeed(run, attempt)),
        heartbeat=heartbeat,
        lock=lock,
    )
    _write_environment(session)
    return session


def started_by_accelerate(options: argparse.Namespace, rank: int, started: float) -> tuple[Session, TextIO]:
    """Return the session of a rank that the user's own `accelerate launch` has started, and its terminal; rank 0 makes the run.

    Raises:
        RecipeError: the recipe has faults, or does not go with accelerate's configuration.
    """
    from launcher.launching.deepspeed import deepspeed_config
    from launcher.launching.under_accelerate import plan_under_accelerate
    from launcher.planning.hardware import detect_hardware
    from launcher.recipe.examine import examine
    from launcher.workflows.start import write_configuration

    loaded, problems = examine(options.recipe, options.overrides)
    if loaded is None or problems:
        raise RecipeError(problems)
    adapted = plan_under_accelerate(loaded.recipe, detect_hardware(), os.environ)
    recipe, launch = adapted.recipe, adapted.launch
    deepspeed = deepspeed_config(recipe, launch, base=adapted.deepspeed) if launch.engine == "deepspeed" else None
    # Starts torch.distributed, which the ranks need to agree on a run directory.
    start_ranks(recipe, launch, options.runs_dir, deepspeed=deepspeed)
    run, attempt = _share_run(recipe, loaded.source_text, options.runs_dir, rank)
    arguments = start_ranks(recipe, launch, run.path, deepspeed=deepspeed)
    lock = hold_rank(run, rank)
    stop, terminal, heartbeat = _show_up(run, attempt, rank)
    _set_deadlines(heartbeat, recipe)
    base = Path.cwd()
    if rank == 0:
        write_json(run.launch_plan(attempt), {"plan": asdict(launch), "base_folder": str(base)})
        write_configuration(run, attempt, recipe, launch, deepspeed=adapted.deepspeed)
        print(f"run: {run.path}", file=terminal)
    shown = terminal if rank == 0 else None
    session = Session(run, attempt, rank, recipe, base, launch, stop, shown, started, arguments, heartbeat, lock)
    _write_environment(session)
    return session, terminal


def _show_up(run: RunDir, attempt: int, rank: int) -> tuple[StopFlag, TextIO, Heartbeat]:
    """Listen to requests to stop, and be seen from outside: verdict, log and heartbeat. Return also the old terminal."""
    stop = StopFlag(run.stop_request(attempt))
    stop.install()
    write_start(run.verdict(attempt, rank))
    take_reserve(run.reserve(attempt, rank))
    terminal = write_output_to(run.log(attempt, rank))
    heartbeat = Heartbeat(run.heartbeat(attempt, rank), rank=rank)
    heartbeat.start()
    return stop, terminal, heartbeat


def _set_deadlines(heartbeat: Heartbeat, recipe: Recipe) -> None:
    heartbeat.set_deadlines(timeout=recipe.distributed.timeout, startup_timeout=recipe.distributed.startup_timeout)


def _joined(
    heartbeat: Heartbeat, recipe: Recipe, launch: LaunchPlan, output: Path, *, deepspeed: dict[str, Any] | None
) -> Callable[..., Any]:
    # What it imports takes long on a busy file system; the ranks themselves wait for each other no longer than the timeout.
    heartbeat.beat("joining the other ranks", may_be_silent=True)
    return start_ranks(recipe, launch, output, deepspeed=deepspeed)


def read_deepspeed(run: RunDir, attempt: int) -> dict[str, Any] | None:
    """Return the configuration with which the attempt was started: the file that a recipe names may be another by now."""
    file = run.deepspeed(attempt)
    config: dict[str, Any] | None = json.loads(file.read_text()) if file.is_file() else None
    return config


def start_ranks(
    recipe: Recipe, launch: LaunchPlan, output: Path, *, deepspeed: dict[str, Any] | None = None
) -> Callable[..., Any]:
    """Start torch.distributed where there are several ranks, and return what makes TrainingArguments for a batch."""
    from launcher.engine.arguments import training_arguments

    def make(batch: BatchPlan, **training: Any) -> Any:
        plan = replace(launch, batch=batch)
        changed = recipe.model_copy(update={"training": recipe.training.model_copy(update=training)})
        return training_arguments(changed, plan, output_dir=str(output), deepspeed=deepspeed)

    make(launch.batch)
    return make


def _share_run(recipe: Recipe, text: str, runs: Path, rank: int) -> tuple[RunDir, int]:
    """Rank 0 makes the run directory and tells the others where it is."""
    import torch.distributed as dist

    where: list[Any] = [None]
    if rank == 0:
        run = RunDir.create(runs.resolve(), recipe.name, recipe_text=text, resolved_text=resolved_text(recipe))
        where = [(str(run.path), run.new_attempt())]
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        dist.broadcast_object_list(where)
    path, attempt = where[0]
    return RunDir.open(Path(path)), attempt


def _write_environment(session: Session) -> None:
    if session.rank == 0:
        facts = describe_environment(session.base_folder)
        write_json(session.run.attempt(session.attempt) / "environment.json", facts)


@contextmanager
def tracked(session: Session) -> Iterator[Tracker]:
    """Give a rank its tracker. Of a cluster's job, which nobody watches, it tells its owner how each attempt begins and ends."""
    run, attempt = session.run, session.attempt
    config = session.recipe.model_dump(mode="json")
    tracker = start_tracker(
        session.recipe.tracking.wandb, run, rank=session.rank, config=config, alerts=run.place(attempt).is_file()
    )
    if attempt > 1:
        tracker.alert("goes on", f"attempt {attempt} begins, from the newest valid checkpoint")
    try:
        yield tracker
    except Interrupted as stop:
        tracker.alert(
            "was stopped",
            f"attempt {attempt}: {stop}; it is requeued, unless it was cancelled or its budget is used up",
        )
        raise
    except Exception as error:
        tracker.alert("has failed", f"attempt {attempt}: {type(error).__name__}: {error}")
        raise


def end_rank(place: Place | None, rank: int, error: BaseException | None, terminal: TextIO | None) -> int:
    """Write the verdict, show an error on ``terminal`` where no parent will show it, and return the exit code."""
    if place is None:
        # Before a run directory exists, a recipe's faults are all that a user should meet.
        if isinstance(error, LauncherError):
            if rank != 0:
                # Rank 0 most likely has the same to say; its end then also ends this rank before it repeats it.
                time.sleep(_RANK_0_SPEAKS_SECONDS)
            print(error, file=sys.stderr, flush=True)
            return error.exit_code
        assert error is not None
        raise error
    error = as_full_disk(error)
    try:
        place.run.reserve(place.attempt, place.rank).unlink(missing_ok=True)
        code = write_verdict(place.run.verdict(place.attempt, place.rank), error)
        if place.rank == 0:
            _add_final_event(place, error)
    except OSError as full:
        # Most likely the disk is full to the last byte. What ended the rank is still told, to the terminal at least.
        print(f"the verdict could not be written ({full}): {error or 'finished'}", file=sys.stderr, flush=True)
        return error.exit_code if isinstance(error, LauncherError) else 1
    if error is not None:
        verdict = place.run.verdicts(place.attempt)[place.rank]
        text = verdict["traceback"] or verdict["error"]
        print(text, file=sys.stderr, flush=True)
        if terminal is not None:
            print(text, file=terminal, flush=True)
    return code


def _add_final_event(place: Place, error: BaseException | None) -> None:
    if error is None:
        place.run.add_event("finished", attempt=place.attempt)
    else:
        state = "interrupted" if isinstance(error, (Interrupted, KeyboardInterrupt)) else "failed"
        place.run.add_event(state, attempt=place.attempt, reason=str(error) or type(error).__name__)


def leave_group() -> None:
    """End torch.distributed; left to the interpreter's exit, gloo sometimes aborts a run that has finished."""
    if "torch" not in sys.modules:
        return
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()
