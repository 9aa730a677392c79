"""Texts as rows of tokens for language models: long ones in several rows, so that no token is left out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

_BATCH_ROWS = 2000


@dataclass(frozen=True)
class Blocks:
    """Rows of tokens, and which text each is of."""

    input_ids: list[np.ndarray]
    """int32 [tokens] of each row."""
    texts: np.ndarray
    """Number of each row's text, int64 [rows], ascending."""
    divided: int
    """Texts that became several rows."""
    empty: int
    """Texts of fewer tokens than are needed, which became no row."""

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each row, int64 [rows]."""
        return np.fromiter((len(row) for row in self.input_ids), dtype=np.int64, count=len(self.input_ids))


def make_blocks(
    tokenizer: Any, texts: Sequence[str], *, max_length: int, end: int | None, least_tokens: int = 2
) -> Blocks:
    """Tokenize texts with the tokenizer's own special tokens and ``end`` behind them, and divide those that are too long.

    Args:
        end: id of the token that ends a text, unless the tokenizer puts it there; None: none.
        least_tokens: texts with fewer become no row; with fewer than 2 there is nothing to predict.
    """
    rows: list[np.ndarray] = []
    owners: list[int] = []
    divided = empty = 0
    for start in range(0, len(texts), _BATCH_ROWS):
        batch = list(texts[start : start + _BATCH_ROWS])
        encoded = tokenizer(batch, truncation=False, return_attention_mask=False, verbose=False)["input_ids"]
        for number, ids in enumerate(encoded, start=start):
            if not batch[number - start].strip():
                # The tokenizer's own special tokens are no text.
                empty += 1
                continue
            if end is not None and (not ids or ids[-1] != end):
                ids = [*ids, end]
            if len(ids) < least_tokens:
                empty += 1
                continue
            pieces = divide(np.asarray(ids, dtype=np.int32), max_length=max_length)
            rows += pieces
            owners += [number] * len(pieces)
            divided += len(pieces) > 1
    return Blocks(rows, np.asarray(owners, dtype=np.int64), divided, empty)


def divide(ids: np.ndarray, *, max_length: int) -> list[np.ndarray]:
    """Return ``ids`` in pieces of at most ``max_length`` tokens.

    A piece begins with the last token of the piece before it: so each token but the first is predicted, and only once.
    """
    assert max_length > 1
    starts = range(0, max(len(ids) - 1, 1), max_length - 1)
    return [ids[start : start + max_length] for start in starts]
