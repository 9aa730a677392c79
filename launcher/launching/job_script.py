"""The scripts of a job: pure functions of its plan and the site's profile. The text is slurm/job.sh.j2 and slurm/prepare.sh.j2."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.plans import LaunchPlan
from launcher.recipe.cluster_profile import ClusterProfile, Container
from launcher.shipped import shipped_folder


@dataclass(frozen=True)
class JobPlan:
    """What a job script follows from, beside the profile."""

    runs: tuple[Path, ...]
    """The directories of its runs, absolute; several of them are an array, a job for each."""
    base_folder: Path
    """Folder from which the recipe's relative paths count, absolute."""
    python: str
    """The interpreter, as a path on every node."""
    launch: LaunchPlan
    time: str
    """Time limit, as Slurm writes it."""
    preflight: bool = True

    @property
    def name(self) -> str:
        """The job's name: the run's, or for an array the first run's and how many more there are."""
        more = len(self.runs) - 1
        return self.runs[0].name + (f"+{more}" if more else "")


def job_script(plan: JobPlan, profile: ClusterProfile) -> str:
    """Return the text of the job script; every value is quoted, or of a form that needs no quoting."""
    is_array = len(plan.runs) > 1
    return _render(
        "job.sh.j2",
        title=f"The jobs of {len(plan.runs)} runs, an array." if is_array else "The job of one run.",
        array=is_array,
        directives=directives(plan, profile),
        runs=[str(run) for run in plan.runs],
        base_folder=str(plan.base_folder),
        python=plan.python,
        modules=profile.modules,
        environment=sorted(profile.environment.items()),
        nodes=plan.launch.nodes,
        cpus_per_node=cpus_per_node(plan.launch, profile),
        srun_options=_srun_options(plan, profile.container),
        inside=shlex.join(_inside(plan, profile)),
        preflight=plan.preflight,
    )


def prepare_script(plan: JobPlan, profile: ClusterProfile) -> str:
    """Return the text of the job that prepares the runs' data before they train."""
    values: dict[str, Any] = {
        "job-name": f"prepare-{plan.name}",
        "nodes": 1,
        "ntasks": 1,
        "cpus-per-task": cpus_per_node(plan.launch, profile),
        "time": plan.time,
        "partition": profile.prepare_partition,
        "account": profile.account,
        "qos": profile.qos,
        "output": "/dev/null",
    }
    return _render(
        "prepare.sh.j2",
        directives=_lines(values),
        runs=[str(run) for run in plan.runs],
        log=str(plan.runs[0] / "slurm" / "prepare.log"),
        base_folder=str(plan.base_folder),
        python=plan.python,
        modules=profile.modules,
        environment=sorted(profile.environment.items()),
    )


def _render(template: str, **values: Any) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(shipped_folder("slurm")), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        keep_trailing_newline=True, autoescape=False,
    )  # fmt: skip
    environment.filters["quote"] = shlex.quote
    return environment.get_template(template).render(**values)


def directives(plan: JobPlan, profile: ClusterProfile) -> tuple[str, ...]:
    """Return what stands behind ``#SBATCH``, a line each."""
    gres = profile.gres or (f"gpu:{profile.gpus_per_node}" if profile.gpus_per_node else None)
    values = {
        "job-name": plan.name,
        "nodes": plan.launch.nodes,
        "ntasks-per-node": 1,
        "cpus-per-task": cpus_per_node(plan.launch, profile),
        "time": plan.time,
        "partition": profile.partition,
        "account": profile.account,
        "qos": profile.qos,
        "reservation": profile.reservation,
        "gres": gres,
        "mem": profile.memory_per_node,
        "constraint": profile.constraint,
        "exclude": profile.exclude,
        "mail-user": profile.mail_user,
        "mail-type": profile.mail_type if profile.mail_user else None,
        "signal": f"B:USR1@{profile.warn_seconds}",
        "open-mode": "append",
        "output": "/dev/null",
    }
    flags = ["--exclusive"] if profile.exclusive else []
    return (*_lines(values), *flags, "--requeue" if profile.requeue else "--no-requeue")


def _lines(values: dict[str, Any]) -> tuple[str, ...]:
    return tuple(f"--{name}={value}" for name, value in values.items() if value is not None)


def cpus_per_node(launch: LaunchPlan, profile: ClusterProfile) -> int:
    """Return the processors that a job asks for on each node."""
    return profile.cpus_per_node or launch.processes_per_node


def _srun_options(plan: JobPlan, container: Container | None) -> tuple[str, ...]:
    if container is None or container.runtime != "pyxis":
        return ()
    mounts = ",".join(f"{folder}:{folder}" for folder in _mounts(plan, container))
    return (f"--container-image={container.image}", f"--container-mounts={mounts}", "--container-mount-home")


def _inside(plan: JobPlan, profile: ClusterProfile) -> tuple[str, ...]:
    """Return the interpreter of each node, with the command in front that puts it into a container."""
    container = profile.container
    python = (container and container.python) or plan.python
    if container is None or container.runtime != "apptainer":
        return (python,)
    gpus = ("--nv",) if profile.gpus_per_node or profile.gres else ()
    binds = tuple(f"--bind={folder}" for folder in _mounts(plan, container))
    return ("apptainer", "exec", *gpus, *binds, container.image, python)


def _mounts(plan: JobPlan, container: Container) -> tuple[str, ...]:
    """Return the folders that have to be seen inside a container, each once."""
    own = (str(plan.base_folder), *(str(run) for run in plan.runs))
    return tuple(dict.fromkeys((*container.mounts, *own)))
