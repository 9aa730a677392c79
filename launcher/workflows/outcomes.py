"""How the attempts of a submitted run ended, in the words that decide what follows."""

from __future__ import annotations

import json
from typing import Any

from launcher.atomic import read_jsonl
from launcher.backends.endings import all_finished, first_failure, in_words
from launcher.backends.machine import read_plan
from launcher.errors import (
    DataError,
    InstallationError,
    ModelError,
    PlanMismatch,
    PreflightFailed,
    RecipeError,
    RunStateError,
    SavedModelDiffers,
)
from launcher.launching.aftermath import Kind, Outcome
from launcher.rundir import RunDir

# Errors of a user's or of the machine's whole set-up: another attempt meets them again.
_REFUSALS = (
    RecipeError, DataError, ModelError, InstallationError, RunStateError, PlanMismatch, SavedModelDiffers,
)  # fmt: skip
_REFUSAL_CODES = frozenset(error.exit_code for error in _REFUSALS)
_SAME: dict[str, Kind] = {"diverged": "diverged", "out_of_memory": "out_of_memory", "saved_model_differs": "refused"}


def history_of(run: RunDir, *, whole: bool = False) -> tuple[Outcome, ...]:
    """Return how attempts ended since the run was last submitted; ``whole``: all of them."""
    found: list[Outcome] = []
    for row in read_jsonl(run.events):
        if row["event"] == "submitted" and not whole:
            found.clear()
        if row["event"] == "attempt_ended":
            found.append(Outcome.from_row(row))
    return tuple(found)


def resumed_from(run: RunDir) -> int:
    """Return the step of the newest checkpoint, from which the next attempt goes on; 0 where there is none."""
    checkpoint = run.latest_checkpoint()
    return int(checkpoint.name.split("-")[1]) if checkpoint is not None else 0


def outcome_of(
    run: RunDir, attempt: int, *, unfit: tuple[str | None, str] | None, was_taken: bool, was_stopped: bool
) -> Outcome:
    """Return how an attempt ended, whose ranks have all been given a verdict.

    Args:
        unfit: the node that the preflight found at fault (None: it is about none), and the fault.
        was_taken: whether its job was gone before it could say so.
        was_stopped: whether it had been asked to stop.
    """
    place = json.loads(run.place(attempt).read_text()) if run.place(attempt).is_file() else {}
    nodes = tuple(place.get("nodes", ()))
    steps = [row["step"] for row in read_jsonl(run.progress) if row.get("attempt") == attempt and "step" in row]
    facts: dict[str, Any] = {
        "attempt": attempt,
        "nodes": nodes,
        "resumed_from": place.get("resumed_from", 0),
        "saved": resumed_from(run),
        "reached": max(steps, default=place.get("resumed_from", 0)),
    }
    if unfit is not None:
        node, fault = unfit
        return Outcome(kind="preflight", reason=fault, node=node, exit_code=PreflightFailed.exit_code, **facts)
    plan = read_plan(run, attempt)
    verdicts, failed = run.verdicts(attempt), first_failure(run, attempt)
    if len(verdicts) == plan.world_size and all_finished(verdicts):
        return Outcome(kind="finished", exit_code=0, **facts)
    if failed is None:
        return _without_verdict(run, was_taken=was_taken, was_stopped=was_stopped, facts=facts)
    rank, verdict = failed
    index = rank // plan.processes_per_node
    return Outcome(
        kind=_kind(run, verdict, was_taken=was_taken),
        reason=in_words(failed),
        rank=rank,
        node=nodes[index] if index < len(nodes) else verdict.get("host"),
        exit_code=int(verdict.get("exit_code") or 1),
        **facts,
    )


def _without_verdict(run: RunDir, *, was_taken: bool, was_stopped: bool, facts: dict[str, Any]) -> Outcome:
    if run.cancelled.exists():
        return Outcome(kind="cancelled", reason="cancelled before it began", exit_code=130, **facts)
    if was_stopped:
        return Outcome(kind="stopped", reason="asked to stop before any rank had begun", exit_code=130, **facts)
    if was_taken:
        return Outcome(kind="taken", reason=_TAKEN, **facts)
    return Outcome(kind="crashed", reason="no rank has begun; slurm/job.log has the last words", **facts)


_TAKEN = "the job ended without a word: preempted at once, requeued by hand, out of time, or its node failed"


def _kind(run: RunDir, verdict: dict[str, Any], *, was_taken: bool) -> Kind:
    name = str(verdict["verdict"])
    if run.cancelled.exists() and name in ("interrupted", "killed", "ended"):
        return "cancelled"
    if name in _SAME:
        return _SAME[name]
    if name == "interrupted":
        return "stopped"
    if was_taken and name in ("killed", "ended"):
        return "taken"
    is_ours = bool(verdict.get("type")) and not verdict.get("traceback")
    return "refused" if name == "failed" and is_ours and verdict.get("exit_code") in _REFUSAL_CODES else "crashed"
