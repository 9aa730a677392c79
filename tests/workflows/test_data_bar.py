"""How far data are: nothing for what is quick, a bar on a terminal, and few lines elsewhere."""

from __future__ import annotations

import io

import pytest

from launcher.data.telling import tell
from launcher.workflows import data_bar as module
from launcher.workflows.data_bar import data_bar


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch):
    """The time, in seconds."""
    times = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: times[0])
    return times


def shown(file: io.StringIO, clock: list[float], *, seconds: float) -> str:
    with data_bar(file):
        for done in range(1, 11):
            clock[0] += seconds / 10
            tell("tokenizing train", done, 10)
    return file.getvalue()


def test_what_is_quick_shows_nothing(clock):
    assert shown(Terminal(), clock, seconds=0.9) == shown(io.StringIO(), clock, seconds=29) == ""


def test_a_terminal_has_a_bar(clock, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    found = shown(Terminal(), clock, seconds=20)
    assert "tokenizing train" in found and "100%" in found


def test_elsewhere_a_line_now_and_then(clock):
    assert shown(io.StringIO(), clock, seconds=100).splitlines() == [
        "tokenizing train: 30%",
        "tokenizing train: 60%",
        "tokenizing train: 90%",
    ]


def test_a_wait_is_told_at_once(clock):
    file = io.StringIO()
    with data_bar(file):
        tell("waiting for process 7", 0, 0)
    assert file.getvalue() == "waiting for process 7\n"


def test_without_a_file_only_the_other_is_called():
    called = []
    with data_bar(None, also=lambda: called.append(1)):
        tell("reading rows", 1, 2)
    tell("reading rows", 2, 2)
    assert called == [1]


def test_what_the_other_raises_ends_the_work(tmp_path):
    """A request to stop, of which rank 0 hears between two pieces."""
    from launcher.data.pieces import Source, write_split

    def stop():
        raise KeyboardInterrupt

    source = Source({"a": [1, 2]}, 2, str)
    with pytest.raises(KeyboardInterrupt), data_bar(None, also=stop):
        write_split(tmp_path / "rows.arrow", source, lambda rows, origin: (rows, {}))
