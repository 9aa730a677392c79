"""Rows of different lengths as one batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from launcher.data.token_batches import MULTIPLE


def pad_inputs(tokenizer: Any, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return what the model takes of rows, padded to the longest, and their ``sample_weight``, float32 [rows], 0 for padding rows."""
    import torch

    names = [name for name in rows[0] if name in tokenizer.model_input_names]
    batch = tokenizer.pad(
        [{name: row[name] for name in names} for row in rows],
        padding=True,
        pad_to_multiple_of=MULTIPLE,
        return_tensors="pt",
    )
    return {**batch, "sample_weight": torch.tensor([row.get("weight", 1.0) for row in rows], dtype=torch.float32)}


def pad_tokens(rows: Sequence[Any], *, value: int, multiple: int = MULTIPLE) -> tuple[Any, Any]:
    """Return rows of numbers as a tensor, padded on the right with ``value``, and which places are real; int64 [rows, tokens]."""
    import torch

    length = -(-max(len(row) for row in rows) // multiple) * multiple
    padded = torch.full((len(rows), length), value, dtype=torch.long)
    real = torch.zeros((len(rows), length), dtype=torch.long)
    for number, row in enumerate(rows):
        padded[number, : len(row)] = torch.as_tensor(row, dtype=torch.long)
        real[number, : len(row)] = 1
    return padded, real
