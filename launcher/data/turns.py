"""What was asked and what was answered, as one conversation: with at most one system message at its beginning, and nothing twice."""

from __future__ import annotations

from typing import Any

from launcher.data.messages import NotAConversation

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
