"""What tensors give back goes back to the system, and large ones lie on large pages."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

_FREED = """
from launcher.engine.allocator import return_freed_memory
import torch, psutil
assert return_freed_memory()
process = psutil.Process()
before = process.memory_info().rss
# Every second one stays, as gradients do between activations.
tensors = [torch.ones(2**16) for _ in range(400)]
tensors = tensors[::2]
print(process.memory_info().rss - before)
"""

_HUGE = """
from launcher.engine.allocator import use_huge_pages
use_huge_pages()
import torch
tensors = [torch.ones(2**21) for _ in range(10)]
text = open("/proc/self/smaps_rollup").read()
print(next(line.split()[1] for line in text.splitlines() if line.startswith("AnonHugePages")))
"""


def _run(program: str) -> int:
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return int(found.stdout.split()[-1])


@pytest.mark.skipif("linux" not in sys.platform, reason="glibc alone has to be told")
def test_what_is_freed_goes_back_to_the_system() -> None:
    kept = 200 * 2**16 * 4
    held = _run(_FREED)
    assert kept <= held < 1.15 * kept


def test_large_tensors_lie_on_large_pages() -> None:
    setting = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if not setting.is_file() or "[never]" in setting.read_text():
        pytest.skip("this kernel gives no large pages")
    assert _run(_HUGE) * 1024 > 10 * 2**21
