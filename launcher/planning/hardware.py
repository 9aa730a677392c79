"""What this machine has, found without importing torch, so that a login node answers at once."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from launcher.planning.cpu_precision import kept_answer, measure_and_keep
from launcher.plans import Gpu, Hardware
from launcher.recipe.schema import Recipe

# Processor flags of instructions that multiply bf16 at least as fast as fp32.
_BF16_FLAGS = {"avx512_bf16", "amx_bf16"}


def hardware_for(recipe: Recipe) -> Hardware:
    """Return this machine, and measure its processor's bf16 first where the recipe's precision depends on it.

    That takes a few seconds once per machine and version of torch; where it fails, the processor's instructions answer.
    """
    found = detect_hardware()
    if recipe.precision == "auto" and not found.gpus and kept_answer() is None:
        measured = measure_and_keep()
        return found if measured is None else replace(found, cpu_has_fast_bf16=measured)
    return found


def detect_hardware() -> Hardware:
    """Return this machine's GPUs (those that CUDA_VISIBLE_DEVICES leaves), cores and memory; nothing is measured."""
    kept = kept_answer()
    return Hardware(
        gpus=_visible(_all_gpus(), os.environ.get("CUDA_VISIBLE_DEVICES")),
        cpu_count=len(os.sched_getaffinity(0)),
        memory_bytes=os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        cpu_has_fast_bf16=bool(_BF16_FLAGS & _cpu_flags()) if kept is None else kept,
        has_cxx_compiler=shutil.which(os.environ.get("CXX") or "c++") is not None,
        has_libaio=any((folder / "libaio.h").is_file() for folder in _include_folders()),
    )


def _include_folders() -> list[Path]:
    named = [Path(part) for part in os.environ.get("CPATH", "").split(os.pathsep) if part]
    return [Path("/usr/include"), Path("/usr/local/include"), Path(sys.prefix) / "include", *named]


def _all_gpus() -> tuple[Gpu, ...]:
    if shutil.which("nvidia-smi") is None:
        return ()
    query = ["nvidia-smi", "--query-gpu=name,memory.total,compute_cap", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return ()
    rows = (line.rsplit(",", 2) for line in done.stdout.splitlines())
    return tuple(Gpu(row[0].strip(), int(_number(row[1]) * 2**20), _number(row[2])) for row in rows if len(row) == 3)


def _number(text: str) -> float:
    """Return a number of nvidia-smi's; 0 where it says [N/A], as it does for parts of a card."""
    try:
        return float(text)
    except ValueError:
        return 0.0


def _visible(gpus: tuple[Gpu, ...], selection: str | None) -> tuple[Gpu, ...]:
    """CUDA's own rule: entries count up to the first that names no device."""
    if selection is None:
        return gpus
    chosen: list[Gpu] = []
    for entry in filter(None, (part.strip() for part in selection.split(","))):
        if entry.isdigit() and int(entry) < len(gpus):
            chosen.append(gpus[int(entry)])
        elif entry.startswith(("GPU-", "MIG-")) and gpus:
            chosen.append(gpus[min(len(chosen), len(gpus) - 1)])
        else:
            break
    return tuple(chosen)


def _cpu_flags() -> set[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return set()
    return next((set(line.split(":", 1)[1].split()) for line in lines if line.startswith("flags")), set())
