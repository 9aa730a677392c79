"""What a plan says, as rows, headings and lines to be shown: pure functions for `launcher plan` and the report."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from launcher.contracts import AdapterPlan, Phase, Probe, TuningGroup, TuningTable
from launcher.plans import BatchPlan, LaunchPlan, PlannedPhase, RunPlan

if TYPE_CHECKING:
    from launcher.recipe.schema import Recipe

PROBE = "probe"
"""Name of the probe among the phases."""


@dataclass(frozen=True)
class TableView:
    """One tuning table to be shown, and the consecutive phases that it holds for."""

    headings: tuple[str, ...]
    """One line for each phase: its name, steps, epochs and rows a step."""
    phase: Phase
    is_probe: bool = False

    @property
    def groups(self) -> tuple[TuningGroup, ...]:
        """The rows of the table."""
        return self.phase.table.groups


@dataclass(frozen=True)
class GroupRates:
    """The rate of a group over the run; points in the order of the steps, None where a stretch without training begins."""

    name: str
    depth: float
    """Mean of its smallest and largest depth."""
    steps: tuple[float, ...]
    rates: tuple[float | None, ...]


# --- reading -------------------------------------------------------------------------------------------------------


def plan_from_json(values: Mapping[str, Any]) -> RunPlan:
    """Read back what ``RunPlan.to_json`` wrote to plan.json."""
    probe = values.get("probe")
    return RunPlan(
        **{
            **values,
            "launch": LaunchPlan.from_json(values["launch"]),
            "phases": tuple(
                PlannedPhase(
                    **{**planned, "phase": _phase(planned["phase"]), "batch": BatchPlan.from_json(planned["batch"])}
                )
                for planned in values["phases"]
            ),
            "probe": _probe(probe) if probe else None,
        }
    )


def _probe(values: Mapping[str, Any]) -> Probe:
    return Probe(**{**values, "phase": _phase(values["phase"]), "weights": tuple(values["weights"])})


def _phase(values: Mapping[str, Any]) -> Phase:
    adapters, dropout = values.get("adapters"), values.get("dropout")
    if adapters:
        adapters = AdapterPlan(**{**adapters, "modules_to_save": tuple(adapters["modules_to_save"])})
    groups = tuple(
        TuningGroup(**{**group, "depths": tuple(group["depths"]), "parameters": tuple(group["parameters"])})
        for group in values["table"]["groups"]
    )
    changed = {"table": TuningTable(groups), "adapters": adapters, "dropout": tuple(dropout) if dropout else None}
    return Phase(**{**values, **changed})


# --- tables --------------------------------------------------------------------------------------------------------


def table_views(plan: RunPlan) -> list[TableView]:
    """Return the tables in the order of the run, the probe's first; consecutive phases with one table share it."""
    views = [TableView((_probe_heading(plan.probe),), plan.probe.phase, is_probe=True)] if plan.probe else []
    for planned in plan.phases:
        heading, last = _heading(planned, plan), views[-1] if views else None
        same = last is not None and not last.is_probe and _says_the_same(last.phase, planned.phase)
        if same and last is not None:
            views[-1] = TableView((*last.headings, heading), last.phase)
        else:
            views.append(TableView((heading,), planned.phase))
    return views


def _says_the_same(phase: Phase, other: Phase) -> bool:
    return phase.table == other.table and phase.note == other.note


def _heading(planned: PlannedPhase, plan: RunPlan) -> str:
    size = f"{planned.batch.step} a step"
    steps = f"steps {planned.first_step + 1:,}-{planned.last_step:,}"
    if plan.unread or plan.is_streamed:
        return f"{planned.phase.name} ({steps}, {size})" if plan.knows_steps else f"{planned.phase.name} ({size})"
    first, last = planned.epochs_at(planned.first_step), planned.epochs_at(planned.last_step)
    return f"{planned.phase.name} ({steps}, epochs {first:.3g} to {last:.3g}, {size})"


def _probe_heading(probe: Probe) -> str:
    return f"{PROBE} ({probe.steps:,} steps before the run, which measure {probe.score}; its weights are discarded)"


def tuning_rows(plan: RunPlan) -> list[dict[str, Any]]:
    """Return a row for each group of each phase: phase, group, depth [first, last], parameters, trainable, lr, ..."""
    phases = [(PROBE, plan.probe.phase)] if plan.probe else []
    phases += [(planned.phase.name, planned.phase) for planned in _without_repeats(plan.phases)]
    return [
        {"phase": name, **group_row(group), "depth": list(group.depths)}
        for name, phase in phases
        for group in phase.table.groups
    ]


def _without_repeats(phases: Sequence[PlannedPhase]) -> list[PlannedPhase]:
    """Leave out parts of a phase that differ from the part before in their batch alone."""
    return [p for p, before in zip(phases, [None, *phases], strict=False) if before is None or p.phase != before.phase]


def group_row(group: TuningGroup) -> dict[str, Any]:
    """Return a group as plain values; ``depth`` as text."""
    return {
        "group": group.name,
        "depth": "-".join(str(depth) for depth in dict.fromkeys(group.depths)),
        "parameters": group.numel,
        "trainable": group.trainable,
        "lr": group.lr,
        "weight_decay": group.weight_decay,
        "rank": group.rank,
        "l1_penalty": group.l1_penalty,
        "l2_penalty": group.l2_penalty,
    }


# --- rates over the run --------------------------------------------------------------------------------------------


def planned_rates(
    plan: RunPlan, factor: Callable[[int], float], *, buckets: int = 240
) -> tuple[list[GroupRates], list[dict[str, Any]]]:
    """Return the rate of each group that trains at some time, and the phases as name, first and last step.

    A group's rate at step t + 1 is its peak rate times ``factor(t)``. A long run is thinned to the extremes of ``buckets``
    equal stretches of each phase, so that no peak is lost. Consecutive parts of one phase count as one.
    """
    bands: list[dict[str, Any]] = []
    steps: dict[str, list[float]] = {}
    rates: dict[str, list[float | None]] = {}
    depths: dict[str, float] = {}
    for planned in plan.phases:
        _add_band(bands, planned)
        at = _telling_steps(factor, planned.first_step, planned.last_step, buckets=buckets)
        factors = [factor(step) for step in at]
        for group in planned.phase.table.trainable:
            xs, ys = steps.setdefault(group.name, []), rates.setdefault(group.name, [])
            if xs and xs[-1] != planned.first_step:
                # It trained, was frozen, and trains again: the line has a gap.
                xs.append(float(planned.first_step))
                ys.append(None)
            xs += [float(step + 1) for step in at]
            ys += [group.lr * value for value in factors]
            depths.setdefault(group.name, sum(group.depths) / 2)
    lines = [GroupRates(name, depths[name], tuple(steps[name]), tuple(rates[name])) for name in steps]
    return sorted(lines, key=lambda line: line.depth), bands


def _add_band(bands: list[dict[str, Any]], planned: PlannedPhase) -> None:
    name = planned.phase.name
    if bands and bands[-1]["name"] == name:
        bands[-1]["last"] = planned.last_step
    else:
        bands.append({"name": name, "first": planned.first_step, "last": planned.last_step})


def _telling_steps(factor: Callable[[int], float], first: int, last: int, *, buckets: int) -> list[int]:
    """Return steps in [first, last) that keep the shape of ``factor``: all of a short stretch, else each bucket's extremes."""
    count = last - first
    if count <= 4 * buckets:
        return list(range(first, last))
    found = {first, last - 1}
    for bucket in range(buckets):
        inside = range(first + bucket * count // buckets, first + (bucket + 1) * count // buckets)
        # A hundred looks are enough to find a bucket's extremes in a run of millions of steps.
        looked = inside[:: max(1, len(inside) // 100)]
        found |= {min(looked, key=factor), max(looked, key=factor)}
    return sorted(found)


def rate_lines(plan: RunPlan, recipe: Recipe) -> dict[str, Any]:
    """Return ``planned_rates`` under the recipe's schedule as a picture takes them: lines, bands and a note."""
    from launcher.recipe.schedule_keys import FOLLOW_METRIC
    from launcher.strategies.schedules import schedule_factor

    factor = schedule_factor(recipe, total_steps=plan.total_steps, warmup_steps=plan.warmup_steps)
    lines, bands = planned_rates(plan, factor)
    note = "lowered on plateau, which is not drawn" if recipe.training.lr_scheduler_type in FOLLOW_METRIC else ""
    return {"lines": [asdict(line) for line in lines], "bands": bands, "note": note}
