"""Language modelling: each token of a text from those before it."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from launcher.contracts import Baseline, Predictions, Prepared, ShownRow
from launcher.data.blocks import make_blocks
from launcher.data.sources import SplitSet
from launcher.recipe.schema import Recipe
from launcher.recipe.task_options import CausalLMOptions
from launcher.tasks.causal_model import load_causal_config, load_causal_model
from launcher.tasks.language_task import Cut, LanguageTask
from launcher.tasks.models import LoadedModel
from launcher.tasks.next_token_collator import NextTokenCollator, learned_places, takes_flat_rows
from launcher.tasks.packed_models import require_apart
from launcher.tasks.packed_splits import packed_counts, packing_notes
from launcher.tasks.predicted_tokens import by_text

PROBLEM = "causal_lm"


class CausalLM(LanguageTask):
    """The task ``causal-lm``."""

    problem = PROBLEM
    nothing = "fewer than two tokens"

    def __init__(self, recipe: Recipe, *, base_folder: Path = Path()) -> None:
        super().__init__(recipe, base_folder=base_folder)
        assert isinstance(recipe.task, CausalLMOptions)
        self.options = recipe.task

    # --- data ------------------------------------------------------------------------------------------------------

    def cutter(self, *, max_length: int, to_learn: bool) -> Cut:
        """Return what cuts texts into rows, each later row of a text beginning with the last token of the row before it."""
        end = self.tokenizer.eos_token_id if self.options.append_end else None
        least = 2 if to_learn else 1
        return functools.partial(make_blocks, self.tokenizer, max_length=max_length, end=end, least_tokens=least)

    def prepare_splits(self, splits: SplitSet, folder: Path, *, max_length: int) -> dict[str, Any]:
        """Write the tokens of each split into ``folder``, those of train packed where that is wanted; return facts."""
        facts = super().prepare_splits(splits, folder, max_length=max_length)
        if self.options.packing:
            facts["splits"]["train"] |= packed_counts(folder / "train.arrow", max_length=max_length)
        return facts

    def notes(self, facts: Mapping[str, Any]) -> list[str]:
        """Return what a reader should know of how texts became rows, and of the model."""
        return [*super().notes(facts), *packing_notes(facts, of="texts, or parts of them,")]

    def show_row(self, row: Mapping[str, Any], prepared: Prepared) -> ShownRow:
        """Return a prepared row as the model sees it: each token but the first is learned."""
        parts: list[Any] = []
        begin = 0
        for length in row.get("seq_lengths") or [len(row["input_ids"])]:
            first, *others = row["input_ids"][begin : begin + length]
            parts += [*self.text_parts([first]), *self.text_parts(others, learned=True)]
            begin += length
        return ShownRow(row["row_id"], len(row["input_ids"]), tuple(parts), "")

    # --- model -----------------------------------------------------------------------------------------------------

    def build_model(
        self, prepared: Prepared | None, *, skeleton: bool = False, quantization: Any = None
    ) -> LoadedModel:
        """Return the model with its output layer; nothing in it depends on the data. Raises ModelError."""
        config = load_causal_config(self.recipe.model, skeleton=skeleton)
        self.require_vocabulary(config, skeleton=skeleton)
        if self.options.packing:
            require_apart(config)
        return load_causal_model(self.recipe.model, config, skeleton=skeleton, quantization=quantization)

    # --- loss ------------------------------------------------------------------------------------------------------

    def collator(self, *, training: bool = False) -> Any:
        """Return a callable: list of rows -> padded batch of tensors, with ``sample_weight`` float32 [rows]."""
        return NextTokenCollator(
            pad_token_id=self.tokenizer.pad_token_id or 0,
            # Each rank evaluates rows of its own.
            parts=self.recipe.distributed.sequence_parallel_size if training else 1,
            all_logits=True,
            flat=takes_flat_rows(self.recipe.model),
        )

    def targets(self, batch: Mapping[str, Any]) -> Any:
        """Return the token that follows each place, int64 [rows, tokens]."""
        return batch["shift_labels"] if "shift_labels" in batch else batch["labels"]

    # --- evaluation ------------------------------------------------------------------------------------------------

    def baselines(
        self, names: Sequence[str], prepared: Prepared, predictions: Predictions, *, split: str
    ) -> list[Baseline]:
        """Return the named baselines: how often each token occurs in train."""
        from launcher.evaluation.baselines_tokens import unigram_baseline

        learned, wanted = predicted_tokens(prepared.train), predicted_tokens(getattr(prepared, split))
        seen = np.concatenate(list(learned.values()))
        return [unigram_baseline(seen, list(wanted.values()), predictions) for _ in names]


# --- tokens ----------------------------------------------------------------------------------------------------------


def predicted_tokens(split: Any) -> dict[int, np.ndarray]:
    """Return number of a row's text -> the tokens of it that are predicted, int64 [tokens], for a prepared split, in their order."""
    names = ["row_id", "input_ids", *(["seq_lengths"] if "seq_lengths" in split.column_names else [])]
    batches = split.select_columns(names).iter(batch_size=1000)
    rows = (dict(zip(batch, row, strict=True)) for batch in batches for row in zip(*batch.values(), strict=True))
    return by_text(
        (row["row_id"], np.asarray(row["input_ids"], dtype=np.int64)[np.asarray(learned_places(row)) > 0])
        for row in rows
    )
