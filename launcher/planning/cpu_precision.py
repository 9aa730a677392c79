"""Whether this processor computes bf16 faster than fp32: measured once for a machine and a version of torch, and kept.

``python -m launcher.planning.cpu_precision`` prints the seconds of both as JSON; nothing is kept by that.
"""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from launcher.atomic import write_json
from launcher.data.prepare import cache_folder

# bf16 has to be this much faster: it costs digits, and a measurement on a busy machine is off by some percent.
_WORTH = 1.1
_TIMEOUT_SECONDS = 90.0

# Rows of a batch of texts, and the two shapes of a transformer's linear layers (BERT base, MiniLM).
_SHAPES = ((512, 768, 3072), (512, 384, 1536))
_SECONDS_PER_SHAPE = 0.5


def kept_answer() -> bool | None:
    """Return whether bf16 was measured to be faster on this machine; None: not measured with this torch."""
    found = _read().get(_key(), {}).get("bf16_is_fast")
    return found if isinstance(found, bool) else None


def measure_and_keep() -> bool | None:
    """Measure in a process of its own (a few seconds, with torch's import), keep the answer and return it.

    None where it could not be measured; then nothing is kept.
    """
    command = [sys.executable, "-m", "launcher.planning.cpu_precision"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_SECONDS, check=True)
        seconds = json.loads(done.stdout.splitlines()[-1])
        is_fast = bool(seconds["fp32"] / seconds["bf16"] >= _WORTH)
    except (OSError, subprocess.SubprocessError, ValueError, IndexError, KeyError, ZeroDivisionError):
        return None
    keep({"bf16_is_fast": is_fast, "seconds": seconds})
    return is_fast


def keep(finding: dict[str, Any]) -> None:
    """Write a finding down for this machine and this torch; a cache that cannot be written is no reason to stop."""
    try:
        _file().parent.mkdir(parents=True, exist_ok=True)
        write_json(_file(), {**_read(), _key(): finding})
    except OSError:
        return


def _file() -> Path:
    return cache_folder() / "cpu-precision.json"


def _read() -> dict[str, Any]:
    try:
        found = json.loads(_file().read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _key() -> str:
    """Homes are shared between machines, so a finding is of a processor, as it names itself, and of a torch."""
    return f"{_processor()}, torch {_version('torch')}"


def _processor() -> str:
    """Return the processor's name and number; virtual machines give different processors one name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    except OSError:
        return "unknown"
    facts = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    known = ("model name", "cpu family", "model", "stepping", "CPU implementer", "CPU part", "CPU variant")
    return " ".join(facts[name] for name in known if name in facts) or "unknown"


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "none"


# --- the measuring process -------------------------------------------------------------------------------------------


def measure() -> dict[str, float]:
    """Return the least seconds of a linear layer's forward and backward pass, summed over shapes, by precision; of one thread.

    The two take turns, so that a busy moment of the machine hits both; bf16 is autocast, as in training, with its casts.
    """
    import torch

    # Two threads on a busy machine wait for each other, and so long that nothing else is measured.
    torch.set_num_threads(1)
    totals = {"fp32": 0.0, "bf16": 0.0}
    for shape in _SHAPES:
        for name, seconds in _measure_shape(*shape).items():
            totals[name] += seconds
    return totals


def _measure_shape(rows: int, width: int, wide: int) -> dict[str, float]:
    import torch

    layers = torch.nn.Sequential(torch.nn.Linear(width, wide), torch.nn.GELU(), torch.nn.Linear(wide, width))
    inputs = torch.randn(rows, width)

    def once(is_half: bool) -> float:
        started = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=is_half):
            loss = layers(inputs).float().square().mean()
        loss.backward()
        return time.perf_counter() - started

    # The first passes pay for memory and for the choice of kernels.
    best = {name: once(name == "bf16") for name in ("fp32", "bf16")}
    best = dict.fromkeys(best, float("inf"))
    end = time.perf_counter() + _SECONDS_PER_SHAPE
    while time.perf_counter() < end or float("inf") in best.values():
        for name in best:
            best[name] = min(best[name], once(name == "bf16"))
    return best


if __name__ == "__main__":
    print(json.dumps(measure()))
