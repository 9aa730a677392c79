"""Which setting fits: the cheapest one, with the same rows a step, and nothing that could not work."""

from __future__ import annotations

from dataclasses import replace

import pytest
from fake_memory import GB, FakeMemory, setting

from launcher.planning.fitting import (
    Capacity,
    changed_keys,
    check,
    choose_sharding,
    describe_setting,
    largest_micro_batch,
    plainest,
    ranks_needed,
    slowdown,
    smallest_fit,
    with_micro_batch,
)

CARD = Capacity(80 * GB)
ALONE = {"engine": "single", "world_size": 1}


def fit(memory: FakeMemory, capacity: Capacity = CARD, **changes):
    found = smallest_fit(memory, setting(**changes), capacity)
    assert found is None or found.fits
    return found


# --- one setting -----------------------------------------------------------------------------------------------------


def test_head_room_is_kept_free():
    memory = FakeMemory(1, row=0, base=0)
    assert check(memory, setting(), Capacity(int(16 * GB / 0.92) + 10)).fits
    assert not check(memory, setting(), Capacity(int(16 * GB / 0.93))).fits
    assert check(memory, setting(), Capacity(17 * GB, headroom=0.0)).fits


def test_what_the_device_holds_before_counts():
    assert check(FakeMemory(1, row=0, base=3), setting(), CARD).needed == 19 * GB


def test_the_worst_moment_decides():
    memory = FakeMemory(1, row=1, base=0)
    assert check(memory, setting(activation_checkpointing=True), CARD).needed == int((16 + 1.6) * GB), "evaluation"
    assert check(memory, setting(), CARD).needed == 24 * GB, "training"


def test_what_is_offloaded_needs_the_machines_memory():
    away = setting(engine="deepspeed", zero_stage=3, offload="all", world_size=1)
    found = check(FakeMemory(8), away, Capacity(80 * GB, host_bytes=100 * GB))
    assert found.fits_device and found.host_needed == 128 * GB and not found.fits
    assert check(FakeMemory(8), away, Capacity(80 * GB, host_bytes=140 * GB)).fits
    assert check(FakeMemory(8), away, CARD).fits, "unknown, so not held against it"


def test_on_a_processor_offloading_frees_nothing():
    away = setting(engine="deepspeed", zero_stage=3, offload="all", world_size=1, device="cpu")
    found = check(FakeMemory(1, row=0, base=0), away, CARD)
    assert found.needed == 16 * GB and found.host_needed == 0


# --- the cheapest that fits ------------------------------------------------------------------------------------------


def test_what_fits_stays_as_it_is():
    assert fit(FakeMemory(1)).setting == setting()


def test_sharding_comes_before_smaller_micro_batches_before_checkpointing():
    assert fit(FakeMemory(5)).setting == setting(engine="deepspeed", zero_stage=1)
    assert fit(FakeMemory(1, row=12)).setting.micro_batch_size == 4
    crowded = fit(FakeMemory(0.1, row=60), micro_batch_size=1, accumulation=16, eval_batch_size=1).setting
    assert not crowded.activation_checkpointing
    tight = fit(FakeMemory(0.1, row=90), micro_batch_size=1, accumulation=16, eval_batch_size=1).setting
    assert tight.activation_checkpointing and tight.zero_stage is None


@pytest.mark.parametrize("billions, stage", [(3.5, None), (8, 1), (15, 2), (18, 2), (25, 3), (30, 3)])
def test_stages_follow_each_other(billions, stage):
    assert fit(FakeMemory(billions, row=0.1)).setting.zero_stage == stage


def test_one_gpu_has_none_to_share_with_and_offloads():
    found = fit(FakeMemory(8, row=2), **ALONE).setting
    assert (found.engine, found.zero_stage, found.offload) == ("deepspeed", 2, "optimizer")
    assert found.micro_batch_size == 8 and not found.activation_checkpointing or found.micro_batch_size < 8
    assert fit(FakeMemory(60, row=0.1), **ALONE).setting.offload == "all"


def test_a_stage_that_one_gpu_has_is_left_as_it_is():
    found = fit(FakeMemory(8), **{**ALONE, "engine": "deepspeed"}, zero_stage=3)
    assert (found.setting.zero_stage, found.setting.offload) == (3, "optimizer")


def test_the_rows_of_a_step_stay_the_same():
    for row in (3, 9, 20, 40, 60):
        found = fit(FakeMemory(1, row=row), micro_batch_size=12, accumulation=1).setting
        assert found.micro_batch_size * found.accumulation == 12


def test_nothing_cheaper_fits():
    """Every setting that is cheaper than the found one is tried by hand."""
    for billions in (1, 4, 9, 14, 40, 90):
        for row in (0.5, 4, 30):
            memory = FakeMemory(billions, row=row)
            found = fit(memory, eval_batch_size=1)
            if found is None:
                continue
            for stage in (None, 1, 2, 3):
                for checkpointing in (False, True):
                    engine = "ddp" if stage is None else "deepspeed"
                    other = setting(
                        engine=engine, zero_stage=stage, activation_checkpointing=checkpointing, eval_batch_size=1
                    )
                    if slowdown(other) < slowdown(found.setting):
                        assert not check(memory, other, CARD).fits


def test_a_micro_batch_is_not_made_smaller_than_needed():
    found = fit(FakeMemory(1, row=7), micro_batch_size=16, accumulation=1)
    assert found.setting.micro_batch_size == 8


def test_a_smaller_evaluation_batch_costs_nothing_and_comes_first():
    found = fit(FakeMemory(1, row=1), eval_batch_size=1024).setting
    assert found == setting(eval_batch_size=256)
    assert changed_keys(setting(eval_batch_size=1024), found) == ("training.per_device_eval_batch_size=256",)


def test_nothing_fits():
    assert fit(FakeMemory(1, row=9000)) is None
    assert fit(FakeMemory(1), Capacity(GB), device="cpu") is None
    assert fit(FakeMemory(8), Capacity(80 * GB, host_bytes=20 * GB), **ALONE) is None, "nor does the machine's memory"


def test_the_recipe_may_forbid_a_setting():
    found = smallest_fit(FakeMemory(5), setting(), CARD, allowed=lambda one: one.zero_stage != 1)
    assert found is not None and found.setting.zero_stage == 2
    inside = smallest_fit(FakeMemory(40, row=0.1), setting(world_size=2), CARD, offloading=False)
    assert inside is None


def test_few_estimates_are_asked_for_when_nothing_fits():
    memory = FakeMemory(1, row=9000)
    smallest_fit(memory, setting(eval_batch_size=1), CARD)
    assert len(memory.asked) <= 16


# --- engine: auto ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("billions, stage", [(3.5, None), (8, 1), (15, 2), (25, 3)])
def test_auto_takes_the_first_stage_that_fits(billions, stage):
    found = choose_sharding(FakeMemory(billions, row=0.1), setting(), CARD)
    assert found.setting.zero_stage == stage and found.setting.micro_batch_size == 8


def test_auto_changes_nothing_but_sharding():
    assert choose_sharding(FakeMemory(1, row=30), setting(), CARD) is None
    assert choose_sharding(FakeMemory(60, row=0.1), setting(**ALONE), CARD) is None, "it never offloads by itself"


# --- the most rows ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", [0.3, 1, 7.5, 30])
def test_the_largest_micro_batch_is_the_largest(row):
    memory = FakeMemory(1, row=row)
    most = largest_micro_batch(memory, setting(eval_batch_size=1), CARD)
    assert len(memory.asked) <= 8, "a line through two points is nearly there"
    for rows, fits in ((most, True), (most + 1, False)):
        assert check(memory, setting(micro_batch_size=rows, eval_batch_size=1), CARD).fits == fits


def test_no_row_fits_or_any_number_does():
    assert largest_micro_batch(FakeMemory(90), setting(), CARD) == 0
    assert largest_micro_batch(FakeMemory(1, row=0), setting(), CARD) == 4096


# --- more ranks ------------------------------------------------------------------------------------------------------


def test_how_many_gpus_it_takes():
    found = ranks_needed(FakeMemory(8, row=1), setting(**ALONE, micro_batch_size=4), CARD)
    assert found.fits and found.setting.world_size == 2 and found.setting.zero_stage == 3
    assert found.setting.micro_batch_size * found.setting.accumulation * 2 == 8
    assert ranks_needed(FakeMemory(1, row=200), setting(), CARD) is None, "more GPUs do not make a row smaller"


# --- words -----------------------------------------------------------------------------------------------------------


def test_a_change_is_said_in_keys_of_the_recipe():
    before = setting(**ALONE)
    after = replace(
        with_micro_batch(before, 4), engine="deepspeed", zero_stage=3, offload="all", activation_checkpointing=True
    )
    assert changed_keys(before, after) == (
        "distributed.engine=deepspeed",
        "distributed.zero_stage=3",
        "distributed.offload=all",
        "training.activation_checkpointing=true",
        "training.per_device_train_batch_size=4",
    )
    assert changed_keys(before, before) == ()
    assert changed_keys(after, plainest(after))[:3] == (
        "distributed.engine=single",
        "distributed.zero_stage=null",
        "distributed.offload=none",
    )
    assert (
        describe_setting(after) == "ZeRO-3, weights and optimizer offloaded, activation checkpointing, 4 rows at a time"
    )
