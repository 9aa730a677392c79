"""Train rows that share rows of ``data.max_length`` tokens (``task.packing``): what is counted of them, and told."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from launcher.data.packing import pack_split
from launcher.data.pieces import read_split


def packed_counts(path: Path, *, max_length: int) -> dict[str, int]:
    """Pack the prepared rows of a file; return their counts, and ``sequences``, how many rows they were before."""
    return {"sequences": len(read_split(path)), **pack_split(path, max_length=max_length)}


def packing_notes(facts: Mapping[str, Any], *, of: str) -> list[str]:
    """Return a note on packed rows of train, where there are any; ``of``: what was packed, in words."""
    train, most = facts["splits"]["train"], facts["max_length"]
    if "sequences" not in train:
        return []
    share = train["tokens"] / (train["rows"] * most)
    return [
        f"{train['sequences']:,} train {of} were packed into {train['rows']:,} rows of at most {most:,} tokens ({share:.0%} full): "
        "training.global_batch_size counts such rows"
    ]
