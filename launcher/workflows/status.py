"""Where runs stand: what their directories say, corrected by the cluster's queue; one question to Slurm for all of them."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.atomic import read_jsonl
from launcher.backends.local import LocalBackend
from launcher.backends.slurm import QueuedJob, jobs_of, queued_jobs
from launcher.rundir import RunDir

# What squeue calls a job that may still do something.
_ALIVE = (
    "PENDING",
    "RUNNING",
    "CONFIGURING",
    "COMPLETING",
    "SUSPENDED",
    "REQUEUED",
    "REQUEUE_HOLD",
    "RESIZING",
    "SIGNALING",
    "STAGE_OUT",
)


@dataclass(frozen=True)
class RunStatus:
    """A line of the table."""

    run: Path
    state: str
    """created, queued, running, interrupted, failed, finished, lost (its job is gone without a word)."""
    reason: str
    attempt: int
    job: int | None
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
    """Return where each run stands."""
    submitted = {run.path: jobs_of(run) for run in runs}
    queue = queued_jobs(jobs[-1] for jobs in submitted.values() if jobs)
    return tuple(_status(run, submitted[run.path], queue) for run in runs)


def _status(run: RunDir, jobs: tuple[int, ...], queue: dict[int, QueuedJob]) -> RunStatus:
    job = queue.get(jobs[-1]) if jobs else None
    found = run.status() if jobs else LocalBackend().status(run.path)
    state: str = found.state
    reason = found.reason
    is_alive = job is not None and job.state in _ALIVE
    if job is not None and job.state in ("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD"):
        state, reason = "queued", ""
    elif jobs and not is_alive and state in ("created", "running"):
        state, reason = "lost", "its job is gone, and no rank has said how it ended: launcher explain has what is known"
    rows = [row for row in read_jsonl(run.progress) if "step" in row]
    losses = [row["loss"] for row in rows if row.get("loss") is not None]
    speeds = [row["tokens_per_second"] for row in rows if row.get("tokens_per_second")]
    last = rows[-1] if rows else {}
    return RunStatus(
        run=run.path,
        state=state,
        reason=reason,
        attempt=found.attempt,
        job=jobs[-1] if jobs else None,
        queue="" if job is None else job.state + (f" ({job.reason})" if job.state == "PENDING" else ""),
        step=found.step,
        total_steps=found.total_steps,
        loss=losses[-1] if losses else None,
        tokens_per_second=speeds[-1] if speeds else None,
        seconds_left=last.get("eta_seconds") if state == "running" else None,
        seconds_since_progress=time.time() - last["time"] if state == "running" and "time" in last else None,
    )


@dataclass(frozen=True)
class AttemptStory:
    """One attempt, as ``launcher explain`` tells it."""

    number: int
    where: str
    began: float | None
    from_step: int
    to_step: int | None
    ending: str
    """Of the rank whose end made the others end."""
    ranks: dict[int, dict[str, Any]]


def story_of(run: RunDir) -> tuple[AttemptStory, ...]:
    """Return what is known of each attempt: where it ran, from which step to which, and why it ended."""
    from launcher.backends.endings import first_failure

    events, rows = read_jsonl(run.events), [row for row in read_jsonl(run.progress) if "step" in row]
    stories = []
    for number in range(1, run.last_attempt + 1):
        own = [row for row in rows if row.get("attempt") == number]
        begun = next((row["time"] for row in events if row.get("attempt") == number), None)
        failed = first_failure(run, number)
        verdicts = run.verdicts(number)
        if failed is not None:
            ending = f"rank {failed[0]} {failed[1]['verdict']}: {failed[1].get('error', '')}"
        else:
            ending = (
                "finished"
                if verdicts and all(v["verdict"] == "finished" for v in verdicts.values())
                else "still running"
            )
        stories.append(
            AttemptStory(
                number,
                _where(run, number),
                begun,
                own[0]["step"] - 1 if own else 0,
                own[-1]["step"] if own else None,
                ending,
                verdicts,
            )
        )
    return tuple(stories)


def _where(run: RunDir, attempt: int) -> str:
    place = run.place(attempt)
    if place.is_file():
        found = json.loads(place.read_text())
        again = f", restarted {found['restarts']} times" if found["restarts"] else ""
        return f"job {found['id']} on {', '.join(found['nodes'])}{again}"
    hosts = sorted({str(verdict.get("host", "?")) for verdict in run.verdicts(attempt).values()})
    return f"this machine ({', '.join(hosts)})" if hosts else "nowhere yet"
