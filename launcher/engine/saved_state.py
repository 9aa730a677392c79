"""The optimizer's state in a checkpoint's files, by parameter name: what lets another number of processes go on from it.

Files are read with torch's ``weights_only``: of DeepSpeed's classes only those below are made, and nothing else runs.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch

from launcher.contracts import TuningTable
from launcher.engine.optimizer_state import MASTER

# What DeepSpeed 0.19 writes beside tensors and plain values.
_HARMLESS = {
    "deepspeed.runtime.fp16.loss_scaler": ("LossScaler", "DynamicLossScaler"),
    "deepspeed.utils.tensor_fragment": ("fragment_address",),
    "deepspeed.runtime.zero.config": ("ZeroStageEnum",),
}
_RANK = re.compile(r"zero_pp_rank_(\d+)_")


def foreign_code(checkpoint: Path) -> str | None:
    """Return what a checkpoint's pickled files name beside tensors, plain values and DeepSpeed's own records; None: nothing.

    DeepSpeed loads its files with ``weights_only=False``: whatever they name would run. torch lists the names without
    running any.
    """
    known = {f"{module}.{name}" for module, names in _HARMLESS.items() for name in names}
    for path in sorted(checkpoint.glob("global_step*/*.pt")):
        try:
            foreign = sorted(set(torch.serialization.get_unsafe_globals_in_checkpoint(path)) - known)
        except Exception as error:  # a file that torch cannot list could hold anything
            foreign = [f"its names cannot be listed: {error}"]
        if foreign:
            return (
                f"{path} would run code when it is loaded ({', '.join(foreign[:3])}), which no checkpoint of a run does; "
                "it was not loaded"
            )
    return None


def read_state(
    checkpoint: Path, *, table: TuningTable, shapes: Mapping[str, tuple[int, ...]]
) -> Mapping[str, Mapping[str, torch.Tensor]]:
    """Return parameter name -> key -> tensor of what ``checkpoint``'s engine kept: single, DDP, or ZeRO 0 to 2.

    Tensors are whole and float32; ZeRO's master weights are among them. They are read when asked for. Numbers come as
    ``OptimizerState`` writes them.

    Args:
        table: of the phase that the checkpoint lies in: the optimizer's groups.
        shapes: of the parameters, by name.
    """
    shards = sorted(checkpoint.glob("global_step*/*_optim_states.pt"), key=_rank_of)
    if shards:
        return _Joined([_load(path)["optimizer_state_dict"] for path in shards], shapes)
    (whole,) = [*checkpoint.glob("optimizer.pt"), *checkpoint.glob("global_step*/mp_rank_00_model_states.pt")]
    loaded = _load(whole)
    return _by_name(loaded if whole.name == "optimizer.pt" else loaded["optimizer"], table)


def _rank_of(path: Path) -> int:
    match = _RANK.search(path.name)
    assert match is not None, path
    return int(match[1])


def _load(path: Path) -> Any:
    with _deepspeeds_own():
        # Mapped, not read: a rank touches only the parts that it asks for.
        return torch.load(path, map_location="cpu", mmap=True, weights_only=True)


def _deepspeeds_own() -> AbstractContextManager[Any]:
    import importlib

    found = [getattr(importlib.import_module(module), name) for module, names in _HARMLESS.items() for name in names]
    context: AbstractContextManager[Any] = torch.serialization.safe_globals(found)
    return context


def _by_name(state: Mapping[str, Any], table: TuningTable) -> dict[str, dict[str, torch.Tensor]]:
    """Name what a torch optimizer has saved by number; its groups are the table's."""
    found: dict[str, dict[str, torch.Tensor]] = {}
    for saved, group in zip(state["param_groups"], table.trainable, strict=True):
        assert saved["name"] == group.name, (saved["name"], group.name)
        for number, name in zip(saved["params"], group.parameters, strict=True):
            values = state["state"].get(number, {})
            found[name] = dict(_written(key, value) for key, value in values.items() if value is not None)
    return found


def _written(key: str, value: Any) -> tuple[str, torch.Tensor]:
    """Return a value as ``OptimizerState.write`` takes it."""
    if isinstance(value, torch.Tensor):
        return key, value
    return f"{key}:{type(value).__name__}", torch.as_tensor(value, dtype=torch.float64)


class _Joined(Mapping[str, Mapping[str, torch.Tensor]]):
    """The partitions of ZeRO 1 and 2, joined: a rank's flat group holds a stretch of each of its parameters, in rank order."""

    def __init__(self, shards: list[Mapping[str, Any]], shapes: Mapping[str, tuple[int, ...]]) -> None:
        """``shards``: the ranks' ``optimizer_state_dict``, by rank."""
        self._shards = shards
        self._shapes = shapes
        self._group = {
            name: number
            for shard in shards
            for number, names in enumerate(shard["param_slice_mappings"])
            for name in names
        }

    def __getitem__(self, name: str) -> Mapping[str, torch.Tensor]:
        group = self._group[name]
        pieces: dict[str, list[torch.Tensor]] = {}
        single: dict[str, torch.Tensor] = {}
        for shard in self._shards:
            place = shard["param_slice_mappings"][group].get(name)
            if place is None:
                continue
            flat = shard["single_partition_of_fp32_groups"][group]
            state = {MASTER: flat, **shard["base_optimizer_state"]["state"].get(group, {})}
            for key, value in state.items():
                if isinstance(value, torch.Tensor) and value.dim() == 1 and value.numel() >= flat.numel():
                    pieces.setdefault(key, []).append(value.detach()[place.start : place.start + place.numel].float())
                elif value is not None:
                    single |= [_written(key, value)]
        shape = self._shapes[name]
        return {**{key: torch.cat(parts).reshape(shape) for key, parts in pieces.items()}, **single}

    def __iter__(self) -> Iterator[str]:
        return iter(self._group)

    def __len__(self) -> int:
        return len(self._group)
