"""The job script of a run: a pure function of its plan and the site's profile. The text is slurm/job.sh.j2."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

from launcher.plans import LaunchPlan
from launcher.recipe.cluster_profile import ClusterProfile, Container
from launcher.shipped import shipped_folder


@dataclass(frozen=True)
class JobPlan:
    """What a job script follows from, beside the profile."""

    run: Path
    """The run's directory, absolute."""
    base_folder: Path
    """Folder from which the recipe's relative paths count, absolute."""
    python: str
    """The interpreter, as a path on every node."""
    launch: LaunchPlan
    time: str
    """Time limit, as Slurm writes it."""


def job_script(plan: JobPlan, profile: ClusterProfile) -> str:
    """Return the text of the job script; every value is quoted, or of a form that needs no quoting."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(shipped_folder("slurm")), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        keep_trailing_newline=True, autoescape=False,
    )  # fmt: skip
    environment.filters["quote"] = shlex.quote
    return environment.get_template("job.sh.j2").render(
        directives=directives(plan, profile),
        run=str(plan.run),
        base_folder=str(plan.base_folder),
        python=plan.python,
        modules=profile.modules,
        environment=sorted(profile.environment.items()),
        nodes=plan.launch.nodes,
        cpus_per_node=cpus_per_node(plan.launch, profile),
        srun_options=_srun_options(plan, profile.container),
        inside=_inside(plan, profile),
    )


def directives(plan: JobPlan, profile: ClusterProfile) -> tuple[str, ...]:
    """Return what stands behind ``#SBATCH``, a line each."""
    gres = profile.gres or (f"gpu:{profile.gpus_per_node}" if profile.gpus_per_node else None)
    values = {
        "job-name": plan.run.name,
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
    flags = ["exclusive"] if profile.exclusive else []
    flags.append("requeue" if profile.requeue else "no-requeue")
    return (*(f"--{name}={value}" for name, value in values.items() if value is not None), *(f"--{f}" for f in flags))


def cpus_per_node(launch: LaunchPlan, profile: ClusterProfile) -> int:
    """Return the processors that a job asks for on each node."""
    return profile.cpus_per_node or launch.processes_per_node


def _srun_options(plan: JobPlan, container: Container | None) -> tuple[str, ...]:
    if container is None or container.runtime != "pyxis":
        return ()
    mounts = ",".join(f"{folder}:{folder}" for folder in _mounts(plan, container))
    return (f"--container-image={container.image}", f"--container-mounts={mounts}", "--container-mount-home")


def _inside(plan: JobPlan, profile: ClusterProfile) -> tuple[str, ...]:
    """Return the command in front of each node's agent."""
    container = profile.container
    if container is None or container.runtime != "apptainer":
        return ()
    gpus = ("--nv",) if profile.gpus_per_node or profile.gres else ()
    binds = tuple(f"--bind={folder}" for folder in _mounts(plan, container))
    return ("apptainer", "exec", *gpus, *binds, container.image)


def _mounts(plan: JobPlan, container: Container) -> tuple[str, ...]:
    return tuple(dict.fromkeys((*container.mounts, str(plan.base_folder), str(plan.run))))
