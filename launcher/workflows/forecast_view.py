"""What a forecast says, as lines and table rows for people: pure functions for ``launcher plan``."""

from __future__ import annotations

from dataclasses import dataclass

from launcher.planning.fitting import MOST_ROWS, Fit, changed_keys, describe_rows, describe_setting
from launcher.planning.forecast import Forecast, MemoryForecast, gib
from launcher.planning.throughput import in_words
from launcher.recipe.task_options import counted_in
from launcher.workflows.forecast import WholePlan

MOMENTS = ("loading", "training", "evaluation", "saving")


@dataclass(frozen=True)
class MemoryTable:
    """Parts of memory by moment: a heading, the columns, and rows of texts."""

    heading: str
    head: list[str]
    rows: list[list[str]]


def memory_table(fit: Fit, *, heading: str, on_host: bool = False) -> MemoryTable:
    """Return a row for each part, in the order of their size at the worst moment, and one for the sum."""
    source = fit.estimate.host_moments if on_host else fit.estimate.moments
    moments = [moment for moment in [*MOMENTS, *source] if moment in source]
    moments = list(dict.fromkeys(moments))
    # Some bytes of a buffer are no line of a table of gigabytes.
    names = {name for parts in source.values() for name, size in parts.items() if size >= 2**10}
    # Equal sizes keep one order from run to run.
    ordered = sorted(names, key=lambda name: (-max(parts.get(name, 0) for parts in source.values()), name))
    rows = [[name, *(gib(size) if (size := source[m].get(name, 0)) else "" for m in moments)] for name in ordered]
    base = 0 if on_host else fit.estimate.base
    if base:
        rows.append(["base", *(gib(base) for _ in moments)])
    rows.append(["total", *(gib(sum(source[m].values()) + base) for m in moments)])
    return MemoryTable(heading, ["part", *moments], rows)


def memory_tables(whole: WholePlan) -> list[MemoryTable]:
    """Return the memory of a rank's device, and of the machine where something is offloaded to it."""
    if whole.forecast is None:
        return []
    asked = whole.forecast.memory.asked
    tables = [memory_table(asked, heading=f"memory of each {_device(whole)}, estimate")]
    if asked.host_needed:
        tables.append(memory_table(asked, heading="memory of the machine for each rank, estimate", on_host=True))
    return tables


def _device(whole: WholePlan) -> str:
    if whole.gpu is not None:
        return whole.gpu.name
    return whole.hardware.gpus[0].name if whole.hardware.gpus else "process"


def forecast_lines(whole: WholePlan) -> list[tuple[str, str]]:
    """Return what a forecast says, as names and texts."""
    found = whole.forecast
    if found is None:
        return [("memory", f"unknown: {whole.unknown}"), *_measured(whole)]
    return [
        *_memory_lines(whole, found),
        *_time_lines(whole, found),
        *_disk_lines(whole, found),
    ]


def _memory_lines(whole: WholePlan, found: Forecast) -> list[tuple[str, str]]:
    memory, asked = found.memory, found.memory.asked
    capacity = asked.capacity
    verdict = "yes" if asked.fits else "no"
    room = f"{gib(capacity.usable)} of {gib(capacity.device_bytes)} ({capacity.headroom:.0%} head-room)"
    lines = [("fits", f"{verdict}: {gib(asked.needed)} at its most ({asked.moment}); usable are {room}")]
    if asked.host_needed:
        have = "not known" if capacity.host_usable is None else f"{gib(capacity.host_usable)} usable"
        lines.append(("", f"and {gib(asked.host_needed)} of the machine's memory for each rank ({have})"))
    lines += _measured(whole)
    if memory.smallest is None:
        lines.append(("smallest", "no setting fits"))
    elif memory.remedy is None or memory.smallest.setting != memory.remedy.setting:
        lines.append(("smallest", f"{describe_setting(memory.smallest.setting)}: {gib(memory.smallest.needed)}"))
    if memory.remedy is not None:
        keys = " ".join(changed_keys(asked.setting, memory.remedy.setting))
        lines.append(("change", f"{keys}: {gib(memory.remedy.needed)}"))
    if memory.more is not None:
        more = memory.more.setting
        lines.append(
            ("or", f"{more.world_size} {_device(whole)}, {describe_setting(more)}: {gib(memory.more.needed)} each")
        )
    return [*lines, ("micro-batch", _micro_batch(memory, counted=counted_in(whole.recipe.task.type)))]


def _measured(whole: WholePlan) -> list[tuple[str, str]]:
    found = whole.measured
    if found is None:
        return []
    own = f"{gib(found.base)} of them before the model" if found.base else "as torch reserved them"
    speed = (
        f"; {found.tokens_per_second:,.0f} {counted_in(whole.recipe.task.type)}/s" if found.tokens_per_second else ""
    )
    return [("measured", f"{gib(found.needed)} ({own}){speed}; {found.steps} steps on {found.when}")]


def _micro_batch(memory: MemoryForecast, *, counted: str) -> str:
    setting, most = memory.asked.setting, memory.largest_micro_batch
    each = setting.length if setting.is_by_tokens else 1
    fits = "none" if most == 0 else f"{most * each:,}" + (" or more" if most >= MOST_ROWS else "")
    of = "in rows of up to" if setting.is_by_tokens else "of up to"
    size = f" {of} {setting.length:,} tokens" if counted == "tokens" else ""
    return f"{describe_rows(setting)}{size} at a time; the most that fit: {fits}"


def _time_lines(whole: WholePlan, found: Forecast) -> list[tuple[str, str]]:
    speed, time, counted = found.speed, found.time, counted_in(whole.recipe.task.type)
    if speed is None:
        why = (
            "no figures of this device"
            if counted == "tokens"
            else "it cannot be told from the shapes of an image model's weights"
        )
        return [("time", f"unknown: {why}; state it with --throughput {counted.upper()}_PER_SECOND, or --measure it")]
    between = " " if speed.source == "measured" else ": "
    basis = f"{speed.tokens_per_second:,.0f} {counted}/s, {speed.source}" + (
        f"{between}{speed.note}" if speed.note else ""
    )
    if time is None:
        return [("time", f"unknown without the number of steps; {basis}")]
    hours = "GPU-hours" if whole.plan.launch.device == "cuda" else "process-hours"
    about = "" if speed.source == "measured" or time.seconds < 1 else "about "
    return [
        (counted, f"{time.tokens:,} in training"),
        ("time", f"{about}{in_words(time.seconds)}, {time.device_hours:,.1f} {hours}, without evaluations and saves"),
        ("", f"({basis})"),
    ]


def _disk_lines(whole: WholePlan, found: Forecast) -> list[tuple[str, str]]:
    disk = found.disk
    free = "" if whole.free_disk is None else f"; free: {gib(whole.free_disk)}"
    if not disk.checkpoints:
        return [("disk", f"{gib(disk.model)} for the model, no checkpoints{free}")]
    return [
        ("checkpoint", f"{gib(disk.checkpoint)}: weights {gib(disk.weights)}, optimizer {gib(disk.optimizer)}"),
        (
            "disk",
            f"{gib(disk.total)}: {disk.checkpoints} checkpoints at a time, and the model ({gib(disk.model)}){free}",
        ),
    ]
