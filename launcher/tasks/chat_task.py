"""What tasks on conversations share: the chat template, messages as tokens, and a model that knows where its answers end."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, Literal

from launcher.data.chat_content import has_control_tokens, is_hidden
from launcher.data.chat_template import DAY, ChatTemplate, Encoded, Rendered, TemplateError, encode
from launcher.data.conversations import Wanted
from launcher.data.sources import SplitSet, load_rows, load_splits
from launcher.data.tables import Fault, Faults
from launcher.data.turns import read_conversation
from launcher.errors import DataError, ModelError, ModelUnreachable
from launcher.recipe.strategy_options import ADAPTER_STRATEGIES
from launcher.recipe.task_options import COLUMNS
from launcher.tasks.causal_model import load_causal_config, load_causal_model, longest_row, with_vocabulary
from launcher.tasks.chat_templates import template_of, with_chat_template
from launcher.tasks.models import LoadedModel, load_config, load_tokenizer
from launcher.tasks.prepared_task import SPLITS
from launcher.tasks.text_task import TextTask

Answers = Literal["all", "last"]
_COUNTED = ("id", "group")


class ChatTask(TextTask):
    """A task whose rows are conversations; a subclass says what is learned of them."""

    pairs = False
    """Whether a row has two answers, chosen and rejected."""

    @property
    def chat_options(self) -> Any:
        """The recipe's options of the task."""
        return self.recipe.task

    @cached_property
    def tokenizer(self) -> Any:
        """The model's tokenizer with the chat template of the run, and its special tokens. Raises ModelError where there is no template."""
        found = load_tokenizer(self.recipe.model)
        return with_chat_template(found, self.chat_options.chat_template, base_folder=self.base_folder)

    @cached_property
    def template(self) -> ChatTemplate:
        """The chat template, which is saved with the tokenizer."""
        return template_of(self.tokenizer)

    @cached_property
    def end_id(self) -> int | None:
        """Number of the token with which answers end; None where the template has none."""
        ids = self.tokenizer(self.template.end_of_turn, add_special_tokens=False)["input_ids"]
        return int(ids[-1]) if ids else None

    # --- data ------------------------------------------------------------------------------------------------------

    def wanted(self) -> Wanted:
        """Return what conversations are read."""
        options = self.chat_options
        return Wanted(options.format, self.pairs, options.default_system_message)

    def load_splits(self) -> SplitSet:
        """Return the conversations of every split. Raises DataError."""
        return load_splits(
            self.recipe.data, base_folder=self.base_folder, needs=self._columns(), optional=_COUNTED, problem_type=self.recipe.task.type,
            conversations=self.wanted(),
        )  # fmt: skip

    def _columns(self) -> tuple[str, ...]:
        return tuple(name for name in COLUMNS[self.recipe.task.type] if name not in _COUNTED)

    def read_rows(self, source: str) -> dict[str, list[Any]]:
        """Return the conversations of a file, whose answers are not needed. Raises DataError."""
        return load_rows(
            source, data=self.recipe.data, base_folder=self.base_folder, needs=self._columns(), optional=_COUNTED,
            conversations=dataclasses.replace(self.wanted(), prompts=not self.pairs, is_new=True),
        ).lists()  # fmt: skip

    def label_faults(self, splits: SplitSet) -> dict[str, Faults]:
        """Return split -> rows whose conversations the chat template refuses."""
        return {name: self._refused(getattr(splits, name)) for name in SPLITS if getattr(splits, name) is not None}

    def _refused(self, rows: Any) -> Faults:
        faults: Faults = {}
        for name in ("chosen", "rejected") if self.pairs else ("conversation",):
            for number, text in enumerate(rows[name]):
                try:
                    self.template.rendered(*read_conversation(text)[:2])
                except TemplateError as error:
                    faults.setdefault(number, Fault(str(error), text))
        return faults

    def input_parts(self) -> dict[str, Any]:
        """Return what tokens depend on: the tokenizer, its chat template, and the length."""
        return {**super().input_parts(), "chat_template": self.template.source, "special": self.template.special}

    def key_parts(self, splits: SplitSet) -> dict[str, Any]:
        """Return what prepared rows depend on; in which format their sources had them is told with them."""
        return {**super().key_parts(splits), "conversations": self.formats(splits)}

    @staticmethod
    def formats(splits: SplitSet) -> list[str]:
        """Return the formats of the conversations of train, and the columns that told them, in words."""
        found = [
            f"{fact['conversations']} ({', '.join(str(theirs) for ours, theirs in fact.get('columns', {}).items() if ours not in _COUNTED)})"
            for fact in splits.provenance["train"]
            if "conversations" in fact
        ]
        return list(dict.fromkeys(found))

    def token_limit(self) -> int | None:
        """Return how many tokens the model takes; None: that is not known."""
        return longest_row(self.tokenizer, load_config(self.recipe.model, skeleton=True))

    def encode(
        self, conversations: Sequence[str], *, max_length: int, answers: Answers = "all", origin: Any = str
    ) -> list[Encoded]:
        """Return conversations as tokens, with what is learned of them.

        Args:
            conversations: JSON texts of ``data.conversations.conversation_json``.
            max_length: tokens of each at most.
            answers: which answers of the assistant are learned.
            origin: number of a conversation -> its place, for an error message.

        Raises:
            DataError: the chat template refuses one.
        """
        return encode_conversations(
            conversations, tokenizer=self.tokenizer, template=self.template, max_length=max_length, answers=answers, origin=origin
        )  # fmt: skip

    def notes(self, facts: Mapping[str, Any]) -> list[str]:
        """Return what a reader should know of the format, of what was cut, of the template and of the model."""
        return [
            *self._notes_on_format(facts),
            *self._notes_on_content(facts),
            *self._notes_on_tokens(),
            *self.notes_on_model(),
        ]

    def _notes_on_format(self, facts: Mapping[str, Any]) -> list[str]:
        told = facts.get("conversations")
        if self.chat_options.format is not None or not told:
            return []
        return [
            f"the conversations were told to be {' and '.join(told)}, by the names of their columns; task.format names another"
        ]

    def _notes_on_content(self, facts: Mapping[str, Any]) -> list[str]:
        found = []
        for name, counts in facts["splits"].items():
            rows = f"of the {counts['texts']:,} {name} rows"
            if counts["hidden"]:
                found.append(
                    f"{counts['hidden']:,} {rows} have something that the chat template does not show, such as thoughts, or messages of a role "
                    "that it does not know: the model never sees it; look at them with `launcher data`, or write another task.chat_template"
                )
            # That template is for texts that have their special tokens in them.
            if counts["controls"] and self.chat_options.chat_template != "raw":
                found.append(
                    f"{counts['controls']:,} {rows} have special tokens within what is said, which end or begin turns as if they were the "
                    "template's; rewrite these texts where that is not meant"
                )
        return found

    def _notes_on_tokens(self) -> list[str]:
        found = []
        if self.template.has_date:
            found.append(
                f"the chat template writes the day (strftime_now): it is {DAY:%d %b %Y} in all rows, so that they are the same whenever they are "
                "prepared; for another day write it into a file for task.chat_template"
            )
        if self.end_id is None:
            found.append(
                "the chat template ends answers with no special token, so the model does not learn where to stop; choose another, such as "
                "task.chat_template: chatml"
            )
        elif not self.template.marks_ends:
            found.append(
                f"the chat template's {{% generation %}} marks leave out {self.template.end_of_turn.strip()!r}, which ends an answer, so the model "
                "does not learn where to stop; write {% endgeneration %} behind it, in a file for task.chat_template"
            )
        return found

    # --- model -----------------------------------------------------------------------------------------------------

    def build_model(self, prepared: Any | None, *, skeleton: bool = False, quantization: Any = None) -> LoadedModel:
        """Return the model with its output layer, with embeddings for the template's tokens, which stops where answers end.

        Raises ModelError.
        """
        config = load_causal_config(self.recipe.model, skeleton=skeleton)
        loaded = load_causal_model(self.recipe.model, config, skeleton=skeleton, quantization=quantization)
        return self.with_tokens(loaded, skeleton=skeleton)

    def with_tokens(self, loaded: LoadedModel, *, skeleton: bool) -> LoadedModel:
        """Return a model that has embeddings for all tokens of the tokenizer, and knows which ones pad and end."""
        try:
            tokenizer, end = self.tokenizer, self.end_id
        except ModelUnreachable:
            if not skeleton:
                raise
            return loaded
        self._require_room(loaded.model, len(tokenizer))
        loaded = with_vocabulary(loaded, len(tokenizer))
        config = loaded.model.config
        if getattr(config, "pad_token_id", None) is None:
            config.pad_token_id = tokenizer.pad_token_id
        generation = getattr(loaded.model, "generation_config", None)
        if generation is not None:
            ends = generation.eos_token_id if isinstance(generation.eos_token_id, list) else [generation.eos_token_id]
            known = dict.fromkeys(number for number in (end, *ends, tokenizer.eos_token_id) if number is not None)
            generation.eos_token_id = list(known) or None
            generation.pad_token_id = (
                tokenizer.pad_token_id if generation.pad_token_id is None else generation.pad_token_id
            )
        return loaded

    def _require_room(self, model: Any, tokens: int) -> None:
        """Raise ModelError where the template's tokens need embeddings that cannot be learned beside adapters."""
        layers = (model.get_input_embeddings(), model.get_output_embeddings())
        is_tied = layers[1] is not None and layers[0].weight is layers[1].weight
        known = layers[0].num_embeddings
        if tokens > known and is_tied and self.recipe.strategy.type in ADAPTER_STRATEGIES:
            raise ModelError(
                f"task.chat_template is {self.chat_options.chat_template}, which adds {tokens - known} token(s), but their embeddings are the output "
                f"layer's weight too (tie_word_embeddings), which cannot train beside the adapters of strategy.type {self.recipe.strategy.type}; "
                "write task.chat_template: plain, which adds none, or strategy.type: full"
            )

    def load_trained(self, folder: Any, facts: Mapping[str, Any]) -> Any:
        """Return a saved model in evaluation mode."""
        return self.build_model(None).model.eval()


def encode_conversations(
    conversations: Sequence[str], *, tokenizer: Any, template: ChatTemplate, max_length: int, answers: Answers = "all",
    everything: bool = False, origin: Any = str,
) -> list[Encoded]:  # fmt: skip
    """Return ``ChatTask.encode``, in any process; ``everything``: all tokens are learned. Raises DataError."""
    found, known = [], []
    for number, text in enumerate(conversations):
        conversation = read_conversation(text)
        messages, tools, _ = conversation
        try:
            rendered = (
                Rendered(template.render(messages, tools), ()) if everything else template.rendered(messages, tools)
            )
        except TemplateError as error:
            raise DataError(f"{origin(number)}: {error}") from error
        learned = conversation.learned(rendered.answers)
        found.append(rendered._replace(answers=tuple(learned[-1:] if answers == "last" else learned)))
        known.append((is_hidden(messages, rendered.text), has_control_tokens(messages, template.special)))
    encoded = encode(tokenizer, found, max_length=max_length, everything=everything)
    return [
        dataclasses.replace(one, is_hidden=hidden, has_controls=controls)
        for one, (hidden, controls) in zip(encoded, known, strict=True)
    ]


def content_counts(conversations: Sequence[Sequence[Encoded]]) -> dict[str, int]:
    """Return how many rows, of one conversation or several each, have a part that the template leaves out, and special tokens as text."""
    return {
        "hidden": sum(any(one.is_hidden for one in row) for row in conversations),
        "controls": sum(any(one.has_controls for one in row) for row in conversations),
    }
