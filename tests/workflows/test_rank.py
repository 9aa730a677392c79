"""How a rank ends is written down, also on a disk that is full to the last byte."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest

from launcher.engine.session import as_full_disk, take_reserve, write_start
from launcher.errors import InstallationError
from launcher.rundir import RunDir
from launcher.workflows import rank
from launcher.workflows.rank import Place, end_rank


@pytest.fixture
def place(tmp_path: Path) -> Place:
    run = RunDir.create(tmp_path, "x", recipe_text="", resolved_text="")
    attempt = run.new_attempt()
    write_start(run.verdict(attempt, 0))
    take_reserve(run.reserve(attempt, 0))
    return Place(run, attempt, 0)


def test_room_for_the_verdict_is_kept_and_given_up_first(place, monkeypatch):
    reserve = place.run.reserve(place.attempt, 0)
    assert reserve.stat().st_blocks * 512 >= 2**16
    written = rank.write_verdict

    def looks(path, error):
        assert not reserve.exists()
        return written(path, error)

    monkeypatch.setattr(rank, "write_verdict", looks)
    assert end_rank(place, 0, None, None) == 0
    assert place.run.verdicts(place.attempt)[0]["verdict"] == "finished"


def test_a_full_disk_has_its_exit_code_wherever_it_comes_up(place):
    full = OSError(errno.ENOSPC, "No space left on device", "progress.jsonl")
    assert end_rank(place, 0, full, None) == InstallationError.exit_code == 5
    verdict = json.loads(place.run.verdict(place.attempt, 0).read_text())
    assert "the disk is full (progress.jsonl)" in verdict["error"] and not verdict["traceback"]
    assert place.run.status().reason == verdict["error"]


def test_other_errors_stay_what_they_are():
    other = OSError(errno.EACCES, "Permission denied")
    assert as_full_disk(other) is other and as_full_disk(None) is None


def test_without_room_at_the_start_there_is_no_reserve(tmp_path, monkeypatch):
    def none_left(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("launcher.engine.session.os.posix_fallocate", none_left)
    take_reserve(tmp_path / "reserve")
    assert not (tmp_path / "reserve").exists()
