"""Verbs that look ahead of a run: its plan, and a range test of the learning rate."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from launcher.cli.shared import (
    Json,
    Overrides,
    RecipeName,
    RunsDir,
    load_checked,
    print_json,
    print_table,
    short,
    write_picture,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from launcher.evaluation.range_test import RangeTest
    from launcher.plans import RunPlan
    from launcher.recipe.load import LoadedRecipe
    from launcher.recipe.schema import Recipe
    from launcher.workflows.forecast import WholePlan
    from launcher.workflows.plan_view import TableView

_PICTURES = (".svg", ".png")


# --- plan ------------------------------------------------------------------------------------------------------------


def plan(
    recipe: RecipeName,
    overrides: Overrides = None,
    gpu: Annotated[
        str | None,
        typer.Option("--gpu", help="Plan for machines with this GPU, such as h100-80gb, instead of this machine."),
    ] = None,
    gpus_per_node: Annotated[
        int | None, typer.Option("--gpus-per-node", min=1, help="Sets distributed.processes_per_node.")
    ] = None,
    nodes: Annotated[int | None, typer.Option("--nodes", min=1, help="Sets distributed.nodes.")] = None,
    throughput: Annotated[
        float | None, typer.Option("--throughput", min=1.0, help="Tokens per second of all ranks, where you know them.")
    ] = None,
    measure: Annotated[
        bool,
        typer.Option(
            "--measure", help="Train a few steps here first, and keep what they needed and how fast they were."
        ),
    ] = False,
    runs_dir: RunsDir = Path("runs"),
    as_json: Json = False,
    plot: Annotated[
        bool,
        typer.Option(
            "--plot",
            help="Draw every group's rate over the run: into the .svg or .png file named behind it, or NAME-rates.svg.",
        ),
    ] = False,
) -> None:
    """Show what a run would do and need: what trains, steps, memory, time, disk. No weights are loaded.

    A run that does not fit is refused (exit code 2) with the cheapest change that makes it fit.
    """
    from launcher.planning.gpus import find_gpu, hardware_for
    from launcher.planning.hardware import detect_hardware
    from launcher.workflows.forecast import as_error, as_json as forecast_json, plan_whole
    from launcher.workflows.plan_view import tuning_rows

    if measure and gpu is not None:
        raise typer.BadParameter("--measure trains on this machine, and --gpu plans for another; leave one out")
    keys, picture = _split_picture(overrides or []) if plot else (list(overrides or []), None)
    keys += [f"distributed.processes_per_node={gpus_per_node}"] if gpus_per_node else []
    keys += [f"distributed.nodes={nodes}"] if nodes else []
    loaded = load_checked(recipe, keys, quiet=as_json)
    spec = find_gpu(gpu) if gpu is not None else None
    hardware = hardware_for(spec, loaded.recipe.distributed.processes_per_node or 1) if spec else detect_hardware()

    def planned() -> WholePlan:
        return plan_whole(
            loaded, hardware, gpu=spec, base_folder=Path.cwd(), runs=runs_dir, tokens_per_second=throughput
        )

    whole = planned()
    if measure:
        _measure(loaded, whole)
        whole = planned()
    if as_json:
        found = forecast_json(whole)
        values = {**whole.plan.to_json(), "total_steps": found["total_steps"], "whole": found}
        print_json({**values, "tuning": tuning_rows(whole.plan), "command": _command_of(whole.plan)})
    else:
        _show_plan(whole)
    if plot:
        path = picture or Path(f"{loaded.recipe.name}-rates.svg")
        _draw_plan(whole.plan, loaded.recipe, path)
        typer.echo(f"picture     {short(path)}", err=as_json)
    if whole.refused:
        raise as_error(whole, loaded)


def _measure(loaded: LoadedRecipe, whole: WholePlan) -> None:
    """Train a few steps; what the run prints goes to the error stream, since the plan's own text may be read by a machine."""
    import os
    from dataclasses import replace

    from launcher.workflows.measuring import measure

    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        measure(
            replace(loaded, recipe=whole.recipe),
            whole.hardware,
            launch=whole.plan.launch,
            facts=whole.plan.facts,
            tell=lambda text: typer.echo(text, err=True),
        )
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def _split_picture(words: list[str]) -> tuple[list[str], Path | None]:
    """Tell the name of a picture from the keys to set: it has no equals sign."""
    pictures = [word for word in words if "=" not in word and Path(word).suffix.lower() in _PICTURES]
    if len(pictures) > 1:
        raise typer.BadParameter(f"one picture is drawn, and {len(pictures)} files are named: {', '.join(pictures)}")
    return [word for word in words if word not in pictures], Path(pictures[0]) if pictures else None


def _command_of(found: RunPlan) -> list[str]:
    from launcher.launching.render import worker_command

    return worker_command(Path("runs/NAME-NNN"), attempt=1, plan=found.launch)


def _show_plan(whole: WholePlan) -> None:
    from launcher.workflows.forecast_view import forecast_lines, memory_tables
    from launcher.workflows.plan_view import table_views

    found = whole.plan
    for view in table_views(found):
        _show_table(view)
    for table in memory_tables(whole):
        typer.echo(table.heading)
        print_table(table.head, table.rows, right=set(range(1, len(table.head))))
    command = ("command", shlex.join(_command_of(found)))
    for name, text in [*_plan_lines(whole), *forecast_lines(whole), command]:
        typer.echo(f"{name:<12}{text}")


def _plan_lines(whole: WholePlan) -> list[tuple[str, str]]:
    from launcher.plans import told_rows

    found = whole.plan
    lines = [("data", told_rows(found.facts))]
    if found.unread:
        lines = [
            ("data", f"not read: {found.unread}"),
            ("", f"rows count as {found.facts['max_length']:,} tokens each"),
        ]
    if "class_sampling" in found.facts:
        lines.append(("sampling", found.facts["class_sampling"]))
    if "mixture" in found.facts:
        lines.append(("mixture", found.facts["mixture"]["told"]))
    lines += [("", f"warning: {text}") for text in found.facts["warnings"]]
    launch = found.launch
    stage = f" ZeRO-{launch.zero_stage}" if launch.zero_stage is not None else ""
    nodes = f" on {launch.nodes} machines" if launch.nodes > 1 else ""
    lines.append(
        ("processes", f"{launch.world_size}{nodes} ({launch.engine}{stage}), {launch.precision} on {launch.device}")
    )
    if whole.chosen:
        lines.append(("", f"engine: auto took {whole.chosen}"))
    for number, batch in enumerate(dict.fromkeys(planned.batch for planned in found.phases)):
        lines.append(("" if number else "batch", batch.spread))
    lines.append(("steps", _steps(whole)))
    if "prefix_cache" in found.facts:
        lines.append(("cache", found.facts["prefix_cache"]))
    return lines


def _steps(whole: WholePlan) -> str:
    found = whole.plan
    if not found.knows_steps:
        return "unknown, as the rows are; set training.max_steps to plan with a number"
    steps = f"{found.total_steps:,}"
    if found.is_streamed:
        return f"{steps} (training.max_steps; epochs are not known); warm-up {found.warmup_steps:,}"
    if found.unread:
        return f"{steps} (training.max_steps); warm-up {found.warmup_steps:,}"
    return f"{steps} = {_epochs(found)}; warm-up {found.warmup_steps:,}"


def _epochs(found: RunPlan) -> str:
    epochs = found.phases[-1].epochs_at(found.total_steps)
    is_even = len({planned.batch.global_batch_size for planned in found.phases}) == 1
    return f"{epochs:.3g} epochs" + (f" of {found.steps_per_epoch:,}" if is_even else "")


def _show_table(view: TableView) -> None:
    """Print a table of a phase, or of several that share it; columns that hold nothing are left out."""
    for heading in view.headings:
        typer.echo(heading)
    if len(view.headings) > 1:
        typer.echo("with one table:")
    groups = view.groups
    optional = [
        ("rank", [str(g.rank) if g.rank is not None else "" for g in groups]),
        ("L1", [f"{g.l1_penalty:.3g}" if g.l1_penalty else "" for g in groups]),
        ("L2", [f"{g.l2_penalty:.3g}" if g.l2_penalty else "" for g in groups]),
    ]
    columns = [(name, texts) for name, texts in optional if any(texts)]
    rows = [
        [
            g.name, "-".join(str(depth) for depth in dict.fromkeys(g.depths)), f"{g.numel:,}", "yes" if g.trainable else "no",
            f"{g.lr:.3g}" if g.trainable else "", f"{g.weight_decay:.3g}" if g.trainable else "",
            *(texts[number] for _, texts in columns),
        ]
        for number, g in enumerate(groups)
    ]  # fmt: skip
    head = ["group", "depth", "parameters", "trains", "peak rate", "decay", *(name for name, _ in columns)]
    print_table(head, rows, right={2, *range(4, len(head))})
    table = view.phase.table
    share = table.trainable_numel / table.total_numel
    typer.echo(f"parameters  {table.trainable_numel:,} of {table.total_numel:,} train ({share:.1%})")
    if view.phase.note:
        typer.echo(f"note        {view.phase.note}")
    typer.echo("")


def _draw_plan(found: RunPlan, recipe: Recipe, path: Path) -> None:
    from launcher.evaluation.plots_training import draw_rates
    from launcher.workflows.plan_view import rate_lines

    picture = rate_lines(found, recipe)

    def draw(write: Callable[[Any], Any]) -> Any:
        return draw_rates(**picture, write=write, width=720)

    write_picture(path, draw, alt=f"Learning rate of each group over the steps of {recipe.name}")


# --- lr-find ---------------------------------------------------------------------------------------------------------


def lr_find(
    recipe: RecipeName,
    overrides: Overrides = None,
    min_lr: Annotated[float, typer.Option("--min-lr", help="Rate of the first step.")] = 1e-7,
    max_lr: Annotated[float, typer.Option("--max-lr", help="Rate of the last step.")] = 1.0,
    steps: Annotated[int, typer.Option("--steps", help="Steps from the one to the other.")] = 100,
    plot: Annotated[
        Path | None,
        typer.Option(
            "--plot", help="Picture to write, .svg or .png; NAME-lr-find.svg unless given. A .json lies beside."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Train a few steps while the rate grows, draw the loss over it, and suggest a training.learning_rate.

    One process on this machine, without sharding; nothing is kept but the picture and the numbers. The first phase with the
    most parameters in training is tested; other groups' rates grow in proportion. It suggests where to start looking: the
    best rate is found on validation rows.
    """
    from launcher.atomic import write_json
    from launcher.evaluation.plots_training import draw_range_test
    from launcher.workflows.lr_find import find_rate

    if not 0 < min_lr < max_lr or steps < 2:
        raise typer.BadParameter("--min-lr must lie between 0 and --max-lr, and --steps must be 2 or more")
    if plot is not None and plot.suffix.lower() not in _PICTURES:
        raise typer.BadParameter(f"--plot is {plot}; its ending must be .svg or .png")
    loaded = load_checked(recipe, overrides, quiet=as_json)
    found = find_rate(loaded, min_lr=min_lr, max_lr=max_lr, steps=steps, tell=lambda text: typer.echo(text, err=True))
    path = plot or Path(f"{loaded.recipe.name}-lr-find.svg")
    values = found.to_json()
    write_picture(
        path,
        lambda write: draw_range_test(values, write=write),
        alt=f"Training loss of {loaded.recipe.name} over the learning rate",
    )
    write_json(path.with_suffix(".json"), values)
    if as_json:
        print_json(values)
    else:
        _show_range_test(found, path)


def _show_range_test(found: RangeTest, path: Path) -> None:
    readings = (("steepest descent", found.steepest), ("least loss", found.minimum), ("divergence", found.divergence))
    for name, rate in readings:
        if rate is not None:
            typer.echo(f"{name:<20}{rate:.2g}")
    if found.suggestion is None:
        typer.echo(f"no suggestion: {found.reason}")
    else:
        typer.echo(f"{'suggestion':<20}training.learning_rate={found.suggestion:.1e}   ({found.reason})")
    typer.echo(f"{'picture':<20}{short(path)}")
