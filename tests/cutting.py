"""Runs that are interrupted on purpose, many of them in the same processes: starting ranks costs more than tiny runs.

``python cutting.py RUN=6 RUN=2-1,4-3,6 ...`` alone or under torchrun trains each run up to these steps, where it is asked to
stop. ``4-3``: what it left of step 4 is then lost, as if it had been killed after its checkpoint of step 3, and it goes on
from there.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import tiny

from launcher.engine.heartbeat import Heartbeat
from launcher.engine.signals import StopFlag
from launcher.plans import Hardware, LaunchPlan
from launcher.recipe.load import load_recipe
from launcher.rundir import RunDir
from launcher.workflows.resuming import load_for_resume
from launcher.workflows.start import resume_run

CPU = Hardware((), 2, 2**33, cpu_has_fast_bf16=False)


def lose(run: Path, after: int) -> None:
    """Remove what a run has written after a step."""
    for path in (run / "checkpoints").glob("step-*"):
        if int(path.name.split("-")[1]) > after:
            shutil.rmtree(path)
    for path in [run / "progress.jsonl", *run.glob("attempts/*/ledger.rank-*.jsonl")]:
        rows = [row for row in tiny.jsonl(path) if row.get("step", 0) <= after]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def go_on(run: Path, *overrides: str) -> None:
    """Prepare the next attempt."""
    resume_run(run, recipe=load_for_resume(RunDir.open(run), overrides).recipe, hardware=CPU)


def copy_at(run: Path, step: int, name: str, overrides: Sequence[str] = ()) -> Path:
    """Return a copy of a run as it was after a step, ready to go on."""
    copy = run.with_name(name)
    shutil.copytree(run, copy, symlinks=True)
    lose(copy, step)
    go_on(copy, *overrides)
    return copy


class StopAfter(StopFlag):
    """Asks to stop when a step is done."""

    def __init__(self, step: int, heartbeat: Heartbeat) -> None:
        super().__init__()
        self.step, self.heartbeat = step, heartbeat

    @property
    def is_set(self) -> bool:
        return self.heartbeat.last.step >= self.step


def walk(path: Path, stop: int) -> None:
    """Run the newest attempt up to a step."""
    from accelerate.state import AcceleratorState

    from launcher.engine.tracking import NoTracker
    from launcher.errors import Interrupted
    from launcher.train import train
    from launcher.workflows.rank import Session, start_ranks

    run, rank = RunDir.open(path), int(os.environ.get("RANK", "0"))
    attempt = run.last_attempt
    noted = json.loads(run.launch_plan(attempt).read_text())
    recipe, launch = load_recipe(run.resolved).recipe, LaunchPlan.from_json(noted["plan"])
    AcceleratorState._reset_state()
    heartbeat = Heartbeat()
    try:
        train(
            Session(
                run=run, attempt=attempt, rank=rank, recipe=recipe, base_folder=Path(noted["base_folder"]), launch=launch,
                stop=StopAfter(stop, heartbeat), terminal=None, started=time.time(), heartbeat=heartbeat,
                arguments=start_ranks(recipe, launch, run.path),
            ),
            NoTracker(),
        )  # fmt: skip
    except Interrupted:
        return
    raise AssertionError(f"{path} ended before step {stop}")


def main() -> None:
    from launcher.engine.ranks import barrier, rank_and_world
    from launcher.workflows.rank import leave_group

    for argument in sys.argv[1:]:
        name, _, stops = argument.rpartition("=")
        for stop in stops.split(","):
            until, _, kept = stop.partition("-")
            walk(Path(name), int(until))
            barrier()
            if kept and rank_and_world()[0] == 0:
                lose(Path(name), int(kept))
                go_on(Path(name))
            barrier()
        print(Path(name).name, round(time.monotonic()), flush=True)
    leave_group()


if __name__ == "__main__":
    main()
