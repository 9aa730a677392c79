"""What trains: a model's parameters by name, the table of rates, and the strategy that decides on them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from launcher.recipe.schema import Recipe

Role = Literal["embeddings", "block", "tail", "head"]
Component = Literal["attention", "mlp", "norm", "other"]


# --- a model, by names ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Parameter:
    """One parameter tensor of a model, by name; shapes are those of the whole tensor, also under sharding."""

    name: str
    shape: tuple[int, ...]
    depth: int
    """0: embeddings; 1..L: the blocks in the order of the forward pass; L+1: what comes after (tail and head)."""
    role: Role
    """``tail`` is the pretrained part after the last block (final norm, pooler); ``head`` is the task's own."""
    decays: bool
    """False for biases and norms, told by name and module type, never by the number of dimensions."""
    newly_initialized: bool
    """Not in the checkpoint: it has to train."""
    component: Component = "other"
    """Part of a block that it belongs to."""
    module: str = ""
    """Class name of the module that owns it, such as ``Linear``, ``Conv1D``, ``Embedding``, ``LayerNorm``, ``BatchNorm2d``."""
    also: tuple[Role, ...] = ()
    """Where else the same tensor works: ``head`` for embeddings that are tied to an output layer; ``block`` for a block whose
    weights several layers share."""

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


# --- what trains ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TuningGroup:
    """Parameters that share a rate and a decay: one row of a tuning table and one group of the optimizer."""

    name: str
    depths: tuple[int, int]
    """Smallest and largest depth of its parameters."""
    parameters: tuple[str, ...]
    numel: int
    trainable: bool
    lr: float
    """Peak rate; 0 for a frozen group."""
    weight_decay: float
    """Decoupled decay: the optimizer's own."""
    rank: int | None = None
    """LoRA rank, where there is one."""
    l1_penalty: float = 0.0
    """Added to the gradient: l1_penalty * sign(p)."""
    l2_penalty: float = 0.0
    """Added to the gradient: l2_penalty * p."""


@dataclass(frozen=True)
class TuningTable:
    """Which parameters train, at which rate: nothing else decides that. Every parameter lies in exactly one group."""

    groups: tuple[TuningGroup, ...]

    @property
    def trainable(self) -> tuple[TuningGroup, ...]:
        """The groups that train."""
        return tuple(group for group in self.groups if group.trainable)

    @property
    def trainable_numel(self) -> int:
        """Number of elements that train."""
        return sum(group.numel for group in self.trainable)

    @property
    def total_numel(self) -> int:
        """Number of elements in all."""
        return sum(group.numel for group in self.groups)


@dataclass(frozen=True)
class AdapterPlan:
    """The LoRA adapters of a phase, with PEFT's meanings; module names are those of the model without adapters."""

    ranks: Mapping[str, int]
    """Module name -> rank. Other modules have no adapter."""
    alphas: Mapping[str, float]
    """Module name -> lora_alpha; the same keys as ``ranks``."""
    modules_to_save: tuple[str, ...] = ()
    """Names of modules that train whole and are saved with the adapters (the head, and what is newly initialised)."""
    dropout: float = 0.0
    use_rslora: bool = False
    use_dora: bool = False
    init_lora_weights: bool | str = True


@dataclass(frozen=True)
class Phase:
    """A stretch of a run with one tuning table: everything that decides what trains in it, and nothing else does."""

    name: str
    table: TuningTable
    """Parameter names are those of the model as it trains: with adapters, PEFT's own (``base_model.model. ...``)."""
    epochs: float | None = None
    """How long it lasts, in epochs; None: the rest of the run."""
    carry: Literal["nothing", "weights", "weights_and_adam"] = "weights_and_adam"
    """What the next phase takes over."""
    adapters: AdapterPlan | None = None
    frozen_eval: bool = False
    """Whether frozen modules are kept in evaluation mode (no dropout) while the rest trains."""
    batch_norm: Literal["tune", "frozen_statistics", "frozen"] = "tune"
    """``frozen_statistics`` keeps BatchNorm modules in evaluation mode; ``frozen`` freezes their weights too."""
    dropout: tuple[float, float] | None = None
    """Dropout probability of the first and of the last block, linear in between; None: the model's own."""
    note: str = ""
    """What a reader of the plan has to know, such as that ranks follow from a probe."""


@dataclass(frozen=True)
class Probe:
    """A short training before the run whose gradients say what matters; its weights are discarded."""

    phase: Phase
    steps: int
    score: Literal["sensitivity", "gradient", "eva"]
    weights: tuple[str, ...]
    """Names of the weights whose modules are measured, in the model without adapters."""
    options: Mapping[str, Any]
    """The recipe's options that the result depends on: a part of its key."""


class Strategy(Protocol):
    """Decides what trains: pure functions of a model's parameters and the recipe. Implementations inherit from it."""

    def phases(
        self, parameters: Sequence[Parameter], recipe: Recipe, importance: Mapping[str, Any] | None = None
    ) -> tuple[Phase, ...]:
        """Return the phases of a run. Raises RecipeError or ModelError where the options do not fit the model.

        ``importance``: what the probe found (importance.json); None before it: the phases then carry a ``note``.
        """
        ...

    def probe(self, parameters: Sequence[Parameter], recipe: Recipe) -> Probe | None:
        """Return the probe that has to run first; None: there is none."""
        return None
