"""transformers' TrainingArguments, read from the installed source without importing it."""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from launcher.errors import InstallationError
from launcher.recipe import training_tables as tables
from launcher.recipe.optimizer_keys import OURS as OUR_OPTIMIZERS
from launcher.recipe.schema import TrainingSection


@dataclass(frozen=True)
class TrainingField:
    """One field of TrainingArguments."""

    name: str
    kinds: tuple[str, ...]
    """Types that it takes: bool, int, float, str, list, dict, None, the name of an enum, or a type we do not judge."""
    default: Any
    """None also where the default is computed."""
    help: str
    choices: tuple[Any, ...]
    """Values that it may have; empty: any of its types."""


_ENUMS = ("OptimizerNames", "SchedulerType", "IntervalStrategy", "SaveStrategy", "HubStrategy")


@cache
def _source(name: str) -> ast.Module:
    spec = importlib.util.find_spec("transformers")
    if spec is None or not spec.submodule_search_locations:
        raise InstallationError(
            "transformers is not installed; install launcher's dependencies: pip install finetune-launcher"
        )
    path = Path(spec.submodule_search_locations[0]) / name
    return ast.parse(path.read_text(encoding="utf-8"))


def _class(module: ast.Module, name: str) -> ast.ClassDef | None:
    return next((node for node in module.body if isinstance(node, ast.ClassDef) and node.name == name), None)


@cache
def enum_values(name: str) -> tuple[str, ...]:
    """Return the values of one of transformers' enums of words, such as OptimizerNames; none without such an enum."""
    found = _class(_source("training_args.py"), name) or _class(_source("trainer_utils.py"), name)
    rows = [node.value for node in found.body if isinstance(node, ast.Assign)] if found else []
    return tuple(row.value for row in rows if isinstance(row, ast.Constant) and isinstance(row.value, str))


@cache
def training_fields() -> Mapping[str, TrainingField]:
    """Return every field of the installed TrainingArguments by name. Raises InstallationError without transformers."""
    found = _class(_source("training_args.py"), "TrainingArguments")
    assert found is not None, "transformers.training_args has no class TrainingArguments"
    nodes = [node for node in found.body if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)]
    return {field.name: field for field in map(_field, nodes)}


@cache
def passthrough_fields() -> Mapping[str, TrainingField]:
    """Return the fields that ``training`` takes beside its own: those nobody else answers for."""
    answered = {*TrainingSection.model_fields, *tables.OWNED, *tables.WITHOUT_EFFECT, *tables.RENAMED}
    return {name: field for name, field in training_fields().items() if name not in answered}


def _field(node: ast.AnnAssign) -> TrainingField:
    assert isinstance(node.target, ast.Name)
    call = {keyword.arg: keyword.value for keyword in node.value.keywords} if isinstance(node.value, ast.Call) else {}
    metadata = call.get("metadata")
    pairs = zip(metadata.keys, metadata.values, strict=True) if isinstance(metadata, ast.Dict) else ()
    notes = {key.value: _literal(value) for key, value in pairs if isinstance(key, ast.Constant)}
    kinds = tuple(_kinds(node.annotation))
    return TrainingField(
        name=node.target.id,
        kinds=kinds,
        default=_literal(call.get("default")),
        help=" ".join(str(notes.get("help") or "").replace("%%", "%").split()),
        choices=_choices(node.target.id, kinds, notes.get("choices")),
    )


def _choices(name: str, kinds: tuple[str, ...], named: Any) -> tuple[Any, ...]:
    if name in tables.CHOICES:
        return tables.CHOICES[name]
    if isinstance(named, list):
        return tuple(named)
    values = tuple(value for kind in kinds if kind in _ENUMS for value in enum_values(kind))
    ours = OUR_OPTIMIZERS if name == "optim" else ()
    return (*(value for value in values if not value.startswith(tables.FOREIGN_OPTIMIZERS)), *ours)


def _literal(node: ast.expr | None) -> Any:
    try:
        return ast.literal_eval(node) if node is not None else None
    except ValueError:
        return None


def _kinds(node: ast.expr) -> Iterator[str]:
    """Yield the alternatives of an annotation by their bare names."""
    if isinstance(node, ast.BinOp):
        yield from _kinds(node.left)
        yield from _kinds(node.right)
    elif isinstance(node, ast.Subscript):
        yield from _kinds(node.value)
    elif isinstance(node, ast.Constant):
        yield str(node.value)
    elif isinstance(node, ast.Name):
        yield node.id


def named_training_keys() -> tuple[str, ...]:
    """Return every key that ``training`` takes: its own and those of TrainingArguments."""
    return (*TrainingSection.model_fields, *passthrough_fields())
