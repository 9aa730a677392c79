"""The depth order of a model's parameters, found from its structure instead of a list of architectures.

A model's blocks are the elements of its large numbered containers (``encoder.layer.0``, ``h.3``, ``stages.1.layers.0``).
What comes before them is embeddings (depth 0), the blocks are 1..L in the order of the forward pass, and what comes after
(final norm, pooler, head) has depth L+1: the convention of timm and BEiT for layer-wise rates.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from launcher.contracts import Component, Parameter, Role

# A numbered container counts as a stack of blocks when it holds at least this share of the backbone without its
# embeddings: a feature extractor of a few convolutions before the encoder is then part of the embeddings.
_SMALLEST_STACK = 0.1


# Detectors whose layers each predict boxes hold their heads inside of the decoder (RT-DETR, Deformable DETR): by place they would be blocks.
_HEAD_INSIDE = re.compile(r"(^|\.)(class_embed|bbox_embed|enc_score_head|enc_bbox_head)\.")


@dataclass(frozen=True)
class _Tensor:
    name: str
    shape: tuple[int, ...]
    is_norm: bool
    is_embedding: bool
    module: str = ""

    @property
    def numel(self) -> int:
        return math.prod(self.shape)


# Path of an element of a numbered container -> what follows it in a name -> tensor.
_Elements = Mapping[str, dict[str, _Tensor]]


def list_parameters(model: Any, *, newly_initialized: Collection[str] = ()) -> tuple[Parameter, ...]:
    """Return a model's parameters with depth and role, in the order of ``named_parameters()`` (a tied tensor once).

    Args:
        model: a ``torch.nn.Module``, also on the meta device or partitioned by ZeRO-3 (whole shapes are returned).
        newly_initialized: names that were not in the checkpoint.
    """
    tensors = _tensors(model)
    prefix, outputs = _backbone_prefix(model, tensors), _output_names(model)
    depths = find_depths(tensors, prefix=prefix, new={*newly_initialized, *outputs})
    blocks = max((depth for depth, role in depths.values() if role == "block"), default=0)
    is_shared, aliases = 0 < blocks < _layers_that_run(model), _aliases(model)

    def also(name: str, role: Role) -> tuple[Role, ...]:
        others = aliases.get(name, ())
        if role == "block" and (is_shared or others):
            return ("block",)
        is_tied = any(other in outputs or not other.startswith(prefix) for other in others)
        return ("head",) if role != "head" and is_tied else ()

    return tuple(
        Parameter(
            name=tensor.name,
            shape=tensor.shape,
            depth=depths[tensor.name][0],
            role=depths[tensor.name][1],
            decays=not (tensor.is_norm or tensor.name.endswith("bias")),
            newly_initialized=tensor.name in newly_initialized,
            component=_component(tensor, depths[tensor.name][1]),
            module=tensor.module,
            also=also(tensor.name, depths[tensor.name][1]),
        )
        for tensor in tensors
    )


def block_modules(model: Any) -> tuple[Any, ...]:
    """Return the modules of the blocks 1..L in the order of depth; ``model`` as for list_parameters, without adapters."""
    tensors = _tensors(model)
    prefix, outputs = _backbone_prefix(model, tensors), _output_names(model)
    return tuple(model.get_submodule(block.path) for block in _blocks(_backbone(tensors, prefix=prefix, new=outputs)))


def uses(parameter: Parameter, *, blocks: int) -> tuple[Parameter, ...]:
    """Return a parameter in each of its roles: a tensor that is tied to the head is the embedding, and the head too.

    Args:
        blocks: L, the number of blocks of the model.
    """
    if "head" not in parameter.also:
        return (parameter,)
    return (parameter, replace(parameter, role="head", depth=blocks + 1, also=()))


def find_depths(
    tensors: Sequence[_Tensor], *, prefix: str = "", new: Collection[str] = ()
) -> Mapping[str, tuple[int, Role]]:
    """Return name -> (depth, role). ``prefix``: what the backbone's names begin with; the rest is the head."""
    backbone = _backbone(tensors, prefix=prefix, new=new)
    block_of = {name: number for number, block in enumerate(_blocks(backbone), 1) for name in block.names}
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


@dataclass(frozen=True)
class _Block:
    """A block: the path of its module, and the names of its parameters."""

    path: str
    names: tuple[str, ...]


def _backbone(tensors: Sequence[_Tensor], *, prefix: str, new: Collection[str]) -> list[_Tensor]:
    return [
        t
        for t in tensors
        if t.name.startswith(prefix) and not (not prefix and t.name in new) and not _HEAD_INSIDE.search(t.name)
    ]


def _blocks(backbone: Sequence[_Tensor]) -> list[_Block]:
    """Return the blocks over all stacks in the order of declaration."""
    stacks: dict[str, dict[str, dict[str, _Tensor]]] = {}
    for tensor in backbone:
        match = re.match(r"(.*?)\.(\d+)\.(.*)", tensor.name)
        if match:
            stack = stacks.setdefault(match[1], {})
            stack.setdefault(f"{match[1]}.{match[2]}", {})[match[3]] = tensor
    total = sum(t.numel for t in backbone if not t.is_embedding)
    result: list[_Block] = []
    for found in stacks.values():
        if sum(t.numel for element in found.values() for t in element.values()) < _SMALLEST_STACK * total:
            continue
        is_plain = _is_uniform(found) and not _is_nested(found)
        elements = found if is_plain else _split_stages(found)
        for path, element in sorted(elements.items(), key=lambda item: _numbers(item[0])):
            own = (t.name for sub, t in element.items() if not (is_plain and _is_shared_by_stack(sub, elements)))
            result.append(_Block(path, tuple(own)))
    return result


def _numbers(path: str) -> list[int]:
    return [int(part) for part in path.split(".") if part.isdigit()]


def _is_uniform(elements: _Elements) -> bool:
    shapes: dict[str, tuple[int, ...]] = {}
    return all(
        shapes.setdefault(sub_name, tensor.shape) == tensor.shape
        for element in elements.values()
        for sub_name, tensor in element.items()
    )


def _is_nested(elements: _Elements) -> bool:
    return all(sub_name[0].isdigit() for element in elements.values() for sub_name in element)


def _split_stages(elements: _Elements) -> dict[str, dict[str, _Tensor]]:
    return {path: part for stage in elements.items() for path, part in _split_stage(*stage).items()}


def _split_stage(path: str, element: Mapping[str, _Tensor]) -> dict[str, dict[str, _Tensor]]:
    """Split a stage into the blocks that it lists (ResNet, Swin, ConvNeXt); an element without a list stays whole.

    What a stage has before its list (a downsampling) belongs to the first block, what comes after to the last one.
    """
    sizes: dict[str, int] = {}
    matches = {sub_name: re.match(r"((?:[^.]*\.)?)(\d+)\.", sub_name) for sub_name in element}
    for sub_name, match in matches.items():
        if match:
            sizes[match[1]] = sizes.get(match[1], 0) + element[sub_name].numel
    if not sizes:
        return {path: dict(element)}
    listed, inner = max(sizes, key=lambda name: sizes[name]), 0
    result: dict[str, dict[str, _Tensor]] = {}
    for sub_name, match in matches.items():
        inner = int(match[2]) if match and match[1] == listed else inner
        result.setdefault(f"{path}.{listed}{inner}", {})[sub_name] = element[sub_name]
    return result


def _is_shared_by_stack(sub_name: str, elements: _Elements) -> bool:
    """Whether only the first of several like blocks owns it, for all of them (T5's relative attention bias)."""
    first = min(elements, key=_numbers)
    owners = [path for path, element in elements.items() if sub_name in element]
    return len(elements) > 1 and owners == [first] and elements[first][sub_name].is_embedding


def _tensors(model: Any) -> list[_Tensor]:
    modules = dict(model.named_modules())
    return [_tensor(name, tensor, modules[_parent(name, 1)]) for name, tensor in model.named_parameters()]


def _tensor(name: str, tensor: Any, module: Any) -> _Tensor:
    return _Tensor(
        name=name,
        # A tensor that ZeRO-3 has partitioned says its whole shape in ds_shape.
        shape=tuple(getattr(tensor, "ds_shape", tensor.shape)),
        is_norm=_is_norm(module),
        is_embedding="embedding" in type(module).__name__.lower() and len(list(module.children())) == 0,
        module=type(module).__name__,
    )


def _aliases(model: Any) -> dict[str, tuple[str, ...]]:
    """Return name -> the other names of the same tensor."""
    names: dict[int, list[str]] = {}
    for name, tensor in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(tensor), []).append(name)
    return {first: tuple(rest) for first, *rest in names.values() if rest}


def _output_names(model: Any) -> frozenset[str]:
    """Return all names of the parameters of a language model's output layer."""
    output: Any = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    paths = [path for path, module in model.named_modules() if output is not None and module is output]
    return frozenset(f"{path}.{name}" for path in paths for name, _ in output.named_parameters())


def _layers_that_run(model: Any) -> int:
    """Return how many layers the configuration declares; 0 where it does not say. Shared ones have fewer blocks (ALBERT)."""
    declared = getattr(getattr(model, "config", None), "num_hidden_layers", None)
    return declared if isinstance(declared, int) else 0


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
