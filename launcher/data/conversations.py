"""Conversations in the forms that people keep them in, as one form: a list of messages, and the tools that may be called.

A row may hold a list of messages (``messages``, ``sharegpt``), an instruction and its output (``alpaca``), or a prompt and its completion
(``prompt_completion``); with ``chosen`` and ``rejected``, two answers to the same. All become JSON texts of
``{"messages": [{"role", "content", ...}], "tools": [...] or null}`` with the roles system, user, assistant and tool.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from launcher.data.columns import Column
from launcher.data.messages import NotAConversation, is_messages, messages_of, read_json_list, tools_of
from launcher.data.tables import Fault, Faults, Table, column_of, has_column
from launcher.data.turns import conversation_json, joined, readable, readable_pair, with_default, with_system
from launcher.errors import DataError
from launcher.recipe.chat_options import CONVERSATION_COLUMNS, PREFERENCE_COLUMNS
from launcher.registry import suggest

PAIR = PREFERENCE_COLUMNS


@dataclass(frozen=True)
class Wanted:
    """What conversations are to be read."""

    format: str | None = None
    """One of CONVERSATION_COLUMNS; None: told by the names of the columns."""
    pairs: bool = False
    """Whether a row has two answers, chosen and rejected."""
    system: str | None = None
    """System message of conversations that have none."""
    prompts: bool = False
    """Whether the answers may be missing, as in rows to be answered."""
    is_new: bool = False
    """Whether a finished run is to read them, whose recipe can name no more columns."""


# Format -> our column -> names that it often has. The first column of a format has to be there.
_NAMES: dict[str, dict[str, tuple[str, ...]]] = {
    "messages": {
        "messages": ("messages", "conversation", "chat", "dialog", "dialogue"),
        "system": ("system", "system_prompt"),
        "tools": ("tools", "functions"),
    },
    "sharegpt": {
        "conversations": ("conversations", "conversation"),
        "system": ("system", "system_prompt"),
        "tools": ("tools", "functions"),
    },
    "alpaca": {
        "instruction": ("instruction",),
        "output": ("output", "response"),
        "input": ("input", "context"),
        "system": ("system", "system_prompt"),
        "history": ("history",),
        "tools": ("tools", "functions"),
    },
    "prompt_completion": {
        "prompt": ("prompt", "question", "query", "problem"),
        "completion": ("completion", "answer", "response", "output", "solution"),
        "system": ("system", "system_prompt"),
        "tools": ("tools", "functions"),
    },
}
_OPTIONAL = ("tools", "system", "input", "history")
# What the answers of a pair stand for.
_ANSWERS = ("output", "completion")
_NO_HISTORY = "history is no list of pairs [what was asked, what was answered]"


def choose_conversation(
    table: Table, *, columns: Mapping[str, str | list[str]], wanted: Wanted
) -> tuple[str, dict[str, list[str]]]:
    """Return the format of a table's conversations, and our column -> the table's, as a list of one.

    Args:
        columns: those that the recipe names (``data.columns``).

    Raises:
        DataError: the table has no such columns, or several formats fit.
    """
    given = {ours: theirs for ours, theirs in columns.items() if isinstance(theirs, str)}
    for ours, theirs in given.items():
        if not has_column(table, theirs):
            near = suggest(theirs, table.names)
            hint = f"; did you mean {near!r}?" if near else ""
            raise DataError(
                f"{table.places.shown}: has no column {theirs!r}, which data.columns.{ours} names; its columns are "
                f"{_listed(table.names)}{hint}"
            )
    found = {}
    for name in CONVERSATION_COLUMNS if wanted.format is None else (wanted.format,):
        chosen = _columns_of(name, table, given=given, wanted=wanted)
        if chosen is not None:
            found[name] = chosen
    if wanted.prompts and not found and not given and "text" in table.names:
        # A text is what a user says, as on the command line.
        found = {"prompt_completion": {"prompt": ["text"]}}
    if len(found) > 1:
        found = _told_apart(found, table)
    if len(found) != 1:
        raise DataError(_ask(table, wanted=wanted, fitting=list(found)))
    [(name, chosen)] = found.items()
    more = {ours: [given.get(ours, ours)] for ours in ("id", "group") if ours in given or ours in table.names}
    more.pop("group", None) if "group" not in given else None
    return name, chosen | more


def _columns_of(name: str, table: Table, *, given: Mapping[str, str], wanted: Wanted) -> dict[str, list[str]] | None:
    """Return the columns of a format; None where the table has not all that it needs."""
    of_format, found = _NAMES[name], {}
    if any(ours not in (*of_format, *PAIR, "id", "group") for ours in given):
        return None
    taken = set(given.values())
    for ours, likely in of_format.items():
        matches = [one for one in likely if one in table.names and one not in taken]
        if ours in given:
            found[ours] = [given[ours]]
        elif matches:
            found[ours] = [matches[0]]
    for ours in PAIR if wanted.pairs else ():
        theirs = given.get(ours, ours)
        if not has_column(table, theirs):
            return None
        found[ours] = [theirs]
    is_needed = [ours for ours in of_format if ours not in _OPTIONAL]
    if wanted.pairs or wanted.prompts:
        is_needed = [ours for ours in is_needed if ours not in _ANSWERS]
    if wanted.pairs:
        found = {ours: theirs for ours, theirs in found.items() if ours not in _ANSWERS}
        if (
            name == "messages"
            and "messages" not in given
            and ("messages" not in found or _are_whole(table, found["chosen"]))
        ):
            # Whole conversations stand in chosen and rejected, where nothing else is there.
            found.pop("messages", None)
            is_needed = []
    return found if all(ours in found for ours in is_needed) else None


def _are_whole(table: Table, column: Sequence[str]) -> bool:
    """Whether answers are whole conversations, which begin with what was asked."""
    first = next((value for value in column_of(table, column[0])[:100] if value), None)
    return is_messages(first) and messages_of(first)[0]["role"] in ("system", "user")


def _told_apart(found: dict[str, dict[str, list[str]]], table: Table) -> dict[str, dict[str, list[str]]]:
    """Return the formats that are left when what rows hold, and what names say, is looked at."""
    if {"messages", "sharegpt"} <= set(found) and "messages" in found["messages"]:
        column = found["sharegpt"]["conversations"][0]
        first = next((value for value in table.column(column)[:100] if value), None)
        message = next(iter(read_json_list(first) or ()), None)
        is_sharegpt = isinstance(message, Mapping) and "from" in message
        found.pop("messages" if is_sharegpt else "sharegpt")
    for name in ("sharegpt", "alpaca", "prompt_completion"):
        # Columns of their own say more than chosen and rejected alone.
        if name in found and "messages" in found and "chosen" in found["messages"]:
            found.pop("messages")
    if {"alpaca", "prompt_completion"} <= set(found):
        # An instruction is the prompt; a column called prompt beside it is the two joined.
        found.pop("prompt_completion")
    if "messages" in found and "messages" in found["messages"] and "messages" in table.names:
        return {"messages": found["messages"]}
    return found


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names)) or "none"


def _ask(table: Table, *, wanted: Wanted, fitting: Sequence[str]) -> str:
    if fitting:
        return (
            f"{table.places.shown}: its columns {_listed(table.names)} fit the formats {' and '.join(fitting)}; "
            f"write task.format: {fitting[0]}, or {fitting[-1]}"
        )
    pair = "chosen and rejected, and " if wanted.pairs else ""
    if wanted.format is not None:
        needs = [ours for ours in _NAMES[wanted.format] if ours not in _OPTIONAL]
        needs = [ours for ours in needs if not (wanted.pairs and ours in _ANSWERS)]
        line = ", ".join(f"{ours}: <their column>" for ours in needs)
        return (
            f"{table.places.shown}: task.format is {wanted.format}, which has {pair}{' and '.join(needs)}, but its columns are "
            f"{_listed(table.names)}; write under data:  columns: {{{line}}}"
        )
    if wanted.pairs:
        return (
            f"{table.places.shown}: which of its columns {_listed(table.names)} are a pair of answers cannot be told; a row has chosen, rejected, and "
            f"what they answer (prompt, instruction, conversations or messages); {_remedy(wanted)}"
        )
    return (
        f"{table.places.shown}: how its columns {_listed(table.names)} hold conversations cannot be told; a format is told by messages, "
        f"conversations, instruction and output, or prompt and completion; {_remedy(wanted)}"
    )


def _remedy(wanted: Wanted) -> str:
    if not wanted.is_new:
        answers = (
            "chosen: <better answer>, rejected: <worse answer>" if wanted.pairs else "completion: <what is answered>"
        )
        return f"write under data:  columns: {{prompt: <what is asked>, {answers}}}"
    single = "prompt" if wanted.prompts else "prompt and completion, or prompt, chosen and rejected"
    return f"rename its columns to {'prompt, chosen and rejected' if wanted.pairs else single}"


# --- values ---------------------------------------------------------------------------------------------------------


def conversation_columns(
    table: Table, *, chosen: Mapping[str, list[str]], format: str, rows: Sequence[int], wanted: Wanted, faults: Faults
) -> dict[str, Column]:
    """Return ``text`` (for people) and ``conversation``, or for pairs ``chosen`` and ``rejected`` (JSON texts) of ``rows``.

    Rows that cannot be used are added to ``faults`` and hold None.
    """
    held = {
        ours: column_of(table, theirs[0]).take(rows) for ours, theirs in chosen.items() if ours not in ("id", "group")
    }
    names = PAIR if wanted.pairs else ("conversation",)
    made: dict[str, list[str | None]] = {name: [] for name in (*names, "text")}
    for row, values in zip(rows, zip(*held.values(), strict=True), strict=True):
        found: tuple[str, ...] | None = None
        if row not in faults:
            try:
                found = _row(dict(zip(held, values, strict=True)), format=format, wanted=wanted)
                _require_whole(found)
            except NotAConversation as error:
                found = None
                faults[row] = Fault(f"{error}; mend or remove the row", error.value)
        for number, name in enumerate((*names, "text")):
            made[name].append(None if found is None else found[number])
    return {name: Column.of(values) for name, values in made.items()}


def _row(values: Mapping[str, Any], *, format: str, wanted: Wanted) -> tuple[str, ...]:
    """Return the JSON text of a row's conversation, or of its two, and the text for people. Raises NotAConversation."""
    tools = tools_of(values.get("tools"))
    start = with_system(_START[format](values, wanted), _text(values, "system"))
    if not wanted.pairs:
        start = with_default(start, wanted.system)
        _require_answer(start, prompts=wanted.prompts)
        return conversation_json(start, tools, read=_answers_in_prompt(values, format)), readable(start)
    whole = []
    for name in PAIR:
        messages = with_default(joined(start, _answer(values[name], name), name), wanted.system)
        if messages[-1]["role"] != "assistant" or len(messages) < 2:
            raise NotAConversation(f"{name} does not end with an answer of the assistant to something", values[name])
        whole.append(messages)
    if whole[0] == whole[1]:
        raise NotAConversation("chosen and rejected are the same", values["chosen"])
    _require_one_prompt(whole)
    return (*(conversation_json(messages, tools) for messages in whole), readable_pair(whole))


def _answers_in_prompt(values: Mapping[str, Any], format: str) -> int:
    """Return how many answers stand in what was asked, where that has a column of its own."""
    prompt = values["prompt"] if format == "prompt_completion" else None
    return sum(message["role"] == "assistant" for message in messages_of(prompt)) if is_messages(prompt) else 0


def _from_messages(values: Mapping[str, Any], wanted: Wanted) -> list[dict[str, Any]]:
    return messages_of(values["messages"]) if "messages" in values else []


def _from_sharegpt(values: Mapping[str, Any], wanted: Wanted) -> list[dict[str, Any]]:
    return messages_of(values["conversations"])


def _from_alpaca(values: Mapping[str, Any], wanted: Wanted) -> list[dict[str, Any]]:
    asked = [_text(values, name) for name in ("instruction", "input")]
    messages = _history(values.get("history"))
    prompt = "\n".join(text for text in asked if text.strip())
    if not prompt:
        raise NotAConversation("instruction and input are empty", values["instruction"])
    return [*messages, {"role": "user", "content": prompt}, *_written(values, "output", wanted)]


def _history(value: Any) -> list[dict[str, Any]]:
    """Return the turns before an alpaca row's instruction. Raises NotAConversation."""
    turns = read_json_list(value)
    if turns is None and value not in (None, ""):
        raise NotAConversation(_NO_HISTORY, value)
    messages = []
    for turn in turns or []:
        is_pair = isinstance(turn, Sequence) and not isinstance(turn, str) and len(turn) == 2
        if not is_pair or not all(isinstance(text, str) for text in turn):
            raise NotAConversation(_NO_HISTORY, value)
        if not turn[1].strip():
            raise NotAConversation("history has an answer that is empty", value)
        messages += [{"role": "user", "content": turn[0]}, {"role": "assistant", "content": turn[1]}]
    return messages


def _from_prompt(values: Mapping[str, Any], wanted: Wanted) -> list[dict[str, Any]]:
    prompt = values["prompt"]
    if prompt is None or (isinstance(prompt, str) and not is_messages(prompt)):
        asked = [{"role": "user", "content": _text(values, "prompt")}]
    else:
        asked = messages_of(_messages_in(prompt, "prompt"))
    if not any(message["content"].strip() for message in asked):
        raise NotAConversation("the prompt is empty", prompt)
    return joined(asked, _written(values, "completion", wanted), "completion")


_START = {
    "messages": _from_messages,
    "sharegpt": _from_sharegpt,
    "alpaca": _from_alpaca,
    "prompt_completion": _from_prompt,
}


def _text(values: Mapping[str, Any], name: str) -> str:
    value = values.get(name)
    if value is not None and not isinstance(value, str):
        raise NotAConversation(f"{name} holds {str(value)[:80]!r} ({type(value).__name__}), which is not text", value)
    return value or ""


def _written(values: Mapping[str, Any], name: str, wanted: Wanted) -> list[dict[str, Any]]:
    """Return the answer of a row that has one in a column of its own."""
    value = values.get(name)
    if wanted.pairs or (wanted.prompts and not value):
        return []
    return _answer(value, name)


def _answer(value: Any, name: str) -> list[dict[str, Any]]:
    """Return the messages of an answer: text, a message, or a list of them."""
    if value is None or (isinstance(value, str) and not is_messages(value)):
        if not (value or "").strip():
            raise NotAConversation(f"{name} is empty", value)
        return [{"role": "assistant", "content": value}]
    return messages_of(_messages_in(value, name))


def _messages_in(value: Any, name: str) -> Any:
    if not isinstance(value, Mapping | Sequence):
        raise NotAConversation(
            f"{name} holds {value!r} ({type(value).__name__}), which is neither text nor messages", value
        )
    return [value] if isinstance(value, Mapping) else value


def _require_answer(messages: Sequence[Mapping[str, Any]], *, prompts: bool) -> None:
    roles = [message["role"] for message in messages]
    if "assistant" not in roles and not prompts:
        raise NotAConversation(f"it has no answer of the assistant, only {', '.join(dict.fromkeys(roles))}", roles)


def _require_one_prompt(pair: Sequence[Sequence[Mapping[str, Any]]]) -> None:
    first = [messages[: next(i for i in reversed(range(len(messages))) if messages[i]["role"] == "user") + 1] if any(
        message["role"] == "user" for message in messages
    ) else messages[:0] for messages in pair]  # fmt: skip
    if first[0] != first[1]:
        raise NotAConversation(
            "chosen and rejected do not answer the same: what stands before their answers differs", ""
        )


def _require_whole(texts: Sequence[str]) -> None:
    try:
        "".join(texts).encode()
    except UnicodeEncodeError:
        raise NotAConversation("it holds half of a character (a lone surrogate), which is no text", "") from None
