"""The disk that a run needs: what one checkpoint holds, and how many there are at a time."""

from __future__ import annotations

from pathlib import Path

import tiny

from launcher.planning.disk import disk_need, free_bytes
from launcher.plans import BatchPlan, LaunchPlan

ONE = LaunchPlan("single", None, "bf16", "cuda", 1, 1, BatchPlan(8, 1, 8, 1))
ZERO = LaunchPlan("deepspeed", 2, "bf16", "cuda", 1, 8, BatchPlan(8, 8, 1, 1))


def need(launch: LaunchPlan = ONE, *, total: int = 1000, trainable: int = 1000, adapters: bool = False, **training):
    found = tiny.recipe(training=training)
    return disk_need(found, launch, total_numel=total, trainable_numel=trainable, has_adapters=adapters)


def test_a_checkpoint_holds_weights_and_two_moments():
    assert (need().weights, need().optimizer) == (4000, 8000)
    assert need(optim="sgd").optimizer == 4000 and need(optim="adamw_bnb_8bit").optimizer == 2000
    assert need(trainable=100).optimizer == 800, "frozen parameters have no state"


def test_deepspeed_adds_its_copies():
    assert need(ZERO).optimizer == 1000 * (8 + 4 + 2)
    assert need(ZERO, total=1100, trainable=100, adapters=True).optimizer == 100 * (8 + 4 + 2), (
        "frozen weights are left out"
    )


def test_state_for_a_later_phase_lies_there_too():
    found = disk_need(tiny.recipe(), ONE, total_numel=10, trainable_numel=10, has_adapters=False, carries=True)
    assert found.optimizer == 160


def test_adapters_are_saved_alone():
    found = need(total=1100, trainable=100, adapters=True)
    assert (found.weights, found.optimizer, found.model) == (400, 800, 4400 + 400)


def test_how_many_checkpoints_there_are():
    assert need().checkpoints == 3, "the newest, the best, and the one in writing"
    assert need(load_best_model_at_end=False).checkpoints == 2
    assert need(save_total_limit=4).checkpoints == 6
    assert need(save_strategy="no", load_best_model_at_end=False).checkpoints == 0
    assert need().total == 3 * 12000 + 4000


def test_free_disk_of_a_folder_that_is_not_there_yet(tmp_path: Path):
    assert free_bytes(tmp_path / "a/b/c") > 0
