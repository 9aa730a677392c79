"""Freed memory is kept once a run's need is known, and only where there is room for as much again."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from launcher.engine import kept_memory
from launcher.workflows import measuring

_FAULTS = """
import resource, sys
from launcher.engine.allocator import return_freed_memory
from launcher.engine.kept_memory import keep_freed_memory
import torch
return_freed_memory()
if sys.argv[1] == "kept":
    assert keep_freed_memory()
for number in range(41):
    torch.ones(2**18)
    if number == 0:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif("linux" not in sys.platform, reason="glibc alone has to be told")
def test_what_is_kept_is_not_mapped_again():
    mapped, kept = (
        int(subprocess.run([sys.executable, "-c", _FAULTS, how], capture_output=True, text=True, check=True).stdout)
        for how in ("mapped", "kept")
    )
    # 40 tensors of 256 pages; what is kept may have to grow a few times.
    assert mapped > 40 * 200 and kept < mapped / 4


@pytest.fixture
def kept(monkeypatch) -> list[int]:
    """What is called where memory is to be kept; 100 bytes are needed."""
    calls: list[int] = []
    monkeypatch.setattr(kept_memory, "keep_freed_memory", lambda: calls.append(1))
    monkeypatch.setattr(kept_memory, "status_bytes", lambda name: {"VmHWM": 100}[name])
    return calls


@pytest.mark.parametrize(("ranks", "available", "wanted"), [(1, 100, 1), (1, 99, 0), (2, 200, 1), (2, 199, 0)])
def test_there_is_room_for_as_much_again_or_nothing_changes(monkeypatch, kept, ranks, available, wanted):
    monkeypatch.setattr(kept_memory, "available_bytes", lambda: available)
    callback = kept_memory.KeepsFreedMemory(ranks=ranks)
    for step in range(20):
        callback.on_step_end(None, None, None)
        assert len(kept) == (wanted if step + 1 >= kept_memory.SETTLED_STEPS else 0)


def test_measurements_are_over_by_then():
    assert kept_memory.SETTLED_STEPS >= measuring.STEPS


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


MACHINE = {"proc/meminfo": "MemTotal: 9000 kB\nMemAvailable: 1000 kB\n"}


@pytest.mark.parametrize(
    ("files", "wanted"),
    [
        ({}, 1000 * 1024),
        ({"proc/self/cgroup": "0::/job/step\n"}, 1000 * 1024),
        # The limit is the job's; the step has none of its own.
        (
            {
                "proc/self/cgroup": "0::/job/step\n",
                "sys/fs/cgroup/job/step/memory.max": "max\n",
                "sys/fs/cgroup/job/step/memory.current": "100\n",
                "sys/fs/cgroup/job/memory.max": "5000\n",
                "sys/fs/cgroup/job/memory.current": "1000\n",
            },
            4000,
        ),
        (
            {
                "proc/self/cgroup": "4:cpu,memory:/job\n3:pids:/job\n",
                "sys/fs/cgroup/memory/job/memory.limit_in_bytes": "700\n",
                "sys/fs/cgroup/memory/job/memory.usage_in_bytes": "800\n",
            },
            0,
        ),
    ],
    ids=["machine", "no limit", "version 2", "version 1"],
)
def test_a_jobs_limit_counts(tmp_path, files, wanted):
    assert kept_memory.available_bytes(root=write(tmp_path, {**MACHINE, **files})) == wanted


def test_a_machine_that_does_not_tell_has_no_room(tmp_path):
    assert kept_memory.available_bytes(root=tmp_path) == 0
