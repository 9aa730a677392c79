"""Rows of tokens to batches for models that predict the next one: packed or padded, with the loss at the places that are learned."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from launcher.data.packing import positions
from launcher.recipe.schema import ModelSection
from launcher.tasks.padding import MULTIPLE, pad_tokens
from launcher.tasks.text_task import IGNORED


class NextTokenCollator:
    """Pads rows on the right to the longest of their batch, and asks for logits only where some row has something to learn.

    Packed rows have positions that begin at 0 with each sequence, and no mask: attention then stays within a sequence.
    """

    def __init__(self, *, pad_token_id: int, parts: int = 1, all_logits: bool = False, flat: bool = False) -> None:
        """Make one.

        Args:
            parts: how many ranks share each row.
            all_logits: whether the model knows no ``logits_to_keep``.
            flat: whether packed rows become one row, as kernels want them that take the ends of sequences (flash attention).
        """
        self.pad_token_id, self.parts, self.all_logits, self.flat = pad_token_id, parts, all_logits, flat

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Return input_ids int64 [rows, tokens], attention_mask or position_ids of that shape, labels, and sample_weight float32 [rows].

        ``labels`` int64 [rows, kept] are the tokens that come next, IGNORED where they are not learned, at the places ``logits_to_keep`` int64
        [kept]. Where ranks share rows, ``labels`` are the tokens themselves [rows, tokens], and a row's weight is in them.
        """
        import torch

        multiple = 1 if self.flat else math.lcm(MULTIPLE, self.parts)
        ids, mask = pad_tokens([row["input_ids"] for row in rows], value=self.pad_token_id, multiple=multiple)
        learned, _ = pad_tokens([learned_places(row) for row in rows], value=0, multiple=multiple)
        weights = torch.tensor([row.get("weight", 1.0) for row in rows], dtype=torch.float32)
        labels = ids.masked_fill(learned == 0, IGNORED)
        batch = {"input_ids": ids}
        if "seq_lengths" in rows[0]:
            held = [row["seq_lengths"] for row in rows]
            batch["position_ids"] = torch.from_numpy(positions(held, places=ids.shape[1]))
        else:
            batch["attention_mask"] = mask
        if self.parts > 1:
            batch["labels"] = labels.masked_fill(weights[:, None] == 0, IGNORED)
            batch.setdefault("position_ids", torch.arange(ids.shape[1]).expand(len(rows), -1).contiguous())
            return batch
        if self.flat and "position_ids" in batch:
            labels = labels.masked_fill(weights[:, None] == 0, IGNORED)
            batch = {name: value[mask.bool()][None] for name, value in batch.items()}
            return {**batch, **self._kept(labels[mask.bool()][None])}
        return {**batch, **self._kept(labels), "sample_weight": weights}

    def _kept(self, labels: Any) -> dict[str, Any]:
        import torch
        import torch.nn.functional as F

        following = F.pad(labels[:, 1:], (0, 1), value=IGNORED)
        if self.all_logits:
            return {"labels": following}
        kept = (following != IGNORED).any(dim=0).nonzero()[:, 0]
        # A batch of rows that teach nothing still takes a step.
        kept = kept if len(kept) else torch.zeros(1, dtype=torch.long)
        return {"labels": following[:, kept], "logits_to_keep": kept}


def learned_places(row: Mapping[str, Any]) -> Sequence[int]:
    """Return 1 for each token of a row that is learned, 0 for the others: all but the first of each sequence, unless the row says which."""
    if "learned" in row:
        return row["learned"]
    if "seq_lengths" in row:
        return [int(place > 0) for length in row["seq_lengths"] for place in range(length)]
    return [0] + [1] * (len(row["input_ids"]) - 1)


def takes_flat_rows(model: ModelSection) -> bool:
    """Whether the recipe's attention kernel takes the ends of packed sequences, which it is given for a single row alone."""
    return (model.attn_implementation or "").startswith("flash")
