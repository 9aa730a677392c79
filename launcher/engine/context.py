"""What a phase of a run needs beside the model, and from where it begins."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.contracts import Prepared
from launcher.engine.memory_note import MemoryNote
from launcher.engine.progress import Progress
from launcher.engine.signals import StopFlag
from launcher.plans import LaunchPlan, PlannedPhase, RunPlan
from launcher.recipe.schema import Recipe
from launcher.rundir import RunDir


@dataclass(frozen=True)
class RunContext:
    """What a phase of a run needs beside the model."""

    recipe: Recipe
    run: RunDir
    attempt: int
    plan: RunPlan
    number: int
    """Of the phase, from 0."""
    task: Any
    prepared: Prepared
    progress: Progress
    stop: StopFlag
    memory: MemoryNote | None = None
    """Where the rank notes what it uses of memory; None: nowhere."""
    on_time_left: Callable[[Any, float], None] | None = None
    """Told the model and the seconds of training left, after every step: what comes after training can get ready."""

    @property
    def launch(self) -> LaunchPlan:
        """Processes, engine and precision."""
        return self.plan.launch

    @property
    def planned(self) -> PlannedPhase:
        """The phase that is trained, with its place in the run."""
        return self.plan.phases[self.number]

    @property
    def is_last(self) -> bool:
        """Whether no phase follows."""
        return self.number == len(self.plan.phases) - 1


@dataclass(frozen=True)
class Beginning:
    """From where a phase begins: a checkpoint inside it, the checkpoint at the end of the phase before, or neither."""

    resume_from: Path | None = None
    carry_from: Path | None = None
    by_name: bool = False
    """Whether ``resume_from`` was written by another engine or number of processes, so that its state is taken over by name."""

    @property
    def checkpoint(self) -> Path | None:
        """Whichever there is."""
        return self.resume_from or self.carry_from
