"""From a checked recipe to a job in Slurm's queue."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from launcher.atomic import write_json, write_text
from launcher.launching.job_script import JobPlan, job_script
from launcher.launching.launch_plan import plan_launch, refuse_tensor_parallel
from launcher.planning.gpus import find_gpu, hardware_for as hardware_of
from launcher.planning.hardware import detect_hardware
from launcher.plans import Hardware
from launcher.recipe.cluster_profile import ClusterProfile
from launcher.recipe.load import LoadedRecipe
from launcher.recipe.profiles import FoundProfile, find_profile
from launcher.rundir import RunDir
from launcher.workflows.start import create_directory


@dataclass(frozen=True)
class Submission:
    """A run's directory, ready to be submitted."""

    run: RunDir
    profile: FoundProfile
    script: str


def prepare_submission(loaded: LoadedRecipe, *, runs: Path) -> Submission:
    """Make the run's directory with its job script. Raises LauncherError where recipe or profile do not go together."""
    recipe = loaded.recipe
    found = find_profile(recipe.slurm.profile, Path.cwd())
    launch = plan_launch(recipe, _hardware(found.profile))
    refuse_tensor_parallel(launch)
    run = create_directory(loaded, runs=runs)
    plan = JobPlan(run.path, Path.cwd(), sys.executable, launch, recipe.slurm.time)
    script = job_script(plan, found.profile)
    facts = {
        "base_folder": str(plan.base_folder), "time": plan.time, "nodes": launch.nodes,
        "profile": {"name": found.name, "path": str(found.path), "values": found.profile.model_dump(mode="json")},
    }  # fmt: skip
    write_json(run.job, facts)
    write_text(run.job_script, script)
    run.job_script.chmod(0o755)
    return Submission(run, found, script)


def _hardware(profile: ClusterProfile) -> Hardware:
    """Return what a node of the site has, as far as its profile says; a node without GPUs is taken to be like this machine."""
    gpu = find_gpu(profile.gpu) if profile.gpu else None
    if gpu is not None:
        return hardware_of(gpu, max(1, profile.gpus_per_node))
    return detect_hardware()
