"""Verbs about jobs on a cluster, and about where runs stand."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from launcher.cli.shared import (
    Json,
    RunPath,
    RunsDir,
    console,
    load_checked,
    print_json,
    short,
    tell_changes,
    tell_notes,
)
from launcher.errors import RunStateError

_LOOK_SECONDS = 5.0


def submit(
    arguments: Annotated[
        list[str],
        typer.Argument(
            metavar="RECIPE... [KEY=VALUE...]",
            help="Recipes, by path or name, and settings that are laid over all of them; several are an array of jobs.",
            show_default=False,
        ),
    ],
    profile: Annotated[str | None, typer.Option("--profile", help="Cluster profile; sets slurm.profile.")] = None,
    nodes: Annotated[int | None, typer.Option("--nodes", help="Machines; sets distributed.nodes.", min=1)] = None,
    seeds: Annotated[
        str | None,
        typer.Option("--seeds", help="A run for each, such as 1,2,3 or 1-5; sets training.seed.", show_default=False),
    ] = None,
    at_a_time: Annotated[
        int | None,
        typer.Option(
            "--at-a-time", help="How many runs of an array may run at the same time.", min=1, show_default=False
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Write the run directories and print the job script only.")
    ] = False,
    runs_dir: RunsDir = Path("runs"),
) -> None:
    """Submit runs to Slurm: each trains, goes on after a preemption or a time limit, evaluates and reports."""
    from launcher.backends.slurm import jobs_of
    from launcher.workflows.submit import prepare_submission

    overrides = [word for word in arguments if "=" in word and not Path(word).is_file()]
    recipes = [word for word in arguments if word not in overrides]
    if not recipes:
        raise typer.BadParameter(f"no recipe is named, only settings ({', '.join(overrides)})")
    overrides += [f"slurm.profile={profile}"] * (profile is not None) + [f"distributed.nodes={nodes}"] * (
        nodes is not None
    )
    seeded = [[f"training.seed={seed}"] for seed in _seeds(seeds)] if seeds is not None else [[]]
    loaded = [load_checked(recipe, [*overrides, *own], quiet=True) for recipe in recipes for own in seeded]
    if at_a_time is not None and len(loaded) == 1:
        raise typer.BadParameter(f"--at-a-time is {at_a_time} but has no effect: one run is submitted")
    found = prepare_submission(loaded, runs=runs_dir)
    if dry_run:
        typer.echo(found.text, nl=False)
        typer.echo(f"nothing was submitted; {short(found.script)} has this script", err=True)
        return
    found.submit(at_a_time=at_a_time)
    where = f"profile {found.profile.name}" + (
        f" ({short(found.profile.path)})" if found.profile.path.name else ", which sets nothing"
    )
    typer.echo(where, err=True)
    for run in found.runs:
        typer.echo(f"run: {short(run.path)}  job: {', '.join(jobs_of(run))}")
    typer.echo(f"to watch: launcher status --watch; the story: launcher explain {short(found.runs[0].path)}", err=True)


def _seeds(text: str) -> list[int]:
    """Return the seeds that ``1,2,5-7`` means."""
    try:
        found: list[int] = []
        for part in text.split(","):
            first, _, last = part.partition("-")
            found += range(int(first), int(last or first) + 1)
    except ValueError:
        raise typer.BadParameter(f"--seeds is {text!r}; it must be whole numbers, such as 1,2,3 or 1-5") from None
    if not found or len(set(found)) < len(found):
        raise typer.BadParameter(f"--seeds is {text!r}; it must name each seed once")
    return found


def cancel(run: RunPath) -> None:
    """Ask a submitted run to save and stop; `launcher resume` goes on with it."""
    from launcher.backends.slurm import SlurmBackend
    from launcher.rundir import RunDir

    directory = RunDir.open(run.resolve())
    if not directory.job.is_file():
        raise RunStateError(f"{short(directory.path)} was not submitted: Ctrl-C stops a run where it was started")
    SlurmBackend().cancel(directory.path)
    typer.echo(f"asked to save and stop; to go on with it: launcher resume {short(directory.path)}")


def status(
    run: Annotated[
        Path | None, typer.Argument(help="A run directory; none: those that still go on.", show_default=False)
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="All runs of the folder, those that have ended too.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="A table that is kept up to date, until Ctrl-C.")] = False,
    runs_dir: RunsDir = Path("runs"),
    as_json: Json = False,
) -> None:
    """Show where runs stand, on this machine and in Slurm's queue."""
    from dataclasses import asdict

    from launcher.rundir import RunDir
    from launcher.workflows.status import list_runs, status_of

    if run is not None and every:
        raise typer.BadParameter("--all has no effect where a run is named")

    def look() -> Any:
        runs = (RunDir.open(run.resolve()),) if run is not None else list_runs(runs_dir.resolve())
        found = status_of(runs)
        return found if run is not None or every else tuple(one for one in found if one.state not in _ENDED)

    if watch and not as_json:
        _watch(look)
    elif watch:
        while True:
            print_json([asdict(one) for one in look()])
            _wait()
    elif as_json:
        print_json([asdict(one) for one in look()])
    else:
        _show(look(), every=every or run is not None, runs_dir=runs_dir)


_ENDED = ("finished", "failed", "interrupted")
_STYLES = {"running": "green", "queued": "cyan", "failed": "red", "lost": "red", "interrupted": "yellow"}


def _show(found: Any, *, every: bool, runs_dir: Path) -> None:
    if not found:
        typer.echo(
            f"no run in {short(runs_dir.resolve())}" + ("" if every else " goes on; --all shows those that have ended")
        )
        return
    console().print(_table(found))


def _watch(look: Any) -> None:
    import time

    from rich.console import Group
    from rich.live import Live
    from rich.text import Text

    def view() -> Group:
        return Group(
            _table(look()), Text(f"{time.strftime('%H:%M:%S')}; every {_LOOK_SECONDS:.0f} s; Ctrl-C ends", "dim")
        )

    with Live(view(), console=console(), auto_refresh=False, vertical_overflow="visible") as live:
        while True:
            _wait()
            live.update(view(), refresh=True)


def _wait() -> None:
    import time

    try:
        time.sleep(_LOOK_SECONDS)
    except KeyboardInterrupt:
        raise typer.Exit(0) from None


def _table(found: Any) -> Any:
    """Return the table of runs; what is too long for the terminal is folded in the last column only."""
    from rich.table import Table
    from rich.text import Text

    from launcher.planning.throughput import in_words

    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for name in ("run", "state", "job", "try", "step", "loss", "tokens/s", "left"):
        table.add_column(
            name, justify="right" if name in ("try", "step", "loss", "tokens/s", "left") else "left", no_wrap=True
        )
    table.add_column("reason", overflow="fold")
    for one in found:
        steps = "" if one.step is None else f"{one.step}/{one.total_steps}" if one.total_steps else str(one.step)
        table.add_row(
            Text(one.run.name), Text(one.state, _STYLES.get(one.state, "")),
            Text("" if one.job is None else f"{one.job} {one.queue}".strip()), str(one.attempt or ""), steps,
            "" if one.loss is None else f"{one.loss:.4f}",
            "" if one.tokens_per_second is None else f"{one.tokens_per_second:,.0f}",
            "" if one.seconds_left is None else in_words(one.seconds_left), Text(one.reason),
        )  # fmt: skip
    return table


def logs(
    run: RunPath,
    rank: Annotated[
        int | None, typer.Option("--rank", help="The rank whose log is shown; 0 unless given.", min=0)
    ] = None,
    attempt: Annotated[
        int | None, typer.Option("--attempt", help="Of this attempt; the newest unless given.", min=1)
    ] = None,
    job: Annotated[bool, typer.Option("--job", help="The log of the job itself, and of its nodes' agents.")] = False,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on showing what is added, until Ctrl-C.")] = False,
) -> None:
    """Show a rank's log; with -f also that of attempts that begin meanwhile."""
    import time

    from launcher.rundir import RunDir

    directory = RunDir.open(run.resolve())
    if job and (rank is not None or attempt is not None):
        raise typer.BadParameter("--job has one log for all ranks and attempts; leave --rank and --attempt out")
    newest = attempt is None and not job

    def log() -> Path:
        return directory.job_log if job else directory.log(attempt or directory.last_attempt, rank or 0)

    path = log()
    if not path.is_file() and not follow:
        what = "the job" if job else f"rank {rank or 0} of attempt {attempt or directory.last_attempt}"
        raise RunStateError(f"{short(path)} is not there: {what} has not begun")
    place = 0
    try:
        while True:
            if newest and log() != path:
                path, place = log(), 0
                typer.echo(f"--- attempt {directory.last_attempt} ---")
            if path.is_file():
                with path.open(errors="replace") as file:
                    file.seek(place)
                    typer.echo(file.read(), nl=False)
                    place = file.tell()
            if not follow:
                return
            time.sleep(0.5)
    except KeyboardInterrupt:
        raise typer.Exit(0) from None


def explain(run: RunPath, as_json: Json = False) -> None:
    """Tell a run's story: each attempt, where it ran, what it resumed from, why it ended, what was lost, what followed."""
    import json
    from dataclasses import asdict

    from launcher.rundir import RunDir
    from launcher.workflows.status import status_of
    from launcher.workflows.story import in_words, story_of

    directory = RunDir.open(run.resolve())
    stories, (now,) = story_of(directory), status_of([directory])
    final = json.loads(directory.done.read_text())["reason"] if directory.done.is_file() else ""
    if as_json:
        attempts = [asdict(story) for story in stories]
        print_json({"state": now.state, "reason": now.reason, "final": final, "attempts": attempts})
        return
    for story in stories:
        typer.echo(in_words(story))
    waiting = f" (job {now.job} {now.queue})" if now.state == "queued" else ""
    why = final or now.reason
    typer.echo(
        f"{short(directory.path)} is {now.state}{waiting}" + (f": {why}" if why and now.state != "finished" else "")
    )


def resume_submitted(directory: Any, overrides: list[str], *, allow_changes: bool, from_start: bool) -> None:
    """Submit a run once more, which goes on from its newest valid checkpoint."""
    from launcher.workflows.resuming import load_for_resume
    from launcher.workflows.submit import resubmit

    loaded = load_for_resume(directory, overrides)
    tell_notes(loaded)
    tell_changes(directory, loaded.recipe)
    numbers = resubmit(directory, loaded, allow_changes=allow_changes, from_start=from_start).submit()
    typer.echo(f"run: {short(directory.path)}  job: {', '.join(numbers)}")
