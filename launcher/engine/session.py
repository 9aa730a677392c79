"""A rank's surroundings: its log, its verdict, and what is written down about the machine."""

from __future__ import annotations

import errno
import importlib.metadata
import os
import platform
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import Any, TextIO

from launcher.atomic import write_json
from launcher.errors import InstallationError, Interrupted, LauncherError, SavedModelDiffers, TrainingDiverged

_PACKAGES = (
    "finetune-launcher", "torch", "transformers", "accelerate", "deepspeed", "datasets", "tokenizers", "peft", "wandb",
    "numpy", "scikit-learn",
)  # fmt: skip


_RESERVE_BYTES = 2**16
# What torch says of the processor's memory, in a plain RuntimeError.
_NO_CPU_MEMORY = "DefaultCPUAllocator: can't allocate memory"


def write_output_to(log: Path) -> TextIO:
    """Send all output of this process, also that of libraries below Python, to ``log``; return the old terminal."""
    sys.stdout.flush()
    sys.stderr.flush()
    terminal = os.fdopen(os.dup(1), "w", buffering=1)
    log.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    os.close(handle)
    return terminal


def write_start(path: Path) -> None:
    """Write down that a rank runs; a rank that is killed leaves this as its verdict."""
    write_json(path, {"verdict": "running", **_who()})


def take_reserve(path: Path) -> None:
    """Take some room on the disk, so that how a rank ended can be written down when there is none left."""
    try:
        with path.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, _RESERVE_BYTES)
    except OSError:
        # No room at the start already: the first checkpoint asks for it, and says so.
        path.unlink(missing_ok=True)


def as_full_disk(error: BaseException | None) -> BaseException | None:
    """Return an error of a full disk in words and with its exit code, wherever it came up; another one as it is."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        where = f" ({error.filename})" if error.filename else ""
        return InstallationError(
            f"the disk is full{where}; complete checkpoints are kept: free some space and resume the run"
        )
    return error


def _who() -> dict[str, Any]:
    return {"pid": os.getpid(), "host": platform.node(), "time": time.time()}


def write_verdict(path: Path, error: BaseException | None) -> int:
    """Write down how a rank ended, and return the code that its process shall exit with.

    A rank that stopped because it was asked to exits with 0: any other code makes launchers kill the remaining ranks, also
    in the middle of their saving. The verdict keeps the true code.
    """
    if error is None:
        write_json(path, {"verdict": "finished", "exit_code": 0, **_who()})
        return 0
    code = error.exit_code if isinstance(error, LauncherError) else _exit_code(error)
    text = "" if isinstance(error, LauncherError) else "".join(traceback.format_exception(error))
    write_json(
        path,
        {
            "verdict": _verdict(error),
            "exit_code": code,
            "error": str(error) or type(error).__name__,
            "type": type(error).__name__,
            "traceback": text,
            **_who(),
        },
    )
    return 0 if isinstance(error, Interrupted) else code


def _verdict(error: BaseException) -> str:
    if isinstance(error, (Interrupted, KeyboardInterrupt)):
        return "interrupted"
    if isinstance(error, TrainingDiverged):
        return "diverged"
    if isinstance(error, SavedModelDiffers):
        return "saved_model_differs"
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or _NO_CPU_MEMORY in str(error):
        return "out_of_memory"
    return "failed"


def _exit_code(error: BaseException) -> int:
    if isinstance(error, SystemExit) and isinstance(error.code, int):
        return error.code
    return 130 if isinstance(error, KeyboardInterrupt) else 1


def describe_environment(recipe_folder: Path) -> dict[str, Any]:
    """Return versions, devices and the git revision; never the value of an environment variable."""
    import torch

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "packages": {name: package_version(name) for name in _PACKAGES},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor_cores": len(os.sched_getaffinity(0)),
        "torch_threads": torch.get_num_threads(),
        "gpus": gpus,
        "host": platform.node(),
        "git_revision": _git_revision(recipe_folder),
    }


def package_version(package: str) -> str | None:
    """Return the version of an installed package; None: it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git_revision(folder: Path) -> str | None:
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None
