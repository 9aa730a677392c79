"""The bytes of tensors that are alive while a program runs, told operation by operation, also for tensors without data."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# Operations that ask a tensor something and make none; there are many of them.
_QUESTIONS = ("prim.device.default",)


@dataclass
class _Storage:
    size: int
    born: int
    died: int | None = None


@dataclass(frozen=True)
class Peaks:
    """Highest bytes within a stretch of a program; what lives at its beginning counts."""

    fresh: int
    """With gradients that are made during the program and stay."""
    resident: int
    """With gradients as temporary tensors, which are added to others that exist, or sent away, as soon as they are whole."""
    gradient: int
    """The largest gradient that becomes whole."""
    fresh_before: int = 0
    """What lives at its beginning, gradients with it."""
    resident_before: int = 0
    """The same without gradients that are whole."""


@dataclass
class Recording:
    """The storages of a program in the order of its operations, and where its stretches begin."""

    storages: list[_Storage] = field(default_factory=list)
    stretches: list[tuple[str, int]] = field(default_factory=list)
    """(label, number of the first operation)."""
    operations: int = 0

    def peaks(self, arrivals: Mapping[int, int]) -> dict[str, Peaks]:
        """Return label -> peaks.

        Args:
            arrivals: place in ``storages`` of a gradient, which stays after the program -> operation after which it is whole.
        """
        fresh = self._timeline([(s.born, s.died, s.size) for s in self.storages])
        resident = self._timeline(
            [(s.born, arrivals[i] + 1 if i in arrivals else s.died, s.size) for i, s in enumerate(self.storages)]
        )
        found: dict[str, Peaks] = {}
        ends = [start for _, start in self.stretches[1:]] + [self.operations + 1]
        for (label, start), end in zip(self.stretches, ends, strict=True):
            stretch = slice(start, max(end, start + 1))
            whole = (self.storages[i].size for i, at in arrivals.items() if start <= at < end)
            alive = self._alive_before(start)
            before = sum(self.storages[i].size for i in alive)
            gradients = sum(self.storages[i].size for i in alive if arrivals.get(i, start) < start)
            found[label] = Peaks(
                max(fresh[stretch]), max(resident[stretch]), max(whole, default=0), before, before - gradients
            )
        return found

    def alive_at(self, label: str) -> int:
        """Return the bytes that live when a stretch begins."""
        return sum(self.storages[i].size for i in self._alive_before(dict(self.stretches)[label]))

    def _alive_before(self, operation: int) -> list[int]:
        """Return the places of the storages that live when an operation begins."""
        lives = ((i, s.born, s.died) for i, s in enumerate(self.storages))
        return [i for i, born, died in lives if born < operation and (died is None or died > operation)]

    def _timeline(self, lives: list[tuple[int, int | None, int]]) -> list[int]:
        """Return the bytes that live during each operation."""
        changes = [0] * (self.operations + 3)
        for born, died, size in lives:
            changes[born] += size
            if died is not None:
                changes[min(died, self.operations + 2)] -= size
        levels, level = [], 0
        for change in changes:
            level += change
            levels.append(level)
        return levels


class LiveStorage(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's own class has no types
    """Records every storage that operations make while it is entered, real or fake, and when it is freed.

    Storages that exist before count only through tensors that are made of them: not at all.
    """

    def __init__(self, *, known: Collection[Any] = (), answer: Callable[[Any, Any], Any] | None = None) -> None:
        """Take tensors that are there already, and what answers (operation, arguments) instead of it, or NotImplemented."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.recording = Recording()
        self._alive: dict[int, tuple[Any, int]] = {}
        self._known = {tensor.untyped_storage()._cdata for tensor in known}
        self._answer = answer

    def begin(self, label: str) -> None:
        """Begin a stretch of the program; one label may stand for one stretch only."""
        self.recording.stretches.append((label, self.recording.operations + 1))

    def places(self, tensors: Collection[Any]) -> set[int]:
        """Return the places of tensors' storages in the recording."""
        found = (self._alive.get(tensor.untyped_storage()._cdata) for tensor in tensors)
        return {entry[1] for entry in found if entry is not None}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one operation and note what it has made."""
        out = NotImplemented if self._answer is None else self._answer(func, args)
        if out is NotImplemented:
            out = func(*args, **(kwargs or {}))
        if str(func) in _QUESTIONS:
            return out
        self.recording.operations += 1
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self._note(tensor)
        return out

    def _note(self, tensor: Any) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._alive or key in self._known:
            return
        place = len(self.recording.storages)
        self.recording.storages.append(_Storage(storage.nbytes(), self.recording.operations))
        self._alive[key] = (weakref.ref(storage, lambda _: self._free(key, place)), place)

    def _free(self, key: int, place: int) -> None:
        self._alive.pop(key, None)
        self.recording.storages[place].died = self.recording.operations + 1
