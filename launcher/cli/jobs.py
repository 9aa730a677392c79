"""Verbs about jobs on a cluster."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from launcher.cli.shared import Overrides, RecipeName, RunPath, RunsDir, load_checked, short


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
