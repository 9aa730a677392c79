"""Rows of built-in sources, kept once they are made."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def kept_rows(
    name: str,
    *,
    versions: Mapping[str, str],
    code: Sequence[Path],
    make: Callable[[], list[Row]],
    cache_dir: Path | None,
) -> list[Row]:
    """Return the rows of a built-in source from its file in ``cache_dir`` (None: the user's cache folder); made where that fails.

    The file is another one for other ``versions`` (of what the rows are read from) and other ``code`` (files that make them); its
    first line is a hash of the others.
    """
    folder = cache_dir or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "launcher"
    key = hashlib.sha256(json.dumps(dict(versions), sort_keys=True).encode())
    for source in code:
        key.update(source.read_bytes())
    path = folder / "builtin" / f"{name}-{key.hexdigest()[:24]}.jsonl"
    try:
        first, *lines = path.read_text("utf-8").splitlines()
        if _digest(lines) == first:
            return [json.loads(line) for line in lines]
    except (OSError, ValueError):
        # No cache, or half of one: the rows are made again.
        pass
    rows = make()
    _keep([json.dumps(row) for row in rows], path=path)
    return rows


def _keep(lines: Sequence[str], *, path: Path) -> None:
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text("\n".join([_digest(lines), *lines]) + "\n", "utf-8")
        temporary.replace(path)
    except OSError:
        # A cache that cannot be written costs time, not the run.
        temporary.unlink(missing_ok=True)


def _digest(lines: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
