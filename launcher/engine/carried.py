"""The optimizer's state on its way from one phase's engine to the next one's: a file of a checkpoint, by parameter name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file

from launcher.engine.optimizer_state import OptimizerState

CARRIED = "carried.safetensors"
# Parameter names have dots, never this.
_SEPARATOR = "|"


def write_carried(path: Path, optimizer: Any, model: Any, *, writes: bool) -> None:
    """Gather the state of everything that trains; the rank that ``writes`` keeps it and writes the file. All ranks call it."""
    tensors = {
        f"{name}{_SEPARATOR}{key}": value
        for name, key, value in OptimizerState(optimizer, model.named_parameters()).items()
        if writes
    }
    if writes:
        save_file(tensors, str(path))


def read_carried(path: Path, optimizer: Any, model: Any) -> None:
    """Write the file's state into an engine that has taken no step. What begins to train now starts anew."""
    with safe_open(str(path), framework="pt") as file:
        OptimizerState(optimizer, model.named_parameters()).write(_Carried(file))


class _Carried(Mapping[str, Mapping[str, Any]]):
    """The file as name -> key -> tensor, read when asked for."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self._keys: dict[str, list[str]] = {}
        for entry in file.keys():  # noqa: SIM118 - not a mapping
            name, key = entry.split(_SEPARATOR)
            self._keys.setdefault(name, []).append(key)

    def __getitem__(self, name: str) -> Mapping[str, Any]:
        return {key: self._file.get_tensor(f"{name}{_SEPARATOR}{key}") for key in self._keys[name]}

    def __iter__(self) -> Iterator[str]:
        return iter(self._keys)

    def __len__(self) -> int:
        return len(self._keys)
