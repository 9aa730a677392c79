"""What a run needs and how long it takes, from its plan, a memory estimate and a machine: all numbers that ``plan`` shows."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any

from launcher.contracts import Parameter, Prepared
from launcher.data.token_batches import MULTIPLE
from launcher.launching.launch_plan import plan_launch
from launcher.planning.disk import DiskNeed, disk_need
from launcher.planning.fitting import (
    Capacity,
    Estimate,
    Fit,
    changed_keys,
    check,
    choose_sharding,
    describe_setting,
    largest_micro_batch,
    plainest,
    ranks_needed,
    slowdown,
    smallest_fit,
)
from launcher.planning.gpus import GpuSpec, spec_of
from launcher.planning.throughput import (
    CPU_UTILISATION,
    GPU_UTILISATION,
    Duration,
    Speed,
    duration,
    estimated_speed,
    flops_per_token,
    work_of,
)
from launcher.planning.token_budget import settle_batch
from launcher.plans import Hardware, LaunchPlan, MemorySetting, RunPlan
from launcher.recipe.deepspeed_file import stage_of
from launcher.recipe.optimizer_keys import DEFAULT_OPTIMIZER
from launcher.recipe.schema import Recipe
from launcher.recipe.task_options import IMAGE_TASKS

# --- the setting of a recipe -----------------------------------------------------------------------------------------


def memory_setting(recipe: Recipe, launch: LaunchPlan, prepared: Prepared) -> MemorySetting:
    """Return what of a run decides its memory: its largest batch, of its longest rows."""
    multiple = 1 if recipe.task.type in IMAGE_TASKS else MULTIPLE
    training = recipe.training
    longest = _longest(prepared, "train")
    changes = [change.global_batch_size for change in training.batch_size_schedule or []]
    largest = max([training.step_size, *changes])
    batch = settle_batch(recipe, launch.batch, prepared)
    if largest != batch.global_batch_size:
        batch = _batch(recipe, launch, largest)
    budget = batch.budget
    evaluated = [_longest(prepared, name) for name in ("validation", "test")]
    return MemorySetting(
        engine=launch.engine,
        zero_stage=launch.zero_stage,
        offload=launch.offload,
        precision=launch.precision,
        device=launch.device,
        world_size=launch.world_size,
        # No shape of a batch takes more than as many tokens in the longest rows.
        micro_batch_size=-(-budget.held_tokens // budget.longest) if budget else batch.micro_batch_size,
        accumulation=batch.accumulation,
        length=_rounded_up(longest, multiple),
        activation_checkpointing=training.activation_checkpointing,
        eval_batch_size=training.per_device_eval_batch_size,
        eval_length=_rounded_up(max(evaluated) or longest, multiple),
        optimizer=str(training.passthrough.get("optim") or DEFAULT_OPTIMIZER),
        is_by_tokens=budget is not None,
        shared_by=launch.sequence_parallel_size,
    )


def _batch(recipe: Recipe, launch: LaunchPlan, size: int) -> Any:
    from launcher.launching.batch import plan_batch

    return plan_batch(
        global_batch_size=size,
        world_size=launch.batch.world_size,
        cap=recipe.training.per_device_train_batch_size,
        multiple_of=launch.sequence_parallel_size,
    )


def _longest(prepared: Prepared, name: str) -> int:
    """Return the tokens of a split's longest row; where rows are unknown, as many as a row may have."""
    split = getattr(prepared, name)
    if split is None:
        return 0
    if not len(split):
        return int(prepared.facts["row_tokens"])
    if name == "train" and prepared.stream is not None:
        return int(prepared.facts["max_length"])
    return int(max(split["length"][:]))


def _rounded_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def capacity_of(hardware: Hardware, launch: LaunchPlan, *, available: int | None = None) -> Capacity:
    """Return the memory of one rank: of the smallest GPU, or a share of the machine's.

    Args:
        available: bytes of this machine's memory that are free now; None: another machine, all of its memory counts.
    """
    here = min(hardware.memory_bytes, available if available is not None else hardware.memory_bytes)
    share = here // launch.processes_per_node
    if launch.device == "cpu":
        return Capacity(share)
    device = min(gpu.memory_bytes for gpu in hardware.gpus)
    return Capacity(device, host_bytes=share if hardware.memory_bytes else None)


# --- what engine: auto uses ------------------------------------------------------------------------------------------


def is_left_to_us(recipe: Recipe) -> bool:
    """Whether sharding is ours to choose: the recipe names no engine, stage, offload or DeepSpeed file."""
    return recipe.distributed.engine == "auto" and stage_of(recipe.distributed) is None


def with_sharding(recipe: Recipe, setting: MemorySetting) -> Recipe:
    """Return the recipe with the engine and the stage of a setting."""
    chosen = {"engine": setting.engine, "zero_stage": setting.zero_stage}
    return recipe.model_copy(update={"distributed": recipe.distributed.model_copy(update=chosen)})


def decide(
    recipe: Recipe, hardware: Hardware, setting: MemorySetting, estimate: Estimate, capacity: Capacity
) -> Recipe:
    """Return the recipe with the sharding that ``engine: auto`` takes; as it is where that is the plain one, or none fits.

    Raises:
        InstallationError: what it takes cannot run on this machine.
    """
    if not is_left_to_us(recipe):
        return recipe
    found = choose_sharding(estimate, setting, capacity)
    if found is None or found.setting == setting:
        return recipe
    decided = with_sharding(recipe, found.setting)
    plan_launch(decided, hardware)
    return decided


# --- everything ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MemoryForecast:
    """Whether a run fits, and what else would."""

    asked: Fit
    """The recipe as written, with what ``engine: auto`` took."""
    smallest: Fit | None
    """The cheapest setting that fits, from the plainest on."""
    remedy: Fit | None
    """Where it does not fit: the cheapest change that does."""
    more: Fit | None
    """Where it does not fit: a setting on more ranks that does, without offloading."""
    largest_micro_batch: int
    """Most rows at a time, all else as asked; 0: none."""


@dataclass(frozen=True)
class Forecast:
    """What a run needs and how long it takes."""

    memory: MemoryForecast
    time: Duration | None
    """None: the number of steps is not known, or the speed of the device."""
    speed: Speed | None
    flops_per_token: float
    disk: DiskNeed


def forecast_memory(
    estimate: Estimate, setting: MemorySetting, capacity: Capacity, *, allowed: Any = lambda setting: True
) -> MemoryForecast:
    """Return whether a setting fits and what else would; ``allowed``: whether the recipe could be changed to a setting."""
    asked = check(estimate, setting, capacity)
    smallest = smallest_fit(estimate, plainest(setting), capacity, allowed=allowed)
    return MemoryForecast(
        asked=asked,
        smallest=smallest,
        remedy=None if asked.fits else smallest_fit(estimate, setting, capacity, allowed=allowed),
        more=None if asked.fits or setting.device == "cpu" else ranks_needed(estimate, setting, capacity),
        largest_micro_batch=largest_micro_batch(estimate, setting, capacity),
    )


def forecast(
    recipe: Recipe,
    plan: RunPlan,
    memory: MemoryForecast,
    *,
    config: Any,
    parameters: tuple[Parameter, ...],
    hardware: Hardware,
    known: Speed | None = None,
    cpu_flops: float | None = None,
) -> Forecast:
    """Return everything that is known of a run.

    Args:
        config: the model's configuration, for the shape of its attention.
        known: a measured or stated speed; None: estimated.
        cpu_flops: FLOP/s of a large matrix product on this machine's processor, all cores together.
    """
    setting = memory.asked.setting
    flops, tokens = _flops_and_tokens(plan, setting, config=config, parameters=parameters)
    # What a weight of an image model is multiplied with, and how often, does not follow from its shape.
    estimated = None if recipe.task.type in IMAGE_TASKS else _estimated
    speed = known or (estimated and estimated(flops, plan.launch, setting, hardware=hardware, cpu_flops=cpu_flops))
    tables = [planned.phase.table for planned in plan.phases]
    return Forecast(
        memory=memory,
        time=duration(tokens, speed, ranks=plan.launch.world_size) if tokens is not None and speed else None,
        speed=speed,
        flops_per_token=flops,
        disk=disk_need(
            recipe,
            plan.launch,
            total_numel=max(table.total_numel for table in tables),
            trainable_numel=max(table.trainable_numel for table in tables),
            has_adapters=any(planned.phase.adapters is not None for planned in plan.phases),
            carries=len({planned.phase.name for planned in plan.phases}) > 1,
        ),
    )


def _flops_and_tokens(
    plan: RunPlan, setting: MemorySetting, *, config: Any, parameters: tuple[Parameter, ...]
) -> tuple[float, int | None]:
    """Return operations of a token on average over the phases, and the tokens of the run (None where they are unknown)."""
    tied = any("head" in parameter.also for parameter in parameters)
    layers = int(getattr(config, "num_hidden_layers", 0) or 0)
    heads = int(getattr(config, "num_attention_heads", 0) or 0)
    hidden = int(getattr(config, "hidden_size", 0) or 0)
    width = heads * int(getattr(config, "head_dim", 0) or 0) or hidden
    mean = mean_length(plan, setting)
    total_flops = total_rows = 0.0
    for planned in plan.phases:
        work = work_of(planned.phase.table, layers=layers, width=width, tied=tied)
        rows = planned.steps * planned.batch.mean_rows(plan.train_rows)
        each = flops_per_token(work, length=round(mean), checkpointing=setting.activation_checkpointing)
        total_flops += rows * each
        total_rows += rows
    return total_flops / total_rows, round(total_rows * mean) if plan.knows_steps else None


def mean_length(plan: RunPlan, setting: MemorySetting) -> float:
    """Return the mean tokens of a row that is drawn in training; where rows are unknown, as many as a row may have."""
    split = plan.facts.get("mixture") or plan.facts["splits"].get("train", {})
    return split["tokens"] / split["rows"] if split.get("rows") and "tokens" in split else float(setting.length)


def _estimated(
    flops: float, launch: LaunchPlan, setting: MemorySetting, *, hardware: Hardware, cpu_flops: float | None
) -> Speed | None:
    # Recomputation is in the operations already.
    slower = slowdown(replace(setting, activation_checkpointing=False))
    if launch.device == "cpu":
        if cpu_flops is None:
            return None
        note = f"{CPU_UTILISATION:.0%} of {cpu_flops / 1e9:,.0f} GFLOP/s, one matrix product on this machine"
        peak = cpu_flops / launch.processes_per_node
        return estimated_speed(flops, peak=peak, ranks=launch.world_size, utilisation=CPU_UTILISATION, note=note)
    spec = spec_of(hardware.gpus[0])
    if spec is None:
        return None
    peak = spec.peak(launch.precision)
    note = f"{GPU_UTILISATION / slower:.0%} of {peak / 1e12:,.0f} TFLOP/s ({launch.precision}, {spec.name})"
    return estimated_speed(
        flops, peak=peak, ranks=launch.world_size, utilisation=GPU_UTILISATION, slowdown=slower, note=note
    )


# --- words and JSON --------------------------------------------------------------------------------------------------


def gib(count: float) -> str:
    """Return bytes as a person reads them."""
    if count >= 2**30:
        return f"{count / 2**30:,.1f} GiB"
    return f"{count / 2**20:,.0f} MiB" if count >= 2**20 else f"{count / 2**10:,.0f} KiB"


def refusal(memory: MemoryForecast, *, gpu: GpuSpec | None = None, device_name: str = "") -> str:
    """Return why a run cannot start, with the cheapest change that would make it fit: one line."""
    asked = memory.asked
    name = gpu.name if gpu else device_name
    if asked.fits_device:
        have = asked.capacity.host_usable or 0
        text = f"what is offloaded needs {gib(asked.host_needed)} of the machine's memory for each rank, and {gib(have)} may be used"
    else:
        where = (
            f"on each of {asked.setting.world_size} {name}" if asked.setting.device == "cuda" else "for each process"
        )
        text = (
            f"this run needs {gib(asked.needed)} {where} ({asked.moment}), and {gib(asked.capacity.usable)} of "
            f"{gib(asked.capacity.device_bytes)} may be used ({asked.capacity.headroom:.0%} head-room)"
        )
    return f"{text}; {_cures(memory, name=name)}"


def _cures(memory: MemoryForecast, *, name: str) -> str:
    asked, found = memory.asked, []
    if memory.remedy is not None:
        keys = " ".join(changed_keys(asked.setting, memory.remedy.setting))
        factor = slowdown(memory.remedy.setting) / slowdown(asked.setting)
        costs = [f"{gib(memory.remedy.needed)}"]
        if memory.remedy.host_needed:
            costs.append(f"{gib(memory.remedy.host_needed)} of the machine's memory for each rank")
        if factor > 1.1:
            costs.append(f"a step takes roughly {factor:.1f} times as long")
        found.append(f"the cheapest change that fits: {keys} ({', '.join(costs)})")
    if memory.more is not None:
        more = memory.more.setting
        found.append(f"or {more.world_size} {name} with {describe_setting(more)} ({gib(memory.more.needed)} each)")
    if not found:
        return (
            "no sharding, offloading, checkpointing or micro-batch makes it fit: take a smaller model or data.max_length, "
            "strategy.type=lora, or devices with more memory"
        )
    return "; ".join(found).removeprefix("or ")


def fit_json(fit: Fit | None) -> dict[str, Any] | None:
    """Return a fit as plain values."""
    if fit is None:
        return None
    return {
        "setting": asdict(fit.setting),
        "moments": {moment: dict(parts) for moment, parts in fit.estimate.moments.items()},
        "host_moments": {moment: dict(parts) for moment, parts in fit.estimate.host_moments.items()},
        "base": fit.estimate.base,
        "peak_moment": fit.moment,
        "needed": fit.needed,
        "usable": fit.capacity.usable,
        "device_bytes": fit.capacity.device_bytes,
        "headroom": fit.capacity.headroom,
        "host_needed": fit.host_needed,
        "host_usable": fit.capacity.host_usable,
        "fits": fit.fits,
    }


def forecast_json(found: Forecast) -> dict[str, Any]:
    """Return a forecast as plain values; bytes, seconds, tokens."""
    memory, time, disk = found.memory, found.time, found.disk
    asked = memory.asked.setting
    return {
        "memory": {
            **(fit_json(memory.asked) or {}),
            "smallest": fit_json(memory.smallest),
            "remedy": fit_json(memory.remedy),
            "remedy_keys": list(changed_keys(asked, memory.remedy.setting)) if memory.remedy else None,
            "more_ranks": fit_json(memory.more),
            "largest_micro_batch": memory.largest_micro_batch,
        },
        "time": None
        if time is None or not math.isfinite(time.seconds)
        else {"tokens": time.tokens, "seconds": time.seconds, "device_hours": time.device_hours},
        "speed": asdict(found.speed) if found.speed else None,
        "flops_per_token": found.flops_per_token,
        "disk": {**asdict(disk), "checkpoint": disk.checkpoint, "total": disk.total},
    }
