"""What to say about a key that its section does not have."""

from __future__ import annotations

from typing import Any

from launcher.errors import Problem
from launcher.recipe.keys import clear_match, homes, rename, section_for, sections_in, spot, type_names
from launcher.recipe.schema import Recipe, SourceSpec, TrainingSection
from launcher.recipe.training_fields import named_training_keys, passthrough_fields
from launcher.recipe.training_keys import check_scheduler, check_value, training_verdict
from launcher.recipe.tree import KeyPath, Tree, dotted
from launcher.registry import suggest

# Names that other programs and earlier years use for our keys, by section.
_ALIASES = {
    "": {"seed": "training.seed", "model_name_or_path": "model.name_or_path", "dataset": "data.source", "wandb": "tracking.wandb"},
    "model": {"name": "name_or_path", "model_name_or_path": "name_or_path", "path": "name_or_path", "torch_dtype": "dtype"},
    "data": {
        "max_seq_length": "max_length", "max_seq_len": "max_length", "max_len": "max_length", "dataset": "source",
        "train_file": "train", "validation_file": "validation", "test_file": "test", "val": "validation", "dev": "validation",
        "eval": "validation", "val_share": "validation_share", "validation_split": "validation_share", "label_names": "labels",
    },
    "task": {"dropout": "head_dropout", "classifier_dropout": "head_dropout", "separator": "label_delimiter"},
    "distributed": {"num_nodes": "nodes", "nnodes": "nodes", "nproc_per_node": "processes_per_node", "num_processes": "processes_per_node",
                    "stage": "zero_stage", "gpus": "processes_per_node"},
    "evaluation": {"bootstrap_samples": "bootstrap", "n_bootstrap": "bootstrap", "baseline": "baselines"},
    "slurm": {"time_limit": "time"},
}  # fmt: skip


def unknown_key(path: KeyPath, tree: Tree) -> Problem:
    """Return the problem of a key that stands where no such key belongs, with the name or the section that was meant."""
    name, place = str(path[-1]), tree.place(path)
    section = _section(path[:-1], tree)
    verdict = _elsewhere(path, tree)
    if verdict is not None:
        return verdict
    known = list(named_training_keys() if section is TrainingSection else section.model_fields)
    where = f"{dotted(path[:-1])} has no key {name}" if path[:-1] else f"a recipe has no key {name}"
    alias = _ALIASES.get(dotted(path[:-1]), {}).get(name)
    near = alias or suggest(name, known)
    sure = alias or clear_match(name, known)
    remedy = f"did you mean {near}?" if near else f"its keys are {', '.join(known)}" if len(known) < 30 else "see 'launcher schema' for its keys"
    fix = rename(path, (*path[:-1], *sure.split(".")), tree.values) if sure else None
    return Problem(place, where, remedy, dotted(path), fix)


def _section(path: KeyPath, tree: Tree) -> Any:
    here = spot(tree.values, path)
    section = section_for(here.annotation if here else Recipe, _value(tree.values, path))
    return section or Recipe


def _value(values: Any, path: KeyPath) -> Any:
    for part in path:
        values = values[part]
    return values


def _elsewhere(path: KeyPath, tree: Tree) -> Problem | None:
    """Return the problem of a key whose exact name belongs somewhere else."""
    name, above = str(path[-1]), dotted(path[:-1])
    place, key = tree.place(path), dotted(path)
    where = above or "the top of a recipe"
    if "." in name:
        return Problem(place, f"{where} has no key {name}", f"write {name.rpartition('.')[2]} inside the section {name.rpartition('.')[0]}", key)
    if above == "training" and (verdict := training_verdict(path, tree)):
        return verdict
    if above == "data" and name in SourceSpec.model_fields:
        return Problem(place, f"data has no key {name}; it belongs to one source", f"write source: {{source: ..., {name}: ...}}", key)
    if above == "strategy" and (kind := _option_of(name)):
        own = tree.values["strategy"].get("type", "full")
        return Problem(place, f"strategy.{name} is no option of {own}", f"it belongs to {kind}; remove it or change strategy.type", key)
    owners = homes().get(name, ())
    if not owners and name in passthrough_fields():
        owners = (f"training.{name}",)
    if len(owners) == 1:
        fix = rename(path, tuple(owners[0].split(".")), tree.values)
        return Problem(place, f"{where} has no key {name}; it belongs to {owners[0].rpartition('.')[0] or 'the top'}", f"write {owners[0]}", key, fix)
    if name in _ALIASES.get(above, {}):
        return None
    return training_verdict(path, tree)


def _option_of(name: str) -> str:
    annotation = Recipe.model_fields["strategy"].annotation
    owners = [kind for section in sections_in(annotation) if name in section.model_fields for kind in type_names(section)]
    return ", ".join(owners)


def check_training(tree: Tree) -> list[Problem]:
    """Return the faults of ``training``'s keys that its own class does not name, and of its scheduler's name."""
    training = tree.values.get("training")
    if not isinstance(training, dict):
        return []
    problems = [_judge(("training", name), value, tree) for name, value in training.items() if name not in TrainingSection.model_fields]
    schedule = training.get("lr_scheduler_type")
    if isinstance(schedule, str):
        problems.append(check_scheduler(schedule, tree))
    return [problem for problem in problems if problem is not None]


def _judge(path: KeyPath, value: Any, tree: Tree) -> Problem | None:
    field = passthrough_fields().get(str(path[-1]))
    return check_value(path, value, field, tree) if field else unknown_key(path, tree)
