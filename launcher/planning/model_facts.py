"""Facts about a model that memory follows from: its tensors, and lines that tell what a step makes beside them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from launcher.contracts import Phase
from launcher.recipe.schema import Recipe


@dataclass(frozen=True)
class Line:
    """Bytes as a function of the rows of a batch."""

    at_zero: float
    per_row: float

    def at(self, rows: int) -> int:
        """Return the bytes for ``rows`` rows."""
        return max(0, round(self.at_zero + self.per_row * rows))


@dataclass(frozen=True)
class Stretch:
    """The highest bytes within a stretch of a step, such as the backward pass of the first block."""

    name: str
    fresh: Line
    """With gradients that come into being in this step and stay."""
    resident: Line
    """With gradients that are added to others, or sent away, as soon as they are there."""
    gradient: Line
    """The largest gradient that becomes whole in it."""


@dataclass(frozen=True)
class StoredTensor:
    """A parameter; tied ones are there once."""

    numel: int
    itemsize: float
    """Bytes of an element as the model is loaded."""
    trains: bool
    is_quantized: bool = False


@dataclass(frozen=True)
class ModelFacts:
    """Plain numbers about a model in one phase, one length of rows and one way to compute."""

    tensors: tuple[StoredTensor, ...]
    groups: tuple[int, ...]
    """Elements of each group of the optimizer."""
    buffer_bytes: int
    blocks: int
    largest_block: int
    """Elements of the largest block."""
    in_blocks: int
    """Elements of all blocks."""
    adapted_bytes: int
    """Of the weights that adapters are merged into; 0 without adapters."""
    training: tuple[Stretch, ...]
    evaluation: tuple[Stretch, ...]
    kept: Line
    """What the forward pass keeps for the backward pass."""
    kept_by_blocks: Line
    """Those that are there when the last block is through."""
    batch: Line
    """Input tensors of a training batch."""
    is_extrapolated: bool
    """Whether a smaller model was traced."""

    @property
    def numel(self) -> int:
        """Elements of all parameters."""
        return sum(tensor.numel for tensor in self.tensors)

    @property
    def trainable_numel(self) -> int:
        """Elements of the parameters that train."""
        return sum(tensor.numel for tensor in self.tensors if tensor.trains)

    @property
    def weight_bytes(self) -> int:
        """Bytes of all parameters as they are loaded."""
        return round(sum(tensor.numel * tensor.itemsize for tensor in self.tensors))

    @property
    def trainable_bytes(self) -> int:
        """Bytes of the parameters that train, as they are loaded."""
        return round(sum(tensor.numel * tensor.itemsize for tensor in self.tensors if tensor.trains))

    def training_peak(
        self,
        rows: int,
        *,
        gradients: Literal["fresh", "resident"],
        copies: float = 0.0,
        beside: Callable[[Stretch], int] = lambda stretch: 0,
    ) -> tuple[int, Stretch]:
        """Return the most bytes of a training step beside weights and batch, and the stretch in which they are reached.

        Args:
            copies: how many copies of a gradient, in its own bytes, are there as soon as it is whole.
            beside: what else is there in a stretch; not in what is returned.
        """

        def peak(stretch: Stretch) -> int:
            held: Line = getattr(stretch, gradients)
            return held.at(rows) + round(copies * stretch.gradient.at(rows))

        found = max(self.training, key=lambda stretch: peak(stretch) + beside(stretch))
        return peak(found), found

    def evaluation_peak(self, rows: int) -> int:
        """Return the most bytes of an evaluation batch beside weights and batch."""
        return max(stretch.fresh.at(rows) for stretch in self.evaluation)


def untraced_facts(recipe: Recipe, phase: Phase, skeleton: Any) -> ModelFacts:
    """Return what is known of a model without a step: what it holds at the least.

    Args:
        skeleton: the task's model on the meta device, which is not changed.
    """
    from launcher.strategies.layers import block_modules

    model = skeleton.model
    blocks = block_modules(model)
    nothing, zero = Line(0, 0), Stretch("nothing", *[Line(0, 0)] * 3)
    return ModelFacts(
        tensors=_tensors(recipe, phase, skeleton),
        groups=tuple(group.numel for group in phase.table.trainable),
        buffer_bytes=sum(tensor.numel() * tensor.element_size() for tensor in model.buffers()),
        blocks=len(blocks),
        largest_block=max((sum(p.numel() for p in block.parameters()) for block in blocks), default=0),
        in_blocks=sum(p.numel() for block in blocks for p in block.parameters()),
        adapted_bytes=_adapted_bytes(phase, model),
        training=(zero,),
        evaluation=(zero,),
        kept=nothing,
        kept_by_blocks=nothing,
        batch=nothing,
        is_extrapolated=False,
    )


def packed_weights(recipe: Recipe, skeleton: Any) -> dict[str, float]:
    """Return name -> bytes of an element, of the weights that are quantised when the model is loaded."""
    from launcher.strategies.layers import list_parameters
    from launcher.strategies.quantization import is_quantized, kept_whole, quantized_bytes
    from launcher.strategies.targets import modules_to_save_for

    options: Any = recipe.strategy
    if not is_quantized(options):
        return {}
    parameters = list_parameters(skeleton.model, newly_initialized=skeleton.newly_initialized)
    kept = kept_whole(skeleton.model, modules_to_save_for(parameters, options.modules_to_save))
    return quantized_bytes(skeleton.model, options, kept)


def _tensors(recipe: Recipe, phase: Phase, skeleton: Any) -> tuple[StoredTensor, ...]:
    """Return the parameters of the model as it trains, adapters with them."""
    import torch

    from launcher.strategies.adapters import adapted_parameters
    from launcher.strategies.layers import list_parameters

    parameters = list_parameters(skeleton.model, newly_initialized=skeleton.newly_initialized)
    own = {name: float(tensor.element_size()) for name, tensor in skeleton.model.named_parameters()}
    if recipe.model.dtype != "auto":
        own = dict.fromkeys(own, torch.empty(0, dtype=getattr(torch, recipe.model.dtype)).element_size())
    packed = packed_weights(recipe, skeleton)
    if packed:
        # PEFT keeps the rest of a quantised model in fp32.
        own = {**dict.fromkeys(own, 4.0), **packed}
    if phase.adapters is not None:
        parameters = adapted_parameters(parameters, phase.adapters)
    trainable = {name for group in phase.table.trainable for name in group.parameters}
    return tuple(
        StoredTensor(p.numel, own.get(_bare(p.name), 4.0), p.name in trainable, _bare(p.name) in packed)
        for p in parameters
    )


def _bare(name: str) -> str:
    """Return a parameter's name in the model without adapters; those of adapters stay their own."""
    from launcher.strategies.adapters import PREFIX

    return name.removeprefix(PREFIX).replace(".base_layer.", ".")


def _adapted_bytes(phase: Phase, model: Any) -> int:
    """Return the bytes of the weights that adapters are merged into."""
    if phase.adapters is None:
        return 0
    modules = (model.get_submodule(name) for name, rank in phase.adapters.ranks.items() if rank)
    return sum(module.weight.numel() * module.weight.element_size() for module in modules)
