"""What accelerate really started is held to the plan: what it starts without a word instead of something else is found."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from launcher.engine.asserting import assert_launch
from launcher.errors import PlanMismatch
from launcher.plans import BatchPlan, LaunchPlan


class CPUOffloadPolicy:
    """Named as torch's own."""


def trainer(
    *, kind: str, world: int = 2, zero: dict[str, Any] | None = None, offloads: bool = False, sp: int = 1
) -> Any:
    """A trainer as far as the assertion looks at it; on a processor there is an FSDP plugin also where DDP runs."""
    plugin = SimpleNamespace(zero_stage=(zero or {}).get("stage"), deepspeed_config={"zero_optimization": zero or {}})
    fsdp = SimpleNamespace(fsdp_version=2, cpu_offload=CPUOffloadPolicy() if offloads else object())
    state = SimpleNamespace(deepspeed_plugin=plugin, fsdp_plugin=fsdp)
    accelerator = SimpleNamespace(
        num_processes=world, process_index=0, state=state, distributed_type=f"DistributedType.{kind}"
    )
    return SimpleNamespace(
        accelerator=accelerator, is_deepspeed_enabled=zero is not None, is_fsdp_enabled=True,
        get_sp_size=lambda: sp, get_tp_size=lambda: 1,
    )  # fmt: skip


def context(engine: str, stage: int | None = None, **fields: Any) -> Any:
    plan = LaunchPlan(engine, stage, "bf16", "cuda", 1, 2, BatchPlan(8, 2, 4, 1), **fields)  # type: ignore[arg-type]
    return SimpleNamespace(launch=plan)


OFFLOADED = {"stage": 2, "offload_optimizer": {"device": "cpu"}}


@pytest.mark.parametrize(
    "found, planned",
    [
        (trainer(kind="MULTI_CPU"), context("ddp")),
        (trainer(kind="FSDP"), context("fsdp")),
        (trainer(kind="FSDP", offloads=True), context("fsdp", offload="all")),
        (trainer(kind="DEEPSPEED", zero=OFFLOADED), context("deepspeed", 2, offload="optimizer")),
        (trainer(kind="DEEPSPEED", zero={"stage": 3}, sp=2), context("deepspeed", 3, sequence_parallel_size=2)),
    ],
)
def test_what_was_planned_is_what_runs(found, planned):
    assert_launch(found, planned)


@pytest.mark.parametrize(
    "found, planned, said",
    [
        (trainer(kind="MULTI_CPU"), context("fsdp"), "'engine': 'ddp'"),
        (trainer(kind="NO", world=1), context("ddp"), "'processes': 1"),
        (trainer(kind="FSDP", offloads=True), context("fsdp"), "'offload': 'all'"),
        (
            trainer(kind="DEEPSPEED", zero={"stage": 2}),
            context("deepspeed", 2, offload="optimizer"),
            "'offload': 'none'",
        ),
        (trainer(kind="DEEPSPEED", zero={"stage": 2}), context("deepspeed", 2, sequence_parallel_size=2), r"\(1, 1\)"),
    ],
)
def test_anything_else_ends_the_run(found, planned, said):
    with pytest.raises(PlanMismatch, match=said):
        assert_launch(found, planned)
