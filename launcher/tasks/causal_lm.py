"""Language modelling: each token of a text from those before it."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from launcher.contracts import Baseline, Predictions, Prepared, ShownRow
from launcher.data.blocks import make_blocks
from launcher.recipe.schema import Recipe
from launcher.recipe.task_options import CausalLMOptions
from launcher.tasks.causal_model import load_causal_config, load_causal_model
from launcher.tasks.language_task import Cut, LanguageTask
from launcher.tasks.models import LoadedModel
from launcher.tasks.padding import MULTIPLE, pad_tokens
from launcher.tasks.predicted_tokens import by_text
from launcher.tasks.text_task import IGNORED

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

    def show_row(self, row: Mapping[str, Any], prepared: Prepared) -> ShownRow:
        """Return a prepared row as the model sees it: each token but the first is learned."""
        first, *others = row["input_ids"]
        parts = (*self.text_parts([first]), *self.text_parts(others, learned=True))
        return ShownRow(row["row_id"], len(row["input_ids"]), parts, "")

    # --- model -----------------------------------------------------------------------------------------------------

    def build_model(
        self, prepared: Prepared | None, *, skeleton: bool = False, quantization: Any = None
    ) -> LoadedModel:
        """Return the model with its output layer; nothing in it depends on the data. Raises ModelError."""
        config = load_causal_config(self.recipe.model, skeleton=skeleton)
        self.require_vocabulary(config, skeleton=skeleton)
        return load_causal_model(self.recipe.model, config, skeleton=skeleton, quantization=quantization)

    # --- loss ------------------------------------------------------------------------------------------------------

    def collator(self, *, training: bool = False) -> Any:
        """Return a callable: list of rows -> padded batch of tensors, with ``sample_weight`` float32 [rows]."""
        parts = self.recipe.distributed.sequence_parallel_size
        return Collator(pad_token_id=self.tokenizer.pad_token_id or 0, parts=parts)

    def targets(self, batch: Mapping[str, Any]) -> Any:
        """Return the token that follows each place, int64 [rows, tokens]."""
        return next_tokens(batch)

    # --- evaluation ------------------------------------------------------------------------------------------------

    def baselines(
        self, names: Sequence[str], prepared: Prepared, predictions: Predictions, *, split: str
    ) -> list[Baseline]:
        """Return the named baselines: how often each token occurs in train."""
        from launcher.evaluation.baselines_tokens import unigram_baseline

        learned, wanted = predicted_tokens(prepared.train), predicted_tokens(getattr(prepared, split))
        seen = np.concatenate(list(learned.values()))
        return [unigram_baseline(seen, list(wanted.values()), predictions) for _ in names]


# --- tokens --------------------------------------------------------------------------------------------------------


def next_tokens(batch: Mapping[str, Any]) -> Any:
    """Return what each place has to predict, int64 [rows, tokens]: the next place's label, IGNORED at the end.

    Ranks that share rows get their part of ``shift_labels``, which somebody else has moved already.
    """
    import torch.nn.functional as F

    if "shift_labels" in batch:
        return batch["shift_labels"]
    return F.pad(batch["labels"][:, 1:], (0, 1), value=IGNORED)


def predicted_tokens(split: Any) -> dict[int, np.ndarray]:
    """Return number of a text -> the tokens of it that are predicted, int64 [tokens], for a prepared split, in their order."""
    batches = split.select_columns(["row_id", "input_ids"]).iter(batch_size=1000)
    rows = ((number, ids) for batch in batches for number, ids in zip(batch["row_id"], batch["input_ids"], strict=True))
    return by_text((number, np.asarray(ids[1:], dtype=np.int64)) for number, ids in rows)


class Collator:
    """Pads rows on the right to the longest of their batch; a row's ``sample_weight`` is 0 for padding rows."""

    def __init__(self, *, pad_token_id: int, parts: int = 1) -> None:
        """``parts``: how many ranks share each row."""
        self.pad_token_id = pad_token_id
        self.parts = parts

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Return ``input_ids``, ``attention_mask`` and ``labels`` int64 [rows, tokens], and ``sample_weight``.

        Where ranks share rows, every tensor is [rows, tokens]: ``position_ids`` come, the weight goes into the labels.
        """
        import torch

        own = [row["input_ids"] for row in rows]
        ids, mask = pad_tokens(own, value=self.pad_token_id, multiple=math.lcm(MULTIPLE, self.parts))
        labels = ids.masked_fill(mask == 0, IGNORED)
        weights = torch.tensor([row.get("weight", 1.0) for row in rows], dtype=torch.float32)
        batch = {"input_ids": ids, "attention_mask": mask, "labels": labels}
        if self.parts == 1:
            return {**batch, "sample_weight": weights}
        batch["labels"] = labels.masked_fill(weights[:, None] == 0, IGNORED)
        return {**batch, "position_ids": torch.arange(ids.shape[1]).expand(len(rows), -1).contiguous()}
