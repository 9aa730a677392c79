"""What tasks on pairs of answers share: how conversations become rows of two texts, and batches of both."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from launcher.contracts import Baseline, Predictions, Prepared, ShownRow
from launcher.data.sources import SplitSet
from launcher.data.token_batches import padded
from launcher.errors import DataError, ModelUnreachable
from launcher.tasks.chat_task import ChatTask, content_counts, encode_conversations
from launcher.tasks.padding import pad_tokens
from launcher.tasks.prepared_task import write_unlabelled

SIDES = ("chosen", "rejected")
_MOST_NAMED = 20

Encode = Callable[..., Sequence[Any]]
"""(conversations as JSON texts; origin: number of one -> its place) -> an Encoded for each, the tokens of its last answer learned."""


class PairTask(ChatTask):
    """A task whose rows are pairs of conversations that differ in their answer; a subclass says what is learned from them."""

    pairs = True
    problem: ClassVar[str]
    """The problem type of its predictions."""

    @property
    def padding_side(self) -> str:
        """Where shorter rows of a batch are padded: on the right, whatever the tokenizer does when it writes."""
        return "right"

    @property
    def default_metric(self) -> str:
        """The validation metric that chooses the best checkpoint unless the recipe names one."""
        return "loss"

    # --- data ------------------------------------------------------------------------------------------------------

    def prepare_splits(self, splits: SplitSet, folder: Path, *, max_length: int) -> dict[str, Any]:
        """Write the tokens of both answers of each split's rows into ``folder``; return facts. Raises DataError where no row is left."""
        make = functools.partial(pair_features, encode=self.encoder(max_length))
        facts = write_unlabelled(
            splits, folder, make, problem_type=self.problem, max_length=max_length,
            nothing=lambda name: f"of every {name} pair, data.max_length ({max_length:,} tokens) leaves nothing of an answer; raise it",
        )  # fmt: skip
        return {**facts, "conversations": self.formats(splits)}

    def key_parts(self, splits: SplitSet) -> dict[str, Any]:
        """Return what prepared rows depend on: how they are learned makes no difference."""
        return {"task": {"type": self.recipe.task.type}, "conversations": self.formats(splits)}

    def encoder(self, max_length: int) -> Encode:
        """Return what makes tokens of conversations, in this process or, by pickle, in others."""
        parts: dict[str, Any] = {"tokenizer": self.tokenizer, "template": self.template}
        return functools.partial(encode_conversations, **parts, max_length=max_length, answers="last")

    def notes(self, facts: Mapping[str, Any]) -> list[str]:
        """Return what a reader should know of how pairs became rows, and of the model."""
        found = []
        for name, counts in facts["splits"].items():
            pairs = f"of the {counts['texts']:,} {name} pairs"
            if counts["empty"]:
                found.append(
                    f"{counts['empty']:,} {pairs} were left out: data.max_length ({facts['max_length']:,} tokens) leaves nothing of an answer"
                )
            if counts["equal"]:
                found.append(
                    f"{counts['equal']:,} {pairs} have equal answers within data.max_length ({facts['max_length']:,} tokens), from which "
                    "nothing can be learned"
                )
        return [*super().notes(facts), *found]

    def prepare_rows(self, columns: Mapping[str, list[Any]], facts: Mapping[str, Any]) -> tuple[Any, Prepared]:
        """Return rows for new pairs, and what they are to be read with. Raises DataError where they are none."""
        from datasets import Dataset

        if any(side not in columns for side in SIDES):
            raise DataError(
                f"{self.recipe.task.type} compares two answers; predict a file with chosen and rejected (--file)"
            )
        rows = {**columns, "row_id": list(range(len(columns["text"])))}
        features, counts = pair_features(rows, encode=self.encoder(facts["max_length"]))
        if counts["empty"]:
            without = sorted(set(rows["row_id"]) - set(features["row_id"]))
            raise DataError(too_long(without, of=len(rows["row_id"]), what="pairs", max_length=facts["max_length"]))
        found = Dataset.from_dict(features)
        return found, Prepared(found, found, found, "", (), self.problem)

    def show_row(self, row: Mapping[str, Any], prepared: Prepared) -> ShownRow:
        """Return a prepared row as the model sees it: both texts, the tokens of their answers learned."""
        parts: list[tuple[str, Any]] = []
        for side in SIDES:
            ids, learned = row[f"{side}_ids"], row[f"{side}_learned"]
            first = learned.index(True)
            last = len(learned) - learned[::-1].index(True)
            parts += [*self.text_parts(ids[:first]), *self.text_parts(ids[first:last], learned=True)]
            parts += [*self.text_parts(ids[last:]), (side, "label")]
        return ShownRow(row["row_id"], sum(len(row[f"{side}_ids"]) for side in SIDES), tuple(parts), "")

    def example_row(self) -> Mapping[str, Any] | None:
        """Return a row like the prepared ones, for plans without data."""
        texts = {f"{side}_ids": [0] for side in SIDES}
        return {**texts, **{f"{side}_learned": [True] for side in SIDES}, "length": 2}

    # --- batches ---------------------------------------------------------------------------------------------------

    def pad_token_id(self) -> int:
        """Return the token that fills rows up; any, where the tokenizer is out of reach, which only a plan survives."""
        try:
            return int(self.tokenizer.pad_token_id or 0)
        except ModelUnreachable:
            return 0

    def items(self, batch: Mapping[str, Any]) -> Any:
        """Return how many pairs a batch has, those of weight 0 left out; a float32 scalar tensor."""
        return batch["sample_weight"].sum()

    # --- evaluation ------------------------------------------------------------------------------------------------

    def pair_predictions(self, scores: np.ndarray, split: Any) -> Predictions:
        """Return Predictions of ``scores``: float64 [rows, 3] of pairs, [rows, 1] of single conversations."""
        is_pair = scores.shape[1] > 1
        return Predictions(
            problem_type=self.problem,
            scores=scores,
            labels=np.zeros(len(scores), dtype=np.int64) if is_pair else None,
            label_names=(),
            texts=tuple(split["text"]),
            row_ids=tuple(split["row_id"]),
        )

    def baselines(
        self, names: Sequence[str], prepared: Prepared, predictions: Predictions, *, split: str
    ) -> list[Baseline]:
        """Return the named baselines: the longer answer."""
        from launcher.evaluation.baselines_preferences import longer_baseline

        lengths = answer_lengths(getattr(prepared, split))
        return [longer_baseline(lengths, predictions) for _ in names]


# --- rows ------------------------------------------------------------------------------------------------------------


def pair_features(
    rows: Mapping[str, list[Any]], *, encode: Encode, origin: Any = str
) -> tuple[dict[str, Any], dict[str, int]]:
    """Return columns of tokens for pairs, and counts; a pair with an answer of which nothing is left becomes no row.

    ``length`` is what a pair takes in a batch: twice the longer text as it is padded.
    """
    chosen, rejected = (encode(rows[side], origin=origin) for side in SIDES)
    both = list(zip(chosen, rejected, strict=True))
    kept = [number for number, pair in enumerate(both) if all(text.learned.any() for text in pair)]
    columns: dict[str, Any] = {}
    for side, texts in zip(SIDES, (chosen, rejected), strict=True):
        columns[f"{side}_ids"] = [texts[number].input_ids for number in kept]
        columns[f"{side}_learned"] = [texts[number].learned for number in kept]
    sizes = np.array([[len(text.input_ids) for text in both[number]] for number in kept], dtype=np.int64).reshape(-1, 2)
    columns["length"] = 2 * padded(sizes.max(axis=1, initial=0))
    columns["row_id"] = [rows["row_id"][number] for number in kept]
    columns["text"] = [rows["text"][number] for number in kept]
    return columns, {
        "rows": len(kept),
        "texts": len(both),
        "tokens": int(sizes.sum()),
        "cut": sum(any(text.cut for text in both[number]) for number in kept),
        "empty": len(both) - len(kept),
        "equal": sum(np.array_equal(both[number][0].input_ids, both[number][1].input_ids) for number in kept),
        **content_counts(both),
    }


def too_long(rows: Sequence[int], *, of: int, what: str, max_length: int) -> str:
    """Return why ``rows`` of ``of`` new ones cannot be predicted: each row of a file is to have its prediction, so none is left out."""
    named = ", ".join(f"{row + 1:,}" for row in rows[:_MOST_NAMED])
    more = f" and {len(rows) - _MOST_NAMED:,} more" if len(rows) > _MOST_NAMED else ""
    return (
        f"of {len(rows):,} of the {of:,} {what} data.max_length ({max_length:,} tokens) leaves nothing of an answer: number {named}{more}; "
        "shorten what they answer, or remove them"
    )


def answer_lengths(split: Any) -> np.ndarray:
    """Return the tokens of the chosen and of the rejected answer of a prepared split's rows, int64 [rows, 2]."""
    names = [f"{side}_learned" for side in SIDES]
    batches = split.select_columns(names).iter(batch_size=1000)
    found = [[np.count_nonzero(learned) for learned in batch[name]] for batch in batches for name in names]
    chosen, rejected = (np.concatenate([np.array(part, dtype=np.int64) for part in found[side::2]]) for side in (0, 1))
    return np.stack([chosen, rejected], axis=1)


def pad_pairs(rows: Sequence[Mapping[str, Any]], *, pad_token_id: int) -> dict[str, Any]:
    """Return both texts of every row as one batch, the chosen ones first: ``input_ids`` and ``attention_mask`` int64 [2 * rows, tokens],
    padded on the right, and ``sample_weight`` float32 [rows].
    """
    import torch

    ids, mask = pad_tokens([row[f"{side}_ids"] for side in SIDES for row in rows], value=pad_token_id)
    weights = torch.tensor([row.get("weight", 1.0) for row in rows], dtype=torch.float32)
    return {"input_ids": ids, "attention_mask": mask, "sample_weight": weights}
