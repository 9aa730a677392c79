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
from functools import cached_property
from typing import Any, NamedTuple

from launcher.errors import DataError, ModelError

Messages = Sequence[Mapping[str, Any]]

_MARKS = re.compile(r"\{%-?\s*generation\s*-?%\}")
# Characters of Unicode's private use, which no text has.
_STAND_IN = "\ue200{number}\ue201"
_STAND_INS = re.compile("\ue200(\\d+)\ue201")


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
            return Rendered(text, tuple((int(start), int(end)) for start, end in marked if end > start))
        numbers = [number for number, message in enumerate(messages) if message["role"] == "assistant"]
        answers = self._all_at_once(text, messages, tools, numbers) or self._one_by_one(text, messages, tools, numbers)
        return Rendered(text, tuple(answers))

    @cached_property
    def generation_prompt(self) -> str:
        """What stands before an answer in serving, behind the messages before it."""
        asked = [{"role": "user", "content": "u"}]
        without, with_prompt = self.render(asked), self.render(asked, prompt=True)
        return with_prompt.removeprefix(without) if with_prompt.startswith(without) else ""

    @cached_property
    def end_of_turn(self) -> str:
        """What ends an answer, up to its last special token; "" where the template has none."""
        stand_in = _STAND_IN.format(number=0)
        text = self.render([{"role": "user", "content": "u"}, {"role": "assistant", "content": stand_in}])
        behind = text.rpartition(stand_in)[2]
        ends = [behind.rfind(token) + len(token) for token in self.special if token and token in behind]
        return behind[: max(ends, default=0)]

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
            other = self.render(_with_stand_ins(messages, [number]), tools)
            if len(_STAND_INS.findall(other)) != 1:
                raise TemplateError(
                    "where its answers stand cannot be told, as the template shows an answer not once as it is; give it "
                    "{% generation %} marks, or write task.assistant_only_loss: false"
                )
            start, end = _differing(text, other)
            here = other[start : len(other) - len(text) + end]
            rest = [said.get("content", "").strip() for place, said in enumerate(messages) if place != number]
            if any(said and said in here for said in rest):
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
                chat_template=self.source, return_assistant_tokens_mask=marks, add_generation_prompt=prompt, **self.tokens,
            )  # fmt: skip
            texts, places = rendered
        except (JinjaError, TypeError, ValueError, KeyError) as error:
            raise TemplateError(f"the chat template refuses it: {error}") from error
        return texts[0], list(places[0]) if marks else ()

    def _require_shown(self, text: str, messages: Messages, tools: Sequence[Any] | None) -> None:
        """Raise TemplateError where the template leaves out tools, or what calls one: the model would learn from less than there is."""
        names = [tool.get("function", tool)["name"] for tool in tools or ()]
        called = [call["function"]["name"] for message in messages for call in message.get("tool_calls", ())]
        for what, wanted in (("a tool", names), ("a call of the tool", called)):
            missing = next((name for name in wanted if name not in text), None)
            if missing is not None:
                raise TemplateError(
                    f"the chat template does not show {what} {missing!r}; choose one that knows tools, such as task.chat_template: chatml"
                )


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
