"""Slurm's commands, and runs as its jobs. Only sbatch, squeue, scontrol, sinfo and scancel are needed: no accounting."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from launcher.atomic import append_json, read_jsonl
from launcher.contracts import JobStatus
from launcher.errors import InstallationError, RunStateError
from launcher.rundir import RunDir

_TIMEOUT_SECONDS = 60.0
# %i is a job's number, and for an element of an array ARRAY_INDEX.
_FIELDS = ("%i", "%T", "%r", "%N", "%M", "%L")
_WAITING = ("PENDING", "REQUEUED", "REQUEUE_HOLD", "SPECIAL_EXIT")
ALIVE = (
    *_WAITING, "RUNNING", "CONFIGURING", "COMPLETING", "SUSPENDED", "RESIZING", "SIGNALING", "STAGE_OUT",
)  # fmt: skip
"""What squeue calls a job that may still do something."""
# Until Slurm 20.11 the step has no "StepId=" before it.
_UNSTARTED = re.compile(r"^srun: error: Task launch for \S+ failed on node (\S+): (.*)$", re.MULTILINE)


@dataclass(frozen=True)
class QueuedJob:
    """A job as squeue shows it."""

    id: str
    state: str
    """Slurm's name, such as PENDING or RUNNING."""
    reason: str
    nodes: str
    elapsed: str
    left: str

    @property
    def is_alive(self) -> bool:
        """Whether it may still do something."""
        return self.state in ALIVE

    @property
    def is_waiting(self) -> bool:
        """Whether it has no nodes yet."""
        return self.state in _WAITING


class SlurmBackend:
    """The backend ``slurm``."""

    def submit(self, run: Path, *, attempt: int = 0) -> int:
        """Submit the run's job script, with what it waits for; return 0. The job makes its attempts itself.

        Raises:
            InstallationError: Slurm is not there, or has refused.
        """
        submit_script(RunDir.open(run).job_script, [RunDir.open(run)])
        return 0

    def status(self, run: Path) -> JobStatus:
        """Return where a run stands, by its directory."""
        return RunDir.open(run).status()

    def logs(self, run: Path, *, rank: int = 0) -> Iterator[str]:
        """Yield the lines of a rank's log, of the newest attempt."""
        return RunDir.open(run).log_lines(rank)

    def cancel(self, run: Path) -> None:
        """Ask the run to save and stop, and its jobs not to come back; those that wait are taken out of the queue.

        Raises:
            RunStateError: none of its jobs is in the queue.
            InstallationError: Slurm does not answer.
        """
        directory = RunDir.open(run)
        queued = [job for job in queued_jobs(jobs_of(directory)).values() if job.is_alive]
        if not queued:
            raise RunStateError(
                f"{run} is {directory.status().state}, and none of its jobs is in the queue: nothing to cancel"
            )
        directory.cancelled.touch()
        waiting = [job.id for job in queued if job.is_waiting]
        if waiting:
            _slurm("scancel", *waiting)
        running = [job.id for job in queued if not job.is_waiting]
        if running and directory.last_attempt:
            directory.stop_request(directory.last_attempt).touch()
            # To the nodes' agents, which pass it on: the file may be seen late on another machine.
            _slurm("scancel", "--signal=USR2", *running)
        if not running:
            directory.add_event("interrupted", reason="cancelled while it waited", attempt=directory.last_attempt)


def submit_script(script: Path, runs: Sequence[RunDir], *, at_a_time: int | None = None) -> tuple[str, ...]:
    """Submit a job script for its runs, and return the jobs' numbers, those of a chain in their order.

    What was decided at submission stands in ``job.json``: ``chain``, how many jobs follow one another, and ``prepare``, whether
    the data are prepared by a job of its own, for which the first one waits.

    Args:
        runs: one, or those of an array in the order of their elements.
        at_a_time: how many elements of an array may run at the same time; None: as many as there is room for.

    Raises:
        InstallationError: Slurm is not there, or has refused; jobs of the chain that it had taken are cancelled.
    """
    facts = runs[0].job_facts()
    limit = f"%{at_a_time}" if at_a_time else ""
    array = (f"--array=0-{len(runs) - 1}{limit}",) if len(runs) > 1 else ()
    numbers: list[str] = []
    dependency: tuple[str, ...] = ()
    preparing: list[str] = []
    try:
        if facts["prepare"]:
            preparing.append(_sbatch(script.with_name("prepare.sh")))
            dependency = (f"--dependency=afterok:{preparing[0]}", "--kill-on-invalid-dep=yes")
        for _ in range(facts["chain"]):
            numbers.append(_sbatch(script, *array, *dependency))
            dependency = (f"--dependency=afterany:{numbers[-1]}",)
    except InstallationError:
        cancel_jobs([*preparing, *numbers])
        raise
    for index, run in enumerate(runs):
        own = [f"{number}_{index}" if array else number for number in numbers]
        for number in own:
            append_json(run.jobs, {"job": number})
        run.add_event("submitted", jobs=own, prepared_by=preparing)
    return tuple(numbers)


def _sbatch(script: Path, *options: str) -> str:
    return _slurm("sbatch", "--parsable", *options, str(script)).strip().split(";")[0]


def jobs_of(run: RunDir) -> tuple[str, ...]:
    """Return the numbers of the jobs that a run was submitted as, the newest last."""
    return tuple(str(row["job"]) for row in read_jsonl(run.jobs))


def queued_jobs(numbers: Iterable[str]) -> dict[str, QueuedJob]:
    """Return number -> job for those of ``numbers`` that Slurm still knows; one call for all of them.

    Raises:
        InstallationError: Slurm does not answer.
    """
    wanted = frozenset(numbers)
    if not wanted:
        return {}
    # Of an array squeue knows only the whole by its number.
    asked = ",".join(sorted({number.partition("_")[0] for number in wanted}, key=int))
    command = ["squeue", "--noheader", "--array", "--states=all", f"--jobs={asked}", f"--format={'|'.join(_FIELDS)}"]
    done = _run(command)
    # Slurm calls it an error when it has forgotten the only job that was asked for.
    if done.returncode != 0 and "Invalid job id" not in done.stderr:
        raise InstallationError(f"squeue failed: {done.stderr.strip()}")
    rows = (line.split("|") for line in done.stdout.splitlines())
    found = (QueuedJob(*row) for row in rows if len(row) == len(_FIELDS))
    return {job.id: job for job in found if job.id in wanted}


def waiting_jobs(numbers: Sequence[str]) -> list[str]:
    """Return those that have not begun; none where Slurm does not answer."""
    try:
        queued = queued_jobs(numbers)
    except InstallationError:
        return []
    return [number for number in numbers if number in queued and queued[number].is_waiting]


def cancel_jobs(numbers: Sequence[str]) -> None:
    """Take jobs out of the queue, as far as Slurm does it: what they would do is not wanted any more, and they see that themselves."""
    if numbers:
        _run(["scancel", *numbers])


def requeue(job: str) -> str:
    """Requeue the job that this process belongs to; return "" or why Slurm has refused. Slurm then ends this process too."""
    done = _run(["scontrol", "requeue", job])
    return "" if done.returncode == 0 else done.stderr.strip() or f"exit code {done.returncode}"


def exclude_nodes(job: str, nodes: Sequence[str]) -> None:
    """Keep a waiting job away from nodes, beside those that its script excludes already."""
    shown = _run(["scontrol", "show", "job", "-o", job]).stdout.split()
    kept = [word.partition("=")[2] for word in shown if word.startswith("ExcNodeList=")]
    before = [name for name in kept if name != "(null)"]
    _run(["scontrol", "update", f"JobId={job}", f"ExcNodeList={','.join([*before, *nodes])}"])


def spare_nodes(partition: str | None, *, exclude: Sequence[str]) -> int:
    """Return how many nodes of a partition (None: the default one) could run jobs if some were excluded."""
    options = [f"--partition={partition}"] if partition else []
    shown = _run(["sinfo", "--noheader", "--Node", "--format=%N %t %P", *options]).stdout.splitlines()
    rows = [line.split() for line in shown]
    of_partition = [row for row in rows if len(row) == 3 and (partition or row[2].endswith("*"))]
    usable = {row[0] for row in of_partition if not row[1].startswith(("down", "drain", "drng", "fail", "maint"))}
    return len(usable - set(exclude))


def unstarted_nodes(log: str) -> dict[str, str]:
    """Return node -> why, of the nodes on which srun says that it could not start anything."""
    return dict(_UNSTARTED.findall(log))


def _slurm(*command: str) -> str:
    done = _run(command)
    if done.returncode != 0:
        raise InstallationError(f"{command[0]} failed: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def _run(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(list(command), capture_output=True, text=True, timeout=_TIMEOUT_SECONDS)
    except FileNotFoundError:
        raise InstallationError(
            f"{command[0]} is not installed here: use a login node of the cluster, or `launcher run` for this machine"
        ) from None
    except subprocess.TimeoutExpired:
        raise InstallationError(f"{command[0]} has not answered for {_TIMEOUT_SECONDS:.0f} s") from None
