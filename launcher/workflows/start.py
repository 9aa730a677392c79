"""From a checked recipe to a started run: the front half's part of the straight line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from launcher.atomic import write_json, write_text
from launcher.engine.checkpoint_files import read_manifest
from launcher.errors import InstallationError, RunStateError
from launcher.launching.continuing import way_to_continue
from launcher.launching.deepspeed import deepspeed_config, named_file, reopened
from launcher.launching.launch_plan import plan_launch, refuse_tensor_parallel, settle
from launcher.launching.render import accelerate_config
from launcher.plans import Hardware, LaunchPlan
from launcher.recipe.changes import Change
from launcher.recipe.deepspeed_file import stage_of, zero_of
from launcher.recipe.load import LoadedRecipe, load_recipe, resolved_text
from launcher.recipe.schema import Recipe
from launcher.rundir import RunDir
from launcher.workflows.resuming import changes_since_first, refuse_another_run
from launcher.workflows.room import with_room


def create_run(loaded: LoadedRecipe, *, runs: Path, hardware: Hardware) -> tuple[RunDir, int]:
    """Make the run directory and its first attempt, ready to start; return both. Nothing is written if planning fails.

    Raises:
        RecipeError: there is no room for the run.
    """
    return create_attempt(with_room(loaded, hardware=hardware, runs=runs), runs=runs, hardware=hardware)


def create_attempt(loaded: LoadedRecipe, *, runs: Path, hardware: Hardware) -> tuple[RunDir, int]:
    """As ``create_run``, without asking whether there is room."""
    plan_processes(loaded.recipe, hardware)
    run = create_directory(loaded, runs=runs)
    recipe = load_recipe(run.resolved).recipe
    return run, begin_attempt(
        run, recipe, hardware=hardware, base_folder=Path.cwd(), deepspeed=named_file(loaded.recipe)
    )


def create_directory(loaded: LoadedRecipe, *, runs: Path) -> RunDir:
    """Make a run's directory without an attempt: what a job on a cluster begins with."""
    # What a DeepSpeed file says stands in resolved.yaml: it may be gone, or another one, when the run is resumed.
    recipe = settle(loaded.recipe, named_file(loaded.recipe))
    return RunDir.create(
        runs.resolve(), recipe.name, recipe_text=loaded.source_text, resolved_text=resolved_text(recipe)
    )


def begin_attempt(
    run: RunDir, recipe: Recipe, *, hardware: Hardware, base_folder: Path, deepspeed: Mapping[str, Any] | None = None,
    several_machines: bool = False,
) -> int:  # fmt: skip
    """Plan and write the first attempt of a run; return its number.

    ``several_machines``: whether something else than this process starts the other machines of the plan.
    """
    launch = plan_processes(recipe, hardware, several_machines=several_machines)
    return write_attempt(run, recipe, launch, base_folder=base_folder, deepspeed=deepspeed)


def write_attempt(
    run: RunDir, recipe: Recipe, launch: LaunchPlan, *, base_folder: Path, deepspeed: Mapping[str, Any] | None = None
) -> int:
    """Write what starts an attempt into a new folder of it, and return its number.

    ``deepspeed``: the configuration to resolve; None: the one that the recipe names, or the shipped one of the plan.
    """
    attempt = run.new_attempt()
    write_json(run.launch_plan(attempt), {"plan": asdict(launch), "base_folder": str(base_folder)})
    write_text(run.attempt_recipe(attempt), resolved_text(recipe))
    write_configuration(run, attempt, recipe, launch, deepspeed=deepspeed)
    return attempt


def write_configuration(
    run: RunDir, attempt: int, recipe: Recipe, launch: LaunchPlan, *, deepspeed: Mapping[str, Any] | None = None
) -> None:
    """Write accelerate.yaml and deepspeed.json of an attempt, resolved; one process alone needs neither."""
    if launch.engine == "single":
        return
    folder, deepspeed_file = run.attempt(attempt), None
    if launch.engine == "deepspeed":
        deepspeed_file = run.deepspeed(attempt)
        write_json(deepspeed_file, deepspeed_config(recipe, launch, base=deepspeed))
    # Accelerate reads YAML 1.1, where a bare no is false; JSON means the same in every version of YAML.
    write_json(folder / "accelerate.yaml", accelerate_config(launch, deepspeed_file=deepspeed_file))


def earlier_deepspeed(run: RunDir, recipe: Recipe) -> dict[str, Any] | None:
    """Return the DeepSpeed configuration with which the newest attempt began, so that the next one goes on with it.

    None where there is none, or where the recipe asks for another stage or offload by now.
    """
    for attempt in range(run.last_attempt, 0, -1):
        file = run.deepspeed(attempt)
        if file.is_file():
            config = reopened(json.loads(file.read_text()))
            said, wanted = zero_of(config), recipe.distributed
            same = (said.stage, said.offload) == (stage_of(wanted), wanted.offload)
            return config if same else None
    return None


def resume_run(
    path: Path,
    *,
    recipe: Recipe,
    hardware: Hardware,
    allow_changes: bool = False,
    from_start: bool = False,
    several_machines: bool = False,
) -> tuple[RunDir, int]:
    """Make the next attempt of a run that has not finished; ``recipe`` becomes the run's.

    Args:
        allow_changes: also where the recipe makes another run of it.
        from_start: also where no checkpoint is valid.
        several_machines: whether something else than this process starts the other machines of the plan.

    Raises:
        RunStateError: the run has finished, is still running, would become another run, or cannot go on from its
            checkpoint with these processes.
    """
    run = RunDir.open(path)
    launch, changes, deepspeed = plan_to_go_on(
        run, recipe, hardware=hardware, allow_changes=allow_changes, several_machines=several_machines
    )
    previous, base = run.last_attempt, Path.cwd()
    if previous:
        base = Path(json.loads(run.launch_plan(previous).read_text())["base_folder"])
        _keep_recipe(run, previous, recipe)
    attempt = write_attempt(run, recipe, launch, base_folder=base, deepspeed=deepspeed)
    flags = {"allow_changes": allow_changes, "from_start": from_start}
    write_json(run.resume_note(attempt), {"changes": [asdict(change) for change in changes], **flags})
    return run, attempt


def plan_to_go_on(
    run: RunDir, recipe: Recipe, *, hardware: Hardware, allow_changes: bool, several_machines: bool
) -> tuple[LaunchPlan, tuple[Change, ...], dict[str, Any] | None]:
    """Return how a run goes on with ``recipe``, what has changed since its first attempt, and its DeepSpeed configuration.

    Raises:
        RunStateError: see ``resume_run``.
    """
    if run.status().state == "finished":
        raise RunStateError(f"{run.path} has finished; to train it again, start a new run with `launcher run`")
    if run.live_ranks(run.last_attempt):
        raise RunStateError(f"{run.path} is still running; stop it first, or wait for it")
    drop_unbegun_attempt(run)
    changes = changes_since_first(run, recipe)
    refuse_another_run(run, changes, allow=allow_changes)
    deepspeed = earlier_deepspeed(run, recipe)
    launch = plan_processes(recipe, hardware, deepspeed=deepspeed, several_machines=several_machines)
    checkpoint = run.latest_checkpoint()
    if checkpoint is not None:
        way_to_continue(read_manifest(checkpoint), launch)
    return launch, changes, deepspeed


def drop_unbegun_attempt(run: RunDir) -> None:
    """Remove the folder of an attempt that was never written to its end: who made it was killed before it could start anything."""
    attempt = run.last_attempt
    if attempt and not run.launch_plan(attempt).is_file():
        shutil.rmtree(run.attempt(attempt))


def _keep_recipe(run: RunDir, previous: int, recipe: Recipe) -> None:
    """Put ``recipe`` in the place of the run's, where it differs, and the former one beside its attempt."""
    if load_recipe(run.resolved).recipe == recipe:
        return
    if not run.attempt_recipe(previous).is_file():
        write_text(run.attempt_recipe(previous), run.resolved.read_text())
    write_text(run.resolved, resolved_text(recipe))


def plan_processes(
    recipe: Recipe, hardware: Hardware, *, deepspeed: Mapping[str, Any] | None = None, several_machines: bool = False
) -> LaunchPlan:
    """Return the plan of processes that can be started. Raises InstallationError or RecipeError where they cannot.

    ``several_machines``: whether something else than this process starts the other machines of the plan.
    """
    launch = plan_launch(recipe, hardware, deepspeed=deepspeed)
    refuse_tensor_parallel(launch)
    if launch.nodes > 1 and not several_machines:
        raise InstallationError(
            f"distributed.nodes is {launch.nodes}, and `launcher run` starts this machine only; on each machine run "
            "`accelerate launch -m launcher.train RECIPE` with num_machines and machine_rank, or set distributed.nodes=1"
        )
    return launch
