"""Whether the processes that a run would go on with can take over its checkpoint, and how: no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from launcher.errors import RunStateError
from launcher.plans import LaunchPlan

Way = Literal["as_saved", "by_name"]
"""``as_saved``: the engine loads its own files. ``by_name``: weights and the optimizer's state are put together from the files
by parameter name, and written into an engine of another layout."""

# Engines in which every rank has the whole optimizer; their file is the same for any number of processes.
_WHOLE = ("single", "ddp")


def way_to_continue(manifest: Mapping[str, Any], launch: LaunchPlan) -> Way:
    """Return how ``launch`` can go on from a checkpoint with this manifest.

    Raises:
        RunStateError: it cannot; the text says why, and what to do instead.
    """
    engine, stage, world = manifest["engine"], manifest["zero_stage"], manifest["world_size"]
    precision = manifest.get("precision", launch.precision)
    if precision != launch.precision and {precision, launch.precision} != {"fp32", "tf32"}:
        raise _refusal(manifest, launch, f"its numbers are {precision}", f"set precision: {precision}")
    if (engine, stage, world) == (launch.engine, launch.zero_stage, launch.world_size):
        return "as_saved"
    if engine in _WHOLE and launch.engine in _WHOLE:
        return "as_saved"
    for what, name, number in (("the checkpoint", engine, stage), ("the run", launch.engine, launch.zero_stage)):
        if name == "fsdp" or number == 3:
            layout = "FSDP" if name == "fsdp" else "ZeRO-3"
            raise _refusal(
                manifest, launch, f"{what} is {layout}, whose partitions belong to one number of processes",
                f"go on with {_named(engine, stage, world)}; or start a new run from the weights of a finished one "
                "(model.name_or_path: RUN/model); or, for runs that will move, train with zero_stage 1 or 2, which can",
            )  # fmt: skip
    if _is_split(manifest) or launch.tensor_parallel_size > 1 or launch.sequence_parallel_size > 1:
        raise _refusal(
            manifest, launch, "weights or rows are split over ranks", f"go on with {_named(engine, stage, world)}"
        )
    if launch.precision == "fp16":
        raise _refusal(
            manifest, launch, "fp16's loss scale belongs to the engine that found it",
            f"go on with {_named(engine, stage, world)}, or train in bf16",
        )  # fmt: skip
    if launch.precision not in ("fp32", "tf32") and not {stage, launch.zero_stage} <= {1, 2}:
        raise _refusal(
            manifest, launch, f"in {launch.precision} these two keep their float32 weights in different ways",
            f"go on with {_named(engine, stage, world)}",
        )  # fmt: skip
    return "by_name"


def _is_split(manifest: Mapping[str, Any]) -> bool:
    return any(int(manifest.get(f"{kind}_parallel_size", 1)) > 1 for kind in ("tensor", "sequence"))


def _refusal(manifest: Mapping[str, Any], launch: LaunchPlan, why: str, remedy: str) -> RunStateError:
    then = _named(manifest["engine"], manifest["zero_stage"], manifest["world_size"])
    now = _named(launch.engine, launch.zero_stage, launch.world_size)
    return RunStateError(
        f"the checkpoint of step {manifest['step']} was written by {then}, and this attempt would have {now}, {launch.precision}; "
        f"that cannot go on exactly: {why}; {remedy}"
    )


def _named(engine: str, stage: int | None, world: int) -> str:
    kind = f"deepspeed ZeRO-{stage}" if stage is not None else engine
    return f"{kind} on {world} process{'es' if world != 1 else ''}"
