"""The depth order of a model's parameters, found from its structure instead of a list of architectures.

A model's blocks are the elements of its large numbered containers (``encoder.layer.0``, ``h.3``, ``stages.1.layers.0``).
What comes before them is embeddings (depth 0), the blocks are 1..L in the order of the forward pass, and what comes after
(final norm, pooler, head) has depth L+1: the convention of timm and BEiT for layer-wise rates.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from launcher.contracts import Component, Parameter, Role

# A numbered container counts as a stack of blocks when it holds at least this share of the backbone's elements:
# a feature extractor of a few convolutions before the encoder is then part of the embeddings.
_SMALLEST_STACK = 0.1


@dataclass(frozen=True)
class _Tensor:
    name: str
    shape: tuple[int, ...]
    is_norm: bool
    is_embedding: bool

    @property
    def numel(self) -> int:
        count = 1
        for size in self.shape:
            count *= size
        return count


def list_parameters(model: Any, *, newly_initialized: Collection[str] = ()) -> tuple[Parameter, ...]:
    """Return a model's parameters with depth and role, in the order of ``named_parameters()`` (a tied tensor once).

    Args:
        model: a ``torch.nn.Module``, also on the meta device or partitioned by ZeRO-3 (whole shapes are returned).
        newly_initialized: names that were not in the checkpoint.
    """
    tensors = [
        _Tensor(
            name=name,
            # A tensor that ZeRO-3 has partitioned says its whole shape in ds_shape.
            shape=tuple(getattr(tensor, "ds_shape", tensor.shape)),
            is_norm=_is_norm(module),
            is_embedding="embedding" in type(module).__name__.lower() and len(list(module.children())) == 0,
        )
        for name, tensor, module in _tensors_with_modules(model)
    ]
    depths = find_depths(tensors, prefix=_backbone_prefix(model, tensors), new=newly_initialized)
    return tuple(
        Parameter(
            name=tensor.name,
            shape=tensor.shape,
            depth=depths[tensor.name][0],
            role=depths[tensor.name][1],
            decays=not (tensor.is_norm or tensor.name.endswith("bias")),
            newly_initialized=tensor.name in newly_initialized,
            component=_component(tensor, depths[tensor.name][1]),
        )
        for tensor in tensors
    )


def find_depths(
    tensors: Sequence[_Tensor], *, prefix: str = "", new: Collection[str] = ()
) -> Mapping[str, tuple[int, Role]]:
    """Return name -> (depth, role). ``prefix``: what the backbone's names begin with; the rest is the head."""
    backbone = [t for t in tensors if t.name.startswith(prefix) and not (not prefix and t.name in new)]
    block_of = _blocks(backbone)
    last = max(block_of.values(), default=0)
    result: dict[str, tuple[int, Role]] = {}
    seen, late_embeddings = 0, set()
    for tensor in backbone:
        if tensor.name in block_of:
            seen = max(seen, block_of[tensor.name])
            result[tensor.name] = (block_of[tensor.name], "block")
        elif tensor.is_embedding or seen == 0 or _parent(tensor.name, 2) in late_embeddings:
            # Position tables may be declared behind the blocks that share them, with a norm of their own (DeBERTa).
            if seen and tensor.is_embedding:
                late_embeddings.add(_parent(tensor.name, 2))
            result[tensor.name] = (0, "embeddings")
        elif seen < last:
            # Between two stacks: the encoder's final norm belongs to the encoder's last block.
            result[tensor.name] = (seen, "block")
        else:
            result[tensor.name] = (last + 1, "tail")
    for tensor in tensors:
        result.setdefault(tensor.name, (last + 1, "head"))
    return result


def number_of_blocks(parameters: Iterable[Parameter]) -> int:
    """Return L, the number of blocks."""
    return max((p.depth for p in parameters if p.role == "block"), default=0)


def _blocks(backbone: Sequence[_Tensor]) -> dict[str, int]:
    """Return name -> number of its block, from 1, over all stacks in the order of declaration."""
    total = sum(t.numel for t in backbone) or 1
    stacks: dict[str, dict[tuple[int, ...], dict[str, _Tensor]]] = {}
    for tensor in backbone:
        match = re.match(r"(.*?)\.(\d+)\.(.*)", tensor.name)
        if match:
            elements = stacks.setdefault(match[1], {})
            elements.setdefault((int(match[2]),), {})[match[3]] = tensor
    result: dict[str, int] = {}
    done = 0
    for elements in stacks.values():
        size = sum(t.numel for element in elements.values() for t in element.values())
        if size < _SMALLEST_STACK * total:
            continue
        is_uniform = _is_uniform(elements)
        if not is_uniform:
            elements = _split_stages(elements)
        for position, index in enumerate(sorted(elements), start=1):
            for sub_name, tensor in elements[index].items():
                if not (is_uniform and _is_shared_by_stack(sub_name, elements)):
                    result[tensor.name] = done + position
        done += len(elements)
    return result


def _is_uniform(elements: Mapping[tuple[int, ...], Mapping[str, _Tensor]]) -> bool:
    shapes: dict[str, tuple[int, ...]] = {}
    return all(
        shapes.setdefault(sub_name, tensor.shape) == tensor.shape
        for element in elements.values()
        for sub_name, tensor in element.items()
    )


def _split_stages(
    elements: Mapping[tuple[int, ...], dict[str, _Tensor]],
) -> dict[tuple[int, ...], dict[str, _Tensor]]:
    """Split stages of different width into the blocks that each lists (ResNet, Swin); other elements stay whole."""
    result: dict[tuple[int, ...], dict[str, _Tensor]] = {}
    for index, element in elements.items():
        inner = 0
        for sub_name, tensor in element.items():
            match = re.match(r"[^.]*\.(\d+)\.(.*)", sub_name)
            inner = int(match[1]) if match else inner
            result.setdefault((*index, inner), {})[sub_name] = tensor
    return result


def _is_shared_by_stack(sub_name: str, elements: Mapping[tuple[int, ...], Mapping[str, _Tensor]]) -> bool:
    """Whether only the first of several like blocks owns it, for all of them (T5's relative attention bias)."""
    first = min(elements)
    owners = [index for index, element in elements.items() if sub_name in element]
    return len(elements) > 1 and owners == [first] and elements[first][sub_name].is_embedding


def _tensors_with_modules(model: Any) -> Iterable[tuple[str, Any, Any]]:
    modules = dict(model.named_modules())
    for name, tensor in model.named_parameters():
        yield name, tensor, modules[_parent(name, 1)]


def _parent(name: str, levels: int) -> str:
    return ".".join(name.split(".")[:-levels])


def _is_norm(module: Any) -> bool:
    name = type(module).__name__.lower()
    return "norm" in name and not list(module.children())


def _backbone_prefix(model: Any, tensors: Sequence[_Tensor]) -> str:
    prefix = getattr(model, "base_model_prefix", "")
    if prefix and any(t.name.startswith(f"{prefix}.") for t in tensors):
        return f"{prefix}."
    return ""


def _component(tensor: _Tensor, role: Role) -> Component:
    if role != "block":
        return "other"
    if tensor.is_norm:
        return "norm"
    return "attention" if re.search(r"att(n|ention)", tensor.name.lower()) else "mlp"
