"""Which blocks are a frozen prefix, what a cache of its output would bring, and when there is none."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from launcher.contracts import AdapterPlan, Parameter, Phase
from launcher.errors import InstallationError, ModelError
from launcher.plans import BatchPlan, LaunchPlan
from launcher.recipe.chat_options import PreferenceOptions
from launcher.recipe.schema import Recipe
from launcher.strategies.prefix import (
    CacheFacts,
    CachePlan,
    Refusal,
    cache_bytes,
    frozen_prefix,
    frozen_share,
    is_head_only,
    plan_cache,
    predicted_speed_up,
)
from launcher.strategies.tables import NONE, build_table

GIB = 2**30
LAUNCH = LaunchPlan("single", None, "fp32", "cpu", 1, 1, BatchPlan(8, 1, 8, 1))


def parameter(name: str, depth: int, role: Any, numel: int) -> Parameter:
    return Parameter(name, (numel,), depth, role, True, False)


# Four blocks of a million elements between embeddings and a pooler and a head of 100,000 each.
PARAMETERS = (
    parameter("emb", 0, "embeddings", 500_000),
    *(parameter(f"layer.{i}.{part}", i, "block", 500_000) for i in range(1, 5) for part in "ab"),
    parameter("pooler", 5, "tail", 100_000),
    parameter("classifier", 5, "head", 100_000),
)


def phase(*trains: str, **changes: Any) -> Phase:
    """The parameters whose names begin with one of ``trains`` train."""
    table = build_table(PARAMETERS, rate=lambda p: 1.0 if p.name.startswith(trains) else 0.0, regularization=NONE)
    return Phase("main", table, **{"frozen_eval": True, **changes})


def recipe(cache: str = "auto", kind: str = "head", **training: Any) -> Recipe:
    return Recipe.model_validate(
        {
            "version": 1, "name": "x", "task": {"type": "text-classification"}, "model": {"name_or_path": "x"},
            "data": {"source": "x"}, "training": training,
            "strategy": {"type": kind, **({"prefix_cache": cache} if kind != "full" else {})},
        }
    )  # fmt: skip


def facts(**changes: Any) -> CacheFacts:
    values = {
        "model_type": "bert", "architecture": "BertForSequenceClassification", "hidden": 64, "itemsize": 4,
        "lengths": {"train": [20] * 1000, "validation": [30] * 100}, "epochs": 10, "launch": LAUNCH, "phases": 1,
        "free_memory": 8 * GIB, "free_disk": 100 * GIB,
    }  # fmt: skip
    return CacheFacts(**(values | changes))


HEAD = phase("classifier")
HALF = phase("layer.3", "layer.4", "pooler", "classifier")


@pytest.mark.parametrize(
    "trains, blocks",
    [
        (("classifier",), 4),
        (("pooler", "classifier"), 4),
        (("layer.4", "classifier"), 3),
        (("layer.2.b", "classifier"), 1),  # a part of a block ends the prefix
        (("layer.1", "classifier"), 0),
        (("emb", "classifier"), 0),  # frozen blocks above trained embeddings are no prefix
        (("",), 0),
    ],
)
def test_frozen_prefix(trains: tuple[str, ...], blocks: int) -> None:
    assert frozen_prefix(PARAMETERS, phase(*trains).table) == blocks


def test_head_only_is_the_head_alone() -> None:
    assert is_head_only(PARAMETERS, HEAD.table)
    assert not is_head_only(PARAMETERS, phase("pooler", "classifier").table)


@pytest.mark.parametrize("share, limit", [(0.5, 4 / 3), (0.75, 2.0), (11 / 12, 14 / 3)])
def test_speed_up_tends_to_its_limit_with_many_epochs(share: float, limit: float) -> None:
    assert predicted_speed_up(share, epochs=1e9) == pytest.approx(limit)


def test_speed_up_closed_forms() -> None:
    assert predicted_speed_up(1.0, epochs=10) == pytest.approx(10)  # one pass instead of ten
    assert predicted_speed_up(0.5, epochs=1) == pytest.approx(1.0)  # one epoch: nothing is saved
    assert predicted_speed_up(0.0, epochs=5) == pytest.approx(1.0)
    # By hand: (5 * 2) / (5 * 1.5 + 0.5 + 2).
    assert predicted_speed_up(0.5, epochs=5, io=2.0) == pytest.approx(1.0)


def test_frozen_share_counts_matrices_by_the_tokens_that_they_work_on() -> None:
    assert frozen_share(PARAMETERS, blocks=2, head_only=False, tokens=10) == pytest.approx(2000 / 4020)
    assert frozen_share(PARAMETERS, blocks=4, head_only=True, tokens=10) == pytest.approx(4010 / 4020)


def test_cache_bytes() -> None:
    assert cache_bytes(rows=10, tokens=200, hidden=64, itemsize=2) == 200 * 64 * 2
    assert cache_bytes(rows=10, tokens=200, hidden=64, itemsize=2, reads="first") == 10 * 64 * 2


def test_head_only_keeps_one_vector_for_each_row() -> None:
    plan = plan_cache(PARAMETERS, HEAD, recipe(), facts())
    assert isinstance(plan, CachePlan)
    assert (plan.whole_backbone, plan.reads, plan.blocks, plan.store) == (True, "pooler", 4, "memory")
    assert plan.bytes == 1100 * 64 * 4
    assert 7 < plan.speed_up < 10


def test_a_head_for_every_token_keeps_every_token() -> None:
    plan = plan_cache(PARAMETERS, HEAD, recipe(), facts(architecture="BertForTokenClassification"))
    assert isinstance(plan, CachePlan)
    assert (plan.whole_backbone, plan.reads, plan.bytes) == (True, "tokens", 23000 * 64 * 4)


def test_half_of_the_blocks() -> None:
    plan = plan_cache(PARAMETERS, HALF, recipe(kind="layerwise", cache="memory"), facts())
    assert isinstance(plan, CachePlan)
    assert (plan.whole_backbone, plan.blocks, plan.reads) == (False, 2, "tokens")
    assert plan.bytes == 23000 * 64 * 4
    assert plan.speed_up == pytest.approx(predicted_speed_up(plan.frozen_share, epochs=10), rel=0.2)


def test_every_process_of_a_machine_keeps_a_copy_in_memory_but_shares_files() -> None:
    two = replace(LAUNCH, engine="ddp", processes_per_node=2)
    memory = plan_cache(PARAMETERS, HEAD, recipe("memory"), facts(launch=two))
    disk = plan_cache(PARAMETERS, HEAD, recipe("disk"), facts(launch=two))
    assert isinstance(memory, CachePlan) and isinstance(disk, CachePlan)
    assert memory.bytes == 2 * disk.bytes


def test_auto_takes_the_disk_when_memory_is_short_and_nothing_when_both_are() -> None:
    def decide(**changes: Any) -> Any:
        return plan_cache(PARAMETERS, HEAD, recipe(), facts(**changes))

    assert decide(free_memory=4 * 1100 * 64 * 4).store == "memory"  # a quarter
    assert decide(free_memory=4 * 1100 * 64 * 4 - 1).store == "disk"
    nowhere = decide(free_memory=0, free_disk=2 * 1100 * 64 * 4 - 1)
    assert isinstance(nowhere, Refusal) and "free memory" in nowhere.reason and "free disk" in nowhere.reason


def test_auto_does_not_cache_what_brings_little() -> None:
    refusal = plan_cache(PARAMETERS, phase("layer.2", "layer.3", "layer.4", "pooler", "classifier"), recipe(kind="layerwise"), facts())  # fmt: skip
    assert isinstance(refusal, Refusal) and "times as fast" in refusal.reason
    assert isinstance(plan_cache(PARAMETERS, HEAD, recipe(), facts(epochs=1)), Refusal)


def test_pairs_of_texts_are_not_cached() -> None:
    plain = recipe()
    pairs = plain.model_copy(update={"task": PreferenceOptions(type="preference")})
    refusal = plan_cache(PARAMETERS, HEAD, pairs, facts())
    assert isinstance(refusal, Refusal) and "a row is two texts" in refusal.reason
    assert not isinstance(plan_cache(PARAMETERS, HEAD, plain, facts()), Refusal)


@pytest.mark.parametrize(
    "of_phase, of_recipe, of_facts, words",
    [
        (HEAD, {"kind": "full"}, {}, "the strategy has none"),
        (HEAD, {"cache": "off"}, {}, "is off"),
        (replace(HEAD, adapters=AdapterPlan({}, {})), {}, {}, "adapters"),
        (HEAD, {}, {"phases": 2}, "2 phases"),
        (HEAD, {}, {"launch": replace(LAUNCH, engine="deepspeed", zero_stage=3)}, "ZeRO-3"),
        (phase(""), {}, {}, "no blocks are frozen"),
        (phase("emb", "classifier"), {}, {}, "embeddings train"),
        (HEAD, {}, {"model_type": "t5"}, "type t5"),
        (replace(HEAD, frozen_eval=False), {}, {}, "dropout"),
        (replace(HEAD, frozen_eval=False, dropout=(0.0, 0.1)), {}, {"has_dropout": False}, "dropout"),
        (HEAD, {}, {"inputs_vary": True}, "differs between epochs"),
        (HEAD, {"neftune_noise_alpha": 5.0}, {}, "neftune"),
        (HEAD, {"activation_checkpointing": True}, {}, "activation_checkpointing"),
        (HEAD, {"torch_compile": True}, {}, "torch_compile"),
        (HEAD, {"use_liger_kernel": True}, {}, "liger"),
        (HEAD, {}, {"padding_side": "left"}, "pads on the left"),
    ],
)
def test_refusals_name_their_reason(of_phase: Phase, of_recipe: Any, of_facts: Any, words: str) -> None:
    refusal = plan_cache(PARAMETERS, of_phase, recipe(**of_recipe), facts(**of_facts))
    assert isinstance(refusal, Refusal) and words in refusal.reason
    if "kind" not in of_recipe and "cache" not in of_recipe:
        with pytest.raises(ModelError, match="prefix_cache is memory, but .*" + words):
            plan_cache(PARAMETERS, of_phase, recipe("memory", **of_recipe), facts(**of_facts))


def test_without_dropout_frozen_blocks_need_no_evaluation_mode() -> None:
    plan = plan_cache(PARAMETERS, replace(HEAD, frozen_eval=False), recipe(), facts(has_dropout=False))
    assert isinstance(plan, CachePlan)


def test_relative_positions_may_be_padded_on_the_left() -> None:
    plan = plan_cache(PARAMETERS, HEAD, recipe(), facts(model_type="llama", padding_side="left"))
    assert isinstance(plan, CachePlan)


def test_a_cache_that_is_asked_for_and_does_not_fit_is_an_error_with_both_sizes() -> None:
    with pytest.raises(InstallationError, match="takes 275 KiB, but only 1 KiB are free"):
        plan_cache(PARAMETERS, HEAD, recipe("memory"), facts(free_memory=1024))
    with pytest.raises(InstallationError, match="free"):
        plan_cache(PARAMETERS, HEAD, recipe("disk"), facts(free_disk=1024))


def test_the_plan_in_words() -> None:
    plan = plan_cache(PARAMETERS, HEAD, recipe(), facts())
    assert isinstance(plan, CachePlan)
    assert plan.describe().startswith("prefix cache: the head's input, 275 KiB in memory; 100% of a forward pass")
