"""Before an attempt trains: is every node of the job fit for it? Each node looks, and writes down what it found; at most a minute.

A node shows itself to the others by a file in the run's folder, which at the same time shows that they share the folder. Then all
of them meet at the first node's address and port, where the ranks will meet, and add numbers together.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shutil
import socket
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

from launcher.atomic import write_json
from launcher.data.prepare import cache_folder
from launcher.launching.addresses import interface_to, source_address
from launcher.launching.render import Node
from launcher.plans import LaunchPlan
from launcher.recipe.load import load_recipe
from launcher.recipe.schema import Recipe
from launcher.rundir import RunDir
from launcher.workflows import node_looks

LIMIT_SECONDS = 55.0
_SEE_SECONDS = 20.0
"""How long a node may take to show that it is there, and what it wrote to be seen elsewhere."""
_ALONE_SECONDS = 40.0
"""How long it may look at itself: on a busy file system most of that is importing torch."""
_MEET_SECONDS = 20.0
_SUM_SECONDS = 10.0
_ALL, _NOT_ALL = b"+", b"-"
_SUMMED = 2**18


@dataclass
class _Findings:
    """What a node has found so far; a fault names the node that is to blame, or None where no single one is."""

    name: str
    facts: dict[str, Any] = field(default_factory=dict)
    faults: list[tuple[str | None, str]] = field(default_factory=list)
    is_alone: bool = True
    """Whether it still looks at itself, so that the others wait for it."""

    def blame(self, node: str | None, fault: str) -> None:
        self.faults.append((node, fault))


def look_at_node(run: RunDir, attempt: int, node: Node, *, nodes: tuple[str, ...], plan: LaunchPlan) -> tuple[str, ...]:
    """Look at this node, as far as LIMIT_SECONDS allow, and return its faults in words; the run's folder gets them too."""
    began = time.monotonic()
    found = _Findings(nodes[node.number])
    recipe = load_recipe(run.resolved).recipe
    done = threading.Event()

    def give_up() -> None:
        if not done.wait(LIMIT_SECONDS):
            what = "its look at itself" if found.is_alone else "meeting the other nodes"
            found.blame(found.name if found.is_alone else None, f"{what} has not ended within {LIMIT_SECONDS:.0f} s")
            _write(run, attempt, node, found, began)
            run.preflight_over(attempt).touch()
            print(f"preflight: {_words(found)[-1]}", file=sys.stderr, flush=True)
            # A collective, or a file system, that hangs cannot be left in another way.
            os._exit(11)

    threading.Thread(target=give_up, daemon=True).start()
    _write(run, attempt, node, found, began)
    _look_alone(found, run, recipe, plan)
    found.is_alone = False
    _write(run, attempt, node, found, began)
    # A node that is unfit by itself still shows that it is there; the others are not kept waiting by it.
    if not found.faults and len(nodes) > 1:
        _look_together(found, run, attempt, node, nodes, recipe, plan, ends=began + _ALONE_SECONDS)
    done.set()
    _write(run, attempt, node, found, began)
    run.preflight_over(attempt).touch()
    return _words(found)


def _words(found: _Findings) -> tuple[str, ...]:
    return tuple(f"{node}: {fault}" if node else fault for node, fault in found.faults)


def _write(run: RunDir, attempt: int, node: Node, found: _Findings, began: float) -> None:
    values = {
        "node": found.name, "facts": found.facts, "faults": found.faults, "is_alone": found.is_alone,
        "seconds": time.monotonic() - began,
    }  # fmt: skip
    write_json(run.preflight(attempt, node.number), values)


def unfit_node(run: RunDir, attempt: int) -> tuple[str | None, str] | None:
    """Return (node, fault) of what kept an attempt from training; None where nothing did. The node is None where none is to blame."""
    files = sorted(run.attempt(attempt).glob("preflight.node-*.json"))
    looks = [json.loads(path.read_text()) for path in files]
    faults = [(node, fault) for look in looks for node, fault in look["faults"]]
    if not faults:
        return None
    # A node that is at fault by itself, or with another one, is the reason why others miss it.
    own = [(node, fault) for look in looks for node, fault in look["faults"] if node == look["node"]]
    shared = [(node, fault) for node, fault in faults if node is None]
    node, fault = (own or shared or faults)[0]
    return node, f"preflight: node {node}: {fault}" if node else f"preflight: {fault}"


def _look_alone(found: _Findings, run: RunDir, recipe: Recipe, plan: LaunchPlan) -> None:
    processors = len(os.sched_getaffinity(0))
    found.facts |= {
        "host": platform.node(), "versions": node_looks.versions(), "code": node_looks.code_fingerprint(), "processors": processors,
    }  # fmt: skip
    for name, look in node_looks.looks(run, recipe, plan):
        began = time.monotonic()
        try:
            fault = look()
        except Exception as error:  # whatever a broken node answers, it is to be named
            fault = f"{name}: {type(error).__name__}: {error}"
        found.facts[f"{name}_seconds"] = round(time.monotonic() - began, 3)
        if fault:
            found.blame(found.name, fault)
    if "SLURM_NODEID" in os.environ and os.environ["SLURM_NODEID"] == "0":
        found.facts["slurm"] = node_looks.slurm_facts()


# --- all nodes together ----------------------------------------------------------------------------------------------


def _look_together(
    found: _Findings,
    run: RunDir,
    attempt: int,
    node: Node,
    nodes: tuple[str, ...],
    recipe: Recipe,
    plan: LaunchPlan,
    *,
    ends: float,
) -> None:
    looks = _see_others(found, run, attempt, nodes, ends=ends)
    if found.faults or any(look["faults"] for look in looks.values()):
        return
    _compare(found, looks, nodes)
    if found.faults:
        return
    shared = cache_folder(recipe.data.cache_dir) / "preflight" / f"{run.id}-{attempt}"
    _share_cache(found, shared, node, nodes)
    if found.faults or not _meet(found, node, nodes, looks):
        return
    _sum(found, node, nodes, plan)
    if node.number == 0 and not found.faults:
        shutil.rmtree(shared, ignore_errors=True)


def _see_others(
    found: _Findings, run: RunDir, attempt: int, nodes: tuple[str, ...], *, ends: float
) -> dict[int, dict[str, Any]]:
    """Wait for what the other nodes have written, forced to disk and renamed into the run's folder.

    ``ends``: until when a node that is there may look at itself, in seconds of the monotonic clock.
    """
    looks: dict[int, dict[str, Any]] = {}
    gone = time.monotonic() + _SEE_SECONDS
    while True:
        # A folder that is listed anew is not answered from a client's cache of names.
        names = set(os.listdir(run.attempt(attempt)))
        there = {number for number in range(len(nodes)) if run.preflight(attempt, number).name in names}
        for number in there - looks.keys():
            look = json.loads(run.preflight(attempt, number).read_text())
            if not look["is_alone"]:
                looks[number] = look
        missing = set(range(len(nodes))) - looks.keys()
        late = {number for number in missing if time.monotonic() > (ends if number in there else gone)}
        if late or not missing:
            break
        time.sleep(0.1)
    for number in sorted(late):
        fault = (
            f"it has not ended its look at itself within {_ALONE_SECONDS:.0f} s"
            if number in there
            else f"{found.name} has not seen it within {_SEE_SECONDS:.0f} s: it has not started, or {run.path} is not the same folder there"
        )
        found.blame(nodes[number], fault)
    return looks


def _compare(found: _Findings, looks: dict[int, dict[str, Any]], nodes: tuple[str, ...]) -> None:
    """Compare every node with the first one: as each comes to the same end, none waits for one that has found itself unfit."""
    first = looks[0]["facts"]
    for number, look in sorted(looks.items()):
        facts = look["facts"]
        for name, version in first["versions"].items():
            if facts["versions"].get(name) != version:
                fault = f"it has {name} {facts['versions'].get(name)}, and {nodes[0]} has {version}"
                found.blame(nodes[number], fault)
        if facts["code"] != first["code"]:
            found.blame(nodes[number], f"its launcher is not the same code as that of {nodes[0]}")


def _share_cache(found: _Findings, folder: Path, node: Node, nodes: tuple[str, ...]) -> None:
    """Look whether what the first node puts beside the prepared data is seen here: it prepares them for all."""
    mark = folder / "seen"
    if node.number == 0:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(mark, {"node": nodes[0]})
        return
    ends = time.monotonic() + _SEE_SECONDS
    while not mark.exists():
        if time.monotonic() > ends:
            found.blame(
                None,
                f"{nodes[0]} prepares the data in {folder.parents[1]}, and {found.name} does not see that folder; set data.cache_dir "
                "to one that the nodes share",
            )
            return
        if folder.parent.is_dir():
            os.listdir(folder.parent)
        time.sleep(0.1)


def _meet(found: _Findings, node: Node, nodes: tuple[str, ...], looks: dict[int, dict[str, Any]]) -> bool:
    """Have every other node reach the first one's address and port; return whether all do."""
    hosts = {look["facts"]["host"] for look in looks.values()}
    if node.head.startswith("127.") and len(hosts) > 1:
        found.blame(
            nodes[0], f"its address, {node.head}, is a loopback address, which no other node can reach (/etc/hosts?)"
        )
        return False
    if node.number == 0:
        return _be_reached(found, node, nodes)
    ends = time.monotonic() + _MEET_SECONDS
    said: object = None
    while time.monotonic() < ends:
        try:
            with socket.create_connection((node.head, node.port), timeout=2.0) as link:
                found.facts |= {"address": source_address(node.head), "interface": interface_to(node.head)}
                link.sendall(node.number.to_bytes(4, "big"))
                # The first node answers once it has heard of all others, or no longer waits for them, and then names those.
                link.settimeout(_MEET_SECONDS + 5.0)
                answer = link.recv(1)
                if answer:
                    return answer == _ALL
        except OSError as error:
            said = error
        time.sleep(0.2)
    found.blame(
        found.name,
        f"it does not reach {nodes[0]} at {node.head}, port {node.port}, within {_MEET_SECONDS:.0f} s ({said})",
    )
    return False


def _be_reached(found: _Findings, node: Node, nodes: tuple[str, ...]) -> bool:
    ends = time.monotonic() + _MEET_SECONDS + 1.0
    try:
        listener = socket.create_server((node.head, node.port), backlog=len(nodes))
    except OSError as error:
        found.blame(nodes[0], f"nothing can listen at {node.head}, port {node.port} ({error})")
        return False
    others = set(range(1, len(nodes)))
    with contextlib.ExitStack() as links:
        reached: dict[int, socket.socket] = {}
        with listener:
            listener.settimeout(0.5)
            while others - reached.keys() and time.monotonic() < ends:
                with contextlib.suppress(OSError):
                    link, _ = listener.accept()
                    links.enter_context(link)
                    link.settimeout(2.0)
                    reached[int.from_bytes(link.recv(4), "big")] = link
        # Not answered before nobody listens any more: whoever has an answer comes back to this port with torch's own words.
        missing = others - reached.keys()
        for link in reached.values():
            with contextlib.suppress(OSError):
                link.sendall(_NOT_ALL if missing else _ALL)
    for number in sorted(missing):
        found.blame(nodes[number], f"it has not reached {nodes[0]} at {node.head}, port {node.port}")
    return not missing


def _sum(found: _Findings, node: Node, nodes: tuple[str, ...], plan: LaunchPlan) -> None:
    """Add numbers of all nodes together, over the network that the ranks will use, and look at the result and the time."""
    import torch
    import torch.distributed as dist

    backend, place = ("nccl", "cuda:0") if plan.device == "cuda" else ("gloo", "cpu")
    limit = timedelta(seconds=_MEET_SECONDS)
    try:
        with _on_interface(node.head):
            dist.init_process_group(
                backend,
                init_method=f"tcp://{node.head}:{node.port}",
                rank=node.number,
                world_size=len(nodes),
                timeout=limit,
            )
            values = torch.full((_SUMMED,), float(node.number + 1), device=place)
            dist.all_reduce(values)
            began = time.monotonic()
            values = torch.full((_SUMMED,), float(node.number + 1), device=place)
            dist.all_reduce(values)
            first, last = values[0].item(), values[-1].item()
    except Exception as error:  # each backend has errors of its own
        found.blame(None, f"the nodes cannot add numbers over the network, as {found.name} sees it: {error}")
        return
    seconds = time.monotonic() - began
    found.facts["sum_seconds"] = round(seconds, 4)
    wanted = len(nodes) * (len(nodes) + 1) / 2
    if (first, last) != (wanted, wanted):
        found.blame(
            None, f"the sum over all nodes is {first} and {last}, and should be {wanted}: the network changes data"
        )
    elif seconds > _SUM_SECONDS:
        found.blame(
            None, f"adding {_SUMMED * 4 / 2**20:.0f} MiB over all nodes took {seconds:.1f} s: the network is too slow"
        )
    with contextlib.suppress(Exception):
        dist.destroy_process_group()


@contextlib.contextmanager
def _on_interface(head: str) -> Iterator[None]:
    interface = interface_to(head)
    names = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
    for name in names if interface else ():
        os.environ.setdefault(name, str(interface))
    yield
