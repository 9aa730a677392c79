"""The whole plan of a recipe on a machine: what trains, what it needs, how long it takes, and whether it fits."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from launcher.errors import InstallationError, LauncherError, PlanMismatch, RecipeError
from launcher.launching.deepspeed import named_file
from launcher.launching.launch_plan import plan_launch, settle
from launcher.planning.disk import free_bytes
from launcher.planning.fitting import Capacity, Estimate, changed_keys, check
from launcher.planning.forecast import (
    Forecast,
    capacity_of,
    decide,
    forecast,
    forecast_memory,
    memory_setting,
    refusal,
)
from launcher.planning.gpus import GpuSpec
from launcher.planning.plan import Preview, preview
from launcher.planning.throughput import Speed
from launcher.planning.token_budget import with_settled_batch
from launcher.plans import Hardware, LaunchPlan, MemoryEstimate, MemorySetting, RunPlan
from launcher.recipe.checks import check_recipe
from launcher.recipe.load import LoadedRecipe, parse_recipe, resolved_text
from launcher.recipe.schema import Recipe
from launcher.strategies.prefix_facts import free_room
from launcher.workflows.measuring import Measurement, find_measurement

# What a process holds after its imports and before its model, on Linux with the tested versions; the estimate leaves it out.
_PROCESS_BYTES = 530 * 2**20

MakeEstimate = Callable[[Recipe, Preview], tuple[Estimate, Estimate]]
"""Returns an estimate, and a lower bound of it that costs next to nothing."""


@dataclass(frozen=True)
class WholePlan:
    """What ``launcher plan`` shows."""

    recipe: Recipe
    """With the sharding that ``engine: auto`` takes."""
    plan: RunPlan
    hardware: Hardware
    gpu: GpuSpec | None
    """The GPU that was named; None: this machine."""
    forecast: Forecast | None
    unknown: str = ""
    """Why there is no forecast."""
    chosen: str = ""
    """What ``engine: auto`` took instead of plain data parallelism, and why."""
    refused: str = ""
    """Why the run cannot start; "" where it can."""
    measured: Measurement | None = None
    free_disk: int | None = None
    """Bytes that are free where runs lie; None: another machine."""


def plan_whole(
    loaded: LoadedRecipe,
    hardware: Hardware,
    *,
    gpu: GpuSpec | None = None,
    base_folder: Path,
    runs: Path = Path("runs"),
    tokens_per_second: float | None = None,
    make_estimate: MakeEstimate | None = None,
) -> WholePlan:
    """Plan a run without weights.

    Args:
        gpu: what the GPUs of ``hardware`` are, where that is a machine of the catalogue.
        tokens_per_second: stated speed of all ranks together.
        make_estimate: makes the memory estimate of a recipe; None: by tracing.

    Raises:
        DataError, ModelError, RecipeError, InstallationError: as a run would.
    """
    recipe = settle(loaded.recipe, named_file(loaded.recipe))
    launch = plan_launch(recipe, hardware)
    seen = preview(recipe, launch, base_folder=base_folder)
    launch = seen.plan.launch
    whole = WholePlan(recipe, seen.plan, hardware, gpu, None, free_disk=None if gpu else free_bytes(runs))
    try:
        exact, floor = (make_estimate or _traced)(recipe, seen)
        estimate = functools.cache(exact)
        capacity = _capacity(hardware, launch, gpu=gpu)
        setting = memory_setting(recipe, launch, seen.prepared)
        decided, chosen = _decided(recipe, hardware, setting, estimate, capacity)
        if decided is not recipe:
            launch = with_settled_batch(decided, plan_launch(decided, hardware), seen.prepared)
            setting = memory_setting(decided, launch, seen.prepared)
        estimate(setting)
        allowed = _allowed(loaded, decided, setting)
        others = _careful(estimate, floor, capacity, asked=setting)
        memory = forecast_memory(others, setting, capacity, allowed=allowed)
    except LauncherError:
        raise
    except Exception as error:
        # A model of a kind that nobody has traced before must not keep its run from being planned or started.
        told = (str(error).strip().splitlines() or [""])[0][:160]
        unknown = f"it cannot be estimated for this model: {type(error).__name__}: {told}"
        return replace(whole, unknown=unknown, measured=find_measurement(recipe, launch, seen.prepared.facts, hardware))
    measured = find_measurement(decided, launch, seen.prepared.facts, hardware)
    plan = replace(seen.plan, launch=launch)
    found = forecast(
        decided,
        plan,
        memory,
        config=seen.built.model.config,
        parameters=seen.parameters,
        hardware=hardware,
        known=_known_speed(tokens_per_second, measured),
        cpu_flops=_matmul_flops(launch) if launch.device == "cpu" and not (measured or tokens_per_second) else None,
    )
    return replace(
        whole,
        recipe=decided,
        plan=plan,
        forecast=found,
        chosen=chosen,
        measured=measured,
        refused=_refused(found, measured, hardware=hardware, gpu=gpu, free_disk=whole.free_disk),
    )


def _traced(recipe: Recipe, seen: Preview) -> tuple[Estimate, Estimate]:
    from launcher.planning.memory import MemoryPlanner

    phases = tuple(planned.phase for planned in seen.plan.phases)
    prepared = None if seen.plan.unread else seen.prepared
    planner = MemoryPlanner(recipe, seen.task, prepared, phases, skeleton=seen.built)

    def with_process(estimate: Estimate) -> Estimate:
        def whole(setting: MemorySetting) -> MemoryEstimate:
            found = estimate(setting)
            return replace(found, base=_PROCESS_BYTES) if setting.device == "cpu" else found

        return whole

    return with_process(planner.estimate), with_process(planner.floor)


def _careful(estimate: Estimate, floor: Estimate, capacity: Capacity, *, asked: MemorySetting) -> Estimate:
    """Return an estimate for a search: what cannot be traced does not fit, and what cannot fit is not traced."""

    @functools.cache
    def careful(setting: MemorySetting) -> MemoryEstimate:
        try:
            least = floor(setting)
            if setting != asked and not check(lambda _: least, setting, capacity).fits:
                return least
            return estimate(setting)
        except Exception:
            return MemoryEstimate({"unknown": {"unknown": sys.maxsize}})

    return careful


def _capacity(hardware: Hardware, launch: LaunchPlan, *, gpu: GpuSpec | None) -> Capacity:
    if gpu is not None:
        return capacity_of(hardware, launch)
    memory, _ = free_room(Path.cwd())
    return capacity_of(hardware, launch, available=int(memory))


def _decided(
    recipe: Recipe, hardware: Hardware, setting: MemorySetting, estimate: Estimate, capacity: Capacity
) -> tuple[Recipe, str]:
    """Return the recipe with what ``engine: auto`` takes, and why it is not the plain one."""
    try:
        decided = decide(recipe, hardware, setting, estimate, capacity)
    except (InstallationError, PlanMismatch):
        # What would fit cannot run here; that it does not fit is told below.
        return recipe, ""
    if decided is recipe:
        return recipe, ""
    from launcher.planning.forecast import gib

    needed = gib(check(estimate, setting, capacity).needed)
    stage = decided.distributed.zero_stage
    return (
        decided,
        f"ZeRO-{stage}, the first stage that fits: {setting.engine} would need {needed}, and {gib(capacity.usable)} may be used",
    )


def _allowed(loaded: LoadedRecipe, recipe: Recipe, before: MemorySetting) -> Callable[[MemorySetting], bool]:
    """Return whether a recipe changed to a setting would still pass its checks."""
    text = resolved_text(recipe)

    def faults(keys: tuple[str, ...]) -> set[str]:
        try:
            return {problem.message for problem in check_recipe(parse_recipe(text, str(loaded.path), keys))}
        except RecipeError as error:
            return {problem.message for problem in error.problems}

    # Every value stands in a resolved recipe, and some rules only look at what was set: those faults are not a change's.
    known = faults(())

    @functools.cache
    def allowed(keys: tuple[str, ...]) -> bool:
        return not keys or faults(keys) <= known

    return lambda setting: allowed(changed_keys(before, setting))


def _known_speed(stated: float | None, measured: Measurement | None) -> Speed | None:
    if stated is not None:
        return Speed(stated, "stated")
    if measured is not None and measured.tokens_per_second:
        return Speed(measured.tokens_per_second, "measured", f"on {measured.when}")
    return None


def _matmul_flops(launch: LaunchPlan) -> float:
    """Return FLOP/s of one large matrix product on this machine's processor, all cores together."""
    import time

    import torch

    dtype = torch.bfloat16 if launch.half == "bf16" else torch.float32
    size, best = 1024, float("inf")
    left, right = (torch.randn(size, size, dtype=dtype) for _ in range(2))
    for _ in range(4):
        started = time.perf_counter()
        torch.mm(left, right)
        best = min(best, time.perf_counter() - started)
    return 2.0 * size**3 / best


def _refused(
    found: Forecast, measured: Measurement | None, *, hardware: Hardware, gpu: GpuSpec | None, free_disk: int | None
) -> str:
    from launcher.planning.forecast import gib

    asked = found.memory.asked
    has_run = measured is not None and measured.needed <= asked.capacity.usable
    if not asked.fits and not has_run:
        name = hardware.gpus[0].name if hardware.gpus else "processor"
        return refusal(found.memory, gpu=gpu, device_name=name)
    if free_disk is not None and found.disk.total > free_disk:
        return (
            f"the run's directory grows to {gib(found.disk.total)} ({found.disk.checkpoints} checkpoints of "
            f"{gib(found.disk.checkpoint)} and the model), and {gib(free_disk)} are free there; free some space, name another "
            "disk with --runs-dir, or lower training.save_total_limit"
        )
    return ""


def as_error(whole: WholePlan, loaded: LoadedRecipe) -> RecipeError:
    """Return the error of a plan that is refused."""
    from launcher.errors import Problem

    message, _, remedy = whole.refused.partition("; ")
    return RecipeError([Problem(str(loaded.path), message, remedy)])


def as_json(whole: WholePlan) -> dict[str, Any]:
    """Return what machines may want of a plan, beside the plan itself."""
    from dataclasses import asdict

    from launcher.planning.forecast import forecast_json

    return {
        "total_steps": whole.plan.total_steps if whole.plan.knows_steps else None,
        "engine": whole.plan.launch.engine,
        "zero_stage": whole.plan.launch.zero_stage,
        "gpu": whole.gpu.name if whole.gpu else None,
        "forecast": forecast_json(whole.forecast) if whole.forecast else None,
        "unknown": whole.unknown or None,
        "chosen": whole.chosen or None,
        "fits": whole.forecast.memory.asked.fits if whole.forecast else None,
        "refused": whole.refused or None,
        "measured": asdict(whole.measured) if whole.measured else None,
        "free_disk": whole.free_disk,
    }
