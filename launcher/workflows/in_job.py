"""A run inside a Slurm job: an attempt for each start of the job, the ranks of each node, and what follows their end."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from launcher.atomic import write_json
from launcher.backends.endings import close_events, close_verdicts, first_failure
from launcher.backends.machine import read_plan, run_machine
from launcher.errors import InstallationError
from launcher.launching.render import Node
from launcher.planning.hardware import hardware_for
from launcher.recipe.load import load_recipe
from launcher.rundir import RunDir
from launcher.workflows.start import begin_attempt, resume_run

_FIRST_PORT, _PORTS, _PORT_TRIES = 20_000, 10_000, 50


@dataclass(frozen=True)
class Job:
    """What Slurm says of a job on its first node."""

    id: int
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
        return cls(int(number), int(environment.get("SLURM_RESTART_COUNT", "0")), tuple(shown.stdout.split()))


def begin(run: RunDir, environment: Mapping[str, str]) -> int:
    """Make the next attempt of a run and return its number.

    Raises:
        LauncherError: the run cannot go on; see ``resume_run``.
    """
    job = Job.here(environment)
    recipe = load_recipe(run.resolved).recipe
    hardware = hardware_for(recipe)
    if run.last_attempt:
        _close_lost(run)
        run, attempt = resume_run(run.path, recipe=recipe, hardware=hardware, several_machines=True)
    else:
        base = Path(json.loads(run.job.read_text())["base_folder"])
        attempt = begin_attempt(run, recipe, hardware=hardware, base_folder=base, several_machines=True)
    head = _own_address(job.nodes)
    port = _free_port(job.id, head)
    write_json(run.place(attempt), {**asdict(job), "head": head, "port": port})
    run.add_event("job_started", attempt=attempt, job=job.id, restarts=job.restarts, nodes=list(job.nodes))
    return attempt


def run_node(run: RunDir, attempt: int, environment: Mapping[str, str]) -> int:
    """Run this node's ranks of an attempt; their verdicts say how they ended, so 0 is returned however that was."""
    place = json.loads(run.place(attempt).read_text())
    node = Node(int(environment["SLURM_NODEID"]), place["head"], place["port"])
    interface = _interface_to(place["head"])
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        if interface:
            os.environ.setdefault(name, interface)
    run_machine(run, attempt, node=node)
    return 0


def end(run: RunDir, attempt: int, code: int, environment: Mapping[str, str]) -> int:
    """Write down how an attempt ended and do what follows: requeue the job, or end it with the run's exit code."""
    world = read_plan(run, attempt).world_size
    # An agent that was killed has left the verdicts of its ranks open.
    close_verdicts(run, attempt, ranks=range(world), codes={}, ended={}, stalled=None, code=code or 1)
    failed = first_failure(run, attempt)
    close_events(run, attempt, failed, was_stopped=run.stop_request(attempt).exists())
    if failed is None:
        return 0
    rank, verdict = failed
    print(f"attempt {attempt}: rank {rank} {verdict['verdict']}: {verdict['error']}", flush=True)
    if verdict["verdict"] == "interrupted" and not run.cancelled.exists():
        run.add_event("requeued", attempt=attempt, job=int(environment["SLURM_JOB_ID"]))
        done = subprocess.run(["scontrol", "requeue", environment["SLURM_JOB_ID"]], capture_output=True, text=True)
        if done.returncode == 0:
            return 0
        print(done.stderr.strip(), file=sys.stderr)
    return int(verdict.get("exit_code") or 1)


def _close_lost(run: RunDir) -> None:
    """Close the verdicts of an attempt whose job was taken away: all its processes are gone with it."""
    attempt = run.last_attempt
    world = read_plan(run, attempt).world_size
    close_verdicts(run, attempt, ranks=range(world), codes={}, ended={}, stalled=None, code=1)
    close_events(run, attempt, first_failure(run, attempt), was_stopped=run.stop_request(attempt).exists())


# --- addresses -------------------------------------------------------------------------------------------------------


def _own_address(nodes: tuple[str, ...]) -> str:
    """Return this node's address as the other nodes reach it: that of its route to one of them, never a loopback by name."""
    for node in nodes[1:]:
        address = _node_address(node)
        if address is not None:
            return _source_address(address)
    return "127.0.0.1"


def _node_address(node: str) -> str | None:
    shown = subprocess.run(["scontrol", "show", "node", "-o", node], capture_output=True, text=True)
    names = [word.partition("=")[2] for word in shown.stdout.split() if word.startswith("NodeAddr=")]
    try:
        return socket.gethostbyname(names[0] if names else node)
    except OSError:
        return None


def _source_address(target: str) -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        # A datagram socket sends nothing when it is connected; the kernel only chooses the route.
        probe.connect((target, 9))
        return str(probe.getsockname()[0])


def _free_port(job: int, address: str) -> int:
    """Return a port that follows from the job's number, so that jobs of one node do not meet, and is free now."""
    for number in range(_PORT_TRIES):
        port = _FIRST_PORT + (job * 7 + number) % _PORTS
        with socket.socket() as probe:
            try:
                probe.bind((address, port))
                return port
            except OSError:
                continue
    raise InstallationError(f"no port of {_PORT_TRIES} from {_FIRST_PORT + job * 7 % _PORTS} on is free on {address}")


def _interface_to(address: str) -> str | None:
    """Return the interface that has the address by which this node reaches ``address``."""
    import psutil

    own = _source_address(address)
    for name, found in psutil.net_if_addrs().items():
        if any(entry.address == own for entry in found):
            return name
    return None
