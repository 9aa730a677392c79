"""A cluster profile: facts of a site that a job script needs. What a value may hold is narrow, so that none can carry a command.

Values go into ``#SBATCH`` lines, where Slurm knows no quoting, and into a shell script, where they are quoted. Those of the first kind
have patterns below; no value may hold a line break or another control character.
"""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from launcher.recipe.section import Section

_LONGEST = 500


def _form(pattern: str, words: str) -> AfterValidator:
    """Return what refuses a text of another form than ``pattern``, with words for what it must be."""
    form = re.compile(pattern)

    def check(text: str) -> str:
        if len(text) > _LONGEST or not form.fullmatch(text):
            raise ValueError(f"must be {words}")
        return text

    return AfterValidator(check)


def _printable(text: str) -> str:
    if any(ord(character) < 32 or ord(character) == 127 for character in text):
        raise ValueError("must not hold a line break or another control character, which a job script cannot carry")
    return text


def _absolute(text: str) -> str:
    if not PurePosixPath(_printable(text)).is_absolute():
        raise ValueError("must be an absolute path, which is the same on every node")
    return text


def _listed(text: str) -> str:
    # pyxis takes all mounts in one option, with commas between them and a colon between outside and inside.
    if "," in _absolute(text) or ":" in text:
        raise ValueError("must not hold a comma or a colon, which container runtimes read as separators")
    return text


_NAME = r"[A-Za-z0-9_][A-Za-z0-9_.@+-]*"
_GRES = r"[A-Za-z0-9_]+(:[A-Za-z0-9_.-]+)*"
_PLAIN = "letters, digits, '.', '_', '@', '+' and '-'"
Name = Annotated[str, _form(_NAME, f"a name of {_PLAIN}")]
Names = Annotated[str, _form(f"{_NAME}(,{_NAME})*", f"a name of {_PLAIN}, or several with commas between")]
Gres = Annotated[str, _form(f"{_GRES}(,{_GRES})*", "resources as Slurm writes them, such as gpu:h100:8")]
Constraint = Annotated[
    str, _form(r"[A-Za-z0-9_\[(][A-Za-z0-9_.&|()\[\]*:-]*", "features as Slurm writes them, such as a100&nvlink")
]
NodeList = Annotated[
    str, _form(r"[A-Za-z0-9][A-Za-z0-9_.,\[\]-]*", "nodes as Slurm writes them, such as node[01-03],node07")
]
Memory = Annotated[str, _form(r"[0-9]+[KMGT]?", "a number of megabytes, or one with K, M, G or T, such as 480G")]
Address = Annotated[str, _form(r"[A-Za-z0-9_.%+-]+(@[A-Za-z0-9.-]+)?", "a user's name or a mail address")]
MailTypes = Annotated[str, _form(r"[A-Z_0-9]+(,[A-Z_0-9]+)*", "Slurm's words with commas between, such as END,FAIL")]
Module = Annotated[str, _form(r"[A-Za-z0-9_][A-Za-z0-9_./+-]*", "a module's name, such as cuda/12.8")]
Interface = Annotated[str, _form(r"[A-Za-z0-9_.-]+", "the name of a network interface, such as ib0")]
Text = Annotated[str, AfterValidator(_printable)]
AbsolutePath = Annotated[str, AfterValidator(_absolute)]
Mount = Annotated[str, AfterValidator(_listed)]


def _variable(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
        raise ValueError("must be the name of an environment variable: letters, digits and '_'")
    if _OWNED_VARIABLES.match(name):
        raise ValueError("must not be set here: the job sets it, or it would change every program that the job starts")
    return name


Variable = Annotated[str, AfterValidator(_variable)]

# What the job itself sets, and what would reach into every program that it starts.
_OWNED_VARIABLES = re.compile(
    r"^(SLURM_.*|SBATCH_.*|SRUN_.*|RANK|WORLD_SIZE|LOCAL_RANK|MASTER_ADDR|MASTER_PORT|LD_PRELOAD|BASH_ENV|ENV|IFS|PATH"
    r"|PET_.*|RUN|PYTHON|ATTEMPT|WARNED|CODE|STEP)$"
)


class Container(Section):
    """A container in which every rank runs."""

    runtime: Literal["pyxis", "apptainer"]
    """``pyxis``: srun's --container-image (NVIDIA's plugin, with enroot); ``apptainer``: apptainer exec."""
    image: Text = Field(min_length=1)
    """Path of an image, or an address that the runtime knows."""
    mounts: tuple[Mount, ...] = ()
    """Folders that are the same inside and outside; the run's and the recipe's are mounted in any case."""
    python: AbsolutePath | None = None
    """The interpreter inside that has launcher installed; null: the one that submitted, if its folder is mounted."""


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
    """GPUs of a node, which a job asks for, with a rank for each; 0: the ranks run on processors."""
    gres: Gres | None = None
    """What is asked for instead of ``gpu:GPUS``, such as gpu:h100:8."""
    gpu: Name | None = None
    """The GPU's name in launcher's catalogue, such as h100-80gb: what the run's plan is made for at submission."""
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
    mail_type: MailTypes = "END,FAIL"
    """When, as Slurm names it."""
    modules: tuple[Module, ...] = ()
    """Environment modules that are loaded before anything else."""
    container: Container | None = None
    """Container of the ranks; null: none."""
    environment: dict[Variable, Text] = Field(default_factory=dict)
    """Variables of every rank, such as NCCL's settings."""
    network_interface: Interface | None = None
    """Interface over which ranks talk (NCCL_SOCKET_IFNAME, GLOO_SOCKET_IFNAME); null: that of the route to the first node."""
    scratch: AbsolutePath | None = None
    """A folder on each node's own disk, for caches and what is compiled; null: TMPDIR, or /tmp."""
    warn_seconds: int = Field(default=180, ge=30, le=3600)
    """How long before its time limit a job is told to save and stop."""
    requeue: bool = True
    """Whether this site requeues jobs; false: ``slurm.chain`` jobs are submitted, each of which waits for the one before."""
    prepare_partition: Name | None = None
    """A partition of nodes without GPUs, where a job of its own prepares the data first; null: the first node does."""

    @model_validator(mode="after")
    def _gpus_are_named(self) -> ClusterProfile:
        if self.gpus_per_node and self.gpu is None:
            raise ValueError("has gpus_per_node, and needs gpu: the GPU's name, as `launcher plan --gpu` knows it")
        for key in ("gpu", "gres"):
            if getattr(self, key) is not None and not self.gpus_per_node:
                raise ValueError(f"has {key}, which has no effect without gpus_per_node")
        return self
