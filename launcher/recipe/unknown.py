"""What to say about a key that its section does not have."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from launcher.errors import Problem
from launcher.recipe.data_section import SourceSpec
from launcher.recipe.keys import clear_match, homes, rename, section_for, sections_in, spot, type_names
from launcher.recipe.schema import Recipe, TrainingSection
from launcher.recipe.section import TYPED
from launcher.recipe.training_fields import named_training_keys, passthrough_fields
from launcher.recipe.training_keys import check_scheduler, check_value, training_verdict
from launcher.recipe.tree import KeyPath, Tree, dotted, value_at
from launcher.registry import suggest

# Names that other programs and earlier years use for our keys, by section.
_ALIASES = {
    "Recipe": {"seed": "training.seed", "model_name_or_path": "model.name_or_path", "dataset": "data.source"},
    "ModelSection": {
        "name": "name_or_path",
        "model_name_or_path": "name_or_path",
        "path": "name_or_path",
        "torch_dtype": "dtype",
    },
    "DataSection": {
        "max_seq_length": "max_length",
        "max_seq_len": "max_length",
        "max_len": "max_length",
        "dataset": "source",
        "train_file": "train",
        "validation_file": "validation",
        "test_file": "test",
        "val": "validation",
        "dev": "validation",
        "eval": "validation",
        "val_share": "validation_share",
        "validation_split": "validation_share",
        "label_names": "labels",
    },
    "SourceSpec": {
        "path": "source",
        "file": "source",
        "dataset": "source",
        "sep": "delimiter",
        "separator": "delimiter",
        "max_rows": "limit",
        "config": "name",
    },
    "TextClassificationOptions": {
        "dropout": "head_dropout",
        "classifier_dropout": "head_dropout",
        "separator": "label_delimiter",
    },
    "DistributedSection": {
        "num_nodes": "nodes",
        "nnodes": "nodes",
        "nproc_per_node": "processes_per_node",
        "num_processes": "processes_per_node",
        "gpus": "processes_per_node",
        "stage": "zero_stage",
    },
    "EvaluationSection": {"bootstrap_samples": "bootstrap", "n_bootstrap": "bootstrap", "baseline": "baselines"},
    "SlurmSection": {"time_limit": "time"},
}


def unknown_key(path: KeyPath, tree: Tree) -> Problem:
    """Return the problem of a key that stands where no such key belongs, with the name or section that was meant."""
    if str(path[-1]) in _aliases(path, tree):
        return _misnamed(path, tree)
    return (
        _special(path, tree) or _belongs_elsewhere(path, tree) or training_verdict(path, tree) or _misnamed(path, tree)
    )


def _where(path: KeyPath) -> str:
    return f"{dotted(path[:-1]) or 'a recipe'} has no key {path[-1]}"


def _misnamed(path: KeyPath, tree: Tree) -> Problem:
    name, key = str(path[-1]), dotted(path)
    known = _known_keys(path[:-1], tree)
    alias = _aliases(path, tree).get(name)
    near, sure = alias or suggest(name, known), alias or clear_match(name, known)
    fix = rename(path, (*path[:-1], *sure.split(".")), tree.values) if sure else None
    if near is None:
        remedy = f"its keys are {', '.join(known)}" if len(known) < 30 else "see 'launcher schema' for its keys"
        return Problem(tree.place(path), _where(path), remedy, key)
    return Problem(tree.place(path), _where(path), f"did you mean {near}?", key, fix)


def _section(path: KeyPath, tree: Tree) -> type[BaseModel]:
    here = spot(tree.values, path)
    return section_for(here.annotation if here else Recipe, value_at(tree.values, path)) or Recipe


def _aliases(path: KeyPath, tree: Tree) -> dict[str, str]:
    return _ALIASES.get(_section(path[:-1], tree).__name__, {})


def _known_keys(path: KeyPath, tree: Tree) -> list[str]:
    section = _section(path, tree)
    if section is TrainingSection:
        return list(named_training_keys())
    return [*section.model_fields, *(("base",) if section is Recipe else ())]


def _special(path: KeyPath, tree: Tree) -> Problem | None:
    """Return the problem of a key for which one section has an answer of its own."""
    name, above, place, key = str(path[-1]), dotted(path[:-1]), tree.place(path), dotted(path)
    if "." in name:
        section, _, short = name.rpartition(".")
        return Problem(place, _where(path), f"write {short} inside the section {section}", key)
    if above == "training":
        return training_verdict(path, tree)
    if above == "data" and name in SourceSpec.model_fields:
        return Problem(
            place, f"{_where(path)}; it belongs to one source", f"write source: {{source: ..., {name}: ...}}", key
        )
    if above in TYPED and (owners := _types_with(name, above)):
        own = tree.values[above].get("type", TYPED[above])
        return Problem(
            place, f"{key} is no option of {own}, but of {owners}", f"remove it, or change {above}.type", key
        )
    return None


def _belongs_elsewhere(path: KeyPath, tree: Tree) -> Problem | None:
    name = str(path[-1])
    owners = homes().get(name) or ((f"training.{name}",) if name in passthrough_fields() else ())
    if len(owners) != 1:
        return None
    owner = owners[0].rpartition(".")[0] or "the top"
    fix = rename(path, tuple(owners[0].split(".")), tree.values)
    return Problem(tree.place(path), f"{_where(path)}; it belongs to {owner}", f"write {owners[0]}", dotted(path), fix)


def _types_with(name: str, section: str) -> str:
    annotation = Recipe.model_fields[section].annotation
    owners = [
        kind for options in sections_in(annotation) if name in options.model_fields for kind in type_names(options)
    ]
    return ", ".join(owners)


def check_training(tree: Tree) -> list[Problem]:
    """Return the faults of ``training``'s keys that its own class does not name, and of its scheduler's name."""
    training = tree.values.get("training")
    if not isinstance(training, dict):
        return []
    problems = [
        _judge(("training", name), value, tree)
        for name, value in training.items()
        if name not in TrainingSection.model_fields
    ]
    schedule = training.get("lr_scheduler_type")
    if isinstance(schedule, str):
        problems.append(check_scheduler(schedule, tree))
    return [problem for problem in problems if problem is not None]


def _judge(path: KeyPath, value: Any, tree: Tree) -> Problem | None:
    field = passthrough_fields().get(str(path[-1]))
    return check_value(path, value, field, tree) if field else unknown_key(path, tree)
