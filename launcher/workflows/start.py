"""From a checked recipe to a started run: the front half's part of the straight line."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from launcher.errors import InstallationError, RunStateError
from launcher.launching.launch_plan import plan_launch
from launcher.launching.render import accelerate_config, deepspeed_config
from launcher.plans import Hardware, LaunchPlan
from launcher.recipe.load import LoadedRecipe, resolved_text
from launcher.recipe.schema import Recipe
from launcher.rundir import RunDir, write_json


def create_run(loaded: LoadedRecipe, *, runs: Path, hardware: Hardware) -> tuple[RunDir, int]:
    """Make the run directory and its first attempt, ready to start; return both. Nothing is written if planning fails."""
    launch = _plan_this_machine(loaded.recipe, hardware)
    run = RunDir.create(
        runs.resolve(), loaded.recipe.name, recipe_text=loaded.source_text, resolved_text=resolved_text(loaded.recipe)
    )
    return run, write_attempt(run, loaded.recipe, launch, base_folder=Path.cwd())


def write_attempt(run: RunDir, recipe: Recipe, launch: LaunchPlan, *, base_folder: Path) -> int:
    """Write what starts an attempt into a new folder of it, and return its number."""
    attempt = run.new_attempt()
    folder = run.attempt(attempt)
    write_json(run.launch_plan(attempt), {"plan": asdict(launch), "base_folder": str(base_folder)})
    if launch.engine == "single":
        return attempt
    deepspeed_file = None
    if launch.engine == "deepspeed":
        deepspeed_file = folder / "deepspeed.json"
        write_json(deepspeed_file, deepspeed_config(recipe, launch))
    # Accelerate reads YAML 1.1, where a bare no is false; JSON means the same in every version of YAML.
    write_json(folder / "accelerate.yaml", accelerate_config(launch, deepspeed_file=deepspeed_file))
    return attempt


def resume_run(path: Path, *, recipe: Recipe, hardware: Hardware) -> tuple[RunDir, int]:
    """Make the next attempt of a run that has not finished.

    Raises:
        RunStateError: the run has finished, is still running, or would continue on another number of processes.
    """
    run = RunDir.open(path)
    if run.status().state == "finished":
        raise RunStateError(f"{path} has finished; to train it again, start a new run with `launcher run`")
    if run.live_ranks(run.last_attempt):
        raise RunStateError(f"{path} is still running; stop it first, or wait for it")
    launch = _plan_this_machine(recipe, hardware)
    previous = run.last_attempt
    base = Path.cwd()
    if previous:
        before: dict[str, Any] = json.loads(run.launch_plan(previous).read_text())
        base = Path(before["base_folder"])
        _refuse_another_world(run, LaunchPlan.from_json(before["plan"]), launch)
    return run, write_attempt(run, recipe, launch, base_folder=base)


def _plan_this_machine(recipe: Recipe, hardware: Hardware) -> LaunchPlan:
    launch = plan_launch(recipe, hardware)
    if launch.nodes > 1:
        raise InstallationError(
            f"distributed.nodes is {launch.nodes}, and `launcher run` starts this machine only; on each machine run "
            "`accelerate launch -m launcher.train RECIPE` with num_machines and machine_rank, or set distributed.nodes=1"
        )
    return launch


def _refuse_another_world(run: RunDir, before: LaunchPlan, now: LaunchPlan) -> None:
    if run.latest_checkpoint() is None:
        return
    then_and_now = [(p.engine, p.zero_stage, p.world_size, p.precision) for p in (before, now)]
    if then_and_now[0] != then_and_now[1]:
        raise RunStateError(
            "the checkpoint was written by {} (ZeRO {}) with {} process(es) in {}, and this machine would continue with {} "
            "(ZeRO {}), {} process(es), {}; make the same number of devices visible".format(
                *then_and_now[0], *then_and_now[1]
            )
        )
