"""What a chat template makes of a conversation, and which parts of it the assistant says.

Where a template marks answers itself (``{% generation %}``), its marks are taken as they are. Otherwise the conversation is rendered once more
with a stand-in for each answer: what differs between the two texts is what the assistant says, to the character, whatever the template
strips or adds. An answer then begins where the template's generation prompt ends, as it does in serving, and ends with the token that
ends its turn.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any, NamedTuple

from launcher.errors import DataError, ModelError

Messages = Sequence[Mapping[str, Any]]

_MARKS = re.compile(r"\{%-?\s*generation\s*-?%\}")
# Characters of Unicode's private use, which no text has.
_STAND_IN = "\ue200{number}\ue201"
_TODAY = re.compile(r"""strftime_now\(\s*(['"])([^'"\\]*)\1\s*\)""")
_STAND_INS = re.compile("\ue200(\\d+)\ue201")
DAY = datetime(2024, 7, 26)
"""What templates are told that ask for the day (``strftime_now``), so that rows are the same whenever they are prepared. It is the day that
Llama 3.2's template has where it knows no other."""


class Rendered(NamedTuple):
    """A conversation as text."""

    text: str
    answers: tuple[tuple[int, int], ...]
    """Where each answer of the assistant begins and ends in it, in characters, ascending; its end of turn is a part of it."""


class TemplateError(Exception):
    """Why a template cannot render a conversation."""


@dataclass(frozen=True)
class ChatTemplate:
    """A Jinja template, and the tokens that it may name."""

    source: str
    tokens: Mapping[str, Any]
    """Special tokens by name, such as ``bos_token``."""
    special: tuple[str, ...]
    """The texts of all special tokens."""

    @property
    def has_marks(self) -> bool:
        """Whether it marks what the assistant says."""
        return _MARKS.search(self.source) is not None

    def render(self, messages: Messages, tools: Sequence[Any] | None = None, *, prompt: bool = False) -> str:
        """Return the text of a conversation; ``prompt``: with what the assistant's next answer begins behind. Raises TemplateError."""
        return self._render(messages, tools, prompt=prompt)[0]

    def rendered(self, messages: Messages, tools: Sequence[Any] | None = None) -> Rendered:
        """Return the text of a conversation and where its answers stand. Raises TemplateError where these cannot be told."""
        text, marked = self._render(messages, tools, marks=self.has_marks)
        self._require_shown(text, messages, tools)
        if self.has_marks:
            return Rendered(text, tuple(self._without_prompt(text, *place) for place in marked if place[1] > place[0]))
        numbers = [number for number, message in enumerate(messages) if message["role"] == "assistant"]
        answers = self._all_at_once(text, messages, tools, numbers) or self._one_by_one(text, messages, tools, numbers)
        return Rendered(text, tuple(answers))

    @property
    def has_date(self) -> bool:
        """Whether it asks for the day."""
        return "strftime_now" in self.source

    @cached_property
    def _of_day(self) -> str:
        return _TODAY.sub(lambda match: repr(DAY.strftime(match[2])), self.source)

    @cached_property
    def generation_prompt(self) -> str:
        """What stands before an answer in serving, behind the messages before it."""
        stand_in = _STAND_IN.format(number=0)
        asked = [{"role": "user", "content": stand_in}]
        without, with_prompt = (self.render(asked, prompt=prompt).rpartition(stand_in)[2] for prompt in (False, True))
        if with_prompt.startswith(without):
            return with_prompt.removeprefix(without)
        # Some end a text that asks for no answer with a token of its own.
        shared = _differing(with_prompt, without)[0]
        places = [
            match.span() for token in self.special if token for match in re.finditer(re.escape(token), with_prompt)
        ]
        return with_prompt[min((start for start, end in places if start < shared < end), default=shared) :]

    @cached_property
    def end_of_turn(self) -> str:
        """What ends an answer, up to its last special token; "" where the template has none.

        A token that only ends the whole text is not a part of it, where another one ends answers within.
        """
        stand_in = _STAND_IN.format(number=0)
        messages = [{"role": "user", "content": "u"}, {"role": "assistant", "content": stand_in}]
        behind = self.render(messages).rpartition(stand_in)[2]
        try:
            within = self.render([*messages, messages[0]]).rpartition(stand_in)[2]
        except TemplateError:
            within = behind
        return self._up_to_token(behind[: _differing(behind, within)[0]]) or self._up_to_token(behind)

    @cached_property
    def marks_ends(self) -> bool:
        """Whether an answer that it marks reaches to the end of its turn; True where it has no marks."""
        stand_in = _STAND_IN.format(number=0)
        text, answers = self.rendered([{"role": "user", "content": "u"}, {"role": "assistant", "content": stand_in}])
        behind = text.rpartition(stand_in)[0] + stand_in + self.end_of_turn
        return not answers or answers[-1][1] >= len(behind)

    def _up_to_token(self, text: str) -> str:
        ends = [text.rfind(token) + len(token) for token in self.special if token and token in text]
        return text[: max(ends, default=0)]

    # --- where answers stand ---------------------------------------------------------------------------------------

    def _all_at_once(
        self, text: str, messages: Messages, tools: Sequence[Any] | None, numbers: Sequence[int]
    ) -> list[tuple[int, int]] | None:
        """Return the answers, told from one text with stand-ins for all of them; None where that leaves a doubt."""
        if not numbers:
            return []
        try:
            skeleton = self.render(_with_stand_ins(messages, numbers), tools)
        except TemplateError:
            return None
        parts = _STAND_INS.split(skeleton)
        between, order = parts[::2], [int(number) for number in parts[1::2]]
        if order != list(numbers) or not text.startswith(between[0]) or not text.endswith(between[-1]):
            return None
        found, at = [], len(between[0])
        for place, number in enumerate(numbers):
            is_last = place == len(numbers) - 1
            behind = between[place + 1]
            end = len(text) - len(behind) if is_last else _only_end(text, at, behind, said=messages[number])
            if end is None or end < at:
                return None
            found.append((self._beginning(text, at, between[place], messages, number), end))
            at = end + len(behind)
        return [(start, self._with_end_of_turn(text, end)) for start, end in found]

    def _one_by_one(
        self, text: str, messages: Messages, tools: Sequence[Any] | None, numbers: Sequence[int]
    ) -> list[tuple[int, int]]:
        """Return the answers, each told from a text with a stand-in for it alone. Raises TemplateError where there is a doubt."""
        found = []
        for number in numbers:
            try:
                other = self.render(_with_stand_ins(messages, [number]), tools)
            except TemplateError:
                # Some want every call of a tool before its result.
                other = ""
            if len(_STAND_INS.findall(other)) != 1:
                place = self._between(text, messages, tools, number)
                if place is not None:
                    found.append(place)
                    continue
                raise TemplateError(
                    "where its answers stand cannot be told, as the template shows an answer not once as it is; give it "
                    "{% generation %} marks, or write task.assistant_only_loss: false"
                )
            start, end = _differing(text, other)
            here = other[start : len(other) - len(text) + end]
            rest = [said.get("content", "").strip() for at, said in enumerate(messages) if at != number]
            if any(one and one in _STAND_INS.sub("", here) for one in rest):
                raise TemplateError(
                    "where its answers stand cannot be told, as the template shows other messages elsewhere when an answer differs; "
                    "give it {% generation %} marks"
                )
            found.append((self._beginning(text, start, text[:start], messages, number), end))
        if any(start < before[1] for before, (start, _) in itertools.pairwise(found)):
            raise TemplateError(
                "where its answers stand cannot be told, as the template shows them in each other; give it {% generation %} marks"
            )
        return [(start, self._with_end_of_turn(text, end)) for start, end in found]

    def _between(
        self, text: str, messages: Messages, tools: Sequence[Any] | None, number: int
    ) -> tuple[int, int] | None:
        """Return an answer as what it adds to the conversation before it; None where the text does not begin with that conversation."""
        try:
            before = self.render(messages[:number], tools, prompt=True)
            up_to = self.render(messages[: number + 1], tools)
        except TemplateError:
            return None
        if not text.startswith(up_to) or not up_to.startswith(before):
            return None
        end = len(before) + len(self._up_to_token(up_to[len(before) :]) or up_to[len(before) :])
        return (len(before), end - len(self.end_of_turn)) if up_to[:end].endswith(self.end_of_turn) else None

    def _without_prompt(self, text: str, start: int, end: int) -> tuple[int, int]:
        """Return where a marked answer stands: marks may be set around the generation prompt, which nobody has to learn."""
        prompt = self.generation_prompt
        return (int(start) + len(prompt) if prompt and text.startswith(prompt, start) else int(start), int(end))

    def _beginning(self, text: str, at: int, before: str, messages: Messages, number: int) -> int:
        """Return where an answer begins: behind the generation prompt, which may stand before what ``at`` points to, with thoughts between."""
        prompt = self.generation_prompt
        place = before.rfind(prompt) if prompt else -1
        said = messages[number - 1].get("content") or "" if number else ""
        if place < 0 or (said and before.rfind(said.strip()) + len(said.strip()) > place):
            return at
        return at - len(before) + place + len(prompt)

    def _with_end_of_turn(self, text: str, end: int) -> int:
        return end + len(self.end_of_turn) if text.startswith(self.end_of_turn, end) else end

    # --- rendering -------------------------------------------------------------------------------------------------

    def _render(
        self, messages: Messages, tools: Sequence[Any] | None, *, prompt: bool = False, marks: bool = False
    ) -> tuple[str, Sequence[tuple[int, int]]]:
        from jinja2.exceptions import TemplateError as JinjaError
        from transformers.utils.chat_template_utils import render_jinja_template

        try:
            rendered: Any = render_jinja_template(
                conversations=[[dict(message) for message in messages]], tools=list(tools) if tools else None,
                chat_template=self._of_day, return_assistant_tokens_mask=marks, add_generation_prompt=prompt, **self.tokens,
            )  # fmt: skip
            texts, places = rendered
        except (JinjaError, TypeError, ValueError, LookupError, ArithmeticError, AttributeError) as error:
            raise TemplateError(f"the chat template refuses it: {error}") from error
        return texts[0], list(places[0]) if marks else ()

    def _require_shown(self, text: str, messages: Messages, tools: Sequence[Any] | None) -> None:
        """Raise TemplateError where the template leaves out tools, or what calls one: the model would learn from less than there is."""
        names = [tool.get("function", tool)["name"] for tool in tools or ()]
        called = [call["function"]["name"] for message in messages for call in message.get("tool_calls", ())]
        if not names and not called:
            return
        try:
            # A tool's name may also be a word of what is said.
            text = self.render(*_with_other_names(messages, tools))
            other = "_{what}_{number}_"
        except TemplateError:
            other = "{name}"
        for what, wanted in (("a tool", names), ("a call of the tool", called)):
            for number, name in enumerate(wanted):
                if other.format(what=what[2:6], number=number, name=name) not in text:
                    raise TemplateError(
                        f"the chat template does not show {what} {name!r}; choose one that knows tools, such as task.chat_template: chatml"
                    )


def _with_other_names(
    messages: Messages, tools: Sequence[Any] | None
) -> tuple[list[Mapping[str, Any]], list[Any] | None]:
    """Return a conversation whose tools are called _tool_0_, ..., and whose calls are of _call_0_, ..."""
    numbers = itertools.count()
    renamed: list[Mapping[str, Any]] = []
    for message in messages:
        calls = [
            {**call, "function": {**call["function"], "name": f"_call_{next(numbers)}_"}}
            for call in message.get("tool_calls", ())
        ]
        renamed.append({**message, "tool_calls": calls} if calls else message)
    others = [
        {**tool, "function": {**tool["function"], "name": f"_tool_{number}_"}}
        if "function" in tool
        else {**tool, "name": f"_tool_{number}_"}
        for number, tool in enumerate(tools or ())
    ]
    return renamed, others or None


def _with_stand_ins(messages: Messages, numbers: Sequence[int]) -> list[Mapping[str, Any]]:
    wanted = set(numbers)
    return [
        {"role": "assistant", "content": _STAND_IN.format(number=number)} if number in wanted else message
        for number, message in enumerate(messages)
    ]


def _only_end(text: str, at: int, behind: str, *, said: Mapping[str, Any]) -> int | None:
    """Return where an answer that begins at ``at`` ends, before ``behind``; None where that could be in two places."""
    content = said.get("content") or ""
    for known in (content, content.strip()):
        if known and text.startswith(known, at) and text.startswith(behind, at + len(known)):
            return at + len(known)
    end = text.find(behind, at) if behind else -1
    return end if end >= 0 and text.find(behind, end + 1) < 0 else None


def _differing(text: str, other: str) -> tuple[int, int]:
    """Return where ``text`` differs from ``other``: between the longest beginning and the longest end that they share."""
    most = min(len(text), len(other))
    start = next((i for i in range(most) if text[i] != other[i]), most)
    shared = next((i for i in range(most - start) if text[-1 - i] != other[-1 - i]), most - start)
    return start, len(text) - shared


# --- tokens ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Encoded:
    """A conversation as tokens."""

    input_ids: Any
    """int32 [tokens]."""
    learned: Any
    """bool [tokens]: which tokens are of an answer that is learned; the first of a text never is."""
    left_out: str
    """What was cut off, as text; "" where nothing was."""
    is_hidden: bool = False
    """Whether the chat template leaves out a part of what is said."""
    has_controls: bool = False
    """Whether what is said holds special tokens."""

    @property
    def cut(self) -> bool:
        """Whether it was longer than allowed."""
        return bool(self.left_out)


def encode(
    tokenizer: Any, conversations: Sequence[Rendered], *, max_length: int, everything: bool = False
) -> list[Encoded]:
    """Return the tokens of conversations, cut behind ``max_length`` of them, and which are learned.

    A token is of an answer where it shares a character with it. The texts have their special tokens already, so that the tokenizer adds none.

    Args:
        tokenizer: a fast one.
        everything: whether every token is learned.

    Raises:
        ModelError: the tokenizer cannot say which characters a token stands for.
    """
    import numpy as np

    if not getattr(tokenizer, "is_fast", False):
        raise ModelError(
            f"{type(tokenizer).__name__} cannot say which characters its tokens stand for, so that answers cannot be told apart; choose a "
            "model with a fast tokenizer (tokenizer.json)"
        )
    texts = [one.text for one in conversations]
    whole = tokenizer(
        texts, add_special_tokens=False, return_offsets_mapping=True, return_attention_mask=False, verbose=False
    )
    found = []
    for ids, offsets, one in zip(whole["input_ids"], whole["offset_mapping"], conversations, strict=True):
        kept = np.asarray(ids[:max_length], dtype=np.int32)
        places = np.asarray(offsets[:max_length], dtype=np.int64).reshape(-1, 2)
        learned = np.full(len(kept), everything)
        for start, end in () if everything else one.answers:
            learned |= (places[:, 0] < end) & (places[:, 1] > start)
        learned[:1] = False
        left_out = one.text[offsets[max_length][0] :] if len(ids) > max_length else ""
        found.append(Encoded(kept, learned, left_out))
    return found


def require_rendered(
    template: ChatTemplate, messages: Messages, tools: Sequence[Any] | None, *, place: str
) -> Rendered:
    """Return a row's conversation as text. Raises DataError with the row's place."""
    try:
        return template.rendered(messages, tools)
    except TemplateError as error:
        raise DataError(f"{place}: {error}") from error
