"""From a recipe file, its base files and overrides to one frozen Recipe, or to all of its faults at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from launcher.errors import Problem, RecipeError
from launcher.recipe.explain import explain
from launcher.recipe.find import find_recipe as find_recipe, list_recipes as list_recipes
from launcher.recipe.interpolate import interpolate
from launcher.recipe.loaded import LoadedRecipe as LoadedRecipe
from launcher.recipe.merge import apply_overrides, load_tree
from launcher.recipe.resolved import resolved_text as resolved_text
from launcher.recipe.schema import Recipe
from launcher.recipe.tree import Tree, dotted, read_text
from launcher.recipe.unknown import check_training


@dataclass(frozen=True)
class Draft:
    """A recipe's values before they are judged, with the faults of putting them together."""

    tree: Tree
    problems: tuple[Problem, ...]
    source_text: str
    path: Path
    notes: tuple[str, ...]


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> LoadedRecipe:
    """Load a recipe from a file, or a shipped one by its name, with ``key=value`` overrides laid over it.

    Raises:
        RecipeError: all faults that the text and the schema show, in the order of their places.
    """
    found = find_recipe(path)
    return parse_recipe(read_text(found), str(found), overrides)


def parse_recipe(text: str, name: str, overrides: Sequence[str] = ()) -> LoadedRecipe:
    """Load a recipe from its text; ``name`` is the file name for places, and base files lie relative to it.

    Raises:
        RecipeError: all faults that the text and the schema show, in the order of their places.
    """
    draft = assemble(text, name, overrides)
    recipe, problems = judge(draft)
    if recipe is None:
        raise RecipeError(problems)
    return loaded(recipe, draft)


def assemble(text: str, name: str, overrides: Sequence[str] = ()) -> Draft:
    """Put a recipe's values together: base files, overrides, interpolation. Raises RecipeError where it is not YAML."""
    notes: list[str] = []
    tree, wrong_overrides = apply_overrides(load_tree(text, name, notes), overrides, notes)
    tree, wrong_interpolations = interpolate(tree)
    return Draft(tree, (*wrong_overrides, *wrong_interpolations), text, Path(name), tuple(notes))


def judge(draft: Draft) -> tuple[Recipe | None, list[Problem]]:
    """Return the recipe, or None and all faults that the schema and TrainingArguments' fields show."""
    tree = draft.tree
    known = {problem.key for problem in draft.problems}
    recipe, found = validate(tree)
    problems = [*draft.problems, *(problem for problem in found if problem.key not in known)]
    return (None if problems else recipe), in_order(problems)


def validate(tree: Tree) -> tuple[Recipe | None, list[Problem]]:
    """Return the Recipe of a tree, or None, with the faults that were found."""
    problems = check_training(tree)
    try:
        recipe = Recipe.model_validate(tree.values, strict=True)
    except ValidationError as error:
        return None, [*explain(error, tree), *problems]
    return recipe, problems


def in_order(problems: Sequence[Problem]) -> list[Problem]:
    """Return problems in the order of their places: files as they are read, the command line last."""
    return sorted(problems, key=lambda problem: _sort_key(problem.place))


def _sort_key(place: str) -> tuple[bool, str, int, int]:
    if place.startswith("command line"):
        return True, place, 0, 0
    name, line, column = [*place.rsplit(":", 2), "0", "0"][:3]
    return False, name, int(line) if line.isdigit() else 0, int(column) if column.isdigit() else 0


def loaded(recipe: Recipe, draft: Draft) -> LoadedRecipe:
    """Return a recipe with the places and notes of its draft."""
    places = {dotted(path): place for path, place in draft.tree.places.items()}
    return LoadedRecipe(recipe, draft.source_text, places, draft.path, draft.notes)
