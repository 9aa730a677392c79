"""Messages of a conversation as rows have them, under whatever names, as one form that chat templates understand."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

ROLES = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human", "prompter", "customer"), "user"),
    **dict.fromkeys(("assistant", "gpt", "bot", "model", "chatgpt", "bing", "bard"), "assistant"),
    **dict.fromkeys(("tool", "observation", "function", "ipython", "function_response", "tool_response"), "tool"),
    **dict.fromkeys(("function_call", "tool_call"), "function_call"),
}
"""A role as people write it -> ours; what a function_call says becomes a call of the assistant."""

_ROLE_KEYS = ("role", "from", "speaker")
_CONTENT_KEYS = ("content", "value", "text")
# What templates know beside role and content.
_KEPT = ("name", "tool_call_id", "reasoning_content", "thinking")
# What others write to say whether an answer is learned.
_LEARNED_KEYS = ("weight", "train", "training", "loss", "train_detail")


class NotAConversation(Exception):
    """Why a row holds no conversation; ``value`` is what it holds there."""

    def __init__(self, reason: str, value: Any) -> None:
        super().__init__(reason)
        self.value = value


def messages_of(value: Any) -> list[dict[str, Any]]:
    """Return messages of role, content and, where there are any, tool_calls, reasoning_content, name. Raises NotAConversation."""
    rows = read_json_list(value)
    if not rows:
        raise NotAConversation(f"it holds {_cut(value)}, which is no list of messages", value)
    return [_message(row, number) for number, row in enumerate(rows, start=1)]


def is_messages(value: Any) -> bool:
    """Whether a value is a list of messages, or writes one as JSON: a text such as ``[1, 2]`` is a text."""
    rows = read_json_list(value)
    return bool(rows) and all(
        isinstance(row, Mapping) and any(row.get(key) is not None for key in _ROLE_KEYS) for row in rows or ()
    )


def read_json_list(value: Any) -> list[Any] | None:
    """Return a list, or the one that a JSON text writes; None where it is neither."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = json.loads(value)
        except ValueError:
            return None
    return list(value) if isinstance(value, Sequence) and not isinstance(value, str | bytes) else None


def tools_of(value: Any) -> list[dict[str, Any]] | None:
    """Return tools as JSON schemas ``{"type": "function", "function": {...}}``; None where there are none. Raises NotAConversation."""
    if value is None or value == "" or value == []:
        return None
    if isinstance(value, str) and value.lstrip().startswith("{"):
        value = f"[{value}]"
    tools = read_json_list([value] if isinstance(value, Mapping) else value)
    if tools is None or not all(isinstance(tool, Mapping) for tool in tools):
        raise NotAConversation(f"tools holds {_cut(value)}, which is no JSON list of tools", value)
    found = [_without_nulls(tool) for tool in tools]
    for tool in found:
        function = tool.get("function", tool)
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise NotAConversation(f"a tool has no name: {_cut(tool)}", value)
    return [tool if "function" in tool else {"type": "function", "function": tool} for tool in found] or None


def _message(row: Any, number: int) -> dict[str, Any]:
    if not isinstance(row, Mapping):
        raise NotAConversation(f"message {number} is {_cut(row)}, which has no role and content", row)
    # Tables give every row the keys of all, with null for those that it has not.
    row = {key: value for key, value in row.items() if value is not None}
    said = next((row[key] for key in _ROLE_KEYS if key in row), None)
    role = ROLES.get(str(said).strip().lower())
    if role is None:
        raise NotAConversation(
            f"message {number} is by {said!r}; roles are system, user (human), assistant (gpt), tool (observation) and function_call",
            row,
        )
    value = next((row[key] for key in _CONTENT_KEYS if key in row), None)
    if role == "tool" and isinstance(value, Mapping):
        value = json.dumps(_without_nulls(value), ensure_ascii=False)
    content = _content(value, number)
    if role in ("assistant", "function_call"):
        _require_learned(row, number)
    calls = _calls(row.get("tool_calls"), number)
    if role == "assistant" and not calls:
        # OpenAI's first form of a call.
        calls = _calls(row.get("function_call"), number)
    if role == "function_call":
        role, calls = "assistant", _calls_in(content)
        content = "" if calls else content
    if role == "assistant" and not content.strip() and not calls:
        raise NotAConversation(f"message {number}, of the assistant, is empty", row)
    more = {key: row[key] for key in _KEPT if key in row}
    if "reasoning" in row and not any(key in row for key in ("reasoning_content", "thinking")):
        # What servers call it that answer as OpenAI's do.
        more["reasoning_content"] = row["reasoning"]
    return {"role": role, "content": content, **more, **({"tool_calls": calls} if calls else {})}


def _require_learned(row: Mapping[str, Any], number: int) -> None:
    """Raise NotAConversation where an answer says that it is not learned as the others are: nothing here would heed it."""
    for key in _LEARNED_KEYS:
        if row.get(key, 1) not in (1, "1"):
            raise NotAConversation(
                f"message {number}, of the assistant, has {key} {row[key]!r}, but answers have no weights of their own here: learn only the "
                f"last of each row (task.learned_answers: last), or remove {key}",
                row,
            )


def _content(value: Any, number: int) -> str:
    if isinstance(value, list) and all(isinstance(part, Mapping) and part.get("type") == "text" for part in value):
        value = "".join(str(part.get("text") or "") for part in value)
    if value is not None and not isinstance(value, str):
        raise NotAConversation(f"message {number} holds {_cut(value)}, which is not text", value)
    return value or ""


def _calls(value: Any, number: int) -> list[dict[str, Any]]:
    """Return calls of tools as templates want them, with their arguments as a mapping."""
    written = f"[{value}]" if isinstance(value, str) and value.lstrip().startswith("{") else value
    calls = read_json_list([written] if isinstance(written, Mapping) else written)
    if calls is None and value not in (None, ""):
        raise NotAConversation(f"message {number} has calls of tools that are no JSON list: {_cut(value)}", value)
    found = []
    for call in calls or []:
        function = call.get("function", call) if isinstance(call, Mapping) else {}
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise NotAConversation(f"message {number} calls a tool without a name: {_cut(call)}", call)
        known = {"id": call["id"]} if call.get("id") else {}
        arguments = _arguments(function.get("arguments", function.get("parameters")))
        found.append({**known, "type": "function", "function": {"name": function["name"], "arguments": arguments}})
    return found


def _calls_in(content: str) -> list[dict[str, Any]]:
    """Return the calls that a text of JSON writes; none where it writes none."""
    try:
        value = json.loads(content)
    except ValueError:
        return []
    calls = value if isinstance(value, list) else [value]
    if not all(isinstance(call, Mapping) and isinstance(call.get("name"), str) for call in calls):
        return []
    return _calls(calls, 0)


def _arguments(value: Any) -> Any:
    if isinstance(value, str):
        try:
            read = json.loads(value)
        except ValueError:
            return value
        return read if isinstance(read, Mapping) else value
    return _without_nulls(value) if value is not None else {}


def _without_nulls(value: Any) -> Any:
    """Return nested values without the keys that hold null: tables give every row the keys of all."""
    if isinstance(value, Mapping):
        return {key: _without_nulls(inner) for key, inner in value.items() if inner is not None}
    return [_without_nulls(inner) for inner in value] if isinstance(value, list) else value


def _cut(value: Any, width: int = 80) -> str:
    text = repr(value)
    return text if len(text) <= width else f"{text[: width - 3]}..."
