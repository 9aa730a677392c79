"""Files and folders that are never half-written: a reader, or a crash, sees the old content or the new."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

# More than a row of progress takes.
_ROW_BYTES = 1024


def write_text(path: Path, text: str) -> None:
    """Write a file so that a reader, or a crash, sees the old content or the new, never half of it."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """As ``write_text``, for bytes."""
    make_file(path, lambda temporary: temporary.write_bytes(content))


def make_file(target: Path, fill: Callable[[Path], object]) -> None:
    """Let ``fill`` write a file beside ``target``, then put it in its place; a failure leaves the old one."""
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    os.close(handle)
    temporary = Path(name)
    try:
        fill(temporary)
        fsync_folder(temporary)
        # mkstemp makes files private; these are for the group to read, as any file that a program writes.
        temporary.chmod(default_file_mode())
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON, atomically. Raises ValueError for NaN or infinity."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False, default=str) + "\n")


def append_json(path: Path, row: Mapping[str, Any]) -> None:
    """Append one line of JSON in a single write; NaN and infinity become null."""
    line = json.dumps(_finite(dict(row)), ensure_ascii=False, default=str).encode() + b"\n"
    with path.open("a+b") as file:
        # A crash may have left half a line; this row must not be glued to it.
        if file.seek(0, os.SEEK_END) and (file.seek(-1, os.SEEK_END), file.read(1))[1] != b"\n":
            line = b"\n" + line
        file.write(line)


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a JSON-lines file; a half-written line (a crash) is left out."""
    if not path.exists():
        return []
    return _rows(path.read_bytes().split(b"\n"))


def _rows(lines: list[bytes]) -> list[dict[str, Any]]:
    rows = []
    for line in lines:
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return rows


def read_jsonl_end(path: Path, *, rows: int) -> list[dict[str, Any]]:
    """Return about the last ``rows`` rows of a JSON-lines file, however long it is."""
    if not path.exists():
        return []
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - rows * _ROW_BYTES))
        lines = file.read().split(b"\n")
    # The first line is cut, unless it is the file's first.
    return _rows(lines if size <= rows * _ROW_BYTES else lines[1:])


def replace_folder(target: Path, fill: Callable[[Path], object]) -> None:
    """Let ``fill`` write a new folder beside ``target``, then put it in its place; a failure leaves the old one."""
    temporary = _filled(target, fill)
    old = temporary.with_name(temporary.name + ".old")
    try:
        if target.exists():
            target.rename(old)
        try:
            temporary.rename(target)
        except OSError:
            if old.exists():
                old.rename(target)
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def make_folder(target: Path, fill: Callable[[Path], object]) -> bool:
    """Let ``fill`` write a new folder ``target``; where another process made it first, keep that one and return False."""
    temporary = _filled(target, fill)
    try:
        # Renaming onto a folder that is not empty fails, so the first one stays.
        temporary.rename(target)
        return True
    except OSError:
        if not target.is_dir():
            raise
        return False
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _filled(target: Path, fill: Callable[[Path], object]) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    try:
        fill(temporary)
        fsync_tree(temporary)
        temporary.chmod(0o777 & ~_umask())
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return temporary


def fsync_tree(folder: Path, *, files: bool = True) -> None:
    """Force every file below ``folder``, and the folders themselves, to disk; without ``files`` the folders alone."""
    for root, _, names in os.walk(folder):
        for path in [Path(root), *(Path(root) / name for name in names if files)]:
            fsync_folder(path)


def fsync_folder(path: Path) -> None:
    """Force a folder's entries (or a file's content) to disk, not what lies below."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def default_file_mode() -> int:
    """Return the permissions that a file gets which a program simply opens."""
    return 0o666 & ~_umask()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return None
    return value
