"""Files of a checkpoint: found whole or set aside, whatever was done to them; nothing valid is lost."""

import json
import shutil
import threading
from collections import namedtuple
from pathlib import Path

import pytest
import torch

from launcher.engine import checkpoint_files
from launcher.engine.checkpoint_files import (
    MANIFEST,
    check_room,
    commit,
    fault,
    partial_folder,
    prune,
    read_manifest,
    room_for,
    seal,
    size_of,
    write_manifest,
)
from launcher.engine.resuming import newest_valid, refuse_other_base, refuse_other_data
from launcher.engine.saved_state import foreign_code
from launcher.errors import InstallationError, RunStateError

Usage = namedtuple("Usage", "total used free")
FILES = {
    "model.safetensors": b"w" * 5000,
    "rng_state_1.pth": b"r" * 70,
    "global_step3/zero_pp_rank_1_x_optim_states.pt": b"o" * 900,
}


def fill(folder: Path) -> Path:
    for name, content in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture
def checkpoints(tmp_path) -> Path:
    """Steps 1, 2 and 3, all valid."""
    for step in (1, 2, 3):
        target = tmp_path / f"step-{step}"
        partial = fill(partial_folder(target))
        write_manifest(partial, step=step)
        commit(partial, target)
    return tmp_path


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# --- writing ---------------------------------------------------------------------------------------------------------


def test_the_manifest_names_every_file_with_size_and_hash(checkpoints):
    import hashlib

    manifest = read_manifest(checkpoints / "step-3")
    assert manifest["step"] == 3 and manifest["files"] == {name: len(content) for name, content in FILES.items()}
    assert manifest["sha256"] == {name: hashlib.sha256(content).hexdigest() for name, content in FILES.items()}
    assert size_of(checkpoints / "step-3") == 5970 and fault(checkpoints / "step-3") is None


def test_each_rank_seals_its_own_files_and_together_all(tmp_path):
    fill(tmp_path)
    parts = [seal(tmp_path, rank=rank, world=2) for rank in (0, 1)]
    assert [sorted(part) for part in parts] == [["model.safetensors"], sorted(set(FILES) - {"model.safetensors"})]
    write_manifest(tmp_path, {**parts[0], **parts[1]})
    assert fault(tmp_path) is None


def test_what_is_written_has_no_name_of_a_checkpoint_yet(tmp_path):
    assert partial_folder(tmp_path / "step-3").name == "partial-step-3"


def test_a_checkpoint_that_is_written_again_is_there_at_every_moment(checkpoints, monkeypatch):
    """The evaluation that a stop left out is added to a checkpoint that may be the only one."""
    target = checkpoints / "step-3"
    partial = fill(partial_folder(target))
    write_manifest(partial, step=3, again=True)

    rename = Path.rename
    moves = []

    def dies_after_the_first(self, to):
        if moves:
            raise KeyboardInterrupt
        moves.append(to)
        return rename(self, to)

    monkeypatch.setattr(Path, "rename", dies_after_the_first)
    with pytest.raises(KeyboardInterrupt):
        commit(partial, target)
    monkeypatch.undo()
    assert not target.exists()
    assert newest_valid(checkpoints, say=lambda text: None) == target and read_manifest(target)["again"]
    assert names(checkpoints) == ["step-1", "step-2", "step-3"]


def fail(folder: Path, message: str):
    with room_for(folder):
        fill(folder)
        raise RuntimeError(message)


def test_a_full_disk_is_named_and_its_room_given_back(checkpoints, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(100, 100, 0))
    with pytest.raises(InstallationError, match="is full: step-4 could not be written and was removed"):
        fail(checkpoints / "partial-step-4", "unexpected pos 64 vs 0")
    assert names(checkpoints) == ["step-1", "step-2", "step-3"]


def test_another_fault_stays_what_it_is(tmp_path):
    with pytest.raises(RuntimeError, match="a bug"):
        fail(tmp_path / "partial-step-3", "a bug")
    assert not (tmp_path / "partial-step-3").exists()


def test_room_is_asked_for_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**9, 0, 10**8))
    check_room(tmp_path / "checkpoints", 5 * 10**7, what="the checkpoint of step 4")
    with pytest.raises(
        InstallationError, match=r"step 4 needs about 95.0 MB, and the disk .* has 100.0 MB left; nothing was wri"
    ):
        check_room(tmp_path / "checkpoints", 95 * 10**6, what="the checkpoint of step 4")


def test_pruning_keeps_the_newest_and_the_best(checkpoints):
    prune(checkpoints, keep_last=1, keep=[checkpoints / "step-1"])
    assert names(checkpoints) == ["step-1", "step-3"]


# --- damage ----------------------------------------------------------------------------------------------------------


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


DAMAGE = {
    "flip": (flip, "not the content"),
    "truncate": (truncate, "bytes instead of"),
    "missing": (Path.unlink, "is missing"),
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", [*FILES, MANIFEST])
def test_any_damage_to_any_file_is_found_named_and_set_aside(checkpoints, name, damage):
    hurt, words = DAMAGE[damage]
    hurt(checkpoints / "step-3" / name)
    reason = fault(checkpoints / "step-3")
    assert reason is not None and name in reason and (name == MANIFEST or words in reason)
    said = []
    assert newest_valid(checkpoints, say=said.append) == checkpoints / "step-2"
    assert len(said) == 1 and "step-3" in said[0] and name in said[0]
    (aside,) = (checkpoints / "quarantine").iterdir()
    assert aside.name.startswith("step-3-") and name in (aside / "REASON.txt").read_text()
    assert names(checkpoints) == ["quarantine", "step-1", "step-2"], "older ones that were not needed are not looked at"


def test_every_bit_of_a_manifest_counts(checkpoints):
    path = checkpoints / "step-3" / MANIFEST
    path.write_text(path.read_text().replace('"step": 3', '"step": 2'))
    assert "changed" in fault(checkpoints / "step-3")


def test_a_share_of_the_files_is_a_share_of_the_work_but_sizes_are_everyones(checkpoints):
    folder = checkpoints / "step-3"
    flip(folder / "rng_state_1.pth")
    found = [fault(folder, rank=rank, world=3) for rank in range(3)]
    assert sum(reason is not None for reason in found) == 1
    truncate(folder / "model.safetensors")
    assert all("model.safetensors" in fault(folder, rank=rank, world=3) for rank in range(3))


def test_checkpoints_without_hashes_are_still_read(checkpoints):
    """Earlier versions wrote sizes alone."""
    manifest = {"step": 3, "files": read_manifest(checkpoints / "step-3")["files"]}
    (checkpoints / "step-3" / MANIFEST).write_text(json.dumps(manifest))
    assert newest_valid(checkpoints, say=lambda text: None) == checkpoints / "step-3"


def test_where_none_is_valid_nothing_is_moved_and_the_user_decides(checkpoints):
    for step in (1, 2, 3):
        truncate(checkpoints / f"step-{step}" / "model.safetensors")
    for _ in range(2):
        with pytest.raises(RunStateError, match=r"step-3: model.safetensors has 4990 .*step-1.*--from-start"):
            newest_valid(checkpoints, say=lambda text: None)
        assert names(checkpoints) == ["step-1", "step-2", "step-3"]
    said = []
    assert newest_valid(checkpoints, say=said.append, from_start=True) is None
    assert "begins anew" in said[-1] and len(names(checkpoints / "quarantine")) == 3


# --- another run -----------------------------------------------------------------------------------------------------


class Base:
    def model_revision(self, model: str) -> str:
        return f"hash of {model}"


def test_other_rows_or_other_pretrained_weights_are_refused_without_the_flag(checkpoints):
    folder = checkpoints / "step-3"
    write_manifest(folder, step=3, data_fingerprint="abc", model_revision="hash of one")
    refuse_other_data(folder, "abc", allow=False)
    refuse_other_base(folder, Base(), "one", allow=False)
    with pytest.raises(RunStateError, match="data have changed .*--allow-changes"):
        refuse_other_data(folder, "xyz", allow=False)
    with pytest.raises(RunStateError, match="hash of one, now hash of another"):
        refuse_other_base(folder, Base(), "another", allow=False)
    refuse_other_data(folder, "xyz", allow=True)
    refuse_other_base(folder, Base(), "another", allow=True)


# --- what a crash leaves ---------------------------------------------------------------------------------------------


def test_a_half_written_checkpoint_is_set_aside(checkpoints):
    fill(checkpoints / "partial-step-4")
    said = []
    assert newest_valid(checkpoints, say=said.append) == checkpoints / "step-3"
    assert names(checkpoints) == ["quarantine", "step-1", "step-2", "step-3"] and "still being written" in said[0]
    for step in (4, 5):
        fill(checkpoints / f"partial-step-{step}")
        newest_valid(checkpoints, say=said.append)
    assert names(checkpoints / "quarantine") == ["step-5-unfinished"], "many kills do not fill the disk"


def test_a_run_that_was_killed_in_its_first_save_begins_anew(tmp_path):
    fill(tmp_path / "partial-step-1")
    assert newest_valid(tmp_path, say=lambda text: None) is None
    assert newest_valid(tmp_path / "none", say=lambda text: None) is None


def test_a_sealed_checkpoint_that_had_no_name_yet_is_not_lost(checkpoints):
    partial = fill(checkpoints / "partial-step-4")
    write_manifest(partial, step=4)
    assert newest_valid(checkpoints, say=lambda text: None) == checkpoints / "step-4"


def test_quarantine_never_overwrites(checkpoints):
    for _ in range(2):
        truncate(checkpoints / "step-3" / "model.safetensors")
        newest_valid(checkpoints, say=lambda text: None)
        fill(checkpoints / "step-3")
        write_manifest(checkpoints / "step-3", step=3)
    assert names(checkpoints / "quarantine") == ["step-3-truncated", "step-3-truncated-2"]


# --- code in checkpoints ---------------------------------------------------------------------------------------------


class Malice:
    def __reduce__(self):
        return (Path.touch, (Path("/tmp/launcher-test-malice"),))


def test_a_pickle_that_would_run_code_is_found_without_running_it(tmp_path):
    folder = tmp_path / "global_step1"
    folder.mkdir()
    torch.save({"fine": torch.zeros(2)}, folder / "mp_rank_00_model_states.pt")
    assert foreign_code(tmp_path) is None
    torch.save({"state": Malice()}, folder / "zero_pp_rank_0_mp_rank_00_optim_states.pt")
    assert "zero_pp_rank_0" in foreign_code(tmp_path) and not Path("/tmp/launcher-test-malice").exists()
    torch.save(
        {"state": Malice()}, folder / "zero_pp_rank_0_mp_rank_00_optim_states.pt", _use_new_zipfile_serialization=False
    )
    assert "zero_pp_rank_0" in foreign_code(tmp_path) and not Path("/tmp/launcher-test-malice").exists()


def test_hashing_uses_several_threads(tmp_path, monkeypatch):
    """Files of one checkpoint are read at the same time: two wait here for each other."""
    fill(tmp_path)
    both = threading.Barrier(2, timeout=20)
    sealed = checkpoint_files._sealed
    monkeypatch.setattr(checkpoint_files, "_sealed", lambda path: (both.wait(), sealed(path))[1])
    (tmp_path / "rng_state_1.pth").unlink()
    assert len(seal(tmp_path)) == 2
