"""What was asked and what was answered, as one conversation: with at most one system message at its beginning, and nothing twice."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from launcher.data.messages import NotAConversation
from launcher.recipe.chat_options import PREFERENCE_COLUMNS

Turns = list[dict[str, Any]]


def with_system(messages: Turns, text: str) -> Turns:
    """Return messages behind what a row's column of system messages holds. Raises NotAConversation where there would be two."""
    if not text.strip():
        return messages
    own, _ = _apart(messages)
    if own and own[0]["content"].strip() != text.strip():
        raise NotAConversation(
            "its column of system messages and its first message are two system messages that differ; keep one of them",
            text,
        )
    return messages if own else [{"role": "system", "content": text}, *messages]


def with_default(messages: Turns, system: str | None) -> Turns:
    """Return messages, with a system message where they begin with none; None: as they are."""
    if system is None or _apart(messages)[0]:
        return messages
    return [{"role": "system", "content": system}, *messages]


def _apart(messages: Turns) -> tuple[Turns, Turns]:
    """Return the system message that messages begin with, or none, and the others."""
    first = 1 if messages and messages[0]["role"] == "system" else 0
    return messages[:first], messages[first:]


def joined(start: Turns, answer: Turns, name: str) -> Turns:
    """Return what was asked and an answer, which may repeat what was asked, as one conversation. Raises NotAConversation."""
    (system, asked), (own, said) = _apart(start), _apart(answer)
    if system and own and system != own:
        raise NotAConversation(
            f"{name} begins with another system message than the prompt has; keep one of them", answer
        )
    if said[: len(asked)] == asked:
        return [*(own or system), *said]
    if own:
        return answer
    if said and said[0]["role"] == asked[-1]["role"]:
        told = {
            "user": f"{name} begins with a message of the user that is not the prompt; let it begin with the prompt as that is written, or "
            "with an answer",
            "assistant": f"what stands before {name} ends with an answer of the assistant, so that {name} answers nothing; remove that answer",
        }
        if said[0]["role"] in told:
            raise NotAConversation(told[said[0]["role"]], answer)
    return [*start, *said]


# --- as prepared rows hold it, and as people read it ------------------------------------------------------------------


class Conversation(NamedTuple):
    """A row's conversation."""

    messages: Turns
    tools: list[Any] | None
    """JSON schemas of what the assistant may call."""
    read: int
    """How many of its first answers were asked with it: they are read, not learned."""

    def learned(self, answers: Sequence[Any]) -> Sequence[Any]:
        """Return those of its answers, in their order, that are not only read."""
        kept = sum(message["role"] == "assistant" for message in self.messages) - self.read
        # A template may leave out earlier answers.
        return answers[max(0, len(answers) - kept) :] if self.read else answers


def conversation_json(
    messages: Sequence[Mapping[str, Any]], tools: Sequence[Any] | None = None, *, read: int = 0
) -> str:
    """Return a conversation as prepared rows hold it; ``read``: how many of its first answers are not learned."""
    said = {"messages": list(messages), "tools": list(tools) if tools else None}
    return json.dumps({**said, "read": read} if read else said, ensure_ascii=False)


def read_conversation(text: str) -> Conversation:
    """Return what ``conversation_json`` has written."""
    value = json.loads(text)
    return Conversation(value["messages"], value["tools"], value.get("read", 0))


def readable(messages: Sequence[Mapping[str, Any]]) -> str:
    """Return messages for people to read, each behind its role."""
    return "\n".join(f"{message['role']}: {_said(message)}" for message in messages)


def _said(message: Mapping[str, Any]) -> str:
    calls = [json.dumps(call["function"], ensure_ascii=False) for call in message.get("tool_calls", ())]
    return "\n".join([*([message["content"]] if message["content"] else []), *calls])


def readable_pair(pair: Sequence[Sequence[Mapping[str, Any]]]) -> str:
    """Return what two conversations share, and then how they go on."""
    shared = 0
    while shared < min(map(len, pair)) and pair[0][shared] == pair[1][shared]:
        shared += 1
    parts = [
        readable(pair[0][:shared]),
        *(f"{name}: {readable(one[shared:])}" for name, one in zip(PREFERENCE_COLUMNS, pair, strict=True)),
    ]
    return "\n".join(part for part in parts if part)
