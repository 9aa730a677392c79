"""The command line: parse, call, print. Heavy imports happen inside the verb that needs them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from launcher import __version__
from launcher.errors import LauncherError, RecipeError, RunStateError
from launcher.registry import suggest

if TYPE_CHECKING:
    from collections.abc import Mapping

    from launcher.contracts import RunPlan
    from launcher.recipe.load import LoadedRecipe
    from launcher.rundir import RunDir


class Verbs(TyperGroup):
    """The verbs, with an answer to a word that is near one of them."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find a verb; a miss names the nearest one."""
        if args and self.get_command(ctx, args[0]) is None and not args[0].startswith("-"):
            near = suggest(args[0], self.commands)
            hint = f"did you mean {near!r}?" if near else f"the verbs are {', '.join(self.commands)}"
            ctx.fail(f"there is no verb {args[0]!r}; {hint}")
        return super().resolve_command(ctx, args)


app = typer.Typer(
    cls=Verbs,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="From one recipe to a finished, evaluated, usable fine-tuned model.",
    context_settings={"help_option_names": ["-h", "--help"]},
)

RecipeName = Annotated[str, typer.Argument(help="A recipe file, or the name of a shipped recipe.", show_default=False)]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="Keys to set, such as training.learning_rate=3e-5.", show_default=False)
]
RunPath = Annotated[Path, typer.Argument(help="A run directory, such as runs/api-topics-001.", show_default=False)]
RunsDir = Annotated[Path, typer.Option("--runs-dir", help="Folder in which run directories are made.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]


# --- recipes ---------------------------------------------------------------------------------------------------------


@app.command()
def recipes(as_json: Json = False) -> None:
    """List the recipes that ship with launcher."""
    from launcher.recipe.load import list_recipes

    found = list_recipes()
    if as_json:
        _print_json([{"name": name, "path": str(path), "about": about} for name, path, about in found])
        return
    _table(["recipe", "about"], [[name, about] for name, _, about in found])
    typer.echo("\nTry one:  launcher check NAME    Start from one:  launcher init my.yaml --from NAME")


@app.command()
def init(
    path: Annotated[Path, typer.Argument(help="File to write.")] = Path("recipe.yaml"),
    source: Annotated[
        str, typer.Option("--from", help="Shipped recipe, or file, to start from.")
    ] = "quickstart/api-topics",
    data: Annotated[str | None, typer.Option("--data", help="Your data: a file, a folder or a hub id.")] = None,
    model: Annotated[str | None, typer.Option("--model", help="Your model: a folder or a hub id.")] = None,
) -> None:
    """Write a recipe of your own to start from."""
    from launcher.workflows.init import starter_recipe

    starter_recipe(path, source=source, data=data, model=model)
    typer.echo(f"wrote {path}; next: launcher check {path}")


@app.command()
def check(
    recipe: RecipeName,
    overrides: Overrides = None,
    fix: Annotated[bool, typer.Option("--fix", help="Write the remedies that are certain into the file.")] = False,
    as_json: Json = False,
) -> None:
    """Check a recipe completely; nothing is started."""
    from launcher.recipe.examine import examine

    loaded, problems = examine(recipe, overrides or [])
    if fix and problems:
        loaded, problems = _fix(recipe, overrides or [], problems)
    if as_json:
        rows = [{"place": p.place, "key": p.key, "message": p.message, "remedy": p.remedy} for p in problems]
        _print_json({"ok": not problems, "problems": rows, "notes": loaded.notes if loaded else []})
    elif problems:
        typer.echo(str(RecipeError(problems)), err=True)
        fixable = sum(p.fix is not None for p in problems)
        hint = f"; `launcher check {recipe} --fix` mends {fixable} of them" if fixable and not fix else ""
        typer.echo(f"{len(problems)} problem(s){hint}", err=True)
    else:
        assert loaded is not None
        _tell_notes(loaded)
        typer.echo(f"{loaded.path}: no problems found")
    raise typer.Exit(RecipeError.exit_code if problems else 0)


def _fix(recipe: str, overrides: list[str], problems: list[Any]) -> tuple[Any, list[Any]]:
    from launcher.recipe.examine import examine
    from launcher.recipe.fix import apply_fixes, write_fixed
    from launcher.recipe.load import find_recipe

    path = find_recipe(recipe)
    text = apply_fixes(path, problems)
    if text is None:
        return examine(recipe, overrides)
    write_fixed(path, text)
    typer.echo(f"mended {path}")
    return examine(recipe, overrides)


@app.command()
def schema() -> None:
    """Print the JSON Schema of a recipe, for editors."""
    from launcher.recipe.json_schema import json_schema

    _print_json(json_schema())


# --- runs ------------------------------------------------------------------------------------------------------------


@app.command()
def plan(recipe: RecipeName, overrides: Overrides = None, as_json: Json = False) -> None:
    """Show what a run would do: what trains at which rate, steps, batches, and the command. No weights are loaded."""
    from launcher.launching.launch_plan import plan_launch
    from launcher.planning.hardware import detect_hardware
    from launcher.planning.plan import preview_run

    loaded = _load(recipe, overrides)
    launch = plan_launch(loaded.recipe, detect_hardware())
    found = preview_run(loaded.recipe, launch, base_folder=Path.cwd())
    if as_json:
        _print_json({**found.to_json(), "command": _command_of(found)})
    else:
        _show_plan(found)


def _command_of(found: RunPlan) -> list[str]:
    from launcher.launching.render import worker_command

    return worker_command(Path("runs/NAME-NNN"), attempt=1, plan=found.launch)


def _show_plan(found: RunPlan) -> None:
    import shlex

    from launcher.workflows.report import tuning_rows

    launch, batch = found.launch, found.launch.batch
    stage = f" ZeRO-{launch.zero_stage}" if launch.zero_stage is not None else ""
    rows = tuning_rows(found.to_json())
    _table(
        ["group", "depth", "parameters", "trains", "peak rate", "decay"],
        [
            [
                str(r["group"]), str(r["depth"]), f"{r['parameters']:,}", "yes" if r["trainable"] else "no",
                f"{r['lr']:.3g}" if r["trainable"] else "", f"{r['weight_decay']:.3g}" if r["trainable"] else "",
            ]
            for r in rows
        ],
        right={2, 4, 5},
    )  # fmt: skip
    table = found.phases[0].table
    share = table.trainable_numel / table.total_numel
    typer.echo(f"\nparameters  {table.trainable_numel:,} of {table.total_numel:,} train ({share:.1%})")
    splits = found.facts["splits"]
    typer.echo("data        " + ", ".join(f"{s['rows']:,} {name}" for name, s in splits.items()) + " rows")
    for text in found.facts["warnings"]:
        typer.echo(f"            warning: {text}")
    typer.echo(f"processes   {launch.world_size} ({launch.engine}{stage}), {launch.precision} on {launch.device}")
    typer.echo(
        f"batch       {batch.global_batch_size} rows a step = {batch.world_size} process(es) x {batch.micro_batch_size} rows"
        f" x {batch.accumulation} pass(es)"
    )
    epochs = found.total_steps / found.steps_per_epoch
    typer.echo(
        f"steps       {found.total_steps:,} = {epochs:.3g} epochs of {found.steps_per_epoch:,}; warm-up {found.warmup_steps:,}"
    )
    typer.echo(f"command     {shlex.join(_command_of(found))}")


@app.command()
def run(recipe: RecipeName, overrides: Overrides = None, runs_dir: RunsDir = Path("runs")) -> None:
    """Train, evaluate and report, on this machine. Ctrl-C saves a checkpoint and stops."""
    from launcher.planning.hardware import detect_hardware
    from launcher.workflows.start import create_run

    if (Path(recipe) / "resolved.yaml").is_file():
        raise RunStateError(f"{recipe} is the directory of a run; to continue it: launcher resume {recipe}")
    loaded = _load(recipe, overrides)
    directory, attempt = create_run(loaded, runs=runs_dir, hardware=detect_hardware())
    typer.echo(f"run: {_short(directory.path)}")
    _submit(directory, attempt)


@app.command()
def resume(run: RunPath) -> None:
    """Continue a run that was interrupted or failed, from its newest complete checkpoint."""
    from launcher.planning.hardware import detect_hardware
    from launcher.recipe.load import load_recipe
    from launcher.rundir import RunDir
    from launcher.workflows.start import resume_run

    recipe = load_recipe(RunDir.open(run).resolved).recipe
    directory, attempt = resume_run(run.resolve(), recipe=recipe, hardware=detect_hardware())
    typer.echo(f"run: {_short(directory.path)}, attempt {attempt}")
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
    place = _short(directory.path)
    if verdict["verdict"] == "interrupted":
        typer.echo(f"{verdict['error']}; to continue: launcher resume {place}", err=True)
        return
    log = _short(directory.log(attempt, rank))
    typer.echo(f"rank {rank} {verdict['verdict']} (its log: {log})", err=True)
    typer.echo((verdict.get("traceback") or verdict["error"]).rstrip(), err=True)


# --- models ----------------------------------------------------------------------------------------------------------


@app.command()
def evaluate(run: RunPath, as_json: Json = False) -> None:
    """Evaluate a finished run's model again, and write its report anew."""
    from launcher.evaluation.verdict import verdict_sentence
    from launcher.workflows.inference import evaluate_run

    evaluation = evaluate_run(run.resolve())
    if as_json:
        _print_json(evaluation.to_json())
        return
    typer.echo(verdict_sentence(evaluation))
    typer.echo(f"report: {run / 'report.html'}")


@app.command()
def predict(
    run: RunPath,
    texts: Annotated[list[str] | None, typer.Argument(help="Texts to predict.", show_default=False)] = None,
    file: Annotated[
        str | None, typer.Option("--file", help="A file of rows, in any format that training reads.")
    ] = None,
    pair: Annotated[str | None, typer.Option("--pair", help="The second text, for a model of pairs.")] = None,
    output: Annotated[
        Path | None, typer.Option("--output", help="Write to this .jsonl, .csv or .parquet file.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Predict texts with a finished run's model."""
    if bool(texts) == bool(file):
        raise typer.BadParameter("give texts, or --file with a file of rows")
    from launcher.workflows.inference import FinishedModel, predict_file, prediction_rows, write_rows

    finished = FinishedModel(run.resolve())
    pairs = [pair] * len(texts) if pair is not None and texts else None
    predictions = predict_file(finished, file) if file else finished.predict_texts(texts or [], pairs)
    if output is not None:
        write_rows(predictions, output)
        typer.echo(f"wrote {len(predictions.texts):,} predictions to {output}")
    elif as_json:
        _print_json(prediction_rows(predictions))
    else:
        for row in prediction_rows(predictions):
            typer.echo(_prediction_line(row))


def _prediction_line(row: Mapping[str, Any]) -> str:
    prediction = row["prediction"]
    if isinstance(prediction, float):
        return f"{prediction:.4f}\t{row['text']}"
    shown = ", ".join(prediction) or "(none)" if isinstance(prediction, list) else prediction
    best = max(row["scores"].values())
    return f"{shown}\t{best:.3f}\t{row['text']}"


@app.command()
def report(run: RunPath) -> None:
    """Write a run's report.html from its files."""
    from launcher.rundir import RunDir
    from launcher.workflows.report import write_report

    typer.echo(f"report: {_short(write_report(RunDir.open(run.resolve())))}")


@app.command()
def doctor(as_json: Json = False) -> None:
    """Look at this machine: versions, devices, compilers, disk, hub, W&B, Slurm."""
    from dataclasses import asdict

    from launcher.workflows.doctor import examine_machine

    findings = examine_machine()
    if as_json:
        _print_json([asdict(finding) for finding in findings])
    else:
        _table(["what", "verdict", "found", "remedy"], [[f.name, f.verdict, f.found, f.remedy] for f in findings])
    raise typer.Exit(1 if any(f.verdict == "missing" for f in findings) else 0)


# --- shared ----------------------------------------------------------------------------------------------------------


def _load(recipe: str, overrides: list[str] | None) -> LoadedRecipe:
    """Load and check a recipe. Raises RecipeError with all problems."""
    from launcher.recipe.examine import examine

    loaded, problems = examine(recipe, overrides or [])
    if loaded is None or problems:
        raise RecipeError(problems)
    _tell_notes(loaded)
    return loaded


def _tell_notes(loaded: LoadedRecipe) -> None:
    for note in loaded.notes:
        typer.echo(f"note: {note}")


def _short(path: Path) -> Path:
    """Return a path relative to the current folder, where it lies below."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False, default=str))


def _table(head: list[str], rows: list[list[str]], *, right: set[int] | None = None) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for number, name in enumerate(head):
        table.add_column(name, justify="right" if number in (right or set()) else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    console = Console()
    # A pipe has no width of its own; machines that read the table want whole lines.
    console = console if console.is_terminal else Console(width=200)
    console.print(table, markup=False)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"launcher {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line; an error for the user is its text and its exit code, without a traceback."""
    try:
        app()
    except LauncherError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
