"""The plan of a run, as plain values: the machine, processes and batches, and the phases with their places.

Nothing here imports torch. What trains in a phase is in contracts.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from launcher.contracts import Phase, Probe

Engine = Literal["single", "ddp", "deepspeed", "fsdp"]
Precision = Literal["fp32", "tf32", "bf16", "fp16", "fp8"]
Offload = Literal["none", "optimizer", "all"]


@dataclass(frozen=True)
class Gpu:
    """One graphics card, as its driver reports it."""

    name: str
    memory_bytes: int
    compute_capability: float


@dataclass(frozen=True)
class Hardware:
    """What this machine has, found without torch."""

    gpus: tuple[Gpu, ...]
    cpu_count: int
    """Cores that this process may use."""
    memory_bytes: int
    cpu_has_fast_bf16: bool
    """Whether the processor computes bf16 faster than fp32: measured once, or told from its instructions (AVX512-BF16, AMX)."""
    has_cxx_compiler: bool = True
    """Whether operations that are built on first use can be."""
    has_libaio: bool = True
    """Whether libaio and its headers are here, with which DeepSpeed offloads to nvme."""


@dataclass(frozen=True)
class TokenBudget:
    """Batches that are bounded by tokens (training.tokens_per_batch); all but ``tokens`` is known once the rows are."""

    tokens: int
    """Most padded tokens of a step: rows times the longest of them, as the collator pads."""
    batches: int = 0
    """Of an epoch: its steps."""
    least_rows: int = 0
    """Rows of the smallest batch."""
    most_rows: int = 0
    """Rows of the largest one."""
    longest: int = 0
    """Tokens of the longest row, padded."""
    held_tokens: int = 0
    """Most padded tokens that a rank holds at a time."""


@dataclass(frozen=True)
class BatchPlan:
    """How one optimizer step's rows are spread: ``world * micro * accumulation >= global_batch_size``.

    With a token budget steps have different numbers of rows. What epochs, phases and places are counted in is then not rows but
    the batches that were composed before, of which a step has one: ``global_batch_size`` is 1.
    """

    global_batch_size: int
    world_size: int
    micro_batch_size: int
    """Most rows that a rank holds at a time."""
    accumulation: int
    budget: TokenBudget | None = None

    def units(self, rows: int) -> int:
        """Return what an epoch of ``rows`` rows has of what ``global_batch_size`` counts."""
        return rows if self.budget is None else self.budget.batches

    def mean_rows(self, rows: int) -> float:
        """Return the rows of a step, where an epoch has ``rows``; with a token budget their mean."""
        return float(self.global_batch_size) if self.budget is None else rows / max(1, self.budget.batches)

    @property
    def step(self) -> str:
        """What a step has at most, in words."""
        return f"{self.global_batch_size:,} rows" if self.budget is None else f"up to {self.budget.tokens:,} tokens"

    @property
    def held_rows(self) -> str:
        """The rows that a rank holds at a time, in words."""
        return f"{self.micro_batch_size:,}" if self.budget is None else f"up to {self.micro_batch_size:,}"

    @property
    def spread(self) -> str:
        """How a step is spread, in words."""
        words = (
            f"{self.step} a step = {self.world_size} process(es) x {self.held_rows} rows x {self.accumulation} pass(es)"
        )
        if self.budget is not None:
            words += f"; {self.budget.least_rows:,} to {self.budget.most_rows:,} rows a step, {self.budget.batches:,} steps an epoch"
        return words

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> BatchPlan:
        """Read back what ``dataclasses.asdict`` wrote."""
        budget = values.get("budget")
        return cls(**{**values, "budget": TokenBudget(**budget) if budget else None})


@dataclass(frozen=True)
class LaunchPlan:
    """What the front half decides, without torch, and every rank asserts at its start."""

    engine: Engine
    zero_stage: int | None
    precision: Precision
    device: Literal["cpu", "cuda"]
    nodes: int
    processes_per_node: int
    batch: BatchPlan
    offload: Offload = "none"
    offload_device: Literal["cpu", "nvme"] = "cpu"
    sequence_parallel_size: int = 1
    tensor_parallel_size: int = 1

    @property
    def world_size(self) -> int:
        """Processes in all; ``batch.world_size`` of them, or of groups of them, hold rows of their own."""
        return self.nodes * self.processes_per_node

    @property
    def half(self) -> Literal["bf16", "fp16"] | None:
        """The 16-bit format that most of the computation is in; None: 32 bits."""
        if self.precision in ("bf16", "fp8"):
            return "bf16"
        return "fp16" if self.precision == "fp16" else None

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> LaunchPlan:
        """Read back what ``dataclasses.asdict`` wrote."""
        return cls(**{**values, "batch": BatchPlan.from_json(values["batch"])})


@dataclass(frozen=True)
class MemorySetting:
    """What of a run decides the memory of one rank, beside its model and what of it trains."""

    engine: Engine
    zero_stage: int | None
    offload: Offload
    precision: Precision
    device: Literal["cpu", "cuda"]
    world_size: int
    micro_batch_size: int
    accumulation: int
    length: int
    """Tokens of the longest row of a training batch, padded as the collator pads."""
    activation_checkpointing: bool
    eval_batch_size: int
    eval_length: int
    """Tokens of the longest row of an evaluation batch."""
    optimizer: str
    """Name as in ``training.optim``."""
    is_by_tokens: bool = False
    """Whether tokens bound a step: ``micro_batch_size`` then counts rows of ``length`` tokens, of which shorter ones are as many more."""
    shared_by: int = 1
    """Ranks that share the tokens of a training row; in an evaluation each has rows of its own."""

    @property
    def held_length(self) -> int:
        """Tokens that a rank has of the longest row of a training batch."""
        return -(-self.length // self.shared_by)


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes of one rank's memory: for each moment of a run, its parts by name. Base is not among them."""

    moments: Mapping[str, Mapping[str, int]]
    """``loading``, ``training``, ``evaluation``, ``saving`` -> part (weights, gradients, optimizer, activations, ...) -> bytes."""
    host_moments: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """The same for the machine's memory, where weights or optimizer are offloaded to it; of one rank."""
    base: int = 0
    """What the process or the device holds before a model is built."""

    @property
    def peak(self) -> int:
        """Most bytes above ``base`` at any moment."""
        return max(sum(parts.values()) for parts in self.moments.values())

    @property
    def peak_moment(self) -> str:
        """The moment of the peak."""
        return max(self.moments, key=lambda moment: sum(self.moments[moment].values()))


@dataclass(frozen=True)
class PlannedPhase:
    """A phase with its place in the run: which steps, which rows, which batch. One of its batches is one optimizer step.

    With a token budget what counts as rows here are the batches of an epoch (``BatchPlan.units``).
    """

    phase: Phase
    first_step: int
    """Optimizer steps of the run before it."""
    steps: int
    batch: BatchPlan
    rows: int
    """Training rows of an epoch."""
    epoch: int = 0
    """Epoch in which it begins, from 0."""
    rows_done: int = 0
    """Rows of that epoch that earlier phases have used."""
    epoch_batch_size: int = 0
    """Global batch size with which that epoch began: its order of rows was made for it."""

    @property
    def last_step(self) -> int:
        """The step with which it ends."""
        return self.first_step + self.steps

    def position(self, step: int) -> tuple[int, int]:
        """Return (epoch, rows of it that are used) after ``step``, a step of the run that lies in this phase."""
        size, done = self.batch.global_batch_size, step - self.first_step
        rest_of_epoch = -(-(self.rows - self.rows_done) // size)
        if done < rest_of_epoch:
            return self.epoch, self.rows_done + done * size
        full, more = divmod(done - rest_of_epoch, -(-self.rows // size))
        return self.epoch + 1 + full, more * size

    def used(self, step: int) -> int:
        """Return the rows of the run that are used after ``step``, a step of the run that lies in the phase."""
        epoch, rows = self.position(step)
        return epoch * self.rows + rows

    def epochs_at(self, step: int) -> float:
        """Return how many epochs are done after ``step``; whole exactly where an epoch ends."""
        epoch, rows = self.position(step)
        return epoch + rows / self.rows


@dataclass(frozen=True)
class RunPlan:
    """Everything about a run that is known before its first step."""

    launch: LaunchPlan
    phases: tuple[PlannedPhase, ...]
    train_rows: int
    """Training rows of an epoch."""
    steps_per_epoch: int
    """Steps of the first epoch."""
    total_steps: int
    warmup_steps: int
    probe: Probe | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    """Fingerprints, revisions, counts: what the report and the trackers show."""

    @property
    def unread(self) -> str:
        """Why the rows could not be read, which a preview may do without; "" where they were."""
        return str(self.facts.get("unread", ""))

    @property
    def knows_steps(self) -> bool:
        """Whether the number of steps is known: from the rows, or set by the recipe."""
        return not self.unread or bool(self.facts.get("steps_are_set"))

    @property
    def is_streamed(self) -> bool:
        """Whether nobody has counted the rows of train: epochs are not known then."""
        return "stream" in self.facts

    def to_json(self) -> dict[str, Any]:
        """Return plain values for plan.json."""
        return {**asdict(self), "facts": dict(self.facts)}


def told_rows(facts: Mapping[str, Any]) -> str:
    """Return how many rows each split has in words; of train, where it is streamed, those of the sample."""
    sample = {"train": "a sample of "} if "stream" in facts else {}
    return ", ".join(f"{sample.get(n, '')}{s['rows']:,} {n}" for n, s in facts["splits"].items()) + " rows"
