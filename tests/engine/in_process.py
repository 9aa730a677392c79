"""Train a tiny BERT in this process, with everything of a run but its own process."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import tiny

from launcher.engine.arguments import training_arguments
from launcher.engine.context import RunContext
from launcher.engine.phases import first_phase, run_phase
from launcher.engine.progress import Progress
from launcher.engine.signals import StopFlag
from launcher.engine.tracking import NoTracker
from launcher.launching.launch_plan import plan_launch
from launcher.planning.plan import plan_run, rows_to_plan
from launcher.planning.token_budget import with_settled_batch
from launcher.plans import Hardware
from launcher.recipe.schema import Recipe
from launcher.registry import STRATEGIES, TASKS, load
from launcher.rundir import RunDir
from launcher.strategies.layers import list_parameters

CPU = Hardware((), 2, 2**33, cpu_has_fast_bf16=False)


@dataclass
class Prepared:
    """A run that is ready to train."""

    context: RunContext
    model: Any
    arguments: Any

    @property
    def run(self) -> RunDir:
        return self.context.run

    def train(self, *, resume: bool = False) -> tuple[Any, bool]:
        """Run the first phase, or the one that the newest checkpoint is in; return the trainer and whether it was stopped."""
        checkpoint = self.run.latest_checkpoint() if resume else None
        assert checkpoint is not None or not resume
        number, beginning = first_phase(self.context.plan, checkpoint)
        context = replace(self.context, number=number)
        trainer, ending = run_phase(context, self.model, self.arguments, beginning=beginning)
        if ending != "stopped" and context.recipe.training.chooses_best:
            trainer.load_best()
        return trainer, ending == "stopped"


def prepare(bert: Path, data: Path, runs: Path, /, *, run: RunDir | None = None, **changes: Any) -> Prepared:
    """Make everything up to the first step; ``run``: the run to continue."""
    from transformers import set_seed

    values = tiny.recipe_values(bert, data, **changes)
    task_options = {"type": values["task"]} if isinstance(values["task"], str) else values["task"]
    values |= {"task": task_options, "strategy": values.get("strategy", {"type": "full"})}
    recipe = Recipe.model_validate(values)
    launch = plan_launch(recipe, CPU)
    run = run or RunDir.create(runs, "tiny", recipe_text="", resolved_text="x")
    attempt = run.new_attempt()
    task = load(TASKS, recipe.task.type)(recipe)
    _, prepared = task.prepare_data()
    set_seed(recipe.training.seed)
    loaded = task.build_model(prepared)
    strategy = load(STRATEGIES, recipe.strategy.type)()
    parameters = list_parameters(loaded.model, newly_initialized=loaded.newly_initialized)
    launch = with_settled_batch(recipe, launch, prepared)
    plan = plan_run(
        recipe, launch, strategy.phases(parameters, recipe), train_rows=rows_to_plan(recipe, prepared), facts={}
    )
    progress = Progress(run, attempt=attempt, rank=0, terminal=None, tracker=NoTracker())
    context = RunContext(recipe, run, attempt, plan, 0, task, prepared, progress, StopFlag(run.stop_request(attempt)))
    return Prepared(context, loaded.model, training_arguments(recipe, launch, output_dir=str(run.path)))
