"""What becomes of the words of a conversation in a chat template: which it leaves out, and which the tokenizer takes for control tokens."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Messages = Sequence[Mapping[str, Any]]

_THOUGHTS = ("reasoning_content", "thinking")
_END_OF_THOUGHT = "</think>"


def is_hidden(messages: Messages, text: str) -> bool:
    """Whether the text of a conversation lacks a part of what is said in it, spaces aside.

    Thoughts of answers before the last one are expected to be left out, as templates do it that know thoughts.
    """
    shown = _squeezed(text)
    return any(
        _squeezed(said) not in shown and _squeezed(json.dumps(said, ensure_ascii=False)[1:-1]) not in shown
        for said in _said(messages)
    )


def _said(messages: Messages) -> Iterator[str]:
    last = max((number for number, message in enumerate(messages) if message["role"] == "assistant"), default=-1)
    for number, message in enumerate(messages):
        content = message.get("content") or ""
        yield content.rpartition(_END_OF_THOUGHT)[2] if message["role"] == "assistant" and number < last else content
        if number == last:
            yield next((message[key] for key in _THOUGHTS if isinstance(message.get(key), str)), "")


def _squeezed(text: str) -> str:
    return "".join(text.split())


def has_control_tokens(messages: Messages, special: Sequence[str]) -> bool:
    """Whether what is said holds a special token as text, which the tokenizer takes for that token."""
    return any(token and token in (message.get("content") or "") for message in messages for token in special)
