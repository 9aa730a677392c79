"""The worker: what every rank runs. The straight line from a recipe to a finished run stands in ``train`` below.

python -m launcher.train --run runs/NAME-001 --attempt 1        (what `launcher run` starts)
accelerate launch -m launcher.train RECIPE [key=value ...]      (your own accelerate configuration)
"""

from __future__ import annotations

import argparse
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any, TextIO

from launcher import registry
from launcher.atomic import write_json
from launcher.contracts import Prepared
from launcher.engine.allocator import use_huge_pages
from launcher.engine.tracking import Tracker
from launcher.errors import Interrupted, RunStateError
from launcher.launching.locks import hold_rank
from launcher.plans import told_rows
from launcher.recipe.task_options import CONVERSATION_TASKS, counted_in
from launcher.rundir import RunDir
from launcher.workflows.data_bar import data_bar
from launcher.workflows.rank import (
    Place,
    Session,
    end_rank,
    leave_group,
    started_by_accelerate,
    started_by_launcher,
    tracked,
)


def train(session: Session, tracker: Tracker) -> None:
    """Take a run from its recipe to the report; the line that every rank walks."""
    from launcher.engine.allocator import return_freed_memory
    from launcher.engine.context import RunContext
    from launcher.engine.memory_note import MemoryNote
    from launcher.engine.phases import first_phase, run_phase
    from launcher.engine.progress import Progress
    from launcher.engine.release import release
    from launcher.engine.resuming import (
        keep_chat_template,
        newest_valid,
        refuse_other_base,
        refuse_other_data,
        resume_flags,
    )
    from launcher.planning.plan import plan_run, rows_to_plan
    from launcher.planning.token_budget import with_settled_batch
    from launcher.workflows.building import build_model
    from launcher.workflows.evaluate import evaluate_and_report
    from launcher.workflows.finish import save_model
    from launcher.workflows.saved_model import SavedModelCheck

    run, recipe, rank = session.run, session.recipe, session.rank
    if session.launch.device == "cpu":
        return_freed_memory()
    memory = MemoryNote(run.memory(session.attempt, rank), device=session.launch.device)
    heartbeat = session.heartbeat
    progress = Progress(
        run, attempt=session.attempt, rank=rank, terminal=session.terminal, tracker=tracker, heartbeat=heartbeat,
        counted=counted_in(recipe.task.type),
    )  # fmt: skip

    task = registry.load(registry.TASKS, recipe.task.type)(recipe, base_folder=session.base_folder)
    prepared = _prepare_once(session, task)
    _tell_data(progress, prepared)

    session.stop.raise_if_set()
    heartbeat.beat("loading the model", may_be_silent=True)
    model, parameters = build_model(recipe, session.launch, task, prepared)
    strategy = registry.load(registry.STRATEGIES, recipe.strategy.type)()
    phases, probe = strategy.phases(parameters, recipe), strategy.probe(parameters, recipe)
    rows, facts = rows_to_plan(recipe, prepared), prepared.facts
    launch = with_settled_batch(recipe, session.launch, prepared)
    plan = plan_run(recipe, launch, phases, train_rows=rows, facts=facts, probe=probe)
    if probe is not None:
        from launcher.workflows.importance import find_importance

        if rank == 0:
            run.add_event("running", attempt=session.attempt, total_steps=plan.total_steps)
        context = RunContext(recipe, run, session.attempt, plan, 0, task, prepared, progress, session.stop, memory)
        importance = find_importance(context, model, parameters, arguments=session.arguments)
        phases = strategy.phases(parameters, recipe, importance)
        plan = plan_run(recipe, launch, phases, train_rows=rows, facts=facts, probe=probe)
        model, _ = build_model(recipe, session.launch, task, prepared)
    identifying = _begin(session, progress, plan, task, model) if rank == 0 else None

    flags, resume_from = resume_flags(run, session.attempt), None
    if rank == 0 and recipe.task.type in CONVERSATION_TASKS:
        keep_chat_template(run, task, allow=flags["allow_changes"])
    if session.attempt > 1:
        resume_from = newest_valid(run.checkpoints, say=progress.warn, from_start=flags["from_start"])
    if resume_from is not None:
        refuse_other_data(resume_from, prepared.fingerprint, allow=flags["allow_changes"])
        if plan.phases[0].phase.adapters is not None:
            refuse_other_base(resume_from, task, model, allow=flags["allow_changes"])
        progress.say(f"continuing from {resume_from.name}")
    check = SavedModelCheck(recipe, session.launch, run, attempt=session.attempt, progress=progress, stop=session.stop)
    first, beginning = first_phase(plan, resume_from)
    trainer, ending = None, "done"
    for number in range(first, len(plan.phases)):
        if trainer is not None:
            # An engine knows what trained when it was made, so each phase has a new one, and a model that none has touched.
            beginning = trainer.end_of_phase()
            release(trainer)
            heartbeat.beat("loading the model", may_be_silent=True)
            model, _ = build_model(recipe, session.launch, task, prepared)
        context = RunContext(
            recipe, run, session.attempt, plan, number, task, prepared, progress, session.stop, memory, check.get_ready
        )
        _tell_phase(progress, context)
        arguments = session.arguments(context.planned.batch)
        trainer, ending = run_phase(context, model, arguments, beginning=beginning)
        if ending == "stopped":
            raise Interrupted(f"stopped by {session.stop.reason or 'another rank'} at step {trainer.state.global_step}")
        if ending == "finished_early":
            break
    assert trainer is not None
    heartbeat.beat("finishing", may_be_silent=True)
    check.start(trainer.model)
    if recipe.training.chooses_best:
        trainer.load_best()
    trainer.make_whole()
    if identifying is not None:
        identifying.join()
        run.add_event("trained", attempt=session.attempt, step=trainer.state.global_step)
    # The trainer holds it, and gives it up when the saved one is loaded.
    del model

    save_model(trainer, check)
    memory.add("saving")
    heartbeat.beat("finishing", may_be_silent=True)
    evaluate_and_report(trainer, check, worker_seconds=time.time() - session.started)
    memory.add("evaluation")


# --- the steps of the line -------------------------------------------------------------------------------------------


def _prepare_once(session: Session, task: Any) -> Prepared:
    """Rank 0 prepares; the others wait for its file, so no collective can time out however long it takes."""
    session.stop.raise_if_set()
    note = session.run.prepared(session.attempt)
    if session.rank == 0:
        session.heartbeat.beat("preparing data", may_be_silent=True)
        with data_bar(session.terminal, also=session.stop.raise_if_set):
            folder, prepared = task.prepare_data()
        write_json(note, {"folder": str(folder)})
        result: Prepared = prepared
        return result
    session.heartbeat.beat("waiting for prepared data", may_be_silent=True)
    other: Prepared = task.load_data(Path(session.stop.wait_for(note)["folder"]))
    return other


def _tell_data(progress: Any, prepared: Prepared) -> None:
    if progress.rank != 0:
        return
    for text in prepared.facts["warnings"]:
        progress.warn(text)
    labels = f"; {len(prepared.label_names)} labels" if prepared.label_names else ""
    cut = prepared.facts["splits"]["train"]["cut"]
    cut_text = f"; {cut} training texts cut at {prepared.facts['max_length']} tokens" if cut else ""
    progress.say(f"data: {told_rows(prepared.facts)}{labels}{cut_text}")
    if "class_sampling" in prepared.facts:
        progress.say(f"class sampling: {prepared.facts['class_sampling']}")
    if "mixture" in prepared.facts:
        progress.say(f"mixture: {prepared.facts['mixture']['told']}")


def _begin(session: Session, progress: Any, plan: Any, task: Any, model: Any) -> threading.Thread:
    """Write the plan down and tell it; return the thread that still identifies the model."""
    write_json(session.run.plan, plan.to_json())
    identifying = _identify_model(session.run, plan, task, model)
    session.run.add_event("running", attempt=session.attempt, total_steps=plan.total_steps)
    _tell_plan(progress, plan)
    return identifying


def _tell_phase(progress: Any, context: Any) -> None:
    planned = context.planned
    if len(context.plan.phases) > 1 and progress.rank == 0:
        progress.say(
            f"phase {context.number + 1} of {len(context.plan.phases)}: {planned.phase.name}; steps {planned.first_step + 1} to "
            f"{planned.last_step} of {planned.batch.step}; {planned.phase.table.trainable_numel:,} parameters "
            "train"
        )


def _tell_plan(progress: Any, plan: Any) -> None:
    table = plan.phases[-1].phase.table
    batch = plan.phases[0].batch
    progress.say(
        f"plan: {plan.launch.world_size} process(es), {plan.launch.engine}"
        + (f" ZeRO-{plan.launch.zero_stage}" if plan.launch.zero_stage is not None else "")
        + f", {plan.launch.precision} on {plan.launch.device}; "
        f"{table.trainable_numel:,} of {table.total_numel:,} parameters train; {plan.total_steps} steps of "
        f"{batch.step} ({batch.world_size} x {batch.held_rows} x {batch.accumulation})"
    )


def _identify_model(run: RunDir, plan: Any, task: Any, model: Any) -> threading.Thread:
    """Add what identifies the pretrained weights to plan.json; hashing gigabytes must not delay the first step."""

    def identify() -> None:
        facts = {**plan.facts, "model_revision": task.model_revision(model)}
        write_json(run.plan, {**plan.to_json(), "facts": facts})

    thread = threading.Thread(target=identify, daemon=True)
    thread.start()
    return thread


# --- starting and ending ---------------------------------------------------------------------------------------------


def main(argv: list[str] | None = None) -> int:
    """Run one rank; return its exit code."""
    started = time.time()
    use_huge_pages()
    _find_tools_beside_python()
    options = _parse(sys.argv[1:] if argv is None else argv)
    rank = int(os.environ.get("RANK", "0"))
    place = Place(RunDir(options.run.resolve()), options.attempt, rank) if options.run is not None else None
    error: BaseException | None = None
    terminal: TextIO | None = None
    try:
        lock = hold_rank(place.run, rank) if place is not None else None
    except RunStateError as refused:
        # The verdict and the log are those of the rank that runs.
        print(refused, file=sys.stderr, flush=True)
        return refused.exit_code
    try:
        if place is not None:
            session = started_by_launcher(place, lock, started)
        else:
            session, terminal = started_by_accelerate(options, rank, started)
            place = Place(session.run, session.attempt, rank)
        with tracked(session) as tracker:
            train(session, tracker)
    except BaseException as caught:  # whatever ended this rank has to reach its verdict
        error = caught
    code = end_rank(place, rank, error, terminal)
    leave_group()
    return code


def _find_tools_beside_python() -> None:
    """Let DeepSpeed find ninja in a virtual environment that is not activated."""
    folder = str(Path(sys.executable).parent)
    if folder not in os.environ.get("PATH", "").split(os.pathsep):
        os.environ["PATH"] = os.pathsep.join(filter(None, [folder, os.environ.get("PATH")]))


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m launcher.train", description=__doc__, allow_abbrev=False)
    parser.add_argument("recipe", nargs="?", help="recipe to train; with accelerate launch")
    parser.add_argument("overrides", nargs="*", help="key=value, such as training.learning_rate=3e-5")
    parser.add_argument("--run", type=Path, help="run directory made by `launcher run`")
    parser.add_argument("--attempt", type=int, default=1)
    parser.add_argument("--runs-dir", type=Path, default=Path("runs"), help="where a new run directory is made")
    options = parser.parse_args(argv)
    if (options.run is None) == (options.recipe is None):
        parser.error("name a recipe, or --run with the directory of a run")
    return options


if __name__ == "__main__":
    sys.exit(main())
