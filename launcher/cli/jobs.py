"""Verbs about jobs on a cluster."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from launcher.cli.shared import (
    Json,
    Overrides,
    RecipeName,
    RunPath,
    RunsDir,
    load_checked,
    print_json,
    print_table,
    short,
)
from launcher.errors import RunStateError


def submit(
    recipe: RecipeName,
    overrides: Overrides = None,
    profile: Annotated[str | None, typer.Option("--profile", help="Cluster profile; sets slurm.profile.")] = None,
    nodes: Annotated[int | None, typer.Option("--nodes", help="Machines; sets distributed.nodes.", min=1)] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Write the run directory and print the job script only.")
    ] = False,
    runs_dir: RunsDir = Path("runs"),
) -> None:
    """Submit a run to Slurm: it trains, goes on after a preemption or a time limit, evaluates and reports."""
    from launcher.backends.slurm import SlurmBackend, jobs_of
    from launcher.workflows.submit import prepare_submission

    flags = [f"slurm.profile={profile}"] * (profile is not None) + [f"distributed.nodes={nodes}"] * (nodes is not None)
    found = prepare_submission(load_checked(recipe, [*(overrides or []), *flags]), runs=runs_dir)
    if dry_run:
        typer.echo(found.script, nl=False)
        typer.echo(f"nothing was submitted; {short(found.run.job_script)} has this script", err=True)
        return
    SlurmBackend().submit(found.run.path)
    typer.echo(f"run: {short(found.run.path)}\njob: {jobs_of(found.run)[-1]}")


def cancel(run: RunPath) -> None:
    """Ask a submitted run to save and stop; `launcher resume` goes on with it."""
    from launcher.backends.slurm import SlurmBackend

    SlurmBackend().cancel(run.resolve())


def status(
    run: Annotated[
        Path | None, typer.Argument(help="A run directory; none: those that still go on.", show_default=False)
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="All runs of the folder, those that have ended too.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Again every five seconds, until Ctrl-C.")] = False,
    runs_dir: RunsDir = Path("runs"),
    as_json: Json = False,
) -> None:
    """Show where runs stand, on this machine and in Slurm's queue."""
    import time
    from dataclasses import asdict

    from launcher.rundir import RunDir
    from launcher.workflows.status import list_runs, status_of

    while True:
        runs = (RunDir.open(run.resolve()),) if run is not None else list_runs(runs_dir.resolve())
        found = status_of(runs)
        if run is None and not every:
            found = tuple(one for one in found if one.state not in ("finished", "failed", "interrupted"))
        if as_json:
            print_json([asdict(one) for one in found])
        else:
            if watch:
                # The terminal's own code for an empty screen.
                typer.echo("\033[2J\033[H", nl=False)
            _show_status(found)
        if not watch:
            return
        time.sleep(5)


def _show_status(found: Any) -> None:
    from launcher.planning.throughput import in_words

    rows = []
    for one in found:
        steps = "" if one.step is None else f"{one.step}/{one.total_steps}" if one.total_steps else str(one.step)
        left = "" if one.seconds_left is None else in_words(one.seconds_left)
        rows.append(
            [
                str(short(one.run)), one.state, str(one.attempt or ""), "" if one.job is None else f"{one.job} {one.queue}".strip(),
                steps, "" if one.loss is None else f"{one.loss:.4f}",
                "" if one.tokens_per_second is None else f"{one.tokens_per_second:,.0f}", left, one.reason,
            ]
        )  # fmt: skip
    print_table(
        ["run", "state", "attempt", "job", "step", "loss", "tokens/s", "left", "reason"], rows, right={2, 4, 5, 6}
    )


def logs(
    run: RunPath,
    rank: Annotated[int, typer.Option("--rank", help="The rank whose log is shown.", min=0)] = 0,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on showing what is added, until Ctrl-C.")] = False,
) -> None:
    """Show a rank's log of the newest attempt."""
    import time

    from launcher.rundir import RunDir

    directory = RunDir.open(run.resolve())
    log = directory.log(directory.last_attempt, rank)
    if not log.is_file():
        raise RunStateError(f"{short(log)} is not there: rank {rank} of attempt {directory.last_attempt} has not begun")
    with log.open(errors="replace") as file:
        while True:
            typer.echo(file.read(), nl=False)
            if not follow:
                return
            time.sleep(0.5)


def explain(run: RunPath, as_json: Json = False) -> None:
    """Tell a run's story: each attempt, where it ran, what it resumed from, and why it ended."""
    from dataclasses import asdict

    from launcher.rundir import RunDir
    from launcher.workflows.status import status_of, story_of

    directory = RunDir.open(run.resolve())
    stories, (now,) = story_of(directory), status_of([directory])
    if as_json:
        print_json({"state": now.state, "reason": now.reason, "attempts": [asdict(story) for story in stories]})
        return
    for story in stories:
        begun = f"from step {story.from_step}" if story.from_step else "from the start"
        reached = "no step was made" if story.to_step is None else f"{begun} to step {story.to_step}"
        typer.echo(f"attempt {story.number}: {story.where}; {reached}; {story.ending}")
    typer.echo(f"{short(directory.path)} is {now.state}" + (f": {now.reason}" if now.reason else ""))
