"""Texts as rows of tokens for language models: long ones in several rows, so that no token is left out."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

NO_WORD = -1
"""Number of the word of a token that is of none."""

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
    word_ids: list[np.ndarray] | None = None
    """int32 [tokens] of each row: the number of each token's word in the row, NO_WORD for special tokens; None: not asked for."""

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


def make_framed_blocks(
    tokenizer: Any, texts: Sequence[str], *, max_length: int, unlearned: Collection[int], with_words: bool = False
) -> Blocks:
    """Tokenize texts, and divide those that are too long; each row has the tokenizer's special tokens of its own.

    A text's tokens follow one another over its rows, and none is in two of them. A row that would hold nothing to predict is left out.

    Args:
        tokenizer: a fast one, which divides and knows words.
        unlearned: ids of tokens that are never predicted.
        with_words: whether ``word_ids`` are wanted.
    """
    rows: list[np.ndarray] = []
    words: list[np.ndarray] = []
    owners: list[int] = []
    ignored = np.fromiter(unlearned, dtype=np.int64)
    for start in range(0, len(texts), _BATCH_ROWS):
        encoded = tokenizer(
            list(texts[start : start + _BATCH_ROWS]), truncation=True, max_length=max_length, return_overflowing_tokens=True,
            return_attention_mask=False, return_token_type_ids=False, verbose=False,
        )  # fmt: skip
        for number, ids in enumerate(encoded["input_ids"]):
            if np.isin(ids, ignored).all():
                continue
            rows.append(np.asarray(ids, dtype=np.int32))
            owners.append(start + encoded["overflow_to_sample_mapping"][number])
            if with_words:
                of_row = encoded.word_ids(number)
                words.append(np.array([NO_WORD if word is None else word for word in of_row], dtype=np.int32))
    _, counts = np.unique(np.asarray(owners, dtype=np.int64), return_counts=True)
    divided, empty = int((counts > 1).sum()), len(texts) - len(counts)
    return Blocks(rows, np.asarray(owners, dtype=np.int64), divided, empty, words if with_words else None)
