"""Whether a run fits into memory, and which setting does: a search over memory estimates, cheapest setting first.

What saves memory costs time. ``slowdown`` says how much, as a factor on the time of a step; it only has to be right about
the order. Sharding of optimizer state and gradients moves as much data between ranks as data parallelism does, and sharding
of weights half as much again (ZeRO: Rajbhandari et al. 2020, arXiv:1910.02054, section 7); checkpointing adds one forward
pass to a step of one forward and a backward of two (Chen et al. 2016, arXiv:1604.06174). What offloading and smaller
micro-batches cost depends on the machine: assumed here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from launcher.plans import Engine, MemoryEstimate, MemorySetting, Offload

Estimate = Callable[[MemorySetting], MemoryEstimate]

HEADROOM = 0.08
"""Share of a device's memory that a plan leaves free: fragmentation, communication buffers, and what an estimate misses."""

_STAGE_SLOWDOWN = {None: 1.0, 0: 1.0, 1: 1.01, 2: 1.02, 3: 1.15}
_OFFLOAD_SLOWDOWN: dict[Offload, float] = {"none": 1.0, "optimizer": 1.6, "all": 2.2}
_CHECKPOINTING_SLOWDOWN = 4 / 3
_HALVING_SLOWDOWN = 1.05

MOST_ROWS = 4096
"""Micro-batches are not looked for beyond this."""
_MOST_RANKS = 4096


@dataclass(frozen=True)
class Capacity:
    """The memory that one rank may use."""

    device_bytes: int
    """Of its GPU; on CPU its share of the machine's memory."""
    host_bytes: int | None = None
    """Its share of the machine's memory, for what is offloaded; None: not known, so not held against a setting."""
    headroom: float = HEADROOM

    @property
    def usable(self) -> int:
        """Bytes of the device that a plan may fill."""
        return int(self.device_bytes * (1 - self.headroom))

    @property
    def host_usable(self) -> int | None:
        """Bytes of the machine's memory that a plan may fill."""
        return None if self.host_bytes is None else int(self.host_bytes * (1 - self.headroom))


@dataclass(frozen=True)
class Fit:
    """A setting, what it needs, and whether that is there."""

    setting: MemorySetting
    estimate: MemoryEstimate
    capacity: Capacity

    @property
    def needed(self) -> int:
        """Bytes of the device at the worst moment, with what it holds before a model is built."""
        return self.estimate.base + max(self._at(moment) for moment in self.estimate.moments)

    @property
    def moment(self) -> str:
        """The worst moment."""
        return max(self.estimate.moments, key=self._at)

    def _at(self, moment: str) -> int:
        total = sum(self.estimate.moments[moment].values())
        if self.setting.device == "cpu":
            # Offloading to where everything lies anyway frees nothing.
            total += sum(self.estimate.host_moments.get(moment, {}).values())
        return total

    @property
    def host_needed(self) -> int:
        """Bytes of the machine's memory for what is offloaded, of this rank, at the worst moment; 0 on CPU."""
        if self.setting.device == "cpu":
            return 0
        return max((sum(parts.values()) for parts in self.estimate.host_moments.values()), default=0)

    @property
    def fits_device(self) -> bool:
        """Whether the device suffices."""
        return self.needed <= self.capacity.usable

    @property
    def fits(self) -> bool:
        """Whether device and machine suffice."""
        host = self.capacity.host_usable
        return self.fits_device and (host is None or self.host_needed <= host)


def check(estimate: Estimate, setting: MemorySetting, capacity: Capacity) -> Fit:
    """Return whether a setting fits."""
    return Fit(setting, estimate(setting), capacity)


def _with_room_to_evaluate(estimate: Estimate, setting: MemorySetting, capacity: Capacity) -> Fit:
    """Return whether a setting fits, with as many rows of an evaluation batch as leave room: that costs next to nothing."""
    found = check(estimate, setting, capacity)
    while not found.fits and found.moment == "evaluation" and found.setting.eval_batch_size > 1:
        fewer = replace(found.setting, eval_batch_size=found.setting.eval_batch_size // 2)
        found = check(estimate, fewer, capacity)
    return found


# --- settings and what they cost -------------------------------------------------------------------------------------


def slowdown(setting: MemorySetting) -> float:
    """Return the time of a step over that of plain data parallelism without checkpointing; micro-batches are left out."""
    stage = 3 if setting.engine == "fsdp" else setting.zero_stage
    checkpointing = _CHECKPOINTING_SLOWDOWN if setting.activation_checkpointing else 1.0
    return _sharding_slowdown(stage, setting.offload) * checkpointing


def _sharding_slowdown(stage: int | None, offload: Offload) -> float:
    return _STAGE_SLOWDOWN[stage] * _OFFLOAD_SLOWDOWN[offload]


def plainest(setting: MemorySetting) -> MemorySetting:
    """Return the setting without anything that saves memory; the micro-batch stays."""
    engine: Engine = "ddp" if setting.world_size > 1 else "single"
    return replace(setting, engine=engine, zero_stage=None, offload="none", activation_checkpointing=False)


def with_micro_batch(setting: MemorySetting, rows: int) -> MemorySetting:
    """Return the setting with at most ``rows`` rows at a time and as many rows a step: accumulation makes up for it."""
    share = setting.micro_batch_size * setting.accumulation
    accumulation = math.ceil(share / rows)
    return replace(setting, micro_batch_size=math.ceil(share / accumulation), accumulation=accumulation)


def _shardings(setting: MemorySetting, *, offloading: bool) -> Iterator[MemorySetting]:
    """Yield the setting itself, and it with everything that shards or offloads more, the cheapest first.

    One rank has none to share with, and a processor nothing to offload to.
    """
    yield setting
    offloads = offloading and setting.device == "cuda"
    if setting.world_size == 1:
        # The stage of one rank matters only in that DeepSpeed offloads weights in stage 3 alone.
        away: list[tuple[int, Offload]] = [(setting.zero_stage or 2, "optimizer"), (3, "all")]
        stages = away if offloads else []
    else:
        stages = [(1, "none"), (2, "none"), (3, "none")]
        stages += [(2, "optimizer"), (3, "optimizer"), (3, "all")] if offloads else []
    own = _sharding_slowdown(3 if setting.engine == "fsdp" else setting.zero_stage, setting.offload)
    for stage, offload in stages:
        if _sharding_slowdown(stage, offload) > own:
            yield replace(setting, engine="deepspeed", zero_stage=stage, offload=offload)


def _micro_batches(setting: MemorySetting) -> Iterator[tuple[MemorySetting, float]]:
    """Yield the setting and it with ever smaller micro-batches, with what they cost."""
    rows, cost = setting.micro_batch_size, 1.0
    while True:
        yield with_micro_batch(setting, rows), cost
        if rows == 1:
            return
        rows, cost = rows // 2, cost * _HALVING_SLOWDOWN


def _candidates(setting: MemorySetting, *, offloading: bool) -> list[list[tuple[float, MemorySetting]]]:
    """Return cost and setting of everything that saves more than ``setting``, in groups that differ in their rows alone."""
    groups = []
    for sharding in _shardings(setting, offloading=offloading):
        for checkpointing in sorted({setting.activation_checkpointing, True}):
            base = replace(sharding, activation_checkpointing=checkpointing)
            groups.append([(slowdown(base) * cost, one) for one, cost in _micro_batches(base)])
    return groups


# --- searching -------------------------------------------------------------------------------------------------------


def smallest_fit(
    estimate: Estimate,
    setting: MemorySetting,
    capacity: Capacity,
    *,
    offloading: bool = True,
    allowed: Callable[[MemorySetting], bool] = lambda setting: True,
) -> Fit | None:
    """Return the cheapest setting that fits, of ``setting`` and all that save more memory; None where none does.

    Every one computes the same: as many rows a step, from as many ranks. They are tried in the order of ``slowdown``,
    equal ones in the order: sharding, micro-batch. Where only an evaluation does not fit, its batch is made smaller first.

    Args:
        offloading: whether optimizer state and weights may leave the device.
        allowed: whether the run could use a setting at all; asked last.
    """
    first = _with_room_to_evaluate(estimate, setting, capacity)
    if first.fits and allowed(first.setting):
        return first
    # With one row a group needs least, so a group that does not fit then is left out whole.
    groups = [
        group
        for group in _candidates(setting, offloading=offloading)
        if _with_room_to_evaluate(estimate, group[-1][1], capacity).fits and allowed(group[-1][1])
    ]
    for _, candidate in sorted((pair for group in groups for pair in group), key=lambda pair: pair[0]):
        found = _with_room_to_evaluate(estimate, candidate, capacity)
        if found.fits and allowed(found.setting):
            return found
    return None


def choose_sharding(estimate: Estimate, setting: MemorySetting, capacity: Capacity) -> Fit | None:
    """Return what ``engine: auto`` uses: plain data parallelism where it fits, else the first ZeRO stage that does.

    Rows, checkpointing and offloading are the recipe's to choose. None where no stage fits.
    """
    for sharding in _shardings(setting, offloading=False):
        found = check(estimate, sharding, capacity)
        if found.fits:
            return found
    return None


def largest_micro_batch(estimate: Estimate, setting: MemorySetting, capacity: Capacity) -> int:
    """Return the most rows that fit at a time, all else as in ``setting``; 0 where one does not. At most 4,096."""

    def need(rows: int) -> Fit:
        share = setting.micro_batch_size * setting.accumulation
        return check(estimate, replace(setting, micro_batch_size=rows, accumulation=math.ceil(share / rows)), capacity)

    one = need(1)
    if not one.fits:
        return 0
    fits, fails = 1, MOST_ROWS + 1
    # Memory grows about evenly with the rows: a line through two points is nearly there.
    other = max(2, setting.micro_batch_size)
    slope = (need(other).needed - one.needed) / (other - 1)
    guess = int((capacity.usable - one.needed) / slope) + 1 if slope > 0 else MOST_ROWS
    tried = [guess, guess + 1, guess - 1]
    while fits + 1 < fails:
        rows = next((rows for rows in tried if fits < rows < fails), (fits + fails) // 2)
        if need(rows).fits:
            fits = rows
        else:
            fails = rows
    return fits


def ranks_needed(estimate: Estimate, setting: MemorySetting, capacity: Capacity) -> Fit | None:
    """Return a setting on the fewest ranks (doubling their number) that fits without offloading; None: not on 4,096.

    The rows of a step stay the same; weights, gradients and optimizer state are sharded as far as it needs.
    """
    share = setting.micro_batch_size * setting.accumulation * setting.world_size
    ranks = setting.world_size * 2
    while ranks <= _MOST_RANKS:
        rows = math.ceil(share / ranks)
        micro = min(setting.micro_batch_size, rows)
        more = replace(setting, world_size=ranks, micro_batch_size=micro, accumulation=math.ceil(rows / micro))
        # ZeRO of one rank with offloading becomes plain sharding.
        found = check(estimate, replace(more, engine="deepspeed", zero_stage=3, offload="none"), capacity)
        if found.fits:
            smaller = replace(more, offload="none")
            smaller = smaller if smaller.zero_stage or smaller.engine == "fsdp" else replace(smaller, engine="ddp")
            return choose_sharding(estimate, smaller, capacity)
        ranks *= 2
    return None


# --- words -----------------------------------------------------------------------------------------------------------


def changed_keys(before: MemorySetting, after: MemorySetting) -> tuple[str, ...]:
    """Return what to set so that a recipe that gives ``before`` gives ``after``: ``key=value`` each."""
    keys = []
    if (before.engine, before.zero_stage) != (after.engine, after.zero_stage):
        if before.engine != after.engine:
            keys.append(f"distributed.engine={after.engine}")
        if before.zero_stage != after.zero_stage:
            keys.append(f"distributed.zero_stage={'null' if after.zero_stage is None else after.zero_stage}")
    if before.offload != after.offload:
        keys.append(f"distributed.offload={after.offload}")
    if before.activation_checkpointing != after.activation_checkpointing:
        keys.append(f"training.activation_checkpointing={str(after.activation_checkpointing).lower()}")
    if before.micro_batch_size != after.micro_batch_size:
        tokens = f"training.per_device_train_tokens={after.micro_batch_size * after.length}"
        keys.append(tokens if after.is_by_tokens else f"training.per_device_train_batch_size={after.micro_batch_size}")
    if before.eval_batch_size != after.eval_batch_size:
        keys.append(f"training.per_device_eval_batch_size={after.eval_batch_size}")
    return tuple(keys)


def describe_setting(setting: MemorySetting) -> str:
    """Return the parts of a setting that a search changes, as a person says them."""
    engine = f"ZeRO-{setting.zero_stage}" if setting.zero_stage is not None else setting.engine
    offload = {"none": "", "optimizer": "optimizer offloaded", "all": "weights and optimizer offloaded"}[
        setting.offload
    ]
    checkpointing = "activation checkpointing" if setting.activation_checkpointing else "no activation checkpointing"
    return ", ".join(filter(None, [engine, offload, checkpointing, f"{describe_rows(setting)} at a time"]))


def describe_rows(setting: MemorySetting) -> str:
    """Return what a rank holds at a time: rows, or tokens where they bound a step."""
    if setting.is_by_tokens:
        return f"at most {setting.micro_batch_size * setting.length:,} tokens"
    return f"{setting.micro_batch_size:,} row{'s' if setting.micro_batch_size != 1 else ''}"
