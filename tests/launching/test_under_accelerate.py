"""A worker under the user's own accelerate configuration: it decides, or is refused with both places named."""

from __future__ import annotations

import json

import pytest
from tiny import recipe_values

from launcher.errors import InstallationError, PlanMismatch
from launcher.launching.launch_plan import plan_launch
from launcher.launching.under_accelerate import plan_under_accelerate
from launcher.plans import Gpu, Hardware, LaunchPlan
from launcher.recipe.schema import Recipe

CPU = Hardware((), 8, 2**34, cpu_has_fast_bf16=False)


def gpus(number: int) -> Hardware:
    return Hardware((Gpu("card", 80 * 2**30, 9.0),) * number, 64, 2**38, cpu_has_fast_bf16=False)


def recipe(precision: str = "auto", **distributed: object) -> Recipe:
    values = recipe_values("bert", "data", precision=precision, training={})
    values["task"] = {"type": "text-classification"}
    return Recipe.model_validate({**values, "strategy": {"type": "full"}, "distributed": distributed}, strict=True)


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
    fsdp = env(2, ACCELERATE_USE_FSDP="true", FSDP_VERSION="2")
    assert under(fsdp, hardware=gpus(2)).engine == "fsdp"
    assert under({**fsdp, "FSDP_OFFLOAD_PARAMS": "true"}, hardware=gpus(2)).offload == "all"
    with pytest.raises(PlanMismatch, match=r"fsdp_version is 1.*fsdp_version: 2"):
        under(env(2, ACCELERATE_USE_FSDP="true", FSDP_VERSION="1"), hardware=gpus(2))
    with pytest.raises(InstallationError, match="which needs GPUs"):
        under(fsdp)


OFFLOAD = {**DEEPSPEED_2, "ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": "cpu"}


def test_accelerates_offload_is_taken():
    plan = under(env(2, **OFFLOAD))
    assert (plan.zero_stage, plan.offload, plan.offload_device) == (2, "optimizer", "cpu")
    none = {**DEEPSPEED_2, "ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": "none"}
    assert under(env(2, **none)).offload == "none"
    both = {**OFFLOAD, "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3", "ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE": "cpu"}
    assert under(env(2, **both)).offload == "all"


@pytest.mark.parametrize("hidden", ["ACCELERATE_USE_MEGATRON_LM", "PARALLELISM_CONFIG_CP_SIZE"])
def test_what_launcher_does_not_run_is_refused(hidden):
    with pytest.raises(PlanMismatch, match="which launcher does not run"):
        under(env(2, **{hidden: "2" if hidden.endswith("SIZE") else "true"}), hardware=gpus(2))


def _file(tmp_path, **config):
    file = tmp_path / "ds.json"
    file.write_text(json.dumps({"zero_optimization": {"stage": 2}, **config}))
    return {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_CONFIG_FILE": str(file)}


def test_the_users_file_says_what_is_offloaded(tmp_path):
    given = _file(
        tmp_path, zero_optimization={"stage": 3, "offload_optimizer": {"device": "cpu"}}, bf16={"enabled": True}
    )
    adapted = plan_under_accelerate(recipe(), CPU, env(2, **given))
    assert (adapted.launch.zero_stage, adapted.launch.offload, adapted.launch.precision) == (3, "optimizer", "bf16")
    written = adapted.recipe.distributed
    assert (written.zero_stage, written.offload, written.deepspeed_config) == (3, "optimizer", None)


@pytest.mark.parametrize(
    "file, wanted, said",
    [
        ({}, {"zero_stage": 3}, ("zero_optimization.stage is 2", "distributed.zero_stage is 3")),
        ({}, {"offload": "optimizer"}, ("the offload is none", "distributed.offload is optimizer")),
        ({"gradient_clipping": 0.1}, {}, ("gradient_clipping is 0.1", "training.max_grad_norm is 1.0")),
    ],
)
def test_the_users_file_and_the_recipe_are_both_named(tmp_path, file, wanted, said):
    with pytest.raises(PlanMismatch) as caught:
        under(env(2, **_file(tmp_path, **file)), recipe(**wanted))
    assert said[0] in str(caught.value) and said[1] in str(caught.value)


def test_two_files_are_one_too_many(tmp_path):
    given = _file(tmp_path)
    with pytest.raises(
        PlanMismatch, match=r"deepspeed_config is zero2, but accelerate's deepspeed_config_file is .*ds.json"
    ):
        under(env(2, **given), recipe(deepspeed_config="zero2"))
    same = recipe(deepspeed_config=given["ACCELERATE_DEEPSPEED_CONFIG_FILE"])
    assert under(env(2, **given), same).zero_stage == 2


@pytest.mark.parametrize(
    "wanted, environment, ours, theirs",
    [
        ({"offload": "optimizer"}, DEEPSPEED_2, "distributed.offload is optimizer", "offload is none"),
        ({"offload": "none"}, OFFLOAD, "distributed.offload is none", "offload is optimizer"),
        ({"engine": "fsdp"}, {}, "distributed.engine is fsdp", "distributed_type is ddp"),
        ({"deepspeed_config": "zero2"}, DEEPSPEED_2, "distributed.deepspeed_config is zero2", "deepspeed_config_file is None"),
        ({"zero_stage": 2, "sequence_parallel_size": 2}, DEEPSPEED_2, "sequence_parallel_size is 2",
         "parallelism_config_sp_size is 1"),
        ({"tensor_parallel_size": 1}, {"PARALLELISM_CONFIG_TP_SIZE": "2"}, "tensor_parallel_size is 1",
         "parallelism_config_tp_size is 2"),
    ],
)  # fmt: skip
def test_contradictions_of_what_is_new_name_both_places(wanted, environment, ours, theirs):
    with pytest.raises(PlanMismatch) as caught:
        under(env(2, **environment), recipe(**wanted), hardware=gpus(2))
    assert ours in str(caught.value) and theirs in str(caught.value)
