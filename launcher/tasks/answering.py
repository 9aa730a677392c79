"""Answers that a model writes to prompts: the prompts of prepared rows, their batches, and the text of what was written."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np


class Prompt(NamedTuple):
    """The beginning of a conversation, up to its last answer."""

    row_id: int
    read: list[int]
    """Tokens before the answer."""
    right: list[int]
    """Tokens of the answer."""


def sample_prompts(split: Any, *, most: int) -> list[Prompt]:
    """Return at most ``most`` prompts, spread evenly over the rows of a prepared split: the same ones at each call."""
    wanted = sorted({round(place) for place in np.linspace(0, len(split) - 1, min(most, len(split)))}) if most else []
    found = []
    for place in wanted:
        row = split[place]
        learned = np.flatnonzero(row["learned"])
        last = int(learned[-1])
        # The last stretch of learned tokens is the last answer.
        first = last - int(np.argmin(np.append(np.asarray(row["learned"])[last::-1] > 0, False))) + 1
        if first > 1 or row["learned"][1] == 0:
            found.append(Prompt(row["row_id"], row["input_ids"][:first], row["input_ids"][first : last + 1]))
    return found


def said_by_user(text: str, system: str | None) -> list[dict[str, Any]]:
    """Return the messages of a text that a user says, behind a system message where there is one."""
    return [*([{"role": "system", "content": system}] if system else []), {"role": "user", "content": text}]


def prompt_and_answer(messages: Sequence[Mapping[str, Any]]) -> tuple[list[Mapping[str, Any]], list[Mapping[str, Any]]]:
    """Return a conversation up to the last message that is not the assistant's, and what the assistant says to it."""
    others = [number for number, message in enumerate(messages) if message["role"] != "assistant"]
    end = others[-1] + 1 if others else 0
    return list(messages[:end]), list(messages[end:])


def left_padded(ids: Any, mask: Any) -> tuple[Any, Any]:
    """Return rows that were padded on the right with their padding on the left, as models write on from the right; int64 [rows, tokens]."""
    import torch

    order = torch.argsort(mask, dim=1, stable=True)
    most = int(mask.sum(dim=1).max())
    return ids.gather(1, order)[:, -most:], mask.gather(1, order)[:, -most:]


def answers_of(tokenizer: Any, tokens: np.ndarray, *, ends: Collection[int]) -> list[tuple[str, bool]]:
    """Return the text of each answer, and whether it ended by itself; ``tokens`` [rows, tokens], NaN behind a row's last."""
    found = []
    for row in tokens:
        ids = row[np.isfinite(row)].astype(np.int64).tolist()
        end = next((place for place, number in enumerate(ids) if number in ends), None)
        text = tokenizer.decode(ids[:end], skip_special_tokens=True, clean_up_tokenization_spaces=False)
        found.append((text.strip(), end is not None))
    return found
