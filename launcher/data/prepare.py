"""Prepared data: tokenized once, kept under a key of everything that they depend on, read by every rank."""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from launcher.atomic import make_folder, write_json


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


def prepared_folder(
    root: Path, key: str, make: Callable[[], tuple[Mapping[str, Any], Mapping[str, Any]]]
) -> tuple[Path, bool]:
    """Return the folder of ``key`` below ``root``, made by ``make`` where it is missing, and whether it was found.

    ``make`` returns the data sets by split, and plain facts. Two makers at the same time both work; the one who is
    later finds the folder taken and keeps the first.
    """
    folder = root / "prepared" / key[:32]
    if (folder / "facts.json").is_file():
        return folder, True
    splits, facts = make()

    def fill(target: Path) -> None:
        from datasets import disable_progress_bars

        disable_progress_bars()
        for name, rows in splits.items():
            rows.save_to_disk(str(target / name))
        write_json(target / "facts.json", dict(facts))

    make_folder(folder, fill)
    return folder, False


def load_prepared(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return (split -> datasets.Dataset, memory-mapped; facts) of a prepared folder."""
    from datasets import Dataset

    facts = json.loads((folder / "facts.json").read_text())
    names = [path.parent.name for path in sorted(folder.glob("*/dataset_info.json"))]
    return {name: Dataset.load_from_disk(str(folder / name)) for name in names}, facts


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
