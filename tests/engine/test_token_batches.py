"""Steps that are bounded by tokens, trained in this process: passes, stops, phases, and what is written down of them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))
from in_process import prepare

from launcher.engine.checkpoint_files import read_manifest

ROWS = 41
NEVER = {"eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": False}
THAWING = {"strategy": {"type": "layerwise", "gradual_unfreezing": {"epochs_per_stage": 1}, "prefix_cache": "off"}}


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tokens")
    # Dropout shows whether a resume goes on with the same numbers of chance.
    tiny.save_bert(folder / "bert", hidden_dropout_prob=0.1)
    tiny.save_bert(folder / "exact")
    tiny.write_data(folder / "data", train=ROWS, validation=9, test=6)
    return folder


def ready(
    place: Path, runs: Path, *, found: Any = None, stop_at: int | None = None, bert: str = "bert", **changes: Any
):
    training = {"global_batch_size": None, "tokens_per_batch": 128, **NEVER, **changes.pop("training", {})}
    data = {"cache_dir": str(place / "cache")}
    made = prepare(place / bert, place / "data", runs, run=found, training=training, data=data, **changes)
    if stop_at is not None:
        on_step = made.context.progress.on_step

        def stop(step: int, **facts: Any) -> None:
            on_step(step, **facts)
            if step == stop_at:
                made.run.stop_request(made.context.attempt).touch()

        made.context.progress.on_step = stop
    return made


def test_losses_and_norms_are_the_same_in_any_number_of_passes(place, tmp_path):
    found, batches = {}, {}
    for cap in (None, 64, 24):
        run = ready(place, tmp_path / str(cap), bert="exact", training={"per_device_train_tokens": cap})
        run.train()
        batches[cap] = run.context.launch.batch
        rows = [row for row in tiny.jsonl(run.run.progress) if "loss" in row]
        found[cap] = [value for row in rows for value in (row["loss"], row["grad_norm"])]
        assert len(rows) == 2 * batches[cap].budget.batches
        assert batches[cap].budget.held_tokens <= (cap or 128)
    assert batches[None].accumulation == 1 < batches[64].accumulation < batches[24].accumulation
    assert found[64] == pytest.approx(found[None], rel=1e-5) and found[24] == pytest.approx(found[None], rel=1e-5)


def test_the_ledger_has_each_row_once_an_epoch_in_steps_of_different_numbers_of_rows(place, tmp_path):
    run = ready(place, tmp_path / "run", training={"save_strategy": "steps", "save_steps": 3})
    run.train()
    ledger, steps = tiny.ledger(run.run.path), run.context.launch.batch.budget.batches
    assert len(ledger) == run.context.plan.total_steps == 2 * steps and run.context.plan.steps_per_epoch == steps
    for epoch in (0, 1):
        used = [row for step in range(epoch * steps + 1, (epoch + 1) * steps + 1) for row in ledger[step]]
        assert sorted(used) == list(range(ROWS))
    sizes = {len(rows) for rows in ledger.values()}
    assert (min(sizes), max(sizes)) == (
        run.context.launch.batch.budget.least_rows,
        run.context.launch.batch.budget.most_rows,
    )
    assert len(sizes) > 1
    manifest = read_manifest(run.run.latest_checkpoint())
    assert manifest["consumed_samples"] == sum(len(ledger[step]) for step in range(1, manifest["step"] + 1))
    assert manifest["tokens_per_batch"] == 128 and "global_batch_size" not in manifest


@pytest.mark.parametrize("stop_at", [2, 9, 12])
def test_a_run_that_was_stopped_goes_on_bit_for_bit(place, tmp_path, stop_at):
    training = {"per_device_train_tokens": 64}
    whole = ready(place, tmp_path / "whole", training=training)
    one, _ = whole.train()
    first = ready(place, tmp_path / "cut", stop_at=stop_at, training=training)
    assert first.train()[1]
    manifest = read_manifest(first.run.latest_checkpoint())
    ledger = tiny.ledger(whole.run.path)
    assert manifest["step"] == stop_at
    assert manifest["consumed_samples"] == sum(len(ledger[step]) for step in range(1, stop_at + 1))
    two, _ = ready(place, tmp_path / "cut", found=first.run, training=training).train(resume=True)
    assert tiny.ledger(first.run.path) == ledger
    assert tiny.losses(first.run.path) == tiny.losses(whole.run.path)
    for name, tensor in one.model.state_dict().items():
        assert torch.equal(two.model.state_dict()[name], tensor), name


def test_phases_begin_with_epochs_and_have_each_row_once_in_each(place, tmp_path):
    training = {"num_train_epochs": 4, "save_strategy": "epoch"}
    first = ready(place, tmp_path / "run", training=training, **THAWING)
    steps = first.context.launch.batch.budget.batches
    phases = first.context.plan.phases
    assert len(phases) > 2 and [phase.first_step for phase in phases] == [steps * n for n in range(len(phases))]
    first.train()
    for _ in phases[1:]:
        again = ready(place, tmp_path / "run", found=first.run, training=training, **THAWING)
        again.train(resume=True)
    ledger = tiny.ledger(first.run.path)
    assert len(ledger) == 4 * steps
    for epoch in range(4):
        used = [row for step in range(epoch * steps + 1, (epoch + 1) * steps + 1) for row in ledger[step]]
        assert sorted(used) == list(range(ROWS))
    epochs = {row["step"]: row["epoch"] for row in tiny.jsonl(first.run.progress) if "loss" in row}
    assert all(epochs[steps * (n + 1)] == n + 1 for n in range(4))


def test_a_frozen_prefix_may_be_cached(place, tmp_path):
    run = ready(place, tmp_path / "run", bert="exact", strategy={"type": "head", "prefix_cache": "memory"})
    plain = ready(place, tmp_path / "plain", bert="exact", strategy={"type": "head", "prefix_cache": "off"})
    for one in (run, plain):
        one.train()
    assert tiny.ledger(run.run.path) == tiny.ledger(plain.run.path)
    assert list(tiny.losses(run.run.path).values()) == pytest.approx(
        list(tiny.losses(plain.run.path).values()), rel=1e-5
    )
