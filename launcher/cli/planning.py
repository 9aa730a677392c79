"""Verbs that look ahead of a run: its plan, and a range test of the learning rate."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from launcher.cli.shared import Json, Overrides, RecipeName, load_checked, print_json, print_table, short
from launcher.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable

    from launcher.evaluation.range_test import RangeTest
    from launcher.plans import RunPlan
    from launcher.recipe.schema import Recipe
    from launcher.workflows.plan_view import TableView

_PICTURES = (".svg", ".png")


# --- plan ------------------------------------------------------------------------------------------------------------


def plan(
    recipe: RecipeName,
    overrides: Overrides = None,
    as_json: Json = False,
    plot: Annotated[
        bool,
        typer.Option(
            "--plot",
            help="Draw every group's rate over the run: into the .svg or .png file named behind it, or NAME-rates.svg.",
        ),
    ] = False,
) -> None:
    """Show what a run would do: what trains at which rate, steps, batches, and the command. No weights are loaded."""
    from launcher.launching.launch_plan import plan_launch
    from launcher.planning.hardware import detect_hardware
    from launcher.planning.plan import preview_run
    from launcher.workflows.plan_view import tuning_rows

    keys, picture = _split_picture(overrides or []) if plot else (overrides or [], None)
    loaded = load_checked(recipe, keys, quiet=as_json)
    launch = plan_launch(loaded.recipe, detect_hardware())
    found = preview_run(loaded.recipe, launch, base_folder=Path.cwd())
    if as_json:
        print_json({**found.to_json(), "tuning": tuning_rows(found), "command": _command_of(found)})
    else:
        _show_plan(found)
    if plot:
        path = picture or Path(f"{loaded.recipe.name}-rates.svg")
        _draw_plan(found, loaded.recipe, path)
        typer.echo(f"picture     {short(path)}", err=as_json)


def _split_picture(words: list[str]) -> tuple[list[str], Path | None]:
    """Tell the name of a picture from the keys to set: it has no equals sign."""
    pictures = [word for word in words if "=" not in word and Path(word).suffix.lower() in _PICTURES]
    if len(pictures) > 1:
        raise typer.BadParameter(f"one picture is drawn, and {len(pictures)} files are named: {', '.join(pictures)}")
    return [word for word in words if word not in pictures], Path(pictures[0]) if pictures else None


def _command_of(found: RunPlan) -> list[str]:
    from launcher.launching.render import worker_command

    return worker_command(Path("runs/NAME-NNN"), attempt=1, plan=found.launch)


def _show_plan(found: RunPlan) -> None:
    from launcher.workflows.plan_view import table_views

    for view in table_views(found):
        _show_table(view)
    splits = found.facts["splits"]
    typer.echo("data        " + ", ".join(f"{s['rows']:,} {name}" for name, s in splits.items()) + " rows")
    for text in found.facts["warnings"]:
        typer.echo(f"            warning: {text}")
    launch = found.launch
    stage = f" ZeRO-{launch.zero_stage}" if launch.zero_stage is not None else ""
    typer.echo(f"processes   {launch.world_size} ({launch.engine}{stage}), {launch.precision} on {launch.device}")
    for number, batch in enumerate(dict.fromkeys(planned.batch for planned in found.phases)):
        typer.echo(
            f"{'' if number else 'batch':<12}{batch.global_batch_size} rows a step = {batch.world_size} process(es) x "
            f"{batch.micro_batch_size} rows x {batch.accumulation} pass(es)"
        )
    typer.echo(f"steps       {found.total_steps:,} = {_epochs(found)}; warm-up {found.warmup_steps:,}")
    if "prefix_cache" in found.facts:
        typer.echo(f"cache       {found.facts['prefix_cache']}")
    typer.echo(f"command     {shlex.join(_command_of(found))}")


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

    _write_picture(path, draw, alt=f"Learning rate of each group over the steps of {recipe.name}")


def _write_picture(path: Path, draw: Callable[[Callable[[Any], Any]], Any], *, alt: str) -> None:
    """Draw into a file whose ending says how. Raises DataError for another ending."""
    from launcher.evaluation.svg import standalone, to_png, to_svg
    from launcher.rundir import write_bytes, write_text

    if path.suffix.lower() == ".png":
        write_bytes(path, draw(to_png))
    elif path.suffix.lower() == ".svg":
        write_text(path, standalone(draw(lambda drawing: to_svg(drawing, name="picture", alt=alt))))
    else:
        raise DataError(f"no picture can be written to {path}: its ending must be .svg or .png")


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
    from launcher.evaluation.plots_training import draw_range_test
    from launcher.rundir import write_json
    from launcher.workflows.lr_find import find_rate

    if not 0 < min_lr < max_lr or steps < 2:
        raise typer.BadParameter("--min-lr must lie between 0 and --max-lr, and --steps must be 2 or more")
    if plot is not None and plot.suffix.lower() not in _PICTURES:
        raise typer.BadParameter(f"--plot is {plot}; its ending must be .svg or .png")
    loaded = load_checked(recipe, overrides, quiet=as_json)
    found = find_rate(loaded, min_lr=min_lr, max_lr=max_lr, steps=steps, tell=lambda text: typer.echo(text, err=True))
    path = plot or Path(f"{loaded.recipe.name}-lr-find.svg")
    values = found.to_json()
    _write_picture(
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
