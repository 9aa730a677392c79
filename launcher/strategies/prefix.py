"""The frozen prefix of a model: how deep it is, and whether computing it once and keeping its output would pay.

A prefix is the embeddings and the first k blocks, all frozen. What it makes of a row is then the same in every epoch, so it
can be computed once. ``launcher.engine.prefix_cache`` does that; this module decides, without torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from launcher.contracts import Parameter, Phase, TuningTable
from launcher.errors import InstallationError, ModelError
from launcher.plans import LaunchPlan
from launcher.recipe.schema import Recipe
from launcher.recipe.strategy_options import HeadOptions, LayerwiseOptions
from launcher.recipe.task_options import PAIR_TASKS
from launcher.strategies.layers import number_of_blocks

Reads = Literal["tokens", "pooler", "first", "last"]
Store = Literal["memory", "disk"]

LEAST_SPEED_UP = 1.3
"""Predicted speed-up from which ``auto`` caches; below it the pass that fills the cache is hardly worth its space."""
_SHARE_OF_MEMORY = 0.25
_SHARE_OF_DISK = 0.5
_STORES: tuple[Store, ...] = ("memory", "disk")


@dataclass(frozen=True)
class Family:
    """Where a family of models can be cut. Paths are those of modules inside the backbone."""

    blocks: str
    """The ModuleList of its blocks, which run one after the other and differ only in their weights."""
    entry: str
    """The module that returns the stored states in place of its own output; what it holds is unloaded."""
    reads: Reads
    """What a head for one label per row reads of the backbone's output: ``pooler_output``, or its state at the first or the
    last token."""
    returns_tuple: bool = False
    """Whether a block returns a tuple instead of a tensor."""
    relative_positions: bool = False
    """Whether only distances between tokens count, so that padding on the left changes nothing."""


_BERT = Family("encoder.layer", "embeddings", "first")
_DECODER = Family("layers", "embed_tokens", "last", relative_positions=True)

FAMILIES: Mapping[str, Family] = {
    "bert": Family("encoder.layer", "embeddings", "pooler"),
    "distilbert": Family("transformer.layer", "embeddings", "first"),
    # Its embeddings may be followed by a projection that exists only for some sizes.
    "electra": Family("encoder.layer", "encoder.layer.0", "first"),
    "gemma": _DECODER,
    # Three modules make its embeddings, and the token table takes part in more than one way.
    "gpt2": Family("h", "h.0", "last"),
    "llama": _DECODER,
    "mistral": _DECODER,
    "mpnet": Family("encoder.layer", "embeddings", "first", returns_tuple=True),
    "qwen2": _DECODER,
    "qwen3": _DECODER,
    "roberta": _BERT,
    # Its forward pass asks the embeddings for the dtype of a weight.
    "vit": Family("layers", "layers.0", "first"),
    "xlm-roberta": _BERT,
}
"""Models with uniform blocks that were tested, by ``model_type`` of their configuration."""

_ONE_VECTOR_HEADS = ("ForSequenceClassification", "ForImageClassification")


@dataclass(frozen=True)
class CacheFacts:
    """What the decision rests on, beside the phase and the recipe."""

    model_type: str
    architecture: str
    """Class name of the model, such as ``BertForSequenceClassification``."""
    hidden: int
    """Width of the hidden states."""
    itemsize: int
    """Bytes of one of their elements."""
    lengths: Mapping[str, Sequence[int]]
    """Split that is cached -> tokens of each of its rows; ``train`` and, where it is evaluated in between, ``validation``."""
    epochs: float
    """How often the training rows are used."""
    launch: LaunchPlan
    phases: int
    """Phases of the run."""
    free_memory: int
    """Bytes of this machine's memory that are free."""
    free_disk: int
    """Bytes that are free where the cache's files would lie."""
    padding_side: str = "right"
    has_dropout: bool = True
    """Whether the prefix would be random outside evaluation mode."""
    inputs_vary: bool = False
    """Whether a row's input differs between epochs: augmentation, dynamic masking."""


@dataclass(frozen=True)
class CachePlan:
    """A cache that is worth making."""

    family: Family
    blocks: int
    """k: blocks of the prefix."""
    whole_backbone: bool
    """Whether everything before the head is frozen: the cache then holds what the head reads."""
    reads: Reads
    """What is kept of a row: its states at all tokens, or one vector."""
    store: Store
    bytes: int
    """Size of the cache on one machine."""
    frozen_share: float
    """phi: share of a forward pass that the cache saves."""
    epochs: float
    speed_up: float
    """Predicted: training time without the cache over training time with it."""

    def describe(self) -> str:
        """Return one line for people: what is kept, where, its size, and what it should bring."""
        what = "the head's input" if self.whole_backbone else f"the output of {self.blocks} frozen blocks"
        return (
            f"prefix cache: {what}, {_size(self.bytes)} {'in memory' if self.store == 'memory' else 'on disk'}; "
            f"{self.frozen_share:.0%} of a forward pass runs once instead of {self.epochs:g} times, "
            f"predicted {self.speed_up:.1f}x"
        )


@dataclass(frozen=True)
class Refusal:
    """Why nothing is cached."""

    reason: str


def frozen_prefix(parameters: Sequence[Parameter], table: TuningTable) -> int:
    """Return k, the number of blocks from the first that are wholly frozen; 0 where the embeddings train."""
    trainable = _trainable(table)
    lowest = min((p.depth for p in parameters if p.name in trainable), default=number_of_blocks(parameters) + 1)
    return max(0, min(lowest - 1, number_of_blocks(parameters)))


def is_head_only(parameters: Sequence[Parameter], table: TuningTable) -> bool:
    """Return whether nothing but the head trains, neither a block nor what lies between the last block and the head."""
    trainable = _trainable(table)
    return all(p.role == "head" for p in parameters if p.name in trainable)


def frozen_share(parameters: Sequence[Parameter], *, blocks: int, head_only: bool, tokens: float) -> float:
    """Return phi, the share of a forward pass that lies in the prefix, by elements of its matrices.

    Args:
        blocks: k, the blocks of the prefix.
        head_only: whether the tail belongs to the prefix too.
        tokens: mean number of tokens for each that the tail and the head work on (1 where they work on all).
    """
    prefix = sum(p.numel for p in parameters if p.role == "block" and p.depth <= blocks)
    all_blocks = sum(p.numel for p in parameters if p.role == "block")
    tail = sum(p.numel for p in parameters if p.role == "tail") / tokens
    head = sum(p.numel for p in parameters if p.role == "head") / tokens
    return (prefix + (tail if head_only else 0)) / max(all_blocks + tail + head, 1)


def predicted_speed_up(frozen_share: float, *, epochs: float, io: float = 0.0) -> float:
    """Return training time without the cache over training time with it: E(3 - 2 phi) / (3E(1 - phi) + phi + io).

    A unit of time is one forward pass over all rows. The backward pass takes two of them and stops at the prefix, so an
    epoch takes phi + 3(1 - phi) without the cache and 3(1 - phi) with it; filling the cache takes phi.

    Args:
        epochs: E.
        io: time to write and read the cache over the whole run, in the same unit.
    """
    trained = 3 * (1 - frozen_share)
    return epochs * (frozen_share + trained) / (epochs * trained + frozen_share + io)


def cache_bytes(*, rows: int, tokens: int, hidden: int, itemsize: int, reads: Reads = "tokens") -> int:
    """Return the bytes of a cache: ``hidden`` elements for each of ``tokens`` (in all), or for each row."""
    return (tokens if reads == "tokens" else rows) * hidden * itemsize


def plan_cache(parameters: Sequence[Parameter], phase: Phase, recipe: Recipe, facts: CacheFacts) -> CachePlan | Refusal:
    """Return the cache of a phase, or why there is none; a pure function.

    Raises:
        ModelError: ``strategy.prefix_cache`` asks for a cache whose conditions do not hold.
        InstallationError: it asks for one that does not fit.
    """
    wanted = _wanted(recipe)
    if wanted == "off":
        return Refusal("strategy.prefix_cache is off, or the strategy has none")
    reason = why_not(parameters, phase, recipe, facts)
    if reason and wanted != "auto":
        raise ModelError(f"strategy.prefix_cache is {wanted}, but {reason}; write auto or off")
    if reason:
        return Refusal(reason)
    plans = {store: _plan(parameters, phase, facts, store) for store in _STORES}
    if wanted != "auto":
        plan = plans[wanted]
        free = {"memory": facts.free_memory, "disk": facts.free_disk}[wanted]
        if plan.bytes > free:
            raise InstallationError(
                f"strategy.prefix_cache is {wanted}: the cache takes {_size(plan.bytes)}, but only {_size(free)} are free; "
                "write auto or off"
            )
        return plan
    return _choose(plans["memory"], plans["disk"], facts)


def _choose(memory: CachePlan, disk: CachePlan, facts: CacheFacts) -> CachePlan | Refusal:
    if memory.speed_up < LEAST_SPEED_UP:
        return Refusal(f"it would make training only {memory.speed_up:.2f} times as fast (least: {LEAST_SPEED_UP})")
    if memory.bytes <= _SHARE_OF_MEMORY * facts.free_memory:
        return memory
    space = f"{_size(memory.bytes)} are more than a quarter of the free memory ({_size(facts.free_memory)})"
    if disk.bytes > _SHARE_OF_DISK * facts.free_disk:
        return Refusal(f"{space}, and more than half of the free disk ({_size(facts.free_disk)})")
    if disk.speed_up < LEAST_SPEED_UP:
        return Refusal(f"{space}, and from the disk training would be only {disk.speed_up:.2f} times as fast")
    return disk


def why_not(parameters: Sequence[Parameter], phase: Phase, recipe: Recipe, facts: CacheFacts) -> str:
    """Return the first condition of a correct cache that does not hold, in words; empty: all of them do."""
    training = recipe.training
    is_random = not phase.frozen_eval and (facts.has_dropout or phase.dropout is not None)
    family = FAMILIES.get(facts.model_type)
    conditions = (
        (phase.adapters is not None, "adapters lie in the frozen blocks"),
        (facts.phases > 1, f"the run has {facts.phases} phases, which freeze or batch differently"),
        (facts.launch.zero_stage == 3, "ZeRO-3 shards the frozen weights"),
        (facts.launch.engine == "fsdp", "FSDP shards the frozen weights"),
        (facts.launch.sequence_parallel_size > 1, "ranks share each row"),
        (
            frozen_prefix(parameters, phase.table) == 0,
            "no blocks are frozen together with the embeddings, or their embeddings train",
        ),
        (family is None, f"models of type {facts.model_type} are not among {', '.join(sorted(FAMILIES))}"),
        (is_random, "frozen modules run with dropout: frozen_eval is false"),
        (recipe.task.type in PAIR_TASKS, "a row is two texts, and states are kept for one"),
        (facts.inputs_vary, "a row's input differs between epochs"),
        (
            bool(training.passthrough.get("neftune_noise_alpha")),
            "training.neftune_noise_alpha adds noise to embeddings",
        ),
        (training.activation_checkpointing, "training.activation_checkpointing needs the whole model"),
        (bool(training.passthrough.get("torch_compile")), "training.torch_compile needs the whole model"),
        (bool(training.passthrough.get("use_liger_kernel")), "training.use_liger_kernel changes the blocks later"),
        (
            family is not None and facts.padding_side == "left" and not family.relative_positions,
            "the tokenizer pads on the left, where positions depend on the other rows of a batch",
        ),
    )
    return next((reason for fails, reason in conditions if fails), "")


def _plan(parameters: Sequence[Parameter], phase: Phase, facts: CacheFacts, store: Store) -> CachePlan:
    family, blocks = FAMILIES[facts.model_type], frozen_prefix(parameters, phase.table)
    head_only = is_head_only(parameters, phase.table)
    one_vector = facts.architecture.endswith(_ONE_VECTOR_HEADS)
    reads: Reads = family.reads if head_only and one_vector else "tokens"
    rows, tokens = (sum(count) for count in zip(*((len(n), sum(n)) for n in facts.lengths.values()), strict=True))
    size = cache_bytes(rows=rows, tokens=tokens, hidden=facts.hidden, itemsize=facts.itemsize, reads=reads)
    mean = max(1.0, tokens / max(rows, 1))
    phi = frozen_share(parameters, blocks=blocks, head_only=head_only, tokens=mean if one_vector else 1.0)
    per_row = size / max(rows, 1)
    operations = 2 * sum(p.numel for p in parameters if p.role == "block") * mean
    io = (facts.epochs + 1) * per_row * _OPERATIONS_PER_BYTE[facts.launch.device, store] / max(operations, 1)
    return CachePlan(
        family=family,
        blocks=blocks,
        whole_backbone=head_only,
        reads=reads,
        store=store,
        # In memory every process has a copy; files are mapped, so the processes of a machine share them.
        bytes=size * (facts.launch.processes_per_node if store == "memory" else 1),
        frozen_share=phi,
        epochs=facts.epochs,
        speed_up=predicted_speed_up(phi, epochs=facts.epochs, io=io),
    )


# Floating-point operations that a machine does while it moves a byte of the cache: to the processor, or over the bus to a
# graphics card; from memory, or from a disk of about 1 GB/s. Orders of magnitude, on the side of a slow bus.
_OPERATIONS_PER_BYTE = {
    ("cpu", "memory"): 20.0,
    ("cpu", "disk"): 200.0,
    ("cuda", "memory"): 5_000.0,
    ("cuda", "disk"): 50_000.0,
}


def is_considered(parameters: Sequence[Parameter], phase: Phase, recipe: Recipe) -> bool:
    """Whether there is anything to decide, and to tell: the recipe names a store, or blocks are frozen."""
    wanted = _wanted(recipe)
    return wanted != "off" and (wanted != "auto" or frozen_prefix(parameters, phase.table) > 0)


def _wanted(recipe: Recipe) -> Literal["off", "auto", "memory", "disk"]:
    options = recipe.strategy
    # What is streamed is not held, and its states would not be either.
    may_be = isinstance(options, (HeadOptions, LayerwiseOptions)) and not recipe.data.streaming
    return options.prefix_cache if may_be else "off"  # type: ignore[union-attr]


def _trainable(table: TuningTable) -> set[str]:
    return {name for group in table.trainable for name in group.parameters}


def _size(count: float) -> str:
    for unit in ("bytes", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"
