"""A model with fewer of its like blocks, and its phase with it: what is true of two blocks is then told of forty by a line."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from launcher.contracts import AdapterPlan, Phase, TuningTable
from launcher.strategies.adapters import PREFIX
from launcher.strategies.layers import block_modules


@dataclass(frozen=True)
class Run:
    """Consecutive blocks that are alike: in their modules and shapes, and in what of them trains."""

    paths: tuple[str, ...]
    """Of the blocks' modules, in the order of depth."""


@dataclass(frozen=True)
class Shrunk:
    """A small model, its phase, and its blocks."""

    model: Any
    phase: Phase
    runs: tuple[tuple[str, ...], ...]
    """Paths of the blocks that each run has kept, in the small model."""


def find_runs(model: Any, phase: Phase) -> tuple[Run, ...]:
    """Return the runs of like blocks; ``model`` is without adapters, on any device."""
    names = {id(module): name for name, module in model.named_modules()}
    blocks = [(names[id(module)], module) for module in block_modules(model)]
    trainable = _names_by_block(phase, [path for path, _ in blocks])
    runs: list[list[str]] = []
    last = None
    for path, module in blocks:
        kind = (_structure(module), trainable[path], _ranks(phase.adapters, path))
        if kind != last:
            runs.append([])
        runs[-1].append(path)
        last = kind
    return tuple(Run(tuple(paths)) for paths in runs)


def shrink(model: Any, phase: Phase, runs: Sequence[Run], lengths: Sequence[int]) -> Shrunk | None:
    """Return a copy of ``model`` with the first ``lengths[i]`` blocks of each run; None where the blocks cannot be taken apart.

    The model given is not changed. It should lie on the meta device: what is kept of it is copied.
    """
    kept = [path for run, length in zip(runs, lengths, strict=True) for path in run.paths[:length]]
    dropped = {path for run in runs for path in run.paths} - set(kept)
    if not _in_lists(model, [*kept, *dropped]):
        return None
    small = copy.deepcopy(model, {id(model.get_submodule(path)): None for path in dropped})
    renamed: dict[str, str] = {}
    for parent in dict.fromkeys(path.rpartition(".")[0] for path in [*kept, *dropped]):
        old = [path for path in kept if path.rpartition(".")[0] == parent]
        container = small.get_submodule(parent)
        modules = [getattr(container, path.rpartition(".")[2]) for path in old]
        small.set_submodule(parent, type(container)(*([modules] if _is_module_list(container) else modules)))
        renamed |= {path: f"{parent}.{number}" for number, path in enumerate(old)}
    paths = tuple(
        tuple(renamed[path] for path in run.paths[:length]) for run, length in zip(runs, lengths, strict=True)
    )
    return Shrunk(small, _shrink_phase(phase, renamed, dropped), paths)


def _is_module_list(container: Any) -> bool:
    from torch import nn

    return isinstance(container, nn.ModuleList)


def _in_lists(model: Any, paths: Sequence[str]) -> bool:
    """Whether the blocks are all that plain lists of modules hold."""
    from torch import nn

    for parent in {path.rpartition(".")[0] for path in paths}:
        container = model.get_submodule(parent)
        if type(container) not in (nn.ModuleList, nn.Sequential):
            return False
        if {f"{parent}.{name}" for name, _ in container.named_children()} - set(paths):
            return False
    return True


def _structure(module: Any) -> tuple[Any, ...]:
    shapes = tuple((name, tuple(tensor.shape), tensor.dtype) for name, tensor in module.named_parameters())
    return tuple(type(part).__name__ for part in module.modules()), shapes


def _ranks(adapters: AdapterPlan | None, path: str) -> tuple[tuple[str, int], ...]:
    if adapters is None:
        return ()
    found = ((name.removeprefix(path), rank) for name, rank in adapters.ranks.items() if name.startswith(f"{path}."))
    return tuple(sorted(found))


def _names_by_block(phase: Phase, paths: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Return path of a block -> names in it that train."""
    names = [name.removeprefix(PREFIX) for group in phase.table.trainable for name in group.parameters]
    found: dict[str, list[str]] = {path: [] for path in paths}
    for name in names:
        block = _block_of(name, found)
        if block is not None:
            found[block].append(name.removeprefix(block))
    return {path: tuple(sorted(inside)) for path, inside in found.items()}


def _block_of(name: str, paths: Mapping[str, Any] | set[str]) -> str | None:
    parts = name.split(".")
    for number in range(len(parts) - 1, 0, -1):
        path = ".".join(parts[:number])
        if path in paths:
            return path
    return None


# --- a phase of a smaller model --------------------------------------------------------------------------------------


def _shrink_phase(phase: Phase, renamed: Mapping[str, str], dropped: set[str]) -> Phase:
    known = {**renamed, **dict.fromkeys(dropped)}

    def new_name(name: str) -> str | None:
        prefix = PREFIX if phase.adapters is not None and name.startswith(PREFIX) else ""
        bare = name.removeprefix(prefix)
        block = _block_of(f"{bare}.", known)
        if block is None:
            return name
        target = known[block]
        return None if target is None else f"{prefix}{target}{bare.removeprefix(block)}"

    groups = []
    for group in phase.table.groups:
        names = tuple(new for name in group.parameters if (new := new_name(name)) is not None)
        if names:
            groups.append(replace(group, parameters=names))
    adapters = phase.adapters
    if adapters is not None:
        adapters = replace(
            adapters,
            ranks={new: rank for name, rank in adapters.ranks.items() if (new := new_name(name)) is not None},
            alphas={new: alpha for name, alpha in adapters.alphas.items() if (new := new_name(name)) is not None},
            modules_to_save=tuple(new for name in adapters.modules_to_save if (new := new_name(name)) is not None),
        )
    return replace(phase, table=TuningTable(tuple(groups)), adapters=adapters)
