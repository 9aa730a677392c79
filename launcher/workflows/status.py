"""Where runs stand: what their directories say, corrected by the cluster's queue; one question to Slurm for all of them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.atomic import read_jsonl, read_jsonl_end
from launcher.backends.local import looked_at
from launcher.backends.slurm import QueuedJob, jobs_of, queued_jobs
from launcher.backends.stragglers import stragglers_of
from launcher.errors import InstallationError
from launcher.rundir import RunDir

# Rows of progress that are read for a table's line: evaluations stand between those with a loss.
_ROWS = 50


@dataclass(frozen=True)
class RunStatus:
    """A line of the table."""

    run: Path
    state: str
    """created, queued, starting (its job runs, and does not train yet), running, ending (its ranks have ended, and its job says what
    follows), interrupted, failed, finished, lost (its job is gone without a word)."""
    reason: str
    attempt: int
    job: str | None
    queue: str
    """Slurm's word for the job, with the reason why it waits; "" where it has none."""
    step: int | None
    total_steps: int | None
    loss: float | None
    tokens_per_second: float | None
    seconds_left: float | None
    seconds_since_progress: float | None


def list_runs(folder: Path) -> tuple[RunDir, ...]:
    """Return the runs in a folder, by name."""
    return tuple(RunDir(path.parent) for path in sorted(folder.glob("*/resolved.yaml")))


def status_of(runs: Sequence[RunDir]) -> tuple[RunStatus, ...]:
    """Return where each run stands; Slurm is asked once, about those that have not finished."""
    states = {run.path: run.status() for run in runs}
    submitted = {run.path: jobs_of(run) for run in runs}
    asked = [number for path, jobs in submitted.items() for number in jobs if states[path].state != "finished"]
    silent = ""
    try:
        queue = queued_jobs(asked)
    except InstallationError as error:
        queue, silent = {}, f"Slurm does not answer, so this is what the run's directory says: {error}"
    return tuple(_status(run, states[run.path], submitted[run.path], queue, silent=silent) for run in runs)


def _status(run: RunDir, found: Any, jobs: tuple[str, ...], queue: dict[str, QueuedJob], *, silent: str) -> RunStatus:
    job = _current(jobs, queue)
    if not jobs and not run.job.exists():
        found = looked_at(run, found)
    state: str = found.state
    reason = found.reason
    if job is not None and job.is_waiting:
        state, reason = "queued", _last_ending(run)
    elif job is not None and state != "running":
        state, reason = ("ending", reason) if _has_ended(run, found.attempt) else ("starting", _first_words(run, found))
    elif jobs and job is None and state in ("created", "running"):
        reason = silent or "its job is gone, and no rank has said how it ended: see launcher explain, and slurm/job.log"
        state = state if silent else "lost"
    if state == "running":
        reason = reason or "; ".join(stragglers_of(run, found.attempt))
    rows = [row for row in read_jsonl_end(run.progress, rows=_ROWS) if "step" in row]
    losses = [row["loss"] for row in rows if row.get("loss") is not None]
    speeds = [row["tokens_per_second"] for row in rows if row.get("tokens_per_second")]
    last = rows[-1] if rows else {}
    shown = job.id if job is not None else jobs[-1] if jobs else None
    return RunStatus(
        run=run.path,
        state=state,
        reason=reason,
        attempt=found.attempt,
        job=shown,
        queue="" if job is None else job.state + (f" ({job.reason})" if job.is_waiting else ""),
        step=found.step,
        total_steps=found.total_steps,
        loss=losses[-1] if losses else None,
        tokens_per_second=speeds[-1] if speeds else None,
        seconds_left=last.get("eta_seconds") if state == "running" else None,
        seconds_since_progress=time.time() - last["time"] if state == "running" and "time" in last else None,
    )


def _current(jobs: Sequence[str], queue: dict[str, QueuedJob]) -> QueuedJob | None:
    """Return the job that the run's next step comes from: one that runs, or the first of those that wait; None: all are over."""
    alive = [queue[number] for number in jobs if number in queue and queue[number].is_alive]
    return next((job for job in alive if not job.is_waiting), alive[0] if alive else None)


def _has_ended(run: RunDir, attempt: int) -> bool:
    """Whether every rank that began in an attempt has ended."""
    verdicts = run.verdicts(attempt).values()
    return bool(verdicts) and all(verdict["verdict"] != "running" for verdict in verdicts)


def _first_words(run: RunDir, found: Any) -> str:
    beat = run.heartbeats(found.attempt).get(0)
    return f"rank 0 is {beat['doing']}" if beat else ""


def _last_ending(run: RunDir) -> str:
    ended = [row for row in read_jsonl(run.events) if row["event"] == "attempt_ended"]
    return f"after attempt {ended[-1]['attempt']}: {ended[-1]['reason']}" if ended else ""
