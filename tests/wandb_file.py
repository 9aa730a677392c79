"""Read the file of an offline W&B run; the package has no reader of its own any more."""

from __future__ import annotations

import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BLOCK = 32768


def records(path: Path, wait_seconds: float = 10.0) -> list[Any]:
    """Return the records of a finished run. wandb 0.31's ``finish()`` returns a moment before its last block is on disk."""
    until = time.monotonic() + wait_seconds
    while True:
        found = list(_parsed(path)) if path.stat().st_size else []
        if found and found[-1].WhichOneof("record_type") == "exit":
            return found
        assert time.monotonic() < until, f"{path} has no exit record after {wait_seconds} s"
        time.sleep(0.05)


def _parsed(path: Path) -> Iterator[Any]:
    """Yield the protobuf records: LevelDB's log framing behind a header of 7 bytes."""
    from wandb.proto import wandb_internal_pb2 as pb

    data = path.read_bytes()
    assert data[:4] == b":W&B"
    i, whole = 7, b""
    while i < len(data):
        left = BLOCK - i % BLOCK
        if left < 7:
            i += left
            continue
        if i + 7 > len(data):
            return
        _, size, kind = struct.unpack("<IHB", data[i : i + 7])
        if kind == 0 and size == 0:
            i += left
            continue
        part = data[i + 7 : i + 7 + size]
        if len(part) < size:
            return
        i += 7 + size
        # 1: whole, 2: first, 3: middle, 4: last part of a record.
        whole = part if kind in (1, 2) else whole + part
        if kind in (1, 4):
            record = pb.Record()
            record.ParseFromString(whole)
            yield record


def items(found: Any) -> dict[str, Any]:
    """Key -> value of a history, summary or config record; nested keys are joined with slashes."""
    import json

    return {(x.key or "/".join(x.nested_key)): json.loads(x.value_json) for x in found}
