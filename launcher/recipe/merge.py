"""One tree of values out of a recipe, its base files and the command line's overrides."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from launcher.errors import Problem, RecipeError
from launcher.recipe.section import TYPED
from launcher.recipe.tree import KeyPath, Tree, dotted, parse_tree, parse_value, read_text, show


def merge(lower: Tree, upper: Tree, notes: list[str], *, where: str = "") -> Tree:
    """Lay ``upper`` over ``lower``: mappings are merged, lists and single values replaced, places kept.

    A section that changes its ``type`` drops the options of the old one; ``notes`` receives a line that says so.
    """
    lower = _drop_old_options(lower, upper, notes, where)
    places = dict(lower.places)
    values = _merged(lower.values, upper.values, (), places)
    return Tree(values, {**places, **upper.places})


def _merged(lower: Any, upper: Any, path: KeyPath, places: dict[KeyPath, str]) -> Any:
    if isinstance(lower, dict) and isinstance(upper, dict):
        changed = {
            key: _merged(lower[key], value, (*path, key), places) for key, value in upper.items() if key in lower
        }
        return {**lower, **upper, **changed}
    _forget(places, path)
    return upper


def _forget(places: dict[KeyPath, str], path: KeyPath) -> None:
    for known in [known for known in places if known[: len(path)] == path and known]:
        del places[known]


def _drop_old_options(lower: Tree, upper: Tree, notes: list[str], where: str) -> Tree:
    values, places = dict(lower.values), dict(lower.places)
    for section, default in TYPED.items():
        old, new = values.get(section), upper.values.get(section)
        if not isinstance(old, dict) or not isinstance(new, dict) or "type" not in new:
            continue
        dropped = [key for key in old if key != "type"]
        if dropped and new["type"] != old.get("type", default):
            values[section] = {key: value for key, value in old.items() if key == "type"}
            for key in dropped:
                _forget(places, (section, key))
            notes.append(f"{section}.type set {where}to {new['type']}: dropped {', '.join(dropped)}")
    return Tree(values, places)


def expand_shorthand(tree: Tree) -> Tree:
    """Write ``task: NAME`` out as ``task: {type: NAME}``."""
    task = tree.values.get("task")
    if not isinstance(task, str):
        return tree
    return Tree({**tree.values, "task": {"type": task}}, {**tree.places, ("task", "type"): tree.places[("task",)]})


# --- base files ----------------------------------------------------------------------------------------------------


def load_tree(text: str, name: str, notes: list[str], trail: tuple[Path, ...] = ()) -> Tree:
    """Return the values of a recipe's text laid over those of its base files.

    ``base`` names one file or a list, relative to the file that names it; of several, the later one wins.

    Raises:
        RecipeError: a file cannot be read or is not YAML, or base files form a cycle.
    """
    tree = expand_shorthand(parse_tree(text, name))
    if "base" not in tree.values:
        return tree
    trail = (*trail, Path(name))
    trees = [_load_base(base, place, trail, notes) for base, place in _bases(tree)]
    merged = trees[0]
    for upper in [*trees[1:], _without_base(tree)]:
        merged = merge(merged, upper, notes, where=f"by {name} ")
    return merged


def _bases(tree: Tree) -> list[tuple[str, str]]:
    bases, place = tree.values["base"], tree.places[("base",)]
    named = bases if isinstance(bases, list) else [bases]
    if not named or not all(isinstance(base, str) and base for base in named):
        message = f"base is {show(bases)}; it must be a file name or a list of file names"
        raise RecipeError([Problem(place, message, "name the files relative to this one", "base")])
    return [(base, tree.places.get(("base", index), place)) for index, base in enumerate(named)]


def _load_base(base: str, place: str, trail: tuple[Path, ...], notes: list[str]) -> Tree:
    path = Path(os.path.normpath(trail[-1].parent / base))
    if path.resolve() in [passed.resolve() for passed in trail]:
        circle = " -> ".join(str(passed) for passed in (*trail, path))
        raise RecipeError(
            [Problem(place, f"base files form a circle: {circle}", "remove one of these base: lines", "base")]
        )
    return load_tree(read_text(path, named_at=place), str(path), notes, trail)


def _without_base(tree: Tree) -> Tree:
    values = {key: value for key, value in tree.values.items() if key != "base"}
    return Tree(values, {path: place for path, place in tree.places.items() if path[:1] != ("base",)})


# --- overrides -----------------------------------------------------------------------------------------------------


def apply_overrides(tree: Tree, overrides: Sequence[str], notes: list[str]) -> tuple[Tree, list[Problem]]:
    """Lay ``key=value`` overrides over a tree, those that name a ``type`` first; return it with their faults."""
    problems: list[Problem] = []
    for override in sorted(overrides, key=lambda text: not _names_type(text)):
        place = f"command line: {override}"
        try:
            upper = _override_tree(tree, override, place)
            tree = merge(tree, upper, notes, where="on the command line ")
        except RecipeError as error:
            problems.extend(error.problems)
    return tree, problems


def _names_type(override: str) -> bool:
    return override.partition("=")[0].strip() in {*TYPED, *(f"{section}.type" for section in TYPED)}


def _override_tree(tree: Tree, override: str, place: str) -> Tree:
    key, equals, text = override.partition("=")
    path = tuple(key.strip().split("."))
    if not equals or not all(path):
        raise RecipeError(
            [Problem(place, f"{override!r} is not of the form key=value", "write, for example, training.seed=1")]
        )
    if path[0] == "base":
        raise RecipeError(
            [Problem(place, "base cannot be set on the command line", "write it into the recipe", "base")]
        )
    _refuse_passing_through(tree, path, place)
    value = parse_value(text, place)
    places: dict[KeyPath, str] = {path[: depth + 1]: place for depth in range(len(path))}
    for part in reversed(path):
        value = {part: value}
    return expand_shorthand(Tree(value, places))


def _refuse_passing_through(tree: Tree, path: tuple[str, ...], place: str) -> None:
    value: Any = tree.values
    for depth, part in enumerate(path[:-1]):
        value = value.get(part) if isinstance(value, dict) else None
        if value is not None and not isinstance(value, dict):
            above = dotted(path[: depth + 1])
            message = f"{dotted(path)} cannot be set, because {above} is {show(value)}, not a mapping"
            raise RecipeError(
                [Problem(place, message, f"set {above} as a whole: {above}={{{path[depth + 1]}: ...}}", dotted(path))]
            )
