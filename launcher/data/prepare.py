"""Prepared data: tokenized once, kept under a key of everything that they depend on, read by every rank."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from launcher.atomic import make_folder, write_json
from launcher.data.pieces import read_split
from launcher.data.telling import tell
from launcher.launching.locks import Lock, take_file

FACTS = "facts.json"
_LOOK_SECONDS = 0.2


def cache_folder(chosen: str | None = None) -> Path:
    """Return the folder of prepared data: the recipe's, or ``launcher`` in the user's cache folder."""
    if chosen:
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "launcher"


def fingerprint_of(parts: Mapping[str, Any]) -> str:
    """Return the sha256 of plain values, independent of the order of keys."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


@functools.cache
def code_fingerprint() -> str:
    """Return the sha256 of the code that reads and prepares rows: what another version has prepared is not read."""
    package = Path(__file__).resolve().parent.parent
    digest = hashlib.sha256()
    for path in sorted([*(package / "data").glob("*.py"), *(package / "tasks").glob("*.py")]):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def prepared_folder(root: Path, key: str, make: Callable[[Path], Mapping[str, Any]]) -> tuple[Path, bool]:
    """Return the folder of ``key`` below ``root``, made by ``make`` where it is missing, and whether it was found.

    ``make`` writes a file SPLIT.arrow for each split into the folder that it is given, and returns plain facts. Where another
    process of this machine makes the same folder, it is waited for. One on another machine is not: both make it then, and the
    first is kept.
    """
    folder = root / "prepared" / key[:32]
    if (folder / FACTS).is_file():
        return folder, True
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = _our_turn(folder.parent / f".{folder.name}.lock")
    try:
        if (folder / FACTS).is_file():
            return folder, True
        make_folder(folder, lambda target: write_json(target / FACTS, dict(make(target))))
        return folder, False
    finally:
        if lock is not None:
            # Whoever has it open and takes it now finds the folder, or makes it while another may: the first is kept.
            lock.path.unlink(missing_ok=True)
            lock.release()


def _our_turn(path: Path) -> Lock | None:
    """Wait while a process of this machine holds a lock file; return the lock, or None where one on another machine holds it."""
    waiting = False
    while True:
        lock, holder = take_file(path)
        if lock is not None or holder.get("host", platform.node()) != platform.node():
            return lock
        if not waiting:
            tell(f"waiting for process {holder.get('pid', '')}, which prepares the same data", 0, 0)
        waiting = True
        time.sleep(_LOOK_SECONDS)


def load_prepared(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return (split -> datasets.Dataset, memory-mapped; facts) of a prepared folder."""
    facts = json.loads((folder / FACTS).read_text())
    return {path.stem: read_split(path) for path in sorted(folder.glob("*.arrow"))}, facts


@dataclass(frozen=True)
class Tokenized:
    """Token ids of texts, cut to a length.

    ``features``: name -> list of lists of ints; ``cut``: how many texts were longer than ``max_length``.
    """

    features: dict[str, list[list[int]]]
    lengths: np.ndarray
    cut: int


def tokenize(
    tokenizer: Any, texts: list[str], pairs: list[str] | None, *, max_length: int, batch_rows: int = 2000
) -> Tokenized:
    """Tokenize texts (or pairs) with special tokens; longer ones are cut at ``max_length`` tokens and counted."""
    features: dict[str, list[list[int]]] = {}
    cut = 0
    for start in range(0, len(texts), batch_rows):
        batch = texts[start : start + batch_rows]
        batch_pairs = pairs[start : start + batch_rows] if pairs is not None else None
        whole = tokenizer(batch, batch_pairs, truncation=False, return_attention_mask=False, verbose=False)
        long = [i for i, ids in enumerate(whole["input_ids"]) if len(ids) > max_length]
        cut += len(long)
        if long:
            again = tokenizer(
                [batch[i] for i in long],
                [batch_pairs[i] for i in long] if batch_pairs is not None else None,
                truncation=True,
                max_length=max_length,
                return_attention_mask=False,
            )
            for name in whole:
                for position, row in enumerate(long):
                    whole[name][row] = again[name][position]
        for name, values in whole.items():
            features.setdefault(name, []).extend(values)
    lengths = np.fromiter((len(ids) for ids in features["input_ids"]), dtype=np.int64, count=len(texts))
    return Tokenized(features, lengths, cut)
