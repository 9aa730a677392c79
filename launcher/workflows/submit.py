"""From checked recipes to jobs in Slurm's queue."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from launcher.atomic import write_json, write_text
from launcher.backends.slurm import jobs_of, queued_jobs, submit_script
from launcher.errors import InstallationError, Problem, RecipeError, RunStateError
from launcher.launching.job_script import JobPlan, job_script, prepare_script
from launcher.planning.gpus import find_gpu, hardware_for as hardware_of
from launcher.planning.hardware import detect_hardware
from launcher.plans import Hardware, LaunchPlan
from launcher.recipe.cluster_profile import ClusterProfile
from launcher.recipe.load import LoadedRecipe, resolved_text
from launcher.recipe.profiles import FoundProfile, find_profile
from launcher.recipe.schema import Recipe
from launcher.recipe.time_limit import limit_seconds
from launcher.rundir import RunDir
from launcher.workflows.room import checkpoint_bytes, with_room
from launcher.workflows.start import create_directory, plan_processes, plan_to_go_on


@dataclass(frozen=True)
class Submission:
    """Run directories with the script of their jobs, ready to be submitted."""

    runs: tuple[RunDir, ...]
    profile: FoundProfile
    script: Path

    @property
    def text(self) -> str:
        """The job script."""
        return self.script.read_text()

    def submit(self, *, at_a_time: int | None = None) -> tuple[str, ...]:
        """Hand it to Slurm and return the jobs' numbers.

        Raises:
            InstallationError: Slurm is not there, or has refused; the runs' directories stay, and can be submitted later.
        """
        try:
            return submit_script(self.script, self.runs, at_a_time=at_a_time)
        except InstallationError as error:
            later = "; ".join(f"launcher resume {run.path}" for run in self.runs)
            raise InstallationError(f"{error}\nnothing was submitted; once that is mended: {later}") from None


def prepare_submission(recipes: Sequence[LoadedRecipe], *, runs: Path) -> Submission:
    """Make the directories of runs that are submitted together, and their job script. Nothing is written where one is refused.

    Raises:
        RecipeError: a recipe or the profile has faults, they do not go together, or the run does not fit onto the site's GPUs.
    """
    found = find_profile(recipes[0].recipe.slurm.profile, Path.cwd())
    hardware = _hardware(found.profile)
    _refuse_unmountable(found, (Path.cwd(), runs.resolve()))
    fitting = [_fitting(loaded, found, hardware, runs=runs) for loaded in recipes]
    plans = [plan_processes(loaded.recipe, hardware, several_machines=True) for loaded in fitting]
    _refuse_unlike(fitting, plans)
    directories = tuple(create_directory(loaded, runs=runs) for loaded in fitting)
    script = _write_job(directories, fitting[0].recipe, plans[0], found, base_folder=Path.cwd())
    return Submission(directories, found, script)


def resubmit(run: RunDir, loaded: LoadedRecipe, *, allow_changes: bool = False, from_start: bool = False) -> Submission:
    """Make the job script of a run anew, to be submitted once more; its profile is read again.

    Raises:
        RunStateError: the run has finished, one of its jobs is queued, or it would become another run.
    """
    alive = [job for job in queued_jobs(jobs_of(run)).values() if job.is_alive]
    if alive:
        raise RunStateError(
            f"job {alive[0].id} of {run.path} is {alive[0].state}; wait for it, or launcher cancel it first"
        )
    recipe = loaded.recipe
    found = find_profile(recipe.slurm.profile, Path.cwd())
    _refuse_misfits(loaded, found)
    launch, _, _ = plan_to_go_on(
        run, recipe, hardware=_hardware(found.profile), allow_changes=allow_changes, several_machines=True
    )
    base = Path(run.job_facts()["base_folder"])
    script = _write_job((run,), recipe, launch, found, base_folder=base)
    request = {"recipe": resolved_text(recipe), "allow_changes": allow_changes, "from_start": from_start}
    write_json(run.resume_request, request)
    run.done.unlink(missing_ok=True)
    run.cancelled.unlink(missing_ok=True)
    return Submission((run,), found, script)


def _fitting(loaded: LoadedRecipe, found: FoundProfile, hardware: Hardware, *, runs: Path) -> LoadedRecipe:
    """Return the recipe once it is known that it goes with the profile, and, where the profile names its GPUs, that it fits."""
    _refuse_misfits(loaded, found)
    profile = found.profile
    if profile.gpu is None:
        return loaded
    return with_room(loaded, hardware=hardware, runs=runs, gpu=(profile.gpu, profile.gpus_per_node))


def _refuse_misfits(loaded: LoadedRecipe, found: FoundProfile) -> None:
    slurm, profile = loaded.recipe.slurm, found.profile
    problems = []
    limit = limit_seconds(slurm.time) or 0
    if limit <= profile.warn_seconds:
        problems.append(
            Problem(
                loaded.place("slurm.time"),
                f"slurm.time is {slurm.time}, and {found.name} warns a job {profile.warn_seconds} s before its limit (warn_seconds)",
                "give it more time",
                "slurm.time",
            )
        )
    if "chain" in slurm.model_fields_set and profile.requeue and slurm.chain != type(slurm)().chain:
        problems.append(
            Problem(
                loaded.place("slurm.chain"),
                f"slurm.chain is {slurm.chain} but has no effect: jobs of {found.name} are requeued",
                "remove it, or write requeue: false into the profile",
                "slurm.chain",
            )
        )
    if problems:
        raise RecipeError(problems)


def _refuse_unlike(recipes: Sequence[LoadedRecipe], plans: Sequence[LaunchPlan]) -> None:
    """Refuse to submit runs together that ask Slurm for different things: an array has one request for all."""

    def request(loaded: LoadedRecipe, plan: LaunchPlan) -> dict[str, object]:
        slurm = loaded.recipe.slurm
        return {
            "slurm.profile": slurm.profile, "slurm.time": slurm.time, "slurm.preflight": slurm.preflight,
            "slurm.chain": slurm.chain, "distributed.nodes": plan.nodes,
            "distributed.processes_per_node": plan.processes_per_node,
        }  # fmt: skip

    first = request(recipes[0], plans[0])
    for loaded, plan in zip(recipes, plans, strict=True):
        for key, value in request(loaded, plan).items():
            if value != first[key]:
                message = f"{key} is {value}, and {first[key]} in {recipes[0].path}"
                raise RecipeError(
                    [Problem(loaded.place(key), message, "submit them separately: an array is of like jobs", key)]
                )


def _write_job(
    runs: tuple[RunDir, ...], recipe: Recipe, launch: LaunchPlan, found: FoundProfile, *, base_folder: Path
) -> Path:
    """Write what each run's jobs need into its directory, and return the script that is submitted."""
    profile = found.profile
    facts = {
        "base_folder": str(base_folder),
        "profile": {"name": found.name, "path": str(found.path), "values": profile.model_dump(mode="json")},
        "chain": 1 if profile.requeue else recipe.slurm.chain, "prepare": profile.prepare_partition is not None,
        "checkpoint_bytes": checkpoint_bytes(recipe, launch),
    }  # fmt: skip
    plan = JobPlan(
        tuple(run.path for run in runs),
        base_folder,
        sys.executable,
        launch,
        str(recipe.slurm.time),
        recipe.slurm.preflight,
    )
    for run in runs:
        write_json(run.job, facts)
        # Each run can also be submitted again by itself, whatever it was submitted with.
        write_text(run.job_script, job_script(replace(plan, runs=(run.path,)), profile))
        run.job_script.chmod(0o755)
    script = runs[0].job_script
    if len(runs) > 1:
        script = runs[0].slurm / "array.sh"
        write_text(script, job_script(plan, profile))
        script.chmod(0o755)
    if profile.prepare_partition is not None:
        write_text(runs[0].slurm / "prepare.sh", prepare_script(plan, profile))
    return script


def _refuse_unmountable(found: FoundProfile, folders: Sequence[Path]) -> None:
    container = found.profile.container
    wrong = [folder for folder in folders if container is not None and set(",:") & set(str(folder))]
    if container is not None and wrong:
        message = f"{wrong[0]} holds a comma or a colon, which {container.runtime} reads as a separator"
        raise RecipeError([Problem(str(found.path), message, "work from a folder without them", "container")])


def _hardware(profile: ClusterProfile) -> Hardware:
    """Return what a node of the site has, as far as its profile says; a node without GPUs is taken to be like this machine."""
    if profile.gpu is not None:
        return hardware_of(find_gpu(profile.gpu), profile.gpus_per_node)
    return replace(detect_hardware(), gpus=())
