from __future__ import annotations

from dataclasses import asdict, replace

import pytest
from hypothesis import given, strategies as st
from tiny import recipe_values

from launcher.errors import InstallationError, PlanMismatch
from launcher.launching import launch_plan
from launcher.launching.batch import plan_batch
from launcher.launching.launch_plan import plan_launch
from launcher.plans import BatchPlan, Gpu, Hardware, LaunchPlan
from launcher.recipe.schema import Recipe

CPU = Hardware((), 8, 2**34, cpu_has_fast_bf16=False)
FAST_CPU = Hardware((), 8, 2**34, cpu_has_fast_bf16=True)


def gpus(number: int, capability: float = 9.0) -> Hardware:
    return Hardware((Gpu("card", 80 * 2**30, capability),) * number, 64, 2**38, cpu_has_fast_bf16=False)


def recipe(precision: str = "auto", training: dict | None = None, **distributed: object) -> Recipe:
    values = recipe_values("bert", "data", precision=precision, training=training or {})
    values["task"] = {"type": "text-classification"}
    return Recipe.model_validate({**values, "strategy": {"type": "full"}, "distributed": distributed}, strict=True)


# --- plan_launch -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "hardware, distributed, expected",
    [
        (CPU, {}, ("single", None, "cpu", 1)),
        (CPU, {"processes_per_node": 2}, ("ddp", None, "cpu", 2)),
        (CPU, {"zero_stage": 2}, ("deepspeed", 2, "cpu", 1)),
        (CPU, {"processes_per_node": 2, "zero_stage": 0}, ("deepspeed", 0, "cpu", 2)),
        (CPU, {"engine": "ddp"}, ("single", None, "cpu", 1)),
        (gpus(1), {}, ("single", None, "cuda", 1)),
        (gpus(8), {}, ("ddp", None, "cuda", 8)),
        (gpus(8), {"engine": "single"}, ("single", None, "cuda", 1)),
        (gpus(8), {"processes_per_node": 4}, ("ddp", None, "cuda", 4)),
        (gpus(8), {"zero_stage": 3}, ("deepspeed", 3, "cuda", 8)),
        (gpus(8), {"engine": "deepspeed", "zero_stage": 1}, ("deepspeed", 1, "cuda", 8)),
        (gpus(8), {"engine": "fsdp"}, ("fsdp", None, "cuda", 8)),
        (gpus(1), {"engine": "fsdp"}, ("fsdp", None, "cuda", 1)),
        (CPU, {"offload": "optimizer"}, ("deepspeed", 2, "cpu", 1)),
        (CPU, {"engine": "deepspeed", "offload": "all"}, ("deepspeed", 3, "cpu", 1)),
        (gpus(8), {"deepspeed_config": "zero1"}, ("deepspeed", 1, "cuda", 8)),
    ],
)
def test_processes_and_engine(hardware, distributed, expected):
    plan = plan_launch(recipe(**distributed), hardware)
    assert (plan.engine, plan.zero_stage, plan.device, plan.world_size) == expected
    assert plan.batch.world_size == plan.world_size


def test_the_global_batch_is_the_same_on_any_machine():
    for hardware in (CPU, gpus(1), gpus(8)):
        plan = plan_launch(recipe(training={"global_batch_size": 32}), hardware)
        assert plan.batch.micro_batch_size * plan.batch.accumulation * plan.world_size == 32


def test_nodes_multiply_processes():
    plan = plan_launch(recipe(nodes=2, processes_per_node=4), gpus(4))
    assert (plan.world_size, plan.nodes, plan.processes_per_node, plan.batch.world_size) == (8, 2, 4, 8)


@pytest.mark.parametrize(
    "hardware, wanted, expected",
    [
        (CPU, "auto", "fp32"), (FAST_CPU, "auto", "bf16"), (gpus(1, 8.0), "auto", "bf16"), (gpus(1, 7.5), "auto", "fp32"),
        (CPU, "bf16", "bf16"), (gpus(1, 7.5), "fp16", "fp16"), (gpus(1), "fp32", "fp32"), (gpus(1, 8.0), "tf32", "tf32"),
    ],
)  # fmt: skip
def test_precision(hardware, wanted, expected):
    assert plan_launch(recipe(wanted), hardware).precision == expected


def test_one_slow_card_of_several_decides_the_precision():
    mixed = Hardware((*gpus(1, 9.0).gpus, *gpus(1, 7.0).gpus), 8, 2**34, cpu_has_fast_bf16=False)
    assert plan_launch(recipe(), mixed).precision == "fp32"


def test_refusals_name_value_and_remedy():
    with pytest.raises(InstallationError, match=r"processes_per_node is 4, but 2 GPU.*CUDA_VISIBLE_DEVICES"):
        plan_launch(recipe(processes_per_node=4), gpus(2))
    with pytest.raises(InstallationError, match=r"precision is fp16, which needs a GPU.*bf16"):
        plan_launch(recipe("fp16"), CPU)


@pytest.mark.parametrize(
    "precision, hardware, message",
    [
        ("tf32", CPU, "precision is tf32, which needs a GPU"),
        ("fp8", CPU, "precision is fp8, which needs a GPU"),
        ("tf32", gpus(2, 7.5), r"compute capability 8.0 or more \(Ampere\), and one here has 7.5; use fp32 or fp16"),
        ("fp8", gpus(1, 8.6), r"compute capability 8.9 or more \(Ada or Hopper\), and one here has 8.6; use bf16"),
    ],
)
def test_a_precision_that_the_device_lacks_is_refused(precision, hardware, message):
    with pytest.raises(InstallationError, match=message):
        plan_launch(recipe(precision), hardware)


@pytest.mark.parametrize("installed", [(), ("torchao",), ("transformer_engine",), ("msamp",)])
def test_fp8_needs_one_of_its_packages(installed, monkeypatch):
    monkeypatch.setattr(launch_plan.importlib.util, "find_spec", lambda name: object() if name in installed else None)
    if installed:
        assert plan_launch(recipe("fp8"), gpus(1, 9.0)).precision == "fp8"
        return
    with pytest.raises(InstallationError, match="none of them is installed; pip install torchao, or use bf16"):
        plan_launch(recipe("fp8"), gpus(1, 9.0))


@pytest.mark.parametrize(
    "precision, half", [("fp32", None), ("tf32", None), ("bf16", "bf16"), ("fp16", "fp16"), ("fp8", "bf16")]
)
def test_the_16_bit_format_of_each_precision(precision, half):
    assert replace(plan_launch(recipe(), CPU), precision=precision).half == half


def test_fsdp_on_a_processor_is_refused_with_the_reason():
    with pytest.raises(
        InstallationError, match=r"engine is fsdp, which needs GPUs.*would train with DDP.*zero_stage: 3"
    ):
        plan_launch(recipe(engine="fsdp", processes_per_node=2), CPU)


def test_zeropp_on_a_processor_is_refused():
    with pytest.raises(InstallationError, match=r"zeropp.*no GPU is visible.*zero_stage: 3"):
        plan_launch(recipe(deepspeed_config="zeropp"), CPU)


def test_nvme_needs_libaio():
    asked = recipe(offload="all", offload_device="nvme", nvme_path="/tmp")
    with pytest.raises(InstallationError, match=r"offload_device is nvme.*apt-get install libaio-dev"):
        plan_launch(asked, replace(gpus(2), has_libaio=False))
    assert plan_launch(asked, gpus(2)).offload_device == "nvme"


def test_deepspeed_on_a_processor_needs_a_compiler():
    with pytest.raises(InstallationError, match=r"no C\+\+ compiler"):
        plan_launch(recipe(offload="optimizer"), replace(CPU, has_cxx_compiler=False))


# --- ranks that share rows or weights ---------------------------------------------------------------------------------


def test_ranks_that_share_rows_are_one_of_the_batch():
    asked = recipe(training={"global_batch_size": 32}, zero_stage=3, sequence_parallel_size=2)
    plan = plan_launch(asked, gpus(8))
    assert (plan.world_size, plan.batch.world_size) == (8, 4)
    # The ranks of a group read batches in turn, so passes come in twos.
    assert plan.batch == BatchPlan(32, 4, 4, 2)


def test_ranks_that_share_weights_hold_the_same_rows():
    plan = plan_launch(recipe(training={"global_batch_size": 32}, tensor_parallel_size=4), gpus(4))
    assert (plan.engine, plan.world_size, plan.batch) == ("ddp", 4, BatchPlan(32, 1, 32, 1))


def test_tensor_parallelism_is_planned_but_not_started():
    plan = plan_launch(recipe(tensor_parallel_size=4), gpus(4))
    with pytest.raises(
        InstallationError, match=r"tensor_parallel_size is 4.*does not train with it yet.*zero_stage: 3"
    ):
        launch_plan.refuse_tensor_parallel(plan)


@given(batch=st.integers(1, 500), world=st.integers(1, 16), cap=st.none() | st.integers(1, 64), size=st.integers(1, 8))
def test_passes_come_in_multiples(batch, world, cap, size):
    plan = plan_batch(global_batch_size=batch, world_size=world, cap=cap, multiple_of=size)
    assert plan.accumulation % size == 0
    assert plan.micro_batch_size * plan.accumulation * world >= batch
    assert cap is None or plan.micro_batch_size <= cap


@pytest.mark.parametrize(
    "hardware, distributed, error, message",
    [
        (CPU, {"zero_stage": 3, "sequence_parallel_size": 2, "processes_per_node": 2}, InstallationError,
         "sequence_parallel_size is 2, which needs GPUs"),
        (CPU, {"tensor_parallel_size": 2, "processes_per_node": 2}, InstallationError,
         "tensor_parallel_size is 2, which needs GPUs"),
        (gpus(8), {"zero_stage": 3, "sequence_parallel_size": 3}, PlanMismatch,
         r"sequence_parallel_size is 3, which does not divide the 8 process\(es\)"),
        (gpus(4), {"tensor_parallel_size": 3}, PlanMismatch, "tensor_parallel_size is 3, which does not divide the 4"),
        (gpus(8), {"tensor_parallel_size": 4}, PlanMismatch, "tensor_parallel_size is 4, but there are 8 processes"),
    ],
)  # fmt: skip
def test_sizes_that_cannot_be_are_refused(hardware, distributed, error, message):
    with pytest.raises(error, match=message):
        plan_launch(recipe(**distributed), hardware)


def test_a_plan_comes_back_from_json():
    plan = plan_launch(recipe(processes_per_node=2, zero_stage=3, offload="all"), CPU)
    assert LaunchPlan.from_json(asdict(plan)) == plan
