"""DeepSpeed files: what the shipped ones say, what becomes of a user's own, and every contradiction with both places named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny

from launcher.errors import PlanMismatch
from launcher.launching.deepspeed import deepspeed_config, reopened, with_batch
from launcher.launching.launch_plan import plan_launch, settle
from launcher.plans import BatchPlan, Gpu, Hardware, LaunchPlan
from launcher.recipe.deepspeed_file import Zero, read_deepspeed_file, zero_of
from launcher.recipe.examine import examine
from launcher.recipe.schema import Recipe
from launcher.shipped import SHIPPED_DEEPSPEED, shipped_folder

CPU = Hardware((), 8, 2**34, cpu_has_fast_bf16=False)
GPUS = Hardware((Gpu("card", 80 * 2**30, 9.0),) * 4, 64, 2**38, cpu_has_fast_bf16=False)


def recipe(
    training: dict | None = None, precision: str = "auto", strategy: dict | None = None, **distributed: Any
) -> Recipe:
    sections = {"precision": precision, "training": training or {}, "strategy": strategy or {"type": "full"}}
    return tiny.recipe(**sections, distributed={"processes_per_node": 2, **distributed})


def planned(asked: Recipe, hardware: Hardware = CPU) -> tuple[LaunchPlan, dict[str, Any]]:
    plan = plan_launch(asked, hardware)
    return plan, deepspeed_config(settle(asked, None), plan)


# --- shipped files -----------------------------------------------------------------------------------------------------

SAYS = {
    "zero0": Zero(0, "none", "cpu", None),
    "zero1": Zero(1, "none", "cpu", None),
    "zero2": Zero(2, "none", "cpu", None),
    "zero3": Zero(3, "none", "cpu", None),
    "zeropp": Zero(3, "none", "cpu", None),
    "zero2_offload": Zero(2, "optimizer", "cpu", None),
    "zero3_offload": Zero(3, "all", "cpu", None),
    "zero3_nvme": Zero(3, "all", "nvme", "/local_nvme"),
}


def test_the_folder_holds_these_files():
    assert {path.stem for path in shipped_folder("ds_configs").glob("*.json")} == set(SAYS) == set(SHIPPED_DEEPSPEED)


@pytest.mark.parametrize("name", SAYS)
def test_a_shipped_file_says_what_its_name_says(name):
    config = read_deepspeed_file(name)
    assert zero_of(config) == SAYS[name]
    assert not {"optimizer", "scheduler"} & set(config), "either would flatten the rates of the groups"
    # Without it accelerate would replace the script's optimizer by one that DeepSpeed has to build first.
    assert config.get("zero_force_ds_cpu_optimizer", False) is False
    assert ("zero_force_ds_cpu_optimizer" in config) == (SAYS[name].offload != "none")
    assert SAYS[name].stage != 3 or config["zero_optimization"]["stage3_gather_16bit_weights_on_model_save"] is True


@pytest.mark.parametrize("name", SAYS)
def test_deepspeed_knows_every_key_of_sharding(name):
    """DeepSpeed's own class refuses keys and values that it does not know; ``auto`` is filled in by transformers before."""
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    zero = {key: value for key, value in read_deepspeed_file(name)["zero_optimization"].items() if value != "auto"}
    found = DeepSpeedZeroConfig(**zero)
    assert found.stage == SAYS[name].stage
    assert set(zero) <= set(DeepSpeedZeroConfig.model_fields) | {"stage3_max_live_parameters"} | _aliases(
        DeepSpeedZeroConfig
    )


def _aliases(section: Any) -> set[str]:
    return {field.alias for field in section.model_fields.values() if field.alias}


@pytest.mark.parametrize("name", SAYS)
def test_a_hugging_face_script_can_take_each(name, tmp_path):
    """TrainingArguments and Trainer's finishing step leave no ``auto``."""
    from transformers import TrainingArguments
    from transformers.integrations.deepspeed import HfDeepSpeedConfig, unset_hf_deepspeed_config

    path = str(shipped_folder("ds_configs") / f"{name}.json")
    try:
        assert HfDeepSpeedConfig(path).is_zero3() == (SAYS[name].stage == 3)
        arguments = TrainingArguments(
            str(tmp_path), deepspeed=path, use_cpu=True, report_to="none", per_device_train_batch_size=2,
            gradient_accumulation_steps=3, bf16=True, max_grad_norm=0.5,
        )  # fmt: skip
        config = arguments.hf_deepspeed_config
        config.trainer_config_finalize(arguments, type("Model", (), {"config": tiny.bert_config()})(), 10)
        found = config.config
        assert '"auto"' not in json.dumps(found)
        assert (found["train_batch_size"], found["train_micro_batch_size_per_gpu"]) == (6, 2)
        assert (found["gradient_accumulation_steps"], found["gradient_clipping"]) == (3, 0.5)
        assert (found["bf16"]["enabled"], found["fp16"]["enabled"]) == (True, False)
    finally:
        unset_hf_deepspeed_config()
        _forget_accelerator()


def _forget_accelerator() -> None:
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)


# --- what a run uses ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "distributed, expected",
    [
        ({"zero_stage": 1, "offload": "optimizer"}, Zero(1, "optimizer", "cpu", None)),
        ({"offload": "optimizer"}, Zero(2, "optimizer", "cpu", None)),
        ({"zero_stage": 3, "offload": "optimizer"}, Zero(3, "optimizer", "cpu", None)),
        ({"offload": "all"}, Zero(3, "all", "cpu", None)),
        ({"offload": "all", "offload_device": "nvme", "nvme_path": "/x"}, Zero(3, "all", "nvme", "/x")),
        ({"offload": "optimizer", "offload_device": "nvme", "nvme_path": "/x"}, Zero(3, "optimizer", "nvme", "/x")),
    ],
)
def test_offload_is_rendered(distributed, expected):
    plan, config = planned(recipe(**distributed))
    assert zero_of(config) == expected
    assert (plan.engine, plan.zero_stage, plan.offload, plan.offload_device) == (
        "deepspeed", expected.stage, expected.offload, expected.device,
    )  # fmt: skip
    assert config["zero_force_ds_cpu_optimizer"] is False
    paths = [config["zero_optimization"].get(f"offload_{what}", {}).get("nvme_path") for what in ("optimizer", "param")]
    assert set(paths) <= {None, "/x"}, "the shipped file's folder only keeps the place"


@pytest.mark.parametrize("distributed", [{"zero_stage": stage} for stage in range(4)] + [{"offload": "all"}])
def test_what_the_plan_knows_is_not_left_open(distributed):
    _, config = planned(recipe(**distributed))
    flat = json.dumps({key: value for key, value in config.items() if key != "zero_optimization"})
    assert '"auto"' not in flat
    open_keys = {key for key, value in config["zero_optimization"].items() if value == "auto"}
    # These follow from the model's width.
    assert open_keys <= {
        "reduce_bucket_size", "stage3_prefetch_bucket_size", "stage3_param_persistence_threshold",
    }  # fmt: skip


def test_zeropp_keeps_a_copy_of_the_weights_on_each_machine():
    asked = recipe(deepspeed_config="zeropp", processes_per_node=4)
    plan = plan_launch(asked, GPUS)
    config = deepspeed_config(asked, plan)
    assert (plan.zero_stage, config["zero_optimization"]["zero_hpz_partition_size"]) == (3, 4)


def test_a_shipped_file_by_name_gives_stage_and_offload():
    plan = plan_launch(recipe(deepspeed_config="zero3_offload"), CPU)
    assert (plan.engine, plan.zero_stage, plan.offload) == ("deepspeed", 3, "all")


# --- a user's own file -------------------------------------------------------------------------------------------------


@pytest.fixture
def own(tmp_path):
    """Write a file of the user's own and return its path."""

    def write(**config: Any) -> str:
        path = tmp_path / "ds.json"
        path.write_text(json.dumps({"zero_optimization": {"stage": 2, "reduce_bucket_size": 7}, **config}))
        return str(path)

    return write


def test_everything_else_of_an_own_file_is_kept(own):
    asked = recipe(deepspeed_config=own(comms_logger={"enabled": True}))
    plan, config = planned(asked)
    assert (plan.zero_stage, config["zero_optimization"]["reduce_bucket_size"]) == (2, 7)
    assert config["comms_logger"] == {"enabled": True}
    assert config["train_batch_size"] == 32 and config["bf16"] == {"enabled": False}


def test_an_own_micro_batch_is_taken(own):
    asked = recipe({"global_batch_size": 16}, deepspeed_config=own(train_micro_batch_size_per_gpu=2))
    plan, config = planned(asked)
    assert plan.batch == BatchPlan(16, 2, 2, 4) and config["gradient_accumulation_steps"] == 4


def test_an_own_precision_is_taken_where_the_recipe_leaves_it_open(own):
    assert plan_launch(recipe(deepspeed_config=own(bf16={"enabled": True})), CPU).precision == "bf16"
    fixed = own(bf16={"enabled": False}, fp16={"enabled": False})
    fast = Hardware((), 8, 2**34, cpu_has_fast_bf16=True)
    assert plan_launch(recipe(deepspeed_config=fixed), fast).precision == "fp32"


ONE_RATE = {"type": "AdamW", "params": {"lr": "auto", "betas": "auto", "eps": "auto", "weight_decay": "auto"}}
WARMUP = {"type": "WarmupDecayLR", "params": {"warmup_max_lr": "auto", "total_num_steps": "auto"}}


def test_blocks_that_say_what_the_recipe_says_are_accepted_and_not_used(own):
    """The optimizer of the tuning table is built either way; DeepSpeed's would know no groups."""
    _, config = planned(recipe(deepspeed_config=own(optimizer=ONE_RATE, scheduler=WARMUP)))
    assert not {"optimizer", "scheduler"} & set(config)


@pytest.mark.parametrize(
    "strategy, key",
    [
        ({"type": "layerwise"}, "strategy.type"),
        ({"type": "layerwise", "layer_decay": 0.8}, "strategy.layer_decay"),
        ({"type": "layerwise", "layer_decay": 1.0, "head_lr_mult": 2.0}, "strategy.head_lr_mult"),
        ({"type": "full", "head_lr": 1e-3}, "strategy.head_lr"),
        ({"type": "full", "embedding_lr": 1e-6}, "strategy.embedding_lr"),
        ({"type": "lora", "loraplus_lr_ratio": 16}, "strategy.loraplus_lr_ratio"),
        ({"type": "lora", "layer_decay": 0.9}, "strategy.layer_decay"),
        ({"type": "discriminative", "apply": "lr"}, "strategy.apply"),
    ],
)
@pytest.mark.parametrize("block", ["optimizer", "scheduler"])
def test_blocks_are_refused_where_the_table_has_several_rates(own, strategy, key, block):
    file = own(**{block: ONE_RATE if block == "optimizer" else WARMUP})
    with pytest.raises(PlanMismatch, match=f"block '{block}'.*{key}.*several rates.*remove the block") as caught:
        plan_launch(recipe(strategy=strategy, deepspeed_config=file), CPU)
    assert file in str(caught.value)


CONTRADICTIONS: list[tuple[dict[str, Any], dict[str, Any], tuple[str, str]]] = [
    ({"zero_optimization": {"stage": 1}}, {"distributed": {"zero_stage": 3}},
     ("zero_optimization.stage is 1", "distributed.zero_stage is 3")),
    ({}, {"distributed": {"offload": "optimizer"}}, ("the offload is none", "distributed.offload is optimizer")),
    ({"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}}, {"distributed": {"offload": "none"}},
     ("the offload is optimizer", "distributed.offload is none")),
    ({"gradient_clipping": 0.5}, {}, ("gradient_clipping is 0.5", "training.max_grad_norm is 1.0")),
    ({"bf16": {"enabled": True}}, {"precision": "fp32"}, ("bf16.enabled is true", "precision is fp32")),
    ({"bf16": {"enabled": False}}, {"precision": "bf16"}, ("bf16.enabled is false", "precision is bf16")),
    ({"train_batch_size": 64}, {}, ("train_batch_size is 64", "training.global_batch_size is 32")),
    ({"train_micro_batch_size_per_gpu": 8}, {"training": {"per_device_train_batch_size": 4}},
     ("train_micro_batch_size_per_gpu is 8", "training.per_device_train_batch_size is 4")),
    ({"train_batch_size": 32}, {"training": {"batch_size_schedule": [{"epoch": 1, "global_batch_size": 8}]}},
     ("train_batch_size is 32", "training.batch_size_schedule")),
    ({"gradient_accumulation_steps": 2}, {"training": {"tokens_per_batch": 512}},
     ("gradient_accumulation_steps is 2", "training.tokens_per_batch")),
    ({"optimizer": {"type": "Lamb"}}, {}, ("optimizer.type is Lamb", "training.optim is adamw_torch_fused")),
    ({"optimizer": {"type": "AdamW", "params": {"lr": 0.1}}}, {}, ("optimizer.params.lr is 0.1", "training.learning_rate is")),
    ({"scheduler": {"type": "WarmupDecayLR"}}, {"training": {"lr_scheduler_type": "cosine"}},
     ("scheduler.type is WarmupDecayLR", "training.lr_scheduler_type is cosine")),
    ({"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}, "zero_force_ds_cpu_optimizer": True}, {},
     ("zero_force_ds_cpu_optimizer is true", "training.optim")),
    ({"tensor_parallel": {"autotp_size": 2}}, {}, ("tensor_parallel.autotp_size is 2", "distributed.tensor_parallel_size")),
]  # fmt: skip


@pytest.mark.parametrize(
    "file, sections, said", CONTRADICTIONS, ids=[said[0].split()[0] for *_, said in CONTRADICTIONS]
)
def test_a_contradiction_names_file_and_key(own, tmp_path, file, sections, said):
    """By ``check``, with the recipe's line; and by the plan, should nothing have been checked."""
    path = own(**file)
    distributed = {"processes_per_node": 2, "deepspeed_config": path, **sections.get("distributed", {})}
    values = tiny.recipe_values(str(tmp_path), "ag_news", **{**sections, "distributed": distributed})
    values["precision"] = sections.get("precision", "auto")
    if "training" not in sections:
        values["training"] = {"learning_rate": 1e-3}
    else:
        values["training"] = {"learning_rate": 1e-3, **sections["training"]}
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "tokenizer.json").write_text("{}")
    written = tiny.write_recipe(tmp_path / "r.yaml", values)
    _, problems = examine(str(written))
    found = [problem for problem in problems if said[0] in problem.message]
    assert len(found) == len(problems) == 1, [str(problem) for problem in problems]
    (problem,) = found
    assert said[1] in problem.message and path in problem.message and problem.remedy
    assert problem.place.startswith(f"{written}:")
    if sections.get("distributed") == {"offload": "none"}:
        return  # a default that is written out: only ``check`` knows that it was
    with pytest.raises(PlanMismatch) as caught:
        plan_launch(recipe(**{**{k: v for k, v in sections.items() if k != "distributed"}, **distributed}), CPU)
    assert said[0] in str(caught.value) and said[1] in str(caught.value)


@pytest.mark.parametrize(
    "zero, message",
    [
        ({"stage": 7}, "stage is 7; write 0, 1, 2 or 3"),
        ({"stage": 2, "cpu_offload": True}, "a name of earlier years"),
        ({"stage": 3, "offload_param": {"device": "cpu"}}, "offloads weights but not the optimizer's state"),
        (
            {"stage": 2, "offload_param": {"device": "cpu"}, "offload_optimizer": {"device": "cpu"}},
            "at stage 2; only stage 3",
        ),
        ({"stage": 2, "offload_optimizer": {"device": "nvme"}}, "to nvme at stage 2"),
        ({"stage": 0, "offload_optimizer": {"device": "cpu"}}, "offloads at stage 0"),
        ({"stage": 3, "offload_optimizer": {"device": "disk"}}, "device is 'disk'; write none, cpu or nvme"),
        ([], "zero_optimization"),
    ],
)
def test_what_launcher_does_not_run_is_refused(own, zero, message):
    if zero == []:
        zero = [1]
    with pytest.raises(PlanMismatch, match="distributed.deepspeed_config|ds.json") as caught:
        plan_launch(recipe(deepspeed_config=own(zero_optimization=zero)), CPU)
    assert message in str(caught.value)


@pytest.mark.parametrize("text, message", [("{,", "it is no JSON"), ("[]", "it holds no JSON object")])
def test_a_broken_file_is_refused(tmp_path, text, message):
    (tmp_path / "ds.json").write_text(text)
    with pytest.raises(PlanMismatch, match=message):
        plan_launch(recipe(deepspeed_config=str(tmp_path / "ds.json")), CPU)


def test_a_batch_that_does_not_multiply_up_is_refused(own):
    file = own(train_micro_batch_size_per_gpu=4, gradient_accumulation_steps=3)
    with pytest.raises(
        PlanMismatch, match="gradient_accumulation_steps is 3, but the recipe's training.global_batch_size"
    ):
        plan_launch(recipe(deepspeed_config=file), CPU)


# --- later attempts and phases -----------------------------------------------------------------------------------------


def test_another_phase_changes_the_batch_alone():
    _, config = planned(recipe(zero_stage=2))
    other = with_batch(config, BatchPlan(64, 2, 8, 4))
    changed = {key for key in config if config[key] != other[key]}
    assert changed == {"train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps"}


def test_a_resolved_file_can_be_resolved_again_for_another_world(own):
    asked = recipe(deepspeed_config=own(comms_logger={"enabled": True}))
    plan, config = planned(asked)
    resolved = settle(asked, read_deepspeed_file(asked.distributed.deepspeed_config))
    Path(asked.distributed.deepspeed_config).unlink()
    alone = resolved.model_copy(
        update={"distributed": resolved.distributed.model_copy(update={"processes_per_node": 1})}
    )
    earlier = reopened(config)
    again = plan_launch(alone, CPU, deepspeed=earlier)
    assert (again.zero_stage, again.world_size) == (plan.zero_stage, 1)
    found = deepspeed_config(alone, again, base=earlier)
    assert found["zero_optimization"] == config["zero_optimization"] and found["comms_logger"] == {"enabled": True}
    assert found["train_micro_batch_size_per_gpu"] == 32
