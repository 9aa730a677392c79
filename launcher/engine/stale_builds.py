"""Marks of builds that were killed: torch makes every later user of such an operation wait for ever.

torch.utils.cpp_extension marks a build by a file ``lock`` in the operation's folder, which the builder keeps open and removes
at its end. A builder that is killed leaves the file behind.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

# On a file system that machines share, another one may be building; no build takes longer.
_SHARED_SECONDS = 1800.0
_SHARED = ("nfs", "lustre", "gpfs", "beegfs", "cifs", "smb", "ceph", "glusterfs", "afs", "9p", "fuse")


def remove_stale_marks(root: Path) -> list[Path]:
    """Remove the marks of builds below ``root`` that nobody is making any more, and return them."""
    marks = [path for pattern in ("*/lock", "*/*/lock") for path in root.glob(pattern) if path.is_file()]
    if not marks:
        return []
    removed = []
    with _one_at_a_time(root):
        # Looked at again inside: another rank may have removed it, and be building by now.
        for mark in marks:
            if _is_stale(mark):
                mark.unlink(missing_ok=True)
                removed.append(mark)
    return removed


def _is_stale(mark: Path) -> bool:
    try:
        age = time.time() - mark.stat().st_mtime
        if _is_shared(mark) and age < _SHARED_SECONDS:
            return False
        return not _is_open_here(mark)
    except FileNotFoundError:
        # A build that ends takes its mark away at any moment.
        return False


def _is_open_here(path: Path) -> bool:
    """Whether a process of this machine has the file open; true also where that cannot be told."""
    if not Path("/proc/self/fd").is_dir():
        return True
    wanted, unknown = str(path.resolve()), False
    owner = path.stat().st_uid
    for process in psutil.process_iter():
        try:
            if any(_target(link) == wanted for link in Path(f"/proc/{process.pid}/fd").iterdir()):
                return True
        except (FileNotFoundError, ProcessLookupError):
            continue
        except PermissionError:
            unknown |= _owner(process.pid) == owner
    return unknown


def _target(link: Path) -> str:
    try:
        return os.readlink(link)
    except OSError:
        return ""


def _owner(pid: int) -> int:
    try:
        return Path(f"/proc/{pid}").stat().st_uid
    except OSError:
        return -1


def _is_shared(path: Path) -> bool:
    """Whether other machines may see the file."""
    mounts = [part for part in psutil.disk_partitions(all=True) if path.resolve().is_relative_to(part.mountpoint)]
    kind = max(mounts, key=lambda part: len(part.mountpoint)).fstype if mounts else ""
    return kind.startswith(_SHARED)


@contextmanager
def _one_at_a_time(root: Path) -> Iterator[None]:
    with (root / ".launcher").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
