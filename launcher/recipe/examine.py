"""Everything that is wrong with a recipe, in one go: what the verb check shows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from launcher.errors import Problem, RecipeError
from launcher.recipe.checks import check_recipe
from launcher.recipe.files import check_files
from launcher.recipe.find import find_recipe
from launcher.recipe.load import Draft, LoadedRecipe, assemble, in_order, judge, loaded, validate
from launcher.recipe.tree import KeyPath, Tree, dotted, read_text, value_at, walk


def examine(path: str | Path, overrides: Sequence[str] = ()) -> tuple[LoadedRecipe | None, list[Problem]]:
    """Return the loaded recipe (None where it cannot be) and all its problems, in the order of their places.

    A recipe with faults in single keys is judged further as if those were mended or left out, so that one pass shows
    also what contradicts what, and which files are missing.
    """
    try:
        found = find_recipe(path)
        draft = assemble(read_text(found), str(found), overrides)
    except RecipeError as error:
        return None, list(error.problems)
    recipe, problems = judge(draft)
    if recipe is not None:
        whole = loaded(recipe, draft)
        return whole, in_order([*check_recipe(whole), *check_files(whole)])
    return None, in_order([*problems, *_further(draft, problems)])


def _further(draft: Draft, problems: Sequence[Problem]) -> list[Problem]:
    """Return what the rules say of the recipe without its faulty keys."""
    mended = _mended(draft.tree, problems)
    recipe, _ = validate(mended)
    if recipe is None:
        return []
    partial = loaded(recipe, Draft(mended, (), draft.source_text, draft.path, draft.notes))
    # In a section that lost a key, a rule may miss just that key.
    lost = {problem.key.partition(".")[0] for problem in problems if problem.fix is None or problem.fix.new_key is None}
    found = [*check_recipe(partial), *check_files(partial)]
    named = {problem.key for problem in problems}
    return [problem for problem in found if problem.key.partition(".")[0] not in lost and problem.key not in named]


def _mended(tree: Tree, problems: Sequence[Problem]) -> Tree:
    paths: dict[str, KeyPath] = {dotted(path): path for path, _ in walk(tree.values)}
    places = dict(tree.places)
    values = _copy(tree.values)
    for problem in problems:
        if (path := paths.get(problem.key)) is None:
            continue
        target = _target(problem, path)
        kept = _take(values, path if target else _outside_lists(path))
        if target and problem.fix:
            _put(values, target, kept if problem.fix.keep_value else problem.fix.new_value)
            places.setdefault(target, problem.place)
    return Tree(values, places)


def _target(problem: Problem, path: KeyPath) -> KeyPath | None:
    """Return where a fault's edit puts the value; None where it is left out."""
    if problem.fix is None or problem.fix.new_key is None:
        return None
    above, _, name = problem.fix.new_key.rpartition(".")
    if problem.fix.new_key == problem.key:
        return path
    return (*path[:-1], name) if above == dotted(path[:-1]) else tuple(problem.fix.new_key.split("."))


def _outside_lists(path: KeyPath) -> KeyPath:
    """Return the key that holds the outermost list on a path: a list that lost an item would mean something else."""
    return next((path[:depth] for depth, part in enumerate(path) if isinstance(part, int)), path)


def _copy(values: Any) -> Any:
    if isinstance(values, dict):
        return {key: _copy(value) for key, value in values.items()}
    return [_copy(value) for value in values] if isinstance(values, list) else values


def _take(values: Any, path: KeyPath) -> Any:
    try:
        above = value_at(values, path[:-1])
    except (KeyError, IndexError):
        # A fault of the same list took it away already.
        return None
    return above.pop(path[-1], None) if isinstance(above, dict) else above[path[-1]]


def _put(values: Any, path: KeyPath, value: Any) -> None:
    for part in path[:-1]:
        values = values.setdefault(part, {}) if isinstance(values, dict) else values[part]
    if isinstance(values, dict | list):
        values[path[-1]] = value  # type: ignore[index]
