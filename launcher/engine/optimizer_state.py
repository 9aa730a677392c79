"""The optimizer's state by parameter name, whatever engine holds it: read whole, and written into another engine.

DeepSpeed keeps master weights and state in flat partitions; its own accessors (``safe_get_full_optimizer_state``) know, after
the first step, the first group only (0.19.8, stages 1 and 2), and cannot write before the first step. So the place of a
parameter in the partitions is taken from DeepSpeed, and the rest is done here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from accelerate.optimizer import AcceleratedOptimizer

from launcher.errors import PlanMismatch

MASTER = "master"
"""Key of the float32 weights, where the engine keeps them apart from the model's."""


@dataclass(frozen=True)
class _Fragment:
    """Where this rank holds a part of a parameter: elements [start, start + numel) of ``flat`` are those from
    ``param_start`` on of the flattened parameter.
    """

    flat: Any
    """The tensor that the torch optimizer updates; its state is kept under it."""
    start: int
    param_start: int
    numel: int


@dataclass(frozen=True)
class _Place:
    """A parameter in the optimizer."""

    name: str
    shape: tuple[int, ...]
    fragment: _Fragment | None
    """None: this rank holds none of it."""

    @property
    def numel(self) -> int:
        return math.prod(self.shape)


class OptimizerState:
    """Reads and writes an optimizer's state by the names of the parameters that train. All ranks call alike."""

    def __init__(self, optimizer: Any, named_parameters: Iterable[tuple[str, Any]]) -> None:
        """``optimizer``: torch's, DeepSpeed's, or what ``accelerator.prepare`` made of one of them."""
        engine = optimizer.optimizer if isinstance(optimizer, AcceleratedOptimizer) else optimizer
        trainable = [(name, tensor) for name, tensor in named_parameters if tensor.requires_grad]
        self._places = list(_places(engine, trainable))
        self._has_masters = hasattr(engine, "optimizer")
        self._is_sharded = hasattr(engine, "partition_count") or hasattr(engine, "fp32_partitioned_groups_flat")
        self._base = engine.optimizer if self._has_masters else engine

    def items(self, keys: Iterable[str] | None = None) -> Iterator[tuple[str, str, torch.Tensor]]:
        """Yield (name, key, tensor on the CPU) of all that the optimizer keeps for a parameter, one at a time.

        What is kept for each element is float32 and as large as the parameter; where parameters are whole, anything else
        stays as it is (bitsandbytes' packed states). A Python number comes as a scalar under its key and ``:int`` or ``:float``.

        Args:
            keys: which; None: all of them, and ``MASTER`` where the engine has master weights.

        Raises:
            PlanMismatch: sharded state that belongs to no single element (factored, packed).
        """
        for place in self._places:
            kinds = self._kinds(place)
            wanted = [*kinds, *([MASTER] if self._has_masters else [])] if keys is None else list(keys)
            for key in wanted:
                kind = kinds.get(key, "element")
                if kind == "element":
                    yield place.name, key, self._read_elements(place, key)
                else:
                    value = self._read_other(place, key, kind)
                    if value is not None:
                        yield place.name, key if kind in ("scalar", "other") else f"{key}:{kind}", value

    def write(self, values: Mapping[str, Mapping[str, torch.Tensor]]) -> None:
        """Set the state of the parameters in ``values``, also before the first step; others keep theirs.

        Raises:
            PlanMismatch: parameters of one partition have taken different numbers of steps.
        """
        for place in self._places:
            if place.name in values and place.fragment is not None:
                for key, value in values[place.name].items():
                    self._write_one(place, place.fragment, key, value)
        self._check_steps(values)

    def _write_one(self, place: _Place, fragment: _Fragment, key: str, value: torch.Tensor) -> None:
        name, _, kind = key.partition(":")
        if key == MASTER:
            if self._has_masters:
                _slice(fragment.flat.data, fragment).copy_(_part(value, fragment))
            return
        state = self._base.state[fragment.flat]
        if kind:
            state[name] = {"int": int, "float": float}[kind](value.item())
        elif value.dtype == torch.float32 and value.dim() and tuple(value.shape) == place.shape:
            if key not in state:
                state[key] = torch.zeros_like(fragment.flat, dtype=torch.float32)
            _slice(state[key], fragment).copy_(_part(value, fragment))
        else:
            # Fused and capturable optimizers keep their count beside the weights, as all keep what is no count.
            beside = value.dim() or self._is_fused()
            state[key] = value.clone().to(fragment.flat.device if beside else "cpu")

    def _is_fused(self) -> bool:
        return any(group.get("fused") or group.get("capturable") for group in self._base.param_groups)

    def _check_steps(self, values: Mapping[str, Mapping[str, torch.Tensor]]) -> None:
        """A flat partition has one step count for all of its parameters."""
        counts: dict[int, dict[float, str]] = {}
        for place in self._places:
            if place.fragment is not None:
                found = values.get(place.name, {})
                step = float(found.get("step", found.get("step:int", torch.zeros(()))))
                counts.setdefault(id(place.fragment.flat), {})[step] = place.name
        mixed = next((found for found in counts.values() if len(found) > 1), None)
        if mixed:
            raise PlanMismatch(
                "parameters that share an optimizer partition have taken different numbers of steps: "
                + ", ".join(f"{name} {step:g}" for step, name in mixed.items())
            )

    def _kinds(self, place: _Place) -> dict[str, str]:
        """Return key -> what stands under it: ``element`` (a number for each element), scalar, int, float, other.

        Where parameters are sharded the keys are those of the whole optimizer, so that all ranks ask for the same.
        """
        own = self._base.state.get(place.fragment.flat, {}) if place.fragment is not None else {}
        states = (
            list(self._base.state.items())
            if self._is_sharded or place.fragment is None
            else [(place.fragment.flat, own)]
        )
        kinds = {key: _kind(value, flat) for flat, state in states for key, value in state.items()}
        return {key: kind for key, kind in kinds.items() if kind != "nothing"}

    def _read_other(self, place: _Place, key: str, kind: str) -> torch.Tensor | None:
        held = None if place.fragment is None else self._base.state.get(place.fragment.flat, {}).get(key)
        if kind == "other":
            if self._is_sharded:
                raise PlanMismatch(
                    f"{type(self._base).__name__} keeps {key!r}, which belongs to no single weight and cannot be carried from "
                    "one sharded phase to the next; choose another training.optim, or zero_stage 0"
                )
            return None if held is None else held.detach().cpu().clone()
        dtype = torch.float32 if kind == "scalar" else torch.float64
        # The parameters of a partition share one count; a file wants one for each.
        value = (
            torch.zeros((), dtype=dtype) if held is None else torch.as_tensor(held).detach().to("cpu", dtype).clone()
        )
        return _largest(value) if self._is_sharded else value

    def _read_elements(self, place: _Place, key: str) -> torch.Tensor:
        fragment = place.fragment
        held = None if fragment is None else self._held(fragment, key)
        whole = torch.zeros(place.numel, dtype=torch.float32, device=self._device())
        if fragment is not None and held is not None:
            whole[fragment.param_start : fragment.param_start + fragment.numel] = _slice(held, fragment).float()
        if self._is_sharded:
            dist.all_reduce(whole)
        return whole.reshape(place.shape).cpu()

    def _held(self, fragment: _Fragment, key: str) -> torch.Tensor | None:
        """Return the flat tensor under ``key``; None where the parameter has had no gradient yet."""
        held = fragment.flat if key == MASTER else self._base.state.get(fragment.flat, {}).get(key)
        return None if held is None else held.detach()

    def _device(self) -> Any:
        return next((place.fragment.flat.device for place in self._places if place.fragment is not None), "cpu")


def _kind(value: Any, flat: torch.Tensor) -> str:
    if not isinstance(value, torch.Tensor):
        return type(value).__name__ if type(value) in (int, float) else "nothing"
    if value.dim() == 0:
        return "scalar"
    return "element" if value.shape == flat.shape and value.is_floating_point() else "other"


def _slice(flat: torch.Tensor, fragment: _Fragment) -> torch.Tensor:
    return flat.view(-1)[fragment.start : fragment.start + fragment.numel]


def _part(value: torch.Tensor, fragment: _Fragment) -> torch.Tensor:
    return value.reshape(-1)[fragment.param_start : fragment.param_start + fragment.numel].to(fragment.flat.device)


def _largest(value: torch.Tensor) -> torch.Tensor:
    if dist.get_backend() == "nccl":
        value = value.cuda()
    dist.all_reduce(value, op=dist.ReduceOp.MAX)
    return value.cpu()


# --- where each engine keeps a parameter -----------------------------------------------------------------------------


def _places(engine: Any, trainable: list[tuple[str, Any]]) -> Iterator[_Place]:
    if hasattr(engine, "fp32_partitioned_groups_flat"):
        yield from _zero_3(engine, trainable)
    elif hasattr(engine, "single_partition_of_fp32_groups"):
        yield from _zero_1_and_2(engine, trainable)
    elif hasattr(engine, "fp32_groups"):
        yield from _half_without_zero(engine, trainable)
    elif hasattr(engine, "optimizer"):
        raise PlanMismatch(f"no way is known to carry the state of DeepSpeed's {type(engine).__name__} between phases")
    else:
        held = {id(tensor) for group in engine.param_groups for tensor in group["params"]}
        for name, tensor in trainable:
            assert id(tensor) in held, f"the optimizer holds the parameter {name}"
            yield _Place(name, tuple(tensor.shape), _Fragment(tensor, 0, 0, tensor.numel()))


def _zero_1_and_2(engine: Any, trainable: list[tuple[str, Any]]) -> Iterator[_Place]:
    for name, tensor in trainable:
        mapping = tensor._hp_mapping
        fragment = None
        if mapping is not None:
            flat = engine.single_partition_of_fp32_groups[mapping.param_group_index]
            inside, of_param = mapping.hp_fragment_address, mapping.lp_fragment_address
            fragment = _Fragment(flat, inside.start, of_param.start, of_param.numel)
        yield _Place(name, tuple(tensor.shape), fragment)


def _zero_3(engine: Any, trainable: list[tuple[str, Any]]) -> Iterator[_Place]:
    rank = dist.get_rank()
    for name, tensor in trainable:
        group, start, size = engine.grad_position[engine.get_param_id(tensor)]
        # The last partitions are padded.
        numel = min(size, tensor.ds_numel - rank * size)
        flat = engine.fp32_partitioned_groups_flat[group]
        fragment = _Fragment(flat, start, rank * size, numel) if numel > 0 else None
        yield _Place(name, tuple(tensor.ds_shape), fragment)


def _half_without_zero(engine: Any, trainable: list[tuple[str, Any]]) -> Iterator[_Place]:
    masters = {
        id(half): whole
        for halves, wholes in zip(engine.fp16_groups, engine.fp32_groups, strict=True)
        for half, whole in zip(halves, wholes, strict=True)
    }
    for name, tensor in trainable:
        yield _Place(name, tuple(tensor.shape), _Fragment(masters[id(tensor)], 0, 0, tensor.numel()))
