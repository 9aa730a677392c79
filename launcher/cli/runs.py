"""Verbs about runs, and about the machine that they run on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

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

if TYPE_CHECKING:
    from collections.abc import Mapping

    from launcher.rundir import RunDir


def run(recipe: RecipeName, overrides: Overrides = None, runs_dir: RunsDir = Path("runs")) -> None:
    """Train, evaluate and report, on this machine. Ctrl-C saves a checkpoint and stops."""
    from launcher.planning.hardware import detect_hardware
    from launcher.workflows.start import create_run

    if (Path(recipe) / "resolved.yaml").is_file():
        raise RunStateError(f"{recipe} is the directory of a run; to continue it: launcher resume {recipe}")
    loaded = load_checked(recipe, overrides)
    directory, attempt = create_run(loaded, runs=runs_dir, hardware=detect_hardware())
    typer.echo(f"run: {short(directory.path)}")
    _submit(directory, attempt)


def resume(run: RunPath) -> None:
    """Continue a run that was interrupted or failed, from its newest complete checkpoint."""
    from launcher.planning.hardware import detect_hardware
    from launcher.recipe.load import load_recipe
    from launcher.rundir import RunDir
    from launcher.workflows.start import resume_run

    recipe = load_recipe(RunDir.open(run).resolved).recipe
    directory, attempt = resume_run(run.resolve(), recipe=recipe, hardware=detect_hardware())
    typer.echo(f"run: {short(directory.path)}, attempt {attempt}")
    _submit(directory, attempt)


def _submit(directory: RunDir, attempt: int) -> NoReturn:
    from launcher.backends.local import LocalBackend, first_failure

    code = LocalBackend().submit(directory.path, attempt=attempt)
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


def doctor(as_json: Json = False) -> None:
    """Look at this machine: versions, devices, compilers, disk, hub, W&B, Slurm."""
    from dataclasses import asdict

    from launcher.workflows.doctor import examine_machine

    findings = examine_machine()
    if as_json:
        print_json([asdict(finding) for finding in findings])
    else:
        print_table(["what", "verdict", "found", "remedy"], [[f.name, f.verdict, f.found, f.remedy] for f in findings])
    raise typer.Exit(1 if any(f.verdict == "missing" for f in findings) else 0)
