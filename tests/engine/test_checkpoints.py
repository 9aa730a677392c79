"""A checkpoint that cannot be written leaves nothing behind, and says why."""

import shutil
from collections import namedtuple

import pytest

from launcher.engine.checkpoints import room_for
from launcher.errors import InstallationError

Usage = namedtuple("Usage", "total used free")


def fail(folder, message):
    with room_for(folder):
        folder.mkdir(parents=True)
        (folder / "model.safetensors").write_bytes(b"half")
        raise RuntimeError(message)


def test_a_full_disk_is_named_and_its_room_given_back(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(100, 100, 0))
    with pytest.raises(InstallationError, match="is full: step-3 could not be written and was removed"):
        fail(tmp_path / "step-3", "unexpected pos 64 vs 0")
    assert not (tmp_path / "step-3").exists()


def test_another_fault_stays_what_it_is(tmp_path):
    with pytest.raises(RuntimeError, match="a bug"):
        fail(tmp_path / "step-3", "a bug")
    assert not (tmp_path / "step-3").exists()
