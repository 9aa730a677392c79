"""Verbs about recipes: list, start one, check, schema."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from launcher.cli.shared import Json, Overrides, RecipeName, print_json, print_table, tell_notes
from launcher.errors import RecipeError


class Tool(StrEnum):
    """Tools whose configurations can be imported."""

    llamafactory = "llamafactory"
    axolotl = "axolotl"
    trl = "trl"


class Trainer(StrEnum):
    """Trainers of TRL whose runs a recipe can say."""

    sft = "sft"
    dpo = "dpo"
    reward = "reward"


def recipes(as_json: Json = False) -> None:
    """List the recipes that ship with launcher."""
    from launcher.recipe.load import list_recipes

    found = list_recipes()
    if as_json:
        print_json([{"name": name, "path": str(path), "about": about} for name, path, about in found])
        return
    print_table(["recipe", "about"], [[name, about] for name, _, about in found])
    typer.echo("\nTry one:  launcher check NAME    Start from one:  launcher init my.yaml --from NAME")


def init(
    path: Annotated[Path, typer.Argument(help="File to write.")] = Path("recipe.yaml"),
    source: Annotated[str | None, typer.Option("--from", help="Shipped recipe, or file, to start from.")] = None,
    data: Annotated[str | None, typer.Option("--data", help="Your data: a file, a folder or a hub id.")] = None,
    model: Annotated[str | None, typer.Option("--model", help="Your model: a folder or a hub id.")] = None,
    task: Annotated[
        str | None, typer.Option("--task", help="What is to be learned, where the data do not tell it.")
    ] = None,
) -> None:
    """Write a recipe of your own to start from; its task is told from your data."""
    from launcher.workflows.init import starter_of, starter_recipe
    from launcher.workflows.task_of_data import Told, task_of_data

    if source is not None and task is not None:
        raise typer.BadParameter(f"--from {source} has a task of its own; give one of the two", param_hint="--task")
    told = None
    if source is None:
        told = Told(_known_task(task)) if task else task_of_data(data, base_folder=Path.cwd()) if data else None
    recipe = source or starter_of(told.task if told else "text-classification")
    starter_recipe(path, source=recipe, data=data, model=model, columns=told.columns if told else None)
    about = f" for {told.task}, as the data tell" if told and not task else ""
    typer.echo(f"wrote {path}{about}; next: launcher check {path}")


def _known_task(name: str) -> str:
    from launcher.registry import TASKS, suggest

    if name not in TASKS:
        near = suggest(name, TASKS)
        hint = f"did you mean {near}?" if near else f"write {', '.join(TASKS)}"
        raise typer.BadParameter(f"{name} is no task; {hint}", param_hint="--task")
    return name


def check(
    recipe: RecipeName,
    overrides: Overrides = None,
    fix: Annotated[bool, typer.Option("--fix", help="Write the remedies that are certain into the file.")] = False,
    as_json: Json = False,
) -> None:
    """Check a recipe completely; nothing is started."""
    from launcher.recipe.examine import examine
    from launcher.recipe.model_checks import model_notes

    loaded, problems = examine(recipe, overrides or [])
    if fix and problems:
        loaded, problems = _fix(recipe, overrides or [], problems)
    notes = model_notes(loaded.recipe) if loaded and not problems else []
    if as_json:
        rows = [{"place": p.place, "key": p.key, "message": p.message, "remedy": p.remedy} for p in problems]
        print_json({"ok": not problems, "problems": rows, "notes": [*(loaded.notes if loaded else ()), *notes]})
    elif problems:
        typer.echo(str(RecipeError(problems)), err=True)
        fixable = sum(p.fix is not None for p in problems)
        hint = f"; `launcher check {recipe} --fix` mends {fixable} of them" if fixable and not fix else ""
        typer.echo(f"{len(problems)} problem(s){hint}", err=True)
    else:
        assert loaded is not None
        tell_notes(loaded)
        for note in notes:
            typer.echo(f"note: {note}")
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


def import_(
    file: Annotated[
        Path, typer.Argument(help="Configuration of the other tool; for trl also a script with its command line.")
    ],
    tool: Annotated[Tool, typer.Option("--from", help="Tool that the file is for.", show_default=False)],
    output: Annotated[Path, typer.Option("--output", "-o", help="Recipe to write.")] = Path("recipe.yaml"),
    gpus: Annotated[
        int | None, typer.Option("--gpus", min=1, help="GPUs that the tool ran on; files do not say it.")
    ] = None,
    trainer: Annotated[
        Trainer | None, typer.Option("--task", help="Trainer of a TRL file, where its keys do not tell it.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Write a recipe from a configuration of LLaMA-Factory, Axolotl or TRL, and list every key that was not translated."""
    from launcher.importing.tools import import_recipe, refuse_existing, written
    from launcher.importing.writing import listing

    if trainer is not None and tool != "trl":
        raise typer.BadParameter(f"a file of {tool.value} tells its task itself", param_hint="--task")
    refuse_existing(output)
    made = import_recipe(file, tool=tool.value, gpus=gpus, trainer=trainer.value if trainer else None)
    files = written(made, output)
    if as_json:
        fates = [made.fates[key] for key in made.keys]
        rows = [{"key": fate.key, "value": fate.shown, "fate": fate.kind, "text": fate.text} for fate in fates]
        print_json({"path": str(output), "keys": rows, "assumed": made.assumed})
        return
    for heading, lines in listing(made):
        typer.echo(heading)
        for line in lines:
            typer.echo(f"  {line}")
    typer.echo(f"wrote {' and '.join(map(str, files))}; next: launcher check {output}")


def schema() -> None:
    """Print the JSON Schema of a recipe, for editors."""
    from launcher.recipe.json_schema import json_schema

    print_json(json_schema())
