"""pydantic's findings in the recipe's own terms: place, value, remedy and, where one cures the fault, the edit."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from launcher.errors import Fix, Problem
from launcher.recipe.keys import Spot, choices, clear_match, sections_in, sentence, shown, spot, type_names
from launcher.recipe.tree import KeyPath, Tree, dotted
from launcher.recipe.unknown import unknown_key
from launcher.recipe.values import value_fault, wrong_choice

_TYPES = ("_type", "_from_float", "_parsing", "_attributes_type")


def explain(error: ValidationError, tree: Tree) -> list[Problem]:
    """Return one Problem for each fault that pydantic found in ``tree``, in no particular order."""
    found = _by_path(error, tree.values)
    problems = [_problem(details, path, tree) for path, details in found.items() if _is_innermost(path, found)]
    untyped = [
        problem.key.removesuffix("type") for problem in problems if problem.key in ("task.type", "strategy.type")
    ]
    # Of a section whose type is unknown, nothing else can be judged.
    problems = [p for p in problems if p.key.endswith(".type") or not p.key.startswith(tuple(untyped))]
    renamed = {problem.fix.new_key for problem in problems if problem.fix and problem.fix.new_key}
    # A key that is missing because it is misspelt is one fault, not two.
    return [p for p in problems if not (p.message.endswith(" is missing") and p.key in renamed)]


def _by_path(error: ValidationError, values: Any) -> dict[KeyPath, ErrorDetails]:
    found: dict[KeyPath, ErrorDetails] = {}
    for details in error.errors(include_url=False):
        path = _real_path(details, values)
        kept = found.get(path)
        if kept is None or _is_about_type(kept):
            found[path] = details
    return found


def _is_about_type(details: ErrorDetails) -> bool:
    return details["type"].endswith(_TYPES)


def _real_path(details: ErrorDetails, values: Any) -> KeyPath:
    """Drop from pydantic's location the names of the union members that it tried."""
    path: list[str | int] = []
    for index, part in enumerate(details["loc"]):
        is_last = index == len(details["loc"]) - 1
        if isinstance(values, dict) and (part in values or (is_last and details["type"] == "missing")):
            path.append(part)
            values = values.get(part)
        elif isinstance(values, list) and isinstance(part, int) and part < len(values):
            path.append(part)
            values = values[part]
    return tuple(path)


def _is_innermost(path: KeyPath, found: dict[KeyPath, ErrorDetails]) -> bool:
    """Of a value that fits no member of a union, the faults inside it say more than the misfit itself."""
    return not any(other[: len(path)] == path and len(other) > len(path) for other in found)


def _problem(details: ErrorDetails, path: KeyPath, tree: Tree) -> Problem:
    if details["type"] == "missing":
        return _missing(path, tree)
    if details["type"] == "extra_forbidden":
        return unknown_key(path, tree)
    here = spot(tree.values, path) or Spot(Any)
    if len(sections_in(here.annotation)) > 1 and path != ():
        return _wrong_tag(details, path, tree)
    message, remedy, fix = value_fault(details, dotted(path), here)
    return Problem(tree.place(path), message, remedy, dotted(path), fix)


def _missing(path: KeyPath, tree: Tree) -> Problem:
    here = spot(tree.values, path)
    what = sentence(here.field) if here else ""
    only = choices(here.annotation) if here else ()
    if len(only) == 1:
        return Problem(tree.place(path), f"{dotted(path)} is missing", f"add {path[-1]}: {only[0]}", dotted(path))
    remedy = f"add it: {what[:1].lower()}{what[1:]}" if what else "add it"
    return Problem(tree.place(path), f"{dotted(path)} is missing", remedy, dotted(path))


def _wrong_tag(details: ErrorDetails, path: KeyPath, tree: Tree) -> Problem:
    here = spot(tree.values, path)
    annotation = here.annotation if here else Any
    known = tuple(name for section in sections_in(annotation) for name in type_names(section))
    value, key = details["input"], (*path, "type")
    if not isinstance(value, dict):
        return _not_a_mapping(value, path, tree, known)
    if "type" not in value:
        return Problem(tree.place(path), f"{dotted(key)} is missing", f"add it: one of {', '.join(known)}", dotted(key))
    message, remedy, fix = wrong_choice(dotted(key), value["type"], known)
    return Problem(tree.place(key), message, remedy, dotted(key), fix)


def _not_a_mapping(value: Any, path: KeyPath, tree: Tree, known: tuple[str, ...]) -> Problem:
    key = dotted(path)
    near = clear_match(value, known) if isinstance(value, str) else None
    near = value if value in known else near
    remedy = f"write {key}: {{type: {near or '|'.join(known)}}}"
    fix = Fix(key, key, {"type": near}, keep_value=False) if near else None
    return Problem(tree.place(path), f"{shown(key, value)}; it must be a mapping", remedy, key, fix)
