"""Saving and going on in one process: what a manifest says, saves in the background, room, the best checkpoint."""

from __future__ import annotations

import shutil
import sys
import threading
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))
from in_process import prepare
from safetensors.torch import load_file

from launcher.engine import saving
from launcher.engine.checkpoint_files import fault, read_manifest
from launcher.errors import InstallationError, RunStateError

ROWS = 21
EACH_STEP = {
    "num_train_epochs": 1, "eval_strategy": "steps", "save_strategy": "steps", "eval_steps": 1, "save_steps": 1,
    "save_total_limit": 9,
}  # fmt: skip
DROPOUT = {"model": {"config": {"hidden_dropout_prob": 0.2}}}
Usage = namedtuple("Usage", "total used free")


@pytest.fixture(scope="module")
def bert(tmp_path_factory) -> Path:
    return tiny.save_bert(tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return tiny.write_data(tmp_path_factory.mktemp("data"), train=ROWS, validation=9, test=6)


@pytest.fixture
def ready(bert, data, tmp_path):
    def make(name: str = "runs", run: Any = None, **training: Any):
        return prepare(bert, data, tmp_path / name, run=run, **DROPOUT, training={**EACH_STEP, **training})

    return make


def test_a_manifest_says_what_is_needed_to_go_on(ready):
    prepared = ready(num_train_epochs=2)
    prepared.train()
    manifest = read_manifest(prepared.run.checkpoints / "step-4")
    wanted = {
        "step": 4, "phase_number": 0, "world_size": 1, "engine": "single", "zero_stage": None, "precision": "fp32",
        "global_batch_size": 8, "attempt": 1, "consumed_samples": ROWS + 8, "evaluation_due": False,
        "data_fingerprint": prepared.context.prepared.fingerprint,
    }  # fmt: skip
    assert wanted.items() <= manifest.items() and manifest["versions"]["torch"] == torch.__version__
    assert set(manifest["sha256"]) == set(manifest["files"]) >= {"model.safetensors", "optimizer.pt", "rng_state.pth"}


def test_a_save_in_the_background_lets_training_go_on_and_writes_what_was(ready, monkeypatch):
    """The thread may not write before step 2 is trained; what it then writes is step 1."""
    waited = ready("waited")
    waited.train()
    second_step = threading.Event()
    prepared = ready("background", async_save=True)
    on_step, save = prepared.context.progress.on_step, saving.save_file

    def tell(step: int, **facts: Any) -> None:
        on_step(step, **facts)
        if step == 2:
            second_step.set()

    def late(*args: Any, **kwargs: Any) -> None:
        assert second_step.wait(60), "training waited for the save"
        save(*args, **kwargs)

    monkeypatch.setattr(prepared.context.progress, "on_step", tell)
    monkeypatch.setattr(saving, "save_file", late)
    trainer, _ = prepared.train()
    assert trainer.state.global_step == 3
    for step in (1, 2, 3):
        ours, wanted = (p.run.checkpoints / f"step-{step}" for p in (prepared, waited))
        assert fault(ours) is None
        first, second = (load_file(folder / "model.safetensors") for folder in (ours, wanted))
        assert first.keys() == second.keys() and all(first[name].equal(second[name]) for name in second)
        states = [torch.load(folder / "optimizer.pt", weights_only=True)["state"] for folder in (ours, wanted)]
        for number, state in states[1].items():
            assert all(torch.equal(value, states[0][number][key]) for key, value in state.items())
    assert {path.name for path in prepared.run.checkpoints.iterdir()} == {"step-1", "step-2", "step-3"}


def test_a_run_goes_on_exactly_from_a_save_in_the_background(ready):
    whole = ready("whole", async_save=True)
    trained, _ = whole.train()
    first = ready("cut", async_save=True)
    first.train()
    for step in (2, 3):
        shutil.rmtree(first.run.checkpoints / f"step-{step}")
    again, _ = ready(run=first.run, async_save=True).train(resume=True)
    ours, wanted = again.model.state_dict(), trained.model.state_dict()
    assert all(torch.equal(ours[name], wanted[name]) for name in wanted)


def test_what_a_save_in_the_background_raises_ends_the_run(ready, monkeypatch):
    def fails(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    prepared = ready(async_save=True)
    monkeypatch.setattr(saving, "save_file", fails)
    with pytest.raises(InstallationError, match="step-1 could not be written and was removed"):
        prepared.train()
    assert list(prepared.run.checkpoints.iterdir()) == []


def test_without_room_nothing_is_begun(ready, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**9, 10**9, 2**20))
    prepared = ready()
    with pytest.raises(InstallationError, match="the first checkpoint needs about .* has 1.0 MB left"):
        prepared.train()
    assert list(prepared.run.checkpoints.iterdir()) == []


def test_room_that_runs_out_stops_before_the_save_and_keeps_what_is_there(ready, monkeypatch):
    prepared = ready()
    usage, free = shutil.disk_usage, [2**40, 2**40, 2**20]
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(2**40, 0, free.pop(0)) if free else usage(path))
    with pytest.raises(InstallationError, match="the checkpoint of step 2 needs about"):
        prepared.train()
    assert [path.name for path in prepared.run.checkpoints.iterdir()] == ["step-1"]
    trainer, _ = ready(run=prepared.run).train(resume=True)
    assert trainer.state.global_step == 3


def test_the_best_checkpoint_is_verified_before_it_is_loaded(ready, monkeypatch):
    prepared = ready()
    trainer, _ = prepared.train()
    best = prepared.run.checkpoints / Path(trainer.state.best_model_checkpoint).name
    path = best / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(RunStateError, match=r"model.safetensors .*load_best_model_at_end=false"):
        trainer.load_best()
