"""What a recipe may and may not say under ``training`` beside that section's own keys."""

from __future__ import annotations

from typing import Any

from launcher.errors import Fix, Problem
from launcher.recipe import training_tables as tables
from launcher.recipe.keys import clear_match, did_you_mean, later_word, rename, shown
from launcher.recipe.schedule_keys import KWARGS
from launcher.recipe.training_fields import TrainingField
from launcher.recipe.tree import KeyPath, Tree, dotted, show, value_at
from launcher.recipe.values import wrong_type


def training_verdict(path: KeyPath, tree: Tree) -> Problem | None:
    """Return the problem of a TrainingArguments field that a recipe does not take under that name, or None."""
    name, key = str(path[-1]), dotted(path)
    if name in tables.RENAMED:
        return _earlier_name(path, tree)
    refused = tables.OWNED.get(name) or tables.WITHOUT_EFFECT.get(name)
    if refused is None:
        return None
    verb = "is not set here" if name in tables.OWNED else "would have no effect"
    fix = _precision_fix(path, tree) or (Fix(key, None) if refused.removable else None)
    return Problem(tree.place(path), f"{key} {verb}: {refused.reason}", refused.remedy, key, fix)


def _precision_fix(path: KeyPath, tree: Tree) -> Fix | None:
    """``bf16: true`` is ``precision: bf16``; a flag that is off says nothing."""
    value = value_at(tree.values, path)
    if path[-1] not in ("bf16", "fp16") or not isinstance(value, bool):
        return None
    if not value:
        return Fix(dotted(path), None)
    return None if "precision" in tree.values else Fix(dotted(path), "precision", path[-1], keep_value=False)


def _earlier_name(path: KeyPath, tree: Tree) -> Problem:
    name, key, value = str(path[-1]), dotted(path), value_at(tree.values, path)
    present, change = tables.RENAMED[name]
    changed = change(value)
    message = f"{key} is a name of earlier years or of another program"
    if present is None:
        fix = Fix(key, None) if changed is tables.KEEP else None
        return Problem(tree.place(path), message, tables.ADVICE.get(name, "remove it"), key, fix)
    short = present.removeprefix("training.") if path[0] == "training" else present
    target = tuple(present.split("."))
    if changed is None:
        return Problem(tree.place(path), message, tables.ADVICE.get(name, f"use {short} instead"), key)
    if changed is tables.KEEP:
        fix, remedy = (
            rename(path, target, tree.values),
            f"write {short}: {show(value)}" if _is_plain(value) else f"write {short}",
        )
    else:
        fix, remedy = (
            rename(path, target, tree.values, new_value=changed, keep_value=False),
            f"write {short}: {changed}",
        )
    return Problem(tree.place(path), message, remedy, key, fix)


def _is_plain(value: Any) -> bool:
    return isinstance(value, int | float)


def check_scheduler(schedule: str, tree: Tree) -> Problem | None:
    """Return the fault of training.lr_scheduler_type, or None."""
    path: KeyPath = ("training", "lr_scheduler_type")
    return None if schedule in KWARGS else _wrong_choice(path, schedule, tuple(KWARGS), tree)


# --- values --------------------------------------------------------------------------------------------------------


def check_value(path: KeyPath, value: Any, field: TrainingField, tree: Tree) -> Problem | None:
    """Return the fault of a value that is passed through to TrainingArguments, or None."""
    if field.choices and not (value is None and "None" in field.kinds):
        return None if value in field.choices else _wrong_choice(path, value, field.choices, tree)
    if not _fits(value, field.kinds):
        return _wrong_type(path, value, field, tree)
    return _out_of_bounds(path, value, field, tree) if type(value) in (int, float) else None


def _out_of_bounds(path: KeyPath, value: float, field: TrainingField, tree: Tree) -> Problem | None:
    low, high = tables.BOUNDS.get(field.name, (-1.8e308, 1.8e308))
    is_open = field.name in tables.BELOW_UPPER_BOUND
    if low <= value < high or (value == high and not is_open):
        return None
    must = f"lie in [{low:g}, {high:g}{')' if is_open else ']'}" if field.name in tables.BOUNDS else "be finite"
    remedy = f"the default is {show(field.default)}"
    return Problem(tree.place(path), f"{shown(dotted(path), value)}; it must {must}", remedy, dotted(path))


_PYTHON = {"bool": bool, "int": int, "float": (int, float), "str": str, "list": list, "dict": dict, "None": type(None)}
_WORDS = {
    "bool": "true or false",
    "int": "a whole number",
    "float": "a number",
    "str": "text",
    "list": "a list",
    "dict": "a mapping",
    "None": "null",
}


def _fits(value: Any, kinds: tuple[str, ...]) -> bool:
    if isinstance(value, bool):
        return "bool" in kinds or not set(kinds) <= set(_PYTHON)
    return any(kind not in _PYTHON or isinstance(value, _PYTHON[kind]) for kind in kinds if kind != "bool")  # type: ignore[arg-type]


def _wrong_type(path: KeyPath, value: Any, field: TrainingField, tree: Tree) -> Problem:
    annotation = {"bool": bool, "int": int, "float": float, "str": str}.get(next(iter(field.kinds), ""), Any)
    _, remedy, fix = wrong_type(dotted(path), value, annotation, None)
    words = " or ".join(dict.fromkeys(_WORDS.get(kind, kind) for kind in field.kinds))
    remedy = remedy or f"the default is {show(field.default)}"
    return Problem(tree.place(path), f"{shown(dotted(path), value)}; it must be {words}", remedy, dotted(path), fix)


def _wrong_choice(path: KeyPath, value: Any, known: tuple[Any, ...], tree: Tree) -> Problem:
    key = dotted(path)
    foreign = isinstance(value, str) and value.startswith(tables.FOREIGN_OPTIMIZERS) and path[-1] == "optim"
    if later_word(key, value) or foreign:
        remedy = (
            f"choose one of {', '.join(map(str, known))}"
            if len(known) < 15
            else "'launcher schema' lists those that are"
        )
        return Problem(tree.place(path), f"{shown(key, value)}, which is not in this version", remedy, key)
    names = [str(choice) for choice in known if isinstance(choice, str) and choice]
    sure = clear_match(str(value), names)
    fix = Fix(key, key, sure, keep_value=False) if sure else None
    return Problem(
        tree.place(path), f"{shown(key, value)}; there is no such choice", did_you_mean(str(value), names), key, fix
    )
