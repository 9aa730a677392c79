"""Walk the line of ``launcher.train`` for one run after the other in the same ranks: starting ranks costs more than tiny runs.

``python warm_ranks.py RUN...`` alone, or under ``torchrun`` with two processes; the newest attempt of every run is prepared.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

from accelerate.state import AcceleratorState

from launcher.engine.signals import StopFlag
from launcher.engine.tracking import NoTracker
from launcher.plans import LaunchPlan
from launcher.recipe.load import load_recipe
from launcher.rundir import RunDir
from launcher.train import train
from launcher.workflows.rank import Session, leave_group, read_deepspeed, start_ranks


def walk(path: Path) -> None:
    """Train one run."""
    run, rank = RunDir.open(path), int(os.environ.get("RANK", "0"))
    attempt = run.last_attempt
    noted = json.loads(run.launch_plan(attempt).read_text())
    recipe, launch = load_recipe(run.resolved).recipe, LaunchPlan.from_json(noted["plan"])
    AcceleratorState._reset_state()
    train(
        Session(
            run=run, attempt=attempt, rank=rank, recipe=recipe, base_folder=Path(noted["base_folder"]), launch=launch,
            stop=StopFlag(run.stop_request(attempt)), terminal=None, started=time.time(),
            arguments=start_ranks(recipe, launch, run.path, deepspeed=read_deepspeed(run, attempt)),
        ),
        NoTracker(),
    )  # fmt: skip
    if rank == 0:
        run.add_event("finished", attempt=attempt)


if __name__ == "__main__":
    for name in sys.argv[1:]:
        started = time.time()
        walk(Path(name))
        print(f"{Path(name).name}: {time.time() - started:.1f} s", flush=True)
    leave_group()
