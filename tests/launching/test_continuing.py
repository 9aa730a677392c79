"""Whether other processes may go on from a checkpoint."""

import pytest

from launcher.errors import RunStateError
from launcher.launching.continuing import way_to_continue
from launcher.plans import BatchPlan, LaunchPlan


def plan(engine="ddp", stage=None, world=2, precision="fp32") -> LaunchPlan:
    return LaunchPlan(
        engine=engine, zero_stage=stage, precision=precision, device="cpu", nodes=1, processes_per_node=world,
        batch=BatchPlan(8, world, 8 // world, 1),
    )  # fmt: skip


def manifest(engine="ddp", stage=None, world=2, precision="fp32", **facts):
    return {"step": 5, "engine": engine, "zero_stage": stage, "world_size": world, "precision": precision, **facts}


ZERO = "deepspeed"


@pytest.mark.parametrize(
    "before, now, way",
    [
        (("ddp", None, 2), ("ddp", None, 2), "as_saved"),
        (("ddp", None, 2), ("single", None, 1), "as_saved"),
        (("single", None, 1), ("ddp", None, 4), "as_saved"),
        ((ZERO, 3, 2), (ZERO, 3, 2), "as_saved"),
        ((ZERO, 3, 2, "fp16"), (ZERO, 3, 2, "fp16"), "as_saved"),
        ((ZERO, 2, 2), (ZERO, 2, 1), "by_name"),
        ((ZERO, 1, 2, "bf16"), (ZERO, 2, 4, "bf16"), "by_name"),
        ((ZERO, 2, 2), ("ddp", None, 2), "by_name"),
        (("single", None, 1), (ZERO, 1, 2), "by_name"),
        ((ZERO, 2, 2, "fp32"), (ZERO, 2, 2, "tf32"), "as_saved"),
    ],
)
def test_what_can_go_on(before, now, way):
    assert way_to_continue(manifest(*before), plan(*now)) == way


@pytest.mark.parametrize(
    "before, now, words",
    [
        ((ZERO, 3, 2), (ZERO, 3, 1), "ZeRO-3.*2 processes.*zero_stage 1 or 2"),
        ((ZERO, 2, 2), (ZERO, 3, 2), "the run is ZeRO-3"),
        ((ZERO, 3, 2), (ZERO, 2, 2), "the checkpoint is ZeRO-3"),
        (("fsdp", None, 2), ("fsdp", None, 4), "FSDP"),
        ((ZERO, 2, 2, "bf16"), ("ddp", None, 2, "bf16"), "float32 weights"),
        ((ZERO, 0, 2, "bf16"), (ZERO, 0, 1, "bf16"), "float32 weights"),
        ((ZERO, 2, 2, "fp16"), (ZERO, 2, 1, "fp16"), "loss scale.*bf16"),
        (("ddp", None, 2, "fp32"), ("ddp", None, 2, "bf16"), "set precision: fp32"),
    ],
)
def test_what_is_refused_with_the_way_round(before, now, words):
    with pytest.raises(RunStateError, match=f"(?s){words}"):
        way_to_continue(manifest(*before), plan(*now))


def test_weights_that_are_split_stay_with_their_ranks():
    with pytest.raises(RunStateError, match="split"):
        way_to_continue(manifest(ZERO, 1, 4, tensor_parallel_size=2), plan(ZERO, 1, 2))
    assert way_to_continue(manifest(ZERO, 1, 2, tensor_parallel_size=2), plan(ZERO, 1, 2)) == "as_saved"
