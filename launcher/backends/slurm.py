"""Slurm's commands, and runs as its jobs. Only sbatch, squeue, scontrol and scancel are needed: no accounting."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from launcher.atomic import append_json, read_jsonl
from launcher.contracts import JobStatus
from launcher.errors import InstallationError
from launcher.rundir import RunDir

_TIMEOUT_SECONDS = 60.0
_FIELDS = ("%A", "%T", "%r", "%N", "%M", "%L")


@dataclass(frozen=True)
class QueuedJob:
    """A job as squeue shows it."""

    id: int
    state: str
    """Slurm's name, such as PENDING or RUNNING."""
    reason: str
    nodes: str
    elapsed: str
    left: str


class SlurmBackend:
    """The backend ``slurm``."""

    def submit(self, run: Path, *, attempt: int = 0) -> int:
        """Submit the run's job script; return 0. The job makes its attempts itself. Raises InstallationError."""
        directory = RunDir.open(run)
        said = _slurm("sbatch", "--parsable", str(directory.job_script))
        job = int(said.strip().split(";")[0])
        append_json(directory.slurm / "jobs.jsonl", {"job": job})
        directory.add_event("submitted", job=job)
        return 0

    def status(self, run: Path) -> JobStatus:
        """Return where a run stands, by its directory and the queue."""
        return RunDir.open(run).status()

    def logs(self, run: Path, *, rank: int = 0) -> Iterator[str]:
        """Yield the lines of a rank's log, of the newest attempt."""
        directory = RunDir.open(run)
        with directory.log(directory.last_attempt, rank).open(errors="replace") as file:
            yield from file

    def cancel(self, run: Path) -> None:
        """Ask the run to save and stop, and its jobs not to come back; one that waits is taken out of the queue."""
        directory = RunDir.open(run)
        directory.cancelled.touch()
        queued = queued_jobs(jobs_of(directory))
        waiting = [str(job.id) for job in queued.values() if job.state == "PENDING"]
        if waiting:
            _slurm("scancel", *waiting)
        if len(waiting) < len(queued) and directory.last_attempt:
            directory.stop_request(directory.last_attempt).touch()


def jobs_of(run: RunDir) -> tuple[int, ...]:
    """Return the numbers of the jobs that a run was submitted as, the newest last."""
    return tuple(int(row["job"]) for row in read_jsonl(run.slurm / "jobs.jsonl"))


def queued_jobs(numbers: Iterable[int]) -> dict[int, QueuedJob]:
    """Return number -> job for those that Slurm still knows; one call for all of them."""
    wanted = ",".join(str(number) for number in numbers)
    if not wanted:
        return {}
    command = ["squeue", "--noheader", "--states=all", f"--jobs={wanted}", f"--format={'|'.join(_FIELDS)}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_SECONDS)
    # Slurm calls it an error when it has forgotten the only job that was asked for.
    rows = (line.split("|") for line in done.stdout.splitlines())
    found = (QueuedJob(int(row[0]), *row[1:]) for row in rows if len(row) == len(_FIELDS))
    return {job.id: job for job in found}


def _slurm(*command: str) -> str:
    try:
        done = subprocess.run(list(command), capture_output=True, text=True, timeout=_TIMEOUT_SECONDS)
    except FileNotFoundError:
        raise InstallationError(
            f"{command[0]} is not installed here: submit from a login node of the cluster"
        ) from None
    except subprocess.TimeoutExpired:
        raise InstallationError(f"{command[0]} has not answered for {_TIMEOUT_SECONDS:.0f} s") from None
    if done.returncode != 0:
        raise InstallationError(f"{_shown(command)} failed: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def _shown(command: Sequence[str]) -> str:
    return " ".join(command)
