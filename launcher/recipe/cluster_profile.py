"""A cluster profile: facts of a site that a job script needs. What a value may hold is narrow, so that none can carry a command.

Values go into ``#SBATCH`` lines, where Slurm knows no quoting, and into a shell script, where they are quoted. Those of the first kind
have patterns below; no value may hold a line break or another control character.
"""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, StringConstraints

from launcher.recipe.section import Section


def _pattern(pattern: str) -> StringConstraints:
    return StringConstraints(pattern=f"^{pattern}$", max_length=500)


def _printable(text: str) -> str:
    if any(ord(character) < 32 or ord(character) == 127 for character in text):
        raise ValueError("holds a line break or another control character, which a job script cannot carry")
    return text


def _absolute(text: str) -> str:
    if not PurePosixPath(_printable(text)).is_absolute():
        raise ValueError("has to be an absolute path, which is the same on every node")
    return text


Name = Annotated[str, _pattern(r"[A-Za-z0-9_][A-Za-z0-9_.@+-]*")]
Names = Annotated[str, _pattern(r"[A-Za-z0-9_][A-Za-z0-9_.@+-]*(,[A-Za-z0-9_][A-Za-z0-9_.@+-]*)*")]
Gres = Annotated[str, _pattern(r"[A-Za-z0-9_]+(:[A-Za-z0-9_.-]+)*(,[A-Za-z0-9_]+(:[A-Za-z0-9_.-]+)*)*")]
Constraint = Annotated[str, _pattern(r"[A-Za-z0-9_\[][A-Za-z0-9_.&|()\[\]*:-]*")]
NodeList = Annotated[str, _pattern(r"[A-Za-z0-9][A-Za-z0-9_.,\[\]-]*")]
Memory = Annotated[str, _pattern(r"[0-9]+[KMGT]?")]
Address = Annotated[str, _pattern(r"[A-Za-z0-9_.%+-]+(@[A-Za-z0-9.-]+)?")]
Module = Annotated[str, _pattern(r"[A-Za-z0-9_][A-Za-z0-9_./+-]*")]
Interface = Annotated[str, _pattern(r"[A-Za-z0-9_.-]+")]
Text = Annotated[str, AfterValidator(_printable)]
Path_ = Annotated[str, AfterValidator(_absolute)]
Variable = Annotated[str, _pattern(r"[A-Za-z_][A-Za-z0-9_]*")]

# What the job itself sets, and what would reach into every program that it starts.
OWNED_VARIABLES = re.compile(
    r"^(SLURM_.*|SBATCH_.*|RANK|WORLD_SIZE|LOCAL_RANK|MASTER_ADDR|MASTER_PORT|LD_PRELOAD|BASH_ENV|ENV|IFS)$"
)


class Container(Section):
    """A container in which every rank runs."""

    runtime: Literal["pyxis", "apptainer"]
    """``pyxis``: srun's --container-image (NVIDIA's plugin, with enroot); ``apptainer``: apptainer exec."""
    image: Text = Field(min_length=1)
    """Path of an image, or an address that the runtime knows."""
    mounts: tuple[Path_, ...] = ()
    """Folders that are the same inside and outside; the run's and the recipe's are mounted in any case."""


class ClusterProfile(Section):
    """How jobs are written at a site."""

    partition: Names | None = None
    """Slurm's partition, or several with commas between; null: the site's default."""
    account: Name | None = None
    """Account that is charged."""
    qos: Name | None = None
    """Quality of service."""
    reservation: Name | None = None
    """Reservation to run in."""
    gpus_per_node: int = Field(default=0, ge=0, le=64)
    """GPUs of a node, which a job asks for; 0: the ranks run on processors."""
    gres: Gres | None = None
    """What is asked for instead of ``gpu:GPUS``, such as gpu:h100:8."""
    gpu: Name | None = None
    """The GPU's name in launcher's catalogue, such as h100-80gb, for planning at submission."""
    cpus_per_node: int | None = Field(default=None, ge=1, le=4096)
    """Processors that a job asks for on each node; null: as many as there are ranks, or as the partition gives."""
    memory_per_node: Memory | None = None
    """Such as 480G; null: the partition's default."""
    constraint: Constraint | None = None
    """Features that nodes must have."""
    exclude: NodeList | None = None
    """Nodes that are not used."""
    exclusive: bool = False
    """Whether no other job may run on the nodes."""
    mail_user: Address | None = None
    """Who gets Slurm's mails."""
    mail_type: Annotated[str, _pattern(r"[A-Z_0-9]+(,[A-Z_0-9]+)*")] = "END,FAIL"
    """When, as Slurm names it."""
    modules: tuple[Module, ...] = ()
    """Environment modules that are loaded before anything else."""
    container: Container | None = None
    """Container of the ranks; null: none."""
    environment: dict[Variable, Text] = Field(default_factory=dict)
    """Variables of every rank, such as NCCL's settings."""
    network_interface: Interface | None = None
    """Interface over which ranks talk (NCCL_SOCKET_IFNAME, GLOO_SOCKET_IFNAME); null: that of the route to the first node."""
    scratch: Path_ | None = None
    """A folder on each node's own disk, for caches and what is compiled; null: TMPDIR, or /tmp."""
    warn_seconds: int = Field(default=180, ge=30, le=3600)
    """How long before its time limit a job is told to save and stop."""
    requeue: bool = True
    """Whether this site requeues jobs; false: a chain of jobs is submitted instead."""
