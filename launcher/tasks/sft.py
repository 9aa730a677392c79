"""Instruction tuning: what an assistant answers in conversations (supervised fine-tuning)."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from launcher.contracts import Baseline, Predictions, Prepared, ShownRow
from launcher.data.chat_template import ChatTemplate, TemplateError
from launcher.data.sources import SplitSet
from launcher.data.turns import read_conversation, readable
from launcher.errors import DataError
from launcher.recipe.chat_options import SFTOptions
from launcher.recipe.schema import Recipe
from launcher.tasks.answering import answers_of, left_padded, prompt_and_answer, said_by_user, sample_prompts
from launcher.tasks.causal_model import load_causal_config, takes_logits_to_keep
from launcher.tasks.chat_task import ChatTask, content_counts, encode_conversations
from launcher.tasks.generation import waits_for_others
from launcher.tasks.models import LoadedModel
from launcher.tasks.next_token_collator import NextTokenCollator, takes_flat_rows
from launcher.tasks.packed_models import require_apart
from launcher.tasks.packed_splits import packed_counts, packing_notes
from launcher.tasks.predicted_tokens import PredictedTokens, by_text
from launcher.tasks.prepared_task import write_unlabelled
from launcher.tasks.text_task import summed_loss

PROBLEM = "sft"
WRITTEN = "written_answers"
"""Problem type of new prompts, which the model answers."""


class SFT(ChatTask, PredictedTokens):
    """The task ``sft``."""

    problem = PROBLEM

    def __init__(self, recipe: Recipe, *, base_folder: Path = Path()) -> None:
        super().__init__(recipe, base_folder=base_folder)
        assert isinstance(recipe.task, SFTOptions)
        self.options = recipe.task

    # --- data ------------------------------------------------------------------------------------------------------

    def key_parts(self, splits: SplitSet) -> dict[str, Any]:
        """Return what prepared rows depend on: samples of answers make no difference."""
        names = {"type", "assistant_only_loss", "learned_answers", "packing"}
        return {"task": self.options.model_dump(include=names), "conversations": self.formats(splits)}

    def prepare_splits(self, splits: SplitSet, folder: Path, *, max_length: int) -> dict[str, Any]:
        """Write the tokens of each split into ``folder``, those of train packed where that is wanted; return facts."""
        make = functools.partial(
            chat_features, tokenizer=self.tokenizer, template=self.template, max_length=max_length,
            answers=self.options.learned_answers, everything=not self.options.assistant_only_loss,
        )  # fmt: skip
        facts = write_unlabelled(
            splits, folder, make, problem_type=PROBLEM, max_length=max_length,
            nothing=lambda name: f"no {name} conversation has anything to learn within data.max_length, {max_length:,} tokens; lengthen it, "
            "or look at the rows with `launcher data`",
        )  # fmt: skip
        if self.options.packing:
            facts["splits"]["train"] |= packed_counts(folder / "train.arrow", max_length=max_length)
        return {**facts, "conversations": self.formats(splits)}

    def notes(self, facts: Mapping[str, Any]) -> list[str]:
        """Return what a reader should know of how conversations became rows, and of the model."""
        found = []
        for name, counts in facts["splits"].items():
            if counts["cut"]:
                found.append(
                    f"{counts['cut']:,} of the {counts['texts']:,} {name} conversations are longer than {facts['max_length']:,} tokens "
                    "(data.max_length) and lost their end, with what it would have taught"
                )
            if counts["empty"]:
                found.append(
                    f"{counts['empty']:,} of the {counts['texts']:,} {name} conversations have nothing to learn within "
                    f"{facts['max_length']:,} tokens, and were left out"
                )
        return [*found, *packing_notes(facts, of="conversations"), *super().notes(facts)]

    def show_row(self, row: Mapping[str, Any], prepared: Prepared) -> ShownRow:
        """Return a prepared row as the model sees it: what is read, what is learned, and what was cut off."""
        parts: list[tuple[str, Any]] = []
        begin = 0
        for length in row.get("seq_lengths") or [len(row["input_ids"])]:
            parts += [("\n", "read")] if begin else []
            parts += self._stretches(row["input_ids"][begin : begin + length], row["learned"][begin : begin + length])
            begin += length
        if row.get("left_out"):
            parts.append((row["left_out"], "cut"))
        return ShownRow(row["row_id"], row["length"], tuple(parts), "")

    def _stretches(self, ids: Sequence[int], learned: Sequence[int]) -> list[tuple[str, Any]]:
        special = set(self.tokenizer.convert_tokens_to_ids(list(self.template.special)))
        kinds = [
            "learned" if taught else "special" if number in special else "read"
            for number, taught in zip(ids, learned, strict=True)
        ]
        found, at = [], 0
        for kind, stretch in itertools.groupby(kinds):
            size = len(list(stretch))
            found.append((self.tokenizer.decode(list(ids[at : at + size]), clean_up_tokenization_spaces=False), kind))
            at += size
        return found

    def prepare_rows(self, columns: Mapping[str, list[Any]], facts: Mapping[str, Any]) -> tuple[Any, Prepared]:
        """Return prompts of new conversations, which the model is to answer. Raises DataError for pairs, and for what cannot be answered."""
        from datasets import Dataset

        if "text_pair" in columns:
            raise DataError("a conversation has no second text; give one text, which is what the user says")
        if "conversation" in columns:
            held = [read_conversation(text)[:2] for text in columns["conversation"]]
        else:
            held = [(said_by_user(text, self.options.default_system_message), None) for text in columns["text"]]
        prompts = [prompt_and_answer(messages) for messages, _ in held]
        asked = [self._prompt(number, prompt, held[number][1]) for number, (prompt, _) in enumerate(prompts)]
        ids = self.tokenizer(asked, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
        self._require_room_to_answer(ids)
        rows = Dataset.from_dict(
            {
                "input_ids": ids,
                "length": [len(one) for one in ids],
                "row_id": list(range(len(ids))),
                "text": [readable(prompt) for prompt, _ in prompts] if "conversation" in columns else columns["text"],
                "references": [
                    [readable(answer).removeprefix("assistant: ")] if answer else [] for _, answer in prompts
                ],
            }
        )
        return rows, Prepared(rows, rows, rows, "", (), WRITTEN, facts)

    def _prompt(self, number: int, messages: Sequence[Mapping[str, Any]], tools: Any) -> str:
        if not any(message["content"].strip() for message in messages if message["role"] != "system"):
            raise DataError(f"text {number + 1} holds nothing that is said to the model; give it what it is to answer")
        try:
            return self.template.render(messages, tools, prompt=True)
        except TemplateError as error:
            raise DataError(f"text {number + 1}: {error}") from error

    def _require_room_to_answer(self, prompts: Sequence[Sequence[int]]) -> None:
        most = self._token_limit
        for number, ids in enumerate(prompts, start=1):
            if most is not None and len(ids) >= most:
                raise DataError(
                    f"text {number} has {len(ids):,} tokens with the chat template, and the model takes {most:,}, its answer included; shorten it"
                )

    # --- model -----------------------------------------------------------------------------------------------------

    def build_model(
        self, prepared: Prepared | None, *, skeleton: bool = False, quantization: Any = None
    ) -> LoadedModel:
        """Return the model; one that is to learn from packed rows has to keep them apart. Raises ModelError."""
        if self.options.packing:
            require_apart(self._config)
        return super().build_model(prepared, skeleton=skeleton, quantization=quantization)

    @functools.cached_property
    def _token_limit(self) -> int | None:
        return self.token_limit()

    @functools.cached_property
    def _config(self) -> Any:
        return load_causal_config(self.recipe.model, skeleton=True)

    # --- loss ------------------------------------------------------------------------------------------------------

    def collator(self, *, training: bool = False) -> Any:
        """Return a callable: list of rows -> batch of tensors, with the loss where answers are."""
        return NextTokenCollator(
            pad_token_id=self.tokenizer.pad_token_id or 0,
            # Each rank evaluates rows of its own.
            parts=self.recipe.distributed.sequence_parallel_size if training else 1,
            all_logits=not takes_logits_to_keep(self._config),
            flat=takes_flat_rows(self.recipe.model),
        )

    def targets(self, batch: Mapping[str, Any]) -> Any:
        """Return what each place has to predict, int64 [rows, kept]."""
        return batch["shift_labels"] if "shift_labels" in batch else batch["labels"]

    def loss(self, outputs: Any, batch: Mapping[str, Any], *, label_smoothing: float = 0.0) -> Any:
        """Return the summed cross entropy of the learned tokens, in nats, a float32 scalar tensor."""
        return summed_loss(outputs["logits"], self.targets(batch), batch, label_smoothing=label_smoothing)

    # --- evaluation ------------------------------------------------------------------------------------------------

    def baselines(
        self, names: Sequence[str], prepared: Prepared, predictions: Predictions, *, split: str
    ) -> list[Baseline]:
        """Return the named baselines: how often each token occurs in the answers of train."""
        from launcher.evaluation.baselines_tokens import unigram_baseline

        learned, wanted = learned_tokens(prepared.train), learned_tokens(getattr(prepared, split))
        seen = np.concatenate(list(learned.values()))
        return [unigram_baseline(seen, list(wanted.values()), predictions) for _ in names]

    # --- answers ---------------------------------------------------------------------------------------------------

    def writes(self, prepared: Prepared) -> bool:
        """Whether rows are prompts that the model answers."""
        return prepared.problem_type == WRITTEN

    def generate(self, model: Any, batch: Mapping[str, Any]) -> Any:
        """Return the tokens that ``model`` answers to a batch of prompts, int64 [rows, tokens]; all ranks call it at the same time."""
        ids, mask = left_padded(batch["input_ids"], batch["attention_mask"])
        longest = self._token_limit
        room = self.options.max_new_tokens if longest is None else max(1, longest - ids.shape[1])
        found = getattr(model, "module", model).generate(
            input_ids=ids, attention_mask=mask, max_new_tokens=min(self.options.max_new_tokens, room), do_sample=False, use_cache=True,
            synced_gpus=waits_for_others(model),
        )  # fmt: skip
        return found[:, ids.shape[1] :]

    def predictions(self, logits: np.ndarray, split: Any, prepared: Prepared) -> Predictions:
        """Return the losses of conversations, or of prompts the answers that were written."""
        if not self.writes(prepared):
            return super().predictions(logits, split, prepared)
        answers = answers_of(self.tokenizer, logits, ends=self._ends())
        references = tuple(map(tuple, split["references"][:]))
        return Predictions(
            problem_type=WRITTEN,
            scores=np.array([float(ended) for _, ended in answers]),
            labels=None,
            label_names=(),
            texts=tuple(split["text"][:]),
            row_ids=tuple(split["row_id"][:]),
            answers=tuple(text for text, _ in answers),
            references=references,
        )

    def _ends(self) -> set[int]:
        return {number for number in (self.end_id, self.tokenizer.eos_token_id) if number is not None}

    def sample_answers(self, model: Any, prepared: Prepared) -> list[dict[str, Any]]:
        """Return what ``model`` answers to the same few validation prompts each time: prompt, reference, answer, ended; all ranks call it."""
        import torch

        prompts = sample_prompts(prepared.validation, most=self.options.sample_generations)
        if not prompts:
            return []
        rows = [{"input_ids": prompt.read, "learned": [0] * len(prompt.read)} for prompt in prompts]
        batch = NextTokenCollator(pad_token_id=self.tokenizer.pad_token_id or 0, all_logits=True)(rows)
        device = next(model.parameters()).device
        with torch.no_grad():
            tokens = self.generate(model, {name: batch[name].to(device) for name in ("input_ids", "attention_mask")})
        answers = answers_of(self.tokenizer, tokens.float().cpu().numpy(), ends=self._ends())
        return [
            {
                "row_id": prompt.row_id,
                "prompt": self.tokenizer.decode(prompt.read, clean_up_tokenization_spaces=False),
                "reference": self.tokenizer.decode(
                    prompt.right, skip_special_tokens=True, clean_up_tokenization_spaces=False
                ),
                "answer": text,
                "ended": ended,
            }
            for prompt, (text, ended) in zip(prompts, answers, strict=True)
        ]


# --- rows ----------------------------------------------------------------------------------------------------------


def chat_features(
    rows: Mapping[str, list[Any]], *, tokenizer: Any, template: ChatTemplate, max_length: int, answers: Any, everything: bool,
    origin: Any = None,
) -> tuple[dict[str, Any], dict[str, int]]:  # fmt: skip
    """Return columns of tokens for conversations, those without anything to learn left out, and counts."""
    found = encode_conversations(
        rows["conversation"], tokenizer=tokenizer, template=template, max_length=max_length, answers=answers, everything=everything,
        origin=origin or str,
    )  # fmt: skip
    kept = [number for number, one in enumerate(found) if one.learned.any()]
    columns = {
        "input_ids": [found[number].input_ids for number in kept],
        "learned": [found[number].learned.astype(np.int8) for number in kept],
        "length": [len(found[number].input_ids) for number in kept],
        "left_out": [found[number].left_out for number in kept],
        "row_id": [rows["row_id"][number] for number in kept],
        "text": [rows["text"][number] for number in kept],
    }
    return columns, {
        "rows": len(kept),
        "texts": len(found),
        "tokens": sum(columns["length"]),
        "learned": int(sum(one.sum() for one in columns["learned"])),
        "cut": sum(one.cut for one in found),
        "empty": len(found) - len(kept),
        **content_counts([[one] for one in found]),
    }


def learned_tokens(split: Any) -> dict[int, np.ndarray]:
    """Return number of a row -> its tokens that are learned, int64 [tokens]."""
    batches = split.select_columns(["row_id", "input_ids", "learned"]).iter(batch_size=1000)
    rows = (row for batch in batches for row in zip(batch["row_id"], batch["input_ids"], batch["learned"], strict=True))
    return by_text((number, np.asarray(ids, dtype=np.int64)[np.asarray(learned) > 0]) for number, ids, learned in rows)
