"""What the verbs share: the types of their arguments, loading a recipe, and printing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from launcher.errors import DataError, RecipeError

if TYPE_CHECKING:
    from collections.abc import Callable

    from launcher.recipe.load import LoadedRecipe
    from launcher.recipe.schema import Recipe
    from launcher.rundir import RunDir

RecipeName = Annotated[str, typer.Argument(help="A recipe file, or the name of a shipped recipe.", show_default=False)]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="Keys to set, such as training.learning_rate=3e-5.", show_default=False)
]
RunPath = Annotated[Path, typer.Argument(help="A run directory, such as runs/api-topics-001.", show_default=False)]
RunsDir = Annotated[Path, typer.Option("--runs-dir", help="Folder in which run directories are made.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]


def load_checked(recipe: str, overrides: list[str] | None, *, quiet: bool = False) -> LoadedRecipe:
    """Load and check a recipe; tell its notes, on the error stream where ``quiet``. Raises RecipeError with all problems."""
    from launcher.recipe.examine import examine

    loaded, problems = examine(recipe, overrides or [])
    if loaded is None or problems:
        raise RecipeError(problems)
    tell_notes(loaded, quiet=quiet)
    return loaded


def tell_notes(loaded: LoadedRecipe, *, quiet: bool = False) -> None:
    """Tell what loading a recipe decided by itself."""
    for note in loaded.notes:
        typer.echo(f"note: {note}", err=quiet)


def short(path: Path) -> Path:
    """Return a path relative to the current folder, where it lies below."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def print_json(value: Any) -> None:
    """Print ``value`` as indented JSON."""
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False, default=str))


def print_table(head: list[str], rows: list[list[str]], *, right: set[int] | None = None) -> None:
    """Print a table; ``right``: columns of numbers."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for number, name in enumerate(head):
        table.add_column(name, justify="right" if number in (right or set()) else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    console().print(table, markup=False)


def console() -> Any:
    """Return rich's console. A pipe has no width of its own; machines that read a table from it want whole lines."""
    from rich.console import Console

    terminal = Console(highlight=False)
    return terminal if terminal.is_terminal else Console(width=200, highlight=False)


def tell_changes(run: RunDir, recipe: Recipe) -> None:
    """Tell what differs between ``recipe`` and that of the run's first attempt."""
    from launcher.workflows.resuming import changes_since_first

    for change in changes_since_first(run, recipe):
        typer.echo(f"changed since the first attempt: {change} ({change.reason})")


def write_picture(path: Path, draw: Callable[[Callable[[Any], Any]], Any], *, alt: str) -> None:
    """Draw into a file whose ending says how. Raises DataError for another ending."""
    from launcher.atomic import write_bytes, write_text
    from launcher.evaluation.svg import standalone, to_png, to_svg

    if path.suffix.lower() == ".png":
        write_bytes(path, draw(to_png))
    elif path.suffix.lower() == ".svg":
        write_text(path, standalone(draw(lambda drawing: to_svg(drawing, name="picture", alt=alt))))
    else:
        raise DataError(f"no picture can be written to {path}: its ending must be .svg or .png")
