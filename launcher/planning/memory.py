"""The memory of one rank at each moment of a run, before anything of it has started.

What an engine holds for each parameter is in memory_rules.py, what a step makes beside it is traced (tracing.py). On the processor
the result is what a process holds above its base after imports (VmHWM); on a GPU what torch's allocator holds.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from launcher.contracts import Phase
from launcher.planning.memory_rules import Resident, Sizes, compute_itemsize, offloaded_bytes, resident
from launcher.planning.model_facts import ModelFacts, Stretch, untraced_facts
from launcher.planning.tracing import compute_of, trace
from launcher.plans import MemoryEstimate, MemorySetting
from launcher.recipe.schema import Recipe

# Calibrated on the processor with benchmarks/planner.py: modules that are imported after the base is taken (the model's own,
# datasets, the optimizer's), tokenizer and data, and buffers of the matrix library.
_LIBRARIES_CPU = 75 * 10**6
# The same for the final evaluation: scikit-learn, scipy, matplotlib, the baselines' features.
_EVALUATION_LIBRARIES_CPU = 65 * 10**6

# From first principles, not calibrated here: CUDA's context with the libraries' kernels; NCCL's channels and buffers.
_CUDA_CONTEXT = 550 * 2**20
_NCCL_BUFFERS = 400 * 2**20
# cuBLAS and cuBLASLt workspaces of torch (32 MiB each on Hopper, less before).
_CUDA_WORKSPACES = 64 * 2**20
# Blocks of the caching allocator that are split and not filled.
_CUDA_FRAGMENTS = 0.02


def estimate_memory(facts: ModelFacts, setting: MemorySetting, *, async_save: bool = False) -> MemoryEstimate:
    """Return the memory of one rank; a pure function.

    Args:
        facts: traced for this setting's length, precision, engine and checkpointing.
        async_save: whether checkpoints are copied to the machine's memory and written by a thread.
    """
    sizes = _sizes(facts, setting)
    held = resident(sizes, setting)
    always = _always(facts, setting, held)
    host = offloaded_bytes(sizes, setting)
    moments = {
        "loading": _loading(facts, setting, held),
        "training": _training(facts, setting, held, always),
        "evaluation": _evaluation(facts, setting, held, always),
        "saving": _saving(facts, setting, held, always, sizes, async_save=async_save),
    }
    if setting.device == "cuda":
        moments = {moment: _with_fragments(parts) for moment, parts in moments.items()}
    return MemoryEstimate(
        moments={moment: {name: size for name, size in parts.items() if size} for moment, parts in moments.items()},
        host_moments={moment: host for moment in moments} if host else {},
        base=_base(setting),
    )


def _sizes(facts: ModelFacts, setting: MemorySetting) -> Sizes:
    trainable = [tensor for tensor in facts.tensors if tensor.trains]
    return Sizes(
        weights=facts.numel,
        trainable=facts.trainable_numel,
        largest=max((tensor.numel for tensor in trainable), default=0),
        largest_group=max(facts.groups, default=0),
        largest_block=facts.largest_block,
        packed=sum(tensor.numel for tensor in facts.tensors if tensor.is_quantized),
        packed_bytes=round(sum(tensor.numel * tensor.itemsize for tensor in facts.tensors if tensor.is_quantized)),
        largest_weight=max((tensor.numel for tensor in facts.tensors), default=0),
        largest_packed=max((tensor.numel for tensor in facts.tensors if tensor.is_quantized), default=0),
        stored_bytes=facts.weight_bytes,
        trainable_bytes=facts.trainable_bytes,
        itemsize=compute_itemsize(setting.precision),
        ranks=setting.world_size,
    )


def _always(facts: ModelFacts, setting: MemorySetting, held: Resident) -> dict[str, int]:
    """What is there from the first step to the end."""
    libraries = _LIBRARIES_CPU if setting.device == "cpu" else _CUDA_WORKSPACES
    return {
        "weights": held.weights,
        "weights' file": held.unmapped,
        "optimizer": held.master + held.optimizer,
        "buckets": held.buckets,
        "buffers": facts.buffer_bytes,
        "libraries": libraries,
    }


def _loading(facts: ModelFacts, setting: MemorySetting, held: Resident) -> dict[str, int]:
    libraries = _LIBRARIES_CPU if setting.device == "cpu" else 0
    return {"weights": held.loading, "buffers": facts.buffer_bytes, "libraries": libraries}


def _training(facts: ModelFacts, setting: MemorySetting, held: Resident, always: dict[str, int]) -> dict[str, int]:
    """The worse of the backward pass and the optimizer's step."""
    rows, fresh, gathered = setting.micro_batch_size, 0, held.gathered
    if held.keeps_gradients:
        peak, where = facts.training_peak(rows, gradients="fresh")
        fresh = max(0, peak - where.resident.at(rows))
    else:

        def gathered_in(stretch: Stretch) -> int:
            return _gathered(facts, held, stretch)

        peak, where = facts.training_peak(rows, gradients="resident", copies=held.gradient_copies, beside=gathered_in)
        gathered = gathered_in(where)
    kept = min(facts.kept_by_blocks.at(rows), peak - fresh)
    backward = {
        "gradients": held.gradients + fresh,
        "gathered weights": gathered,
        "unpacked weights": held.unpacked,
        "activations": kept,
        "logits, loss and temporary tensors": peak - fresh - kept,
        "batch": facts.batch.at(rows),
    }
    step = {"gradients": held.gradients, "step": held.step}
    worse = backward if sum(backward.values()) >= sum(step.values()) else step
    return {**always, **worse}


def _gathered(facts: ModelFacts, held: Resident, stretch: Stretch) -> int:
    """Weights of other ranks in a stretch: those of a block are given up when its backward pass is through."""
    outside = facts.numel - facts.in_blocks
    left = {"backward embeddings": outside, "backward 0.0": outside + facts.largest_block}.get(
        stretch.name, facts.numel
    )
    return min(held.gathered, round(held.gathered * left / max(facts.numel, 1)))


def _evaluation(facts: ModelFacts, setting: MemorySetting, held: Resident, always: dict[str, int]) -> dict[str, int]:
    more = _EVALUATION_LIBRARIES_CPU if setting.device == "cpu" else 0
    return {
        **always,
        "gradients": held.gradients
        if setting.engine in ("deepspeed", "fsdp") and setting.zero_stage in (0, 3, None)
        else 0,
        "gathered weights": held.gathered,
        "unpacked weights": held.unpacked,
        "activations": facts.evaluation_peak(setting.eval_batch_size),
        "libraries": always["libraries"] + more,
    }


def _saving(
    facts: ModelFacts, setting: MemorySetting, held: Resident, always: dict[str, int], sizes: Sizes, *, async_save: bool
) -> dict[str, int]:
    """Weights of other ranks are gathered, or DeepSpeed copies them; with adapters, they are merged into new weights."""
    parts = {**always, "gradients": held.gradients if setting.zero_stage == 3 else 0, "copies": held.saving}
    if setting.device == "cpu":
        parts["merged weights"] = facts.adapted_bytes
    if async_save and setting.device == "cpu":
        parts["copies"] += held.weights + held.optimizer
    return parts


def _with_fragments(parts: dict[str, int]) -> dict[str, int]:
    return {**parts, "fragments": round(_CUDA_FRAGMENTS * sum(parts.values()))}


def _base(setting: MemorySetting) -> int:
    """What a GPU holds before a model is there; on the processor a process's base is not counted."""
    if setting.device == "cpu":
        return 0
    return _CUDA_CONTEXT + (_NCCL_BUFFERS if setting.world_size > 1 else 0)


# --- a recipe's estimates --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _TraceKey:
    phase: int
    length: int
    eval_length: int
    checkpointing: bool
    compute: str
    device: str


class MemoryPlanner:
    """Estimates for one recipe, whose model is traced once for each length, precision and checkpointing that are asked for."""

    def __init__(
        self, recipe: Recipe, task: Any, prepared: Any, phases: Sequence[Phase], *, skeleton: Any = None
    ) -> None:
        """Take a recipe's task, data (or None) and phases; ``skeleton``: the task's model on the meta device, if it is there."""
        self._recipe, self._task, self._prepared = recipe, task, prepared
        self._phases = _unlike(phases)
        self._skeleton = skeleton
        self._facts: dict[_TraceKey, ModelFacts] = {}

    def estimate(self, setting: MemorySetting) -> MemoryEstimate:
        """Return the estimate of the phase that needs most."""
        save = self._recipe.training.async_save
        found = [
            estimate_memory(self.facts(setting, phase=number), setting, async_save=save)
            for number in range(len(self._phases))
        ]
        return max(found, key=lambda estimate: estimate.peak)

    def floor(self, setting: MemorySetting) -> MemoryEstimate:
        """Return the estimate without what a step makes, which takes no trace: a setting needs at least so much."""
        return max((estimate_memory(facts, setting) for facts in self._untraced), key=lambda estimate: estimate.peak)

    @functools.cached_property
    def _untraced(self) -> tuple[ModelFacts, ...]:
        return tuple(untraced_facts(self._recipe, phase, self.skeleton) for phase in self._phases)

    @functools.cached_property
    def skeleton(self) -> Any:
        """The task's model on the meta device."""
        return self._skeleton or self._task.build_model(self._prepared, skeleton=True)

    def facts(self, setting: MemorySetting, *, phase: int = 0) -> ModelFacts:
        """Return the facts of a phase; those of any number of rows are the same."""
        key = _TraceKey(
            phase,
            setting.held_length,
            setting.eval_length,
            setting.activation_checkpointing,
            compute_of(setting),
            setting.device,
        )
        if key not in self._facts:
            self._facts[key] = trace(
                self._recipe, self._task, self._prepared, self._phases[phase],
                setting=setting, skeleton=self.skeleton, untraced=self._untraced[phase], evaluation=self._evaluation(key),
            )  # fmt: skip
        return self._facts[key]

    def _evaluation(self, key: _TraceKey) -> tuple[Stretch, ...] | None:
        """Return what is known of an evaluation's batch, in which nothing is checkpointed and training rows do not matter."""
        like = replace(key, checkpointing=not key.checkpointing)
        return self._facts[like].evaluation if like in self._facts else None


def _unlike(phases: Sequence[Phase]) -> tuple[Phase, ...]:
    """Return the phases that differ in what trains; of those that only add to what trains, the last one needs most."""
    found: dict[tuple[Any, ...], Phase] = {}
    for phase in phases:
        names = frozenset(name for group in phase.table.trainable for name in group.parameters)
        adapters = phase.adapters
        found[(names, tuple(sorted(adapters.ranks.items())) if adapters else None)] = phase
    kept = dict(found)
    for names, ranks in found:
        if any(names < other and ranks == same for other, same in found):
            del kept[(names, ranks)]
    return tuple(replace(phase) for phase in kept.values())
