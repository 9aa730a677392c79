"""Verbs about runs, and about the machine that they run on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from launcher.cli.jobs import resume_submitted
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
    tell_changes,
    tell_notes,
)
from launcher.errors import RunStateError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from launcher.launching.locks import Lock
    from launcher.rundir import RunDir


def run(recipe: RecipeName, overrides: Overrides = None, runs_dir: RunsDir = Path("runs")) -> None:
    """Train, evaluate and report, on this machine. Ctrl-C saves a checkpoint and stops."""
    from launcher.launching.locks import hold_run
    from launcher.planning.hardware import hardware_for
    from launcher.workflows.start import create_run

    if (Path(recipe) / "resolved.yaml").is_file():
        raise RunStateError(f"{recipe} is the directory of a run; to continue it: launcher resume {recipe}")
    loaded = load_checked(recipe, overrides)
    directory, attempt = create_run(loaded, runs=runs_dir, hardware=hardware_for(loaded.recipe))
    typer.echo(f"run: {short(directory.path)}")
    with hold_run(directory) as lock:
        _submit(directory, attempt, lock)


def resume(
    run: RunPath,
    overrides: Overrides = None,
    allow_changes: Annotated[
        bool, typer.Option("--allow-changes", help="Go on although a changed key makes it another run.")
    ] = False,
    from_start: Annotated[
        bool, typer.Option("--from-start", help="Begin anew at step 0 where checkpoints exist and none is valid.")
    ] = False,
    here: Annotated[bool, typer.Option("--here", help="Go on with a submitted run on this machine.")] = False,
) -> None:
    """Continue a run that was interrupted or failed, from its newest valid checkpoint; it may get other processes.

    A run that was submitted is submitted again.
    """
    from launcher.launching.locks import hold_run
    from launcher.planning.hardware import hardware_for
    from launcher.rundir import RunDir
    from launcher.workflows.resuming import load_for_resume
    from launcher.workflows.start import resume_run

    directory = RunDir.open(run.resolve())
    if directory.job.is_file() and not here:
        resume_submitted(directory, overrides or [], allow_changes=allow_changes, from_start=from_start)
        return
    if here and not directory.job.is_file():
        raise RunStateError(f"--here has no effect: {short(directory.path)} was not submitted, and goes on here anyway")
    loaded = load_for_resume(directory, overrides or [])
    tell_notes(loaded)
    # Before anything is written: of two that resume at once, one changes nothing.
    with hold_run(directory) as lock:
        tell_changes(directory, loaded.recipe)
        directory, attempt = resume_run(
            run.resolve(),
            recipe=loaded.recipe,
            hardware=hardware_for(loaded.recipe),
            allow_changes=allow_changes,
            from_start=from_start,
        )
        typer.echo(f"run: {short(directory.path)}, attempt {attempt}")
        _submit(directory, attempt, lock)


def _submit(directory: RunDir, attempt: int, lock: Lock) -> NoReturn:
    from launcher.backends.endings import first_failure
    from launcher.backends.local import LocalBackend

    code = LocalBackend(on_look=lock.refresh).submit(directory.path, attempt=attempt)
    failed = first_failure(directory, attempt) if code else None
    if failed is not None:
        rank, verdict = failed
        _tell_failure(directory, attempt, rank, verdict)
    raise typer.Exit(code)


def _tell_failure(directory: RunDir, attempt: int, rank: int, verdict: Mapping[str, Any]) -> None:
    place = short(directory.path)
    if verdict["verdict"] == "interrupted":
        typer.echo(f"{verdict['error']}; to continue: launcher resume {place}", err=True)
        return
    log = short(directory.log(attempt, rank))
    typer.echo(f"rank {rank} {verdict['verdict']} (its log: {log})", err=True)
    typer.echo((verdict.get("traceback") or verdict["error"]).rstrip(), err=True)


def doctor(
    recipe: Annotated[
        str | None, typer.Argument(help="A recipe, whose models are looked at too, on the hub as well.")
    ] = None,
    overrides: Overrides = None,
    as_json: Json = False,
) -> None:
    """Look at this machine: versions, devices, compilers, disk, hub, W&B, Slurm; and at the models of a recipe."""
    from dataclasses import asdict

    from launcher.recipe.load import load_recipe
    from launcher.workflows.doctor import examine_machine, examine_models

    # Faults of the models are findings here, and all of them are shown.
    models = examine_models(load_recipe(recipe, overrides or []).recipe) if recipe else []
    findings = [*examine_machine(), *models]
    if as_json:
        print_json([asdict(finding) for finding in findings])
    else:
        print_table(["what", "verdict", "found", "remedy"], [[f.name, f.verdict, f.found, f.remedy] for f in findings])
    raise typer.Exit(1 if any(f.verdict in ("missing", "fault") for f in findings) else 0)
