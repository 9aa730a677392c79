"""What follows an attempt of a job: a pure function of how the run's attempts ended, and of its budgets.

A preemption, a crash and an attempt without progress each have a budget of their own, so that ten preemptions take nothing from the
budget of crashes, and a crash that comes again at every start ends the run.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from launcher.recipe.schema import SlurmSection

Kind = Literal[
    "finished", "stopped", "taken", "crashed", "preflight", "refused", "diverged", "out_of_memory", "cancelled"
]
"""How an attempt ended. ``stopped``: it was warned, saved and ended; ``taken``: its job was ended without that (preempted at once,
a failed node, requeued by hand); ``crashed``: a rank was killed, hung or failed; ``preflight``: a node was found unfit before
training; ``refused``: recipe, data, model or run directory are at fault, which no repetition mends."""

_PREEMPTED: tuple[Kind, ...] = ("stopped", "taken")
_CRASHED: tuple[Kind, ...] = ("crashed", "preflight")
# What a rank says when its node's hardware is at fault: of NVIDIA's driver, of NCCL, of the kernel.
_HARDWARE = re.compile(
    r"uncorrectable|\becc\b|\bxid\b|nvlink|device-side hardware|cuda error: (unspecified launch failure|unknown error|"
    r"all cuda-capable devices are busy|no cuda-capable device)|gpu has fallen off the bus|bus error|input/output error",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Outcome:
    """How one attempt ended."""

    attempt: int
    kind: Kind
    reason: str = ""
    rank: int | None = None
    """The rank whose end made the others end."""
    node: str | None = None
    """Where that rank ran, or which node the preflight found at fault."""
    exit_code: int = 1
    nodes: tuple[str, ...] = ()
    """Where the attempt ran."""
    resumed_from: int = 0
    """Step of the checkpoint that it began from."""
    saved: int = 0
    """Step of the newest valid checkpoint at its end."""
    reached: int = 0
    """The last step that was made."""

    @classmethod
    def from_row(cls, row: dict[str, Any]) -> Outcome:
        """Return the outcome that an event of the run holds."""
        known = {name: row[name] for name in cls.__dataclass_fields__ if name in row}
        return cls(**{**known, "nodes": tuple(known.get("nodes", ()))})

    @property
    def lost(self) -> int:
        """Steps that were made and have to be made again."""
        return 0 if self.kind == "finished" else max(0, self.reached - self.saved)


@dataclass(frozen=True)
class Decision:
    """What follows."""

    goes_on: bool
    reason: str
    exclude: tuple[str, ...] = ()
    """Nodes that the next attempt must not run on."""


def decide(history: Sequence[Outcome], budgets: SlurmSection) -> Decision:
    """Return what follows the newest of the attempts since the run was last submitted."""
    last = history[-1]
    if last.kind == "finished":
        return Decision(False, "the run has finished")
    if last.kind == "cancelled":
        return Decision(False, "the run was cancelled")
    if last.kind in ("refused", "diverged", "out_of_memory"):
        return Decision(False, f"{_WORDS[last.kind]}, which would come again: {last.reason}")
    counted = [
        (_PREEMPTED, budgets.max_preemptions, "slurm.max_preemptions", "preempted or out of time"),
        (_CRASHED, budgets.max_crashes, "slurm.max_crashes", "crashes"),
    ]
    for kinds, budget, key, words in counted:
        count = sum(outcome.kind in kinds for outcome in history)
        if last.kind in kinds and count > budget:
            return Decision(False, f"{words}: {count}, and {key} is {budget}; the last one: {last.reason}")
    idle = _idle(history)
    if idle >= budgets.max_idle_attempts:
        return Decision(
            False,
            f"{idle} attempts in a row have ended without a newer checkpoint, and slurm.max_idle_attempts is "
            f"{budgets.max_idle_attempts}; the last one: {last.reason}",
        )
    return Decision(True, _WORDS[last.kind] + (f": {last.reason}" if last.reason else ""), suspects(history))


_WORDS: dict[Kind, str] = {
    "stopped": "it was warned, and has saved",
    "taken": "its job was taken away",
    "crashed": "it crashed",
    "preflight": "a node was unfit",
    "refused": "it was refused",
    "diverged": "the loss is not finite",
    "out_of_memory": "it ran out of memory",
}


def _idle(history: Sequence[Outcome]) -> int:
    """Return how many attempts at the end of the history have brought no newer checkpoint."""
    count = 0
    for outcome in reversed(history):
        if outcome.saved > outcome.resumed_from:
            break
        count += 1
    return count


def suspects(history: Sequence[Outcome]) -> tuple[str, ...]:
    """Return the nodes to avoid, on evidence: the preflight found them unfit, their hardware has said so, or they alone of several
    nodes were the cause of two crashes.
    """
    blamed = [(o.node, o) for o in history if o.kind in _CRASHED and o.node is not None and len(o.nodes) > 1]
    certain = {node for node, o in blamed if o.kind == "preflight" or _HARDWARE.search(o.reason)}
    crashed = [node for node, o in blamed if o.kind == "crashed"]
    repeated = {node for node in crashed if crashed.count(node) >= 2 and set(crashed) == {node}}
    return tuple(sorted(certain | repeated))
