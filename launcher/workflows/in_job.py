"""A run inside a Slurm job: an attempt for each start of the job, the ranks of each node, and what follows their end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from launcher import registry
from launcher.atomic import write_json, write_text
from launcher.backends.endings import close_events, close_verdicts, first_failure
from launcher.backends.machine import read_plan, run_machine
from launcher.backends.slurm import (
    cancel_jobs,
    exclude_nodes,
    jobs_of,
    requeue,
    spare_nodes,
    unstarted_nodes,
    waiting_jobs,
)
from launcher.errors import InstallationError, LauncherError, PreflightFailed, RunStateError
from launcher.launching.addresses import free_port, interface_to, own_address
from launcher.launching.aftermath import Decision, Outcome, decide
from launcher.launching.locks import hold_run
from launcher.launching.render import Node
from launcher.planning.hardware import hardware_for
from launcher.plans import BatchPlan
from launcher.recipe.cluster_profile import ClusterProfile
from launcher.recipe.load import load_recipe, parse_recipe, resolved_text
from launcher.recipe.schema import Recipe
from launcher.rundir import RunDir
from launcher.workflows.outcomes import history_of, outcome_of, resumed_from
from launcher.workflows.preflight import look_at_node, unfit_node
from launcher.workflows.start import begin_attempt, drop_unbegun_attempt, resume_run

# How long a holder on a node that is gone seems alive to others; see launching/locks.py.
_LOCK_SECONDS = 75.0


@dataclass(frozen=True)
class Job:
    """What Slurm says of a job on its first node."""

    id: str
    """For an element of an array ARRAY_INDEX."""
    restarts: int
    nodes: tuple[str, ...]

    @classmethod
    def here(cls, environment: Mapping[str, str]) -> Job:
        """Return the job that this process belongs to. Raises InstallationError outside of one."""
        try:
            number, hosts = environment["SLURM_JOB_ID"], environment["SLURM_JOB_NODELIST"]
        except KeyError:
            raise InstallationError("this is for a Slurm job: submit the run with `launcher submit`") from None
        shown = subprocess.run(["scontrol", "show", "hostnames", hosts], capture_output=True, text=True, check=True)
        if "SLURM_ARRAY_JOB_ID" in environment:
            number = f"{environment['SLURM_ARRAY_JOB_ID']}_{environment['SLURM_ARRAY_TASK_ID']}"
        return cls(number, int(environment.get("SLURM_RESTART_COUNT", "0")), tuple(shown.stdout.split()))


# --- begin -----------------------------------------------------------------------------------------------------------


def begin(run: RunDir, environment: Mapping[str, str]) -> int | None:
    """Make the next attempt of a run and return its number; None where the run has nothing left to do.

    Raises:
        LauncherError: the run cannot go on; see ``resume_run``. No further job tries it.
    """
    if run.done.exists():
        print(f"nothing is left to do: {json.loads(run.done.read_text())['reason']}", file=sys.stderr)
        return None
    job = Job.here(environment)
    _close_lost(run)
    if run.cancelled.exists() and not run.done.exists():
        run.add_event("interrupted", reason="cancelled before it began", attempt=run.last_attempt)
        finish(run, Decision(False, "the run was cancelled"))
    if run.done.exists():
        return None
    try:
        attempt = _next_attempt(run)
        number = int(environment["SLURM_JOB_ID"])
        head = own_address(job.nodes)
        port = free_port(number, head)
    except LauncherError as error:
        run.add_event("failed", reason=str(error), attempt=run.last_attempt)
        finish(run, Decision(False, str(error)))
        raise
    said = run.job_log.stat().st_size if run.job_log.is_file() else 0
    where = {**asdict(job), "head": head, "port": port, "resumed_from": resumed_from(run), "log_from": said}
    write_json(run.place(attempt), where)
    run.add_event("job_started", attempt=attempt, job=job.id, restarts=job.restarts, nodes=list(job.nodes))
    return attempt


def _next_attempt(run: RunDir) -> int:
    request = json.loads(run.resume_request.read_text()) if run.resume_request.is_file() else {}
    text = request.get("recipe")
    recipe = (parse_recipe(text, str(run.resume_request)) if text else load_recipe(run.resolved)).recipe
    hardware = hardware_for(recipe)
    with _held(run):
        if not run.last_attempt:
            write_text(run.resolved, resolved_text(recipe))
            run.resume_request.unlink(missing_ok=True)
            base = Path(run.job_facts()["base_folder"])
            return begin_attempt(run, recipe, hardware=hardware, base_folder=base, several_machines=True)
        _, attempt = resume_run(
            run.path,
            recipe=recipe,
            hardware=hardware,
            allow_changes=request.get("allow_changes", False),
            from_start=request.get("from_start", False),
            several_machines=True,
        )
        run.resume_request.unlink(missing_ok=True)
        return attempt


def _held(run: RunDir) -> Any:
    """Return the run's lock; a node that is gone keeps it for a while."""
    ends = time.monotonic() + _LOCK_SECONDS
    while True:
        try:
            return hold_run(run)
        except RunStateError:
            if time.monotonic() > ends:
                raise
            time.sleep(1.0)


def _close_lost(run: RunDir) -> None:
    """Write down the end of an attempt whose job was taken away before it could do that, and whether the run goes on."""
    drop_unbegun_attempt(run)
    attempt = run.last_attempt
    if not attempt or any(outcome.attempt == attempt for outcome in history_of(run, whole=True)):
        return
    outcome = _closed(run, attempt, code=1, was_taken=True)
    decision = decide(history_of(run), load_recipe(run.resolved).recipe.slurm)
    if not decision.goes_on:
        finish(run, decision)
        if outcome.kind != "finished":
            raise RunStateError(decision.reason)


# --- on every node ---------------------------------------------------------------------------------------------------


def preflight(run: RunDir, attempt: int, environment: Mapping[str, str]) -> int:
    """Look whether this node can take part in an attempt, and write down what was found; 0: it can."""
    node, nodes = _node_here(run, attempt, environment)
    faults = look_at_node(run, attempt, node, nodes=nodes, plan=read_plan(run, attempt))
    for fault in faults:
        print(f"preflight: {fault}", file=sys.stderr, flush=True)
    return PreflightFailed.exit_code if faults else 0


def run_node(run: RunDir, attempt: int, environment: Mapping[str, str]) -> int:
    """Run this node's ranks of an attempt; their verdicts say how they ended, so 0 is returned however that was."""
    node, _ = _node_here(run, attempt, environment)
    for name, value in _node_settings(_profile(run), node.head).items():
        os.environ.setdefault(name, value)
    run_machine(run, attempt, node=node)
    return 0


def _node_here(run: RunDir, attempt: int, environment: Mapping[str, str]) -> tuple[Node, tuple[str, ...]]:
    """Return this node's place in an attempt, and the names of all of its nodes."""
    place = json.loads(run.place(attempt).read_text())
    return Node(int(environment["SLURM_NODEID"]), place["head"], place["port"]), tuple(place["nodes"])


def _node_settings(profile: ClusterProfile, head: str) -> dict[str, str]:
    """Return variables of this node's ranks: the interface to the first node, and caches on the node's own disk.

    What is compiled into a folder that nodes share is compiled by all of them at once, and read half-written.
    """
    interface = profile.network_interface or interface_to(head)
    scratch = Path(profile.scratch or os.environ.get("TMPDIR") or "/tmp") / f"launcher-{os.getuid()}"
    settings = {
        "TRITON_CACHE_DIR": str(scratch / "triton"),
        "TORCH_EXTENSIONS_DIR": str(scratch / "torch_extensions"),
        "TORCHINDUCTOR_CACHE_DIR": str(scratch / "inductor"),
    }
    if interface is not None:
        settings |= {"GLOO_SOCKET_IFNAME": interface, "NCCL_SOCKET_IFNAME": interface}
    return settings


def _profile(run: RunDir) -> ClusterProfile:
    return ClusterProfile.model_validate(run.job_facts()["profile"]["values"])


# --- before any job trains -------------------------------------------------------------------------------------------


def prepare(run: RunDir) -> None:
    """Prepare a run's data and leave them in the cache. Raises DataError, after which no job tries the run."""
    recipe = load_recipe(run.resolved).recipe
    base = Path(run.job_facts()["base_folder"])
    try:
        folder, _ = registry.load(registry.TASKS, recipe.task.type)(recipe, base_folder=base).prepare_data()
    except LauncherError as error:
        run.add_event("failed", reason=str(error))
        finish(run, Decision(False, str(error)))
        raise
    run.add_event("prepared", folder=str(folder))


# --- end -------------------------------------------------------------------------------------------------------------


def end(run: RunDir, attempt: int, code: int, environment: Mapping[str, str]) -> int:
    """Write down how an attempt ended and do what follows: requeue the job, leave it to the next one of a chain, or end.

    Returns the code that the job ends with: 0 where the run has finished or goes on, else that of the rank that failed.
    """
    outcome = _closed(run, attempt, code=code, was_taken=False)
    recipe = load_recipe(run.resolved).recipe
    decision = decide(history_of(run), recipe.slurm)
    print(f"attempt {attempt}: {outcome.kind}. {decision.reason}", flush=True)
    if not decision.goes_on:
        if outcome.kind == "out_of_memory":
            print(_memory_advice(run, attempt, recipe), flush=True)
        finish(run, decision)
        return outcome.exit_code
    job, exclude = Job.here(environment), _excludable(run, decision)
    if not _profile(run).requeue:
        return _leave_to_next(run, attempt, job, decision, exclude, code=outcome.exit_code)
    run.add_event("requeued", attempt=attempt, job=job.id, reason=decision.reason, exclude=list(exclude))
    refused = _requeue(environment["SLURM_JOB_ID"], exclude)
    if not refused:
        return 0
    reason = f"Slurm has not requeued the job ({refused}); to go on: launcher resume {run.path}"
    print(reason, file=sys.stderr)
    run.add_event("failed", attempt=attempt, reason=reason)
    return outcome.exit_code


def _closed(run: RunDir, attempt: int, *, code: int, was_taken: bool) -> Outcome:
    """Give every rank of an attempt its verdict and the attempt its outcome, in the run's events."""
    was_stopped = run.stop_request(attempt).exists()
    unfit = unfit_node(run, attempt)
    if unfit is None and not (was_taken or was_stopped):
        unfit = _unstarted(run, attempt)
    if unfit is None:
        # An agent that was killed has left the verdicts of its ranks open.
        world = read_plan(run, attempt).world_size
        # A rank that never began is a fault only of an attempt that was to train.
        missing = 0 if was_taken or was_stopped else code or 1
        close_verdicts(run, attempt, ranks=range(world), codes={}, ended={}, stalled=None, code=missing)
    outcome = outcome_of(run, attempt, unfit=unfit, was_taken=was_taken, was_stopped=was_stopped)
    if unfit is not None or not run.verdicts(attempt):
        state = "interrupted" if outcome.kind in ("stopped", "taken", "cancelled") else "failed"
        run.add_event(state, attempt=attempt, reason=outcome.reason)
    else:
        close_events(run, attempt, first_failure(run, attempt), was_stopped=was_stopped or was_taken)
    run.add_event("attempt_ended", **asdict(outcome))
    return outcome


def _unstarted(run: RunDir, attempt: int) -> tuple[str | None, str] | None:
    """Return (node, fault) where Slurm could not start an attempt's part on a node; srun then ends those that look, or wait, for it."""
    if run.verdicts(attempt) or not run.job_log.is_file():
        return None
    with run.job_log.open("rb") as log:
        log.seek(json.loads(run.place(attempt).read_text()).get("log_from", 0))
        nodes = unstarted_nodes(log.read().decode(errors="replace"))
    if not nodes:
        return None
    names = ", ".join(nodes)
    fault = f"Slurm could not start launcher on {names}: {next(iter(nodes.values()))}"
    # Where it is several, what they have in common may be at fault, such as the first node's own link.
    return (names if len(nodes) == 1 else None), fault


def finish(run: RunDir, decision: Decision) -> None:
    """Say that nothing follows, and take the jobs that wait for their turn out of the queue."""
    write_json(run.done, {"reason": decision.reason, "time": time.time()})
    cancel_jobs(waiting_jobs(jobs_of(run)))


def _excludable(run: RunDir, decision: Decision) -> tuple[str, ...]:
    """Return the nodes to avoid, as far as the partition has others: a job that can never start helps nobody."""
    if not decision.exclude:
        return ()
    profile, nodes = _profile(run), read_plan(run, run.last_attempt).nodes
    if spare_nodes(profile.partition, exclude=decision.exclude) >= nodes:
        return decision.exclude
    print(f"{', '.join(decision.exclude)} would be excluded, but too few other nodes are left", file=sys.stderr)
    return ()


def _requeue(job: str, exclude: tuple[str, ...]) -> str:
    """Requeue this job; return "" or why not. Slurm ends this process with it, first with SIGTERM: the rest is done meanwhile."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    refused = requeue(job)
    if exclude and not refused:
        # Only of a waiting job can it be changed on which nodes it may run.
        exclude_nodes(job, exclude)
    return refused


def _leave_to_next(
    run: RunDir, attempt: int, job: Job, decision: Decision, exclude: tuple[str, ...], *, code: int
) -> int:
    waiting = waiting_jobs(jobs_of(run))
    if not waiting:
        reason = f"no job of the chain is left (slurm.chain); to go on: launcher resume {run.path}"
        print(reason, file=sys.stderr)
        run.add_event("chain_ended", attempt=attempt, job=job.id, reason=reason)
        return code
    run.add_event("left_to_next", attempt=attempt, job=waiting[0], reason=decision.reason, exclude=list(exclude))
    for number in waiting if exclude else ():
        exclude_nodes(number, exclude)
    return 0


def _smaller_batch(batch: BatchPlan) -> str:
    """Return the key that halves what a rank holds at a time; "" where that is one row, or not known."""
    budget = batch.budget
    if budget is not None:
        half = budget.held_tokens // 2
        return f"training.per_device_train_tokens={half}" if half >= budget.longest > 0 else ""
    half = max(1, batch.micro_batch_size // 2)
    return f"training.per_device_train_batch_size={half}" if half < batch.micro_batch_size else ""


def _memory_advice(run: RunDir, attempt: int, recipe: Recipe) -> str:
    """Return what helps against a lack of memory: smaller batches at once, which change no result, and what the planner says."""
    plan = json.loads(run.plan.read_text()) if run.plan.is_file() else {}
    smaller = _smaller_batch(BatchPlan.from_json(plan["launch"]["batch"]) if plan else read_plan(run, attempt).batch)
    words = [
        f"{smaller} halves what a step holds, and changes no result: accumulation follows"
        if smaller
        else "training.activation_checkpointing=true, or strategy.type=lora, needs less memory"
    ]
    wanted = plan.get("facts", {}).get("max_length") or recipe.data.max_length
    if wanted:
        words.append(f"data.max_length={wanted // 2} halves the longest row")
    words.append(f"launcher plan {run.resolved} tells the memory of each moment, and the cheapest change that fits")
    return "out of memory: " + "; ".join(words) + f"; then: launcher resume {run.path} KEY=VALUE"
