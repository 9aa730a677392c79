"""How much an engine holds for each parameter: rules of PyTorch and DeepSpeed 0.19.8, as sizes in bytes.

Taken from their sources: torch.nn.parallel.DistributedDataParallel, torch.optim, deepspeed/runtime/zero/stage_1_and_2.py and stage3.py,
deepspeed/runtime/bf16_optimizer.py; and held to measured runs (benchmarks/planner.py). What ZeRO's stages share is of Rajbhandari
et al. 2020 (arXiv:1910.02054), section 3 and 5.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace

from launcher.plans import MemorySetting, Precision
from launcher.shipped import shipped_folder

FP32 = 4

# Bytes of an optimizer's state for each element that trains, beside the weight itself.
_STATE_BYTES = {
    "sgd": 4, "adagrad": 4, "rmsprop": 4, "adafactor": 0.05, "lion_32bit": 4, "paged_lion_32bit": 4,
    "lion_8bit": 1.03, "paged_lion_8bit": 1.03, "adamw_bnb_8bit": 2.06, "adamw_8bit": 2.06, "paged_adamw_8bit": 2.06,
    "adamw_torch_8bit": 2.06, "adamw_torch_4bit": 1.1, "rmsprop_bnb": 4, "rmsprop_bnb_32bit": 4, "rmsprop_bnb_8bit": 1.03,
    "ademamix": 12, "paged_ademamix_32bit": 12, "ademamix_8bit": 3.1, "paged_ademamix_8bit": 3.1, "grokadamw": 12,
}  # fmt: skip
_ADAM_BYTES = 8

# Optimizers that work through all tensors at once on a GPU hold a square root of the second moment for all of them.
_MANY_AT_ONCE = frozenset({"adamw_torch", "adam", "rmsprop", "adagrad"})


@dataclass(frozen=True)
class Sizes:
    """Elements of a model, and what one costs under a precision."""

    weights: int
    """Elements of all parameters."""
    trainable: int
    largest: int
    """Elements of the largest parameter that trains."""
    largest_group: int
    """Elements of the largest group of the optimizer."""
    largest_block: int
    largest_weight: int
    """Elements of the largest parameter, frozen or not."""
    packed: int
    """Elements of quantised weights."""
    packed_bytes: int
    largest_packed: int
    """Elements of the largest quantised weight."""
    stored_bytes: int
    """Of all parameters as they are loaded."""
    trainable_bytes: int
    """Of those that train, as they are loaded."""
    itemsize: int
    """Bytes of a weight that computes under an engine that converts weights."""
    ranks: int

    @property
    def share(self) -> int:
        """Elements that train and belong to one rank."""
        return -(-self.trainable // self.ranks)


@dataclass(frozen=True)
class Resident:
    """What lies in memory through a whole training, by engine; bytes."""

    weights: int
    master: int
    """Weights in fp32 beside those that compute, counted with the optimizer's state."""
    optimizer: int
    gradients: int
    """That stay from step to step, or are whole while the backward pass is on."""
    buckets: int
    """For communication."""
    gathered: int
    """Weights of other ranks, while the model computes."""
    step: int
    """More while the optimizer steps."""
    loading: int
    """The most before the first step."""
    keeps_gradients: bool
    """Whether gradients come into being in each backward pass and stay whole until its step; else they are in ``gradients``."""
    gradient_copies: float
    """Copies of a gradient, in its own bytes, that are made to send it away."""
    saving: int
    """More while a checkpoint is written."""
    unpacked: int = 0
    """The quantised weight that is just multiplied with, as what it stands for."""
    unmapped: int = 0
    """The file of the weights, which stays mapped into memory (on the processor)."""


def state_bytes(optimizer: str) -> float:
    """Return the bytes of an optimizer's state for each element that trains."""
    return _STATE_BYTES.get(optimizer, _ADAM_BYTES)


def compute_itemsize(precision: Precision) -> int:
    """Return the bytes of an element in the dtype that an engine converts weights to."""
    return FP32 if precision in ("fp32", "tf32") else 2


def resident(sizes: Sizes, setting: MemorySetting) -> Resident:
    """Return what an engine holds on its device beside activations."""
    if setting.engine == "deepspeed":
        if setting.zero_stage == 3:
            return _zero_3(sizes, setting)
        found = _zero_1_2(sizes, setting) if setting.zero_stage else _zero_0(sizes, setting)
    elif setting.engine == "fsdp":
        return _fsdp(sizes, setting)
    else:
        found = _whole(sizes, setting)
    return replace(found, unpacked=sizes.largest_packed * compute_itemsize(setting.precision))


def _whole(sizes: Sizes, setting: MemorySetting) -> Resident:
    """One process, or DDP, which copies gradients into buckets of its own (gradient_as_bucket_view is off)."""
    gradients = sizes.trainable_bytes
    accumulates = setting.accumulation > 1
    state = round(sizes.trainable_bytes / FP32 * state_bytes(setting.optimizer))
    return Resident(
        weights=sizes.stored_bytes,
        master=0,
        optimizer=state,
        gradients=gradients if accumulates else 0,
        buckets=gradients if setting.engine == "ddp" else 0,
        gathered=0,
        step=_step_temporary(sizes, setting) + (0 if accumulates else gradients),
        loading=sizes.stored_bytes + (gradients if setting.engine == "ddp" else 0),
        keeps_gradients=not accumulates,
        gradient_copies=0,
        saving=0,
    )


def _step_temporary(sizes: Sizes, setting: MemorySetting) -> int:
    if setting.optimizer == "adamw_torch_fused":
        return 0
    if setting.device == "cuda" and setting.optimizer in _MANY_AT_ONCE:
        return sizes.trainable * FP32
    return 2 * sizes.largest * FP32


def _zero_0(sizes: Sizes, setting: MemorySetting) -> Resident:
    """DeepSpeed without sharding: gradients are reduced through a flat copy; bf16 has fp32 weights and gradients beside its own."""
    item = sizes.itemsize
    weights = _converted(sizes)
    halved = item < FP32
    master = FP32 * sizes.share if halved else 0
    own = sizes.share if halved else sizes.trainable
    gradients = sizes.trainable * (item + FP32 if halved else item)
    return Resident(
        weights=weights,
        master=master,
        optimizer=round(own * state_bytes(setting.optimizer)),
        gradients=gradients,
        buckets=sizes.trainable * item if sizes.ranks > 1 else 0,
        gathered=0,
        step=0,
        loading=weights + sizes.stored_bytes,
        keeps_gradients=False,
        gradient_copies=1,
        # On a GPU the copies are made in the machine's memory.
        saving=weights if setting.device == "cpu" else 0,
    )


def _zero_1_2(sizes: Sizes, setting: MemorySetting) -> Resident:
    """Flat weights, and of fp32 weights, optimizer state and gradients this rank's share.

    Gradients have the dtype that computes. For the step this rank's share of them is flattened, a group at a time, and in 16 bits
    converted to fp32 then. Where gradients are accumulated, stage 1 keeps all of them until the step, those of other ranks too.
    """
    item, share = sizes.itemsize, sizes.share
    weights = _converted(sizes)
    offloaded = setting.offload != "none" and setting.device == "cuda"
    master = 0 if offloaded else FP32 * share
    state = 0 if offloaded else round(share * state_bytes(setting.optimizer))
    gradients = 0 if offloaded else item * share
    if setting.zero_stage == 1 and setting.accumulation > 1:
        gradients = sizes.trainable * item
    copies = (item if item == FP32 else item + FP32) * -(-sizes.largest_group // sizes.ranks)
    # Only weights that are converted are read from their file into memory of their own.
    mapped = sizes.trainable_bytes if setting.device == "cpu" and item == FP32 else 0
    flat_twice = sizes.trainable * item if setting.device == "cuda" else 0
    return Resident(
        weights=weights,
        master=master,
        optimizer=state,
        gradients=gradients,
        buckets=0,
        gathered=0,
        step=copies,
        loading=weights + mapped + flat_twice + master + FP32 * share,
        keeps_gradients=False,
        # One larger than a bucket is flattened by itself.
        gradient_copies=1,
        saving=0,
        unmapped=mapped,
    )


def _zero_3(sizes: Sizes, setting: MemorySetting) -> Resident:
    """This rank's share of everything, and weights that are gathered while the model computes.

    DeepSpeed keeps gathered weights up to stage3_max_live_parameters where they are used again within
    stage3_max_reuse_distance: a smaller model is whole on every rank from its forward to its backward pass.
    """
    item, share = sizes.itemsize, sizes.share
    own = -(-sizes.weights // sizes.ranks) * item
    offloaded = setting.offload != "none" and setting.device == "cuda"
    weights = 0 if setting.offload == "all" and setting.device == "cuda" else own
    live = min(sizes.weights, max(_live_parameters(), 2 * sizes.largest_block + sizes.largest))
    master = 0 if offloaded else FP32 * share
    # Kept in the dtype that computes, and converted for the step.
    gradients = 0 if offloaded else share * item
    state = 0 if offloaded else round(share * state_bytes(setting.optimizer))
    built_whole = sizes.stored_bytes if setting.device == "cpu" else 0
    return Resident(
        weights=weights,
        master=master,
        optimizer=state,
        gradients=gradients,
        buckets=0,
        gathered=live * item if sizes.ranks > 1 else 0,
        step=FP32 * share if item < FP32 and not offloaded else 0,
        loading=max(weights + built_whole, weights + master + gradients + FP32 * share),
        keeps_gradients=False,
        gradient_copies=1,
        # On a GPU they are gathered one after another, and copied to the machine's memory.
        saving=(sizes.weights if setting.device == "cpu" else sizes.largest_weight) * item,
    )


def _fsdp(sizes: Sizes, setting: MemorySetting) -> Resident:
    """FSDP2: this rank's share in fp32, and two blocks gathered, of which one computes and one is fetched."""
    share = sizes.share
    whole = -(-sizes.weights // sizes.ranks) * FP32
    gathered = (2 * sizes.largest_block + sizes.largest) * sizes.itemsize
    return Resident(
        weights=whole,
        master=0,
        optimizer=round(share * state_bytes(setting.optimizer)),
        gradients=share * FP32,
        buckets=sizes.largest_block * (FP32 + sizes.itemsize),
        gathered=gathered,
        step=_step_temporary(sizes, setting) // sizes.ranks,
        loading=sizes.stored_bytes + whole if setting.device == "cpu" else whole + gathered,
        keeps_gradients=False,
        gradient_copies=1,
        saving=FP32 * (sizes.weights if setting.device == "cpu" else sizes.largest_weight),
    )


def offloaded_bytes(sizes: Sizes, setting: MemorySetting) -> dict[str, int]:
    """Return what one rank keeps in the machine's memory: DeepSpeed's CPU Adam works there in fp32."""
    if setting.offload == "none" or setting.device == "cpu":
        return {}
    share = sizes.share
    parts = {
        "optimizer": FP32 * share + round(share * state_bytes(setting.optimizer)),
        "gradients": FP32 * share,
        "buffers": sizes.itemsize * share + 2 * sizes.largest * sizes.itemsize,
    }
    if setting.offload == "all":
        parts["weights"] = -(-sizes.weights // sizes.ranks) * sizes.itemsize
    return parts


def _converted(sizes: Sizes) -> int:
    """Bytes of all weights in the dtype that they compute in."""
    return (sizes.weights - sizes.packed) * sizes.itemsize + sizes.packed_bytes


def _live_parameters() -> int:
    found = json.loads((shipped_folder("ds_configs") / "zero3.json").read_text())
    return int(found["zero_optimization"]["stage3_max_live_parameters"])
