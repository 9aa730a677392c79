from __future__ import annotations

from dataclasses import asdict

import pytest
from tiny import recipe_values

from launcher.errors import InstallationError, PlanMismatch
from launcher.launching.launch_plan import plan_launch
from launcher.launching.under_accelerate import plan_under_accelerate
from launcher.plans import Gpu, Hardware, LaunchPlan
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
        (CPU, "bf16", "bf16"), (gpus(1, 7.5), "fp16", "fp16"), (gpus(1), "fp32", "fp32"),
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


def test_a_plan_comes_back_from_json():
    plan = plan_launch(recipe(processes_per_node=2, zero_stage=3), CPU)
    assert LaunchPlan.from_json(asdict(plan)) == plan


# --- under accelerate ------------------------------------------------------------------------------------------------


def env(world: int, local: int | None = None, **more: str) -> dict[str, str]:
    return {"WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(local or world), **more}


def under(environment: dict[str, str], wanted: Recipe | None = None, hardware: Hardware = CPU) -> LaunchPlan:
    return plan_under_accelerate(wanted or recipe(), hardware, environment).launch


def test_accelerates_configuration_decides_what_the_recipe_leaves_open():
    plan = under(env(2))
    assert (plan.engine, plan.world_size, plan.precision) == ("ddp", 2, "fp32")
    plan = under(env(2, ACCELERATE_USE_DEEPSPEED="true", ACCELERATE_DEEPSPEED_ZERO_STAGE="3"))
    assert (plan.engine, plan.zero_stage) == ("deepspeed", 3)
    assert under({}).engine == "single"
    assert under(env(2, ACCELERATE_MIXED_PRECISION="bf16")).precision == "bf16"
    plan = under(env(8, 4))
    assert (plan.nodes, plan.processes_per_node, plan.world_size) == (2, 4, 8)


def test_the_recipe_that_is_written_down_says_what_runs():
    """resolved.yaml must lead `launcher resume` to the same processes and engine."""
    adapted = plan_under_accelerate(recipe(), CPU, env(2, ACCELERATE_MIXED_PRECISION="bf16")).recipe
    assert plan_launch(adapted, CPU) == under(env(2, ACCELERATE_MIXED_PRECISION="bf16"))


def test_the_users_deepspeed_file_is_kept_whole(tmp_path):
    file = tmp_path / "ds.json"
    file.write_text('{"zero_optimization": {"stage": 1, "reduce_bucket_size": 7}}')
    given = {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_CONFIG_FILE": str(file)}
    adapted = plan_under_accelerate(recipe(), CPU, env(2, **given))
    assert adapted.launch.zero_stage == 1
    assert adapted.deepspeed["zero_optimization"]["reduce_bucket_size"] == 7


DEEPSPEED_2 = {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "2"}


@pytest.mark.parametrize(
    "wanted, environment, ours, theirs",
    [
        ({"processes_per_node": 4}, env(2), "distributed.processes_per_node is 4", "num_processes per machine is 2"),
        ({"nodes": 2, "processes_per_node": 2}, env(2), "distributed.nodes is 2", "num_machines is 1"),
        ({"engine": "single"}, env(2), "distributed.engine is single", "distributed_type is ddp"),
        ({"engine": "ddp"}, env(2, **DEEPSPEED_2), "distributed.engine is ddp", "distributed_type is deepspeed"),
        ({"zero_stage": 3}, env(2, **DEEPSPEED_2), "distributed.zero_stage is 3", "zero_stage is 2"),
        ({"zero_stage": 2}, env(2), "distributed.zero_stage is 2", "zero_stage is None"),
    ],
)
def test_contradictions_name_both_places(wanted, environment, ours, theirs):
    with pytest.raises(PlanMismatch) as caught:
        under(environment, recipe(**wanted))
    assert ours in str(caught.value) and theirs in str(caught.value)


def test_contradicting_precision_names_both_places():
    with pytest.raises(PlanMismatch, match=r"precision is fp32.*mixed_precision is bf16"):
        under(env(2, ACCELERATE_MIXED_PRECISION="bf16"), recipe("fp32"))


def test_sharding_by_fsdp_is_not_taken_for_ddp():
    with pytest.raises(PlanMismatch, match=r"(?i)fsdp"):
        under(env(2, ACCELERATE_USE_FSDP="true"), hardware=gpus(2))
