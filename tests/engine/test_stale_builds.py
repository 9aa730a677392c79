"""A build that was killed does not stop the runs that come after it; one that goes on is waited for."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from launcher.engine import stale_builds
from launcher.engine.stale_builds import remove_stale_marks


@pytest.fixture
def mark(tmp_path) -> Path:
    """As torch's FileBaton makes it."""
    path = tmp_path / "py311_cpu" / "some_operation" / "lock"
    path.parent.mkdir(parents=True)
    return path


def test_a_mark_that_nobody_holds_is_removed(mark, tmp_path):
    os.close(os.open(mark, os.O_CREAT | os.O_EXCL))
    assert remove_stale_marks(tmp_path) == [mark] and not mark.exists()
    assert remove_stale_marks(tmp_path) == []


def test_a_build_that_goes_on_keeps_its_mark(mark, tmp_path):
    handle = os.open(mark, os.O_CREAT | os.O_EXCL)
    assert remove_stale_marks(tmp_path) == [] and mark.exists()
    os.close(handle)
    assert remove_stale_marks(tmp_path) == [mark]


def test_a_build_that_ends_while_its_mark_is_looked_at(mark, tmp_path, monkeypatch):
    os.close(os.open(mark, os.O_CREAT | os.O_EXCL))

    def ends(path):
        path.unlink()
        return False

    monkeypatch.setattr(stale_builds, "_is_shared", ends)
    assert remove_stale_marks(tmp_path) == []


def test_where_another_machine_may_build_only_time_tells(mark, tmp_path, monkeypatch):
    os.close(os.open(mark, os.O_CREAT | os.O_EXCL))
    monkeypatch.setattr(stale_builds, "_is_shared", lambda path: True)
    assert remove_stale_marks(tmp_path) == []
    os.utime(mark, (time.time() - 3600,) * 2)
    assert remove_stale_marks(tmp_path) == [mark]


def test_torch_marks_its_builds_as_this_expects(tmp_path):
    """The names and the open file are torch's own, and may change with it."""
    from torch.utils.file_baton import FileBaton

    mark = tmp_path / "operation" / "lock"
    mark.parent.mkdir()
    baton = FileBaton(str(mark))
    assert baton.try_acquire()
    assert remove_stale_marks(tmp_path) == [], "it is being built"
    baton.release()
    assert not mark.exists()
