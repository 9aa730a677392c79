"""Masked language modelling: tokens that are hidden, from those on both sides of them."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from launcher.contracts import Baseline, Predictions, Prepared, ShownRow
from launcher.data.blocks import make_framed_blocks
from launcher.data.chance import row_generator
from launcher.data.masking import Masking
from launcher.data.sources import SplitSet
from launcher.errors import ModelError, ModelUnreachable
from launcher.recipe.schema import Recipe
from launcher.recipe.task_options import MaskedLMOptions
from launcher.tasks.language_task import Cut, LanguageTask
from launcher.tasks.models import LoadedModel, load_config, load_model
from launcher.tasks.padding import pad_tokens
from launcher.tasks.predicted_tokens import by_text
from launcher.tasks.text_task import IGNORED

PROBLEM = "masked_lm"
_NAMED = 3
LIKELIEST = 5
"""Tokens that are told for a mask."""


class MaskedLM(LanguageTask):
    """The task ``masked-lm``."""

    problem = PROBLEM
    nothing = "no token that could be masked"

    def __init__(self, recipe: Recipe, *, base_folder: Path = Path()) -> None:
        super().__init__(recipe, base_folder=base_folder)
        assert isinstance(recipe.task, MaskedLMOptions)
        self.options = recipe.task
        self.fills = False
        """Whether rows to be predicted have mask tokens that are to be filled."""

    @property
    def inputs_vary(self) -> bool:
        """Whether a row's input differs between epochs: its masks do."""
        return True

    @cached_property
    def masking(self) -> Masking:
        """How rows are masked. Raises ModelError where the tokenizer has no mask token, or does not know words."""
        tokenizer, options = self.tokenizer, self.options
        name = self.recipe.model.tokenizer_name_or_path or self.recipe.model.name_or_path
        if tokenizer.mask_token_id is None:
            raise ModelError(
                f"the tokenizer of {name} has no mask token, so nothing can be masked; choose an encoder such as BERT, or "
                "task: causal-lm"
            )
        if not tokenizer.is_fast:
            raise ModelError(f"the tokenizer of {name} cannot divide texts: it is not a fast one; choose another model")
        special = np.unique(np.asarray(tokenizer.all_special_ids, dtype=np.int64))
        return Masking(
            probability=options.mlm_probability,
            mask_share=options.mask_replace_prob,
            random_share=options.random_replace_prob,
            mask_id=int(tokenizer.mask_token_id),
            special_ids=special,
            random_ids=np.setdiff1d(np.fromiter(tokenizer.get_vocab().values(), dtype=np.int64), special),
        )

    # --- data ------------------------------------------------------------------------------------------------------

    def key_parts(self, splits: SplitSet) -> dict[str, Any]:
        """Return what prepared rows depend on: masks are drawn later, so only whether words are told apart."""
        return {"task": {"type": self.options.type, "whole_word_mask": self.options.whole_word_mask}}

    def cutter(self, *, max_length: int, to_learn: bool) -> Cut:
        """Return what cuts texts into rows, each with special tokens of its own; ``to_learn`` makes no difference."""
        return functools.partial(
            make_framed_blocks,
            self.tokenizer,
            max_length=max_length,
            unlearned=self.masking.special_ids.tolist(),
            with_words=self.options.whole_word_mask,
        )

    def notes_on_model(self) -> list[str]:
        """Also say where the output layer is new: it then has to be learned before masked tokens are told."""
        found = super().notes_on_model()
        if found:
            return found
        try:
            new = sorted(self.build_model(None, skeleton=True).newly_initialized)
        except ModelUnreachable:
            return []
        if not new:
            return []
        names = ", ".join(new[:_NAMED]) + (f" and {len(new) - _NAMED} more" if len(new) > _NAMED else "")
        name = self.recipe.model.name_or_path
        return [f"{name} has no output layer for masked tokens: {names} are new, and begin at random"]

    def show_row(self, row: Mapping[str, Any], prepared: Prepared) -> ShownRow:
        """Return a prepared row; what an evaluation of its split would have to be told of it is learned."""
        ids = np.asarray(row["input_ids"])
        # An evaluation draws by a row's place in its split, not by its text's number in the source.
        chosen = mask_row({**row, "row_id": row["place"]}, self.masking, seed=None)[1] != IGNORED
        parts: list[tuple[str, Any]] = []
        for stretch in np.split(np.arange(len(ids)), np.flatnonzero(np.diff(chosen)) + 1):
            parts += self.text_parts(ids[stretch].tolist(), learned=bool(chosen[stretch[0]]))
        return ShownRow(row["row_id"], len(ids), tuple(parts), "")

    # --- model -----------------------------------------------------------------------------------------------------

    def build_model(
        self, prepared: Prepared | None, *, skeleton: bool = False, quantization: Any = None
    ) -> LoadedModel:
        """Return the model with its output layer; nothing in it depends on the data. Raises ModelError."""
        from transformers import AutoModelForMaskedLM

        config = load_config(self.recipe.model, skeleton=skeleton)
        if getattr(config, "is_encoder_decoder", False) or not _has_class(AutoModelForMaskedLM, config):
            raise ModelError(
                f"a {config.model_type} model does not predict masked tokens; choose an encoder such as BERT, or task: causal-lm"
            )
        if getattr(config, "is_decoder", False):
            # One that was trained on next tokens reads to the left only.
            config.is_decoder = False
        self.require_vocabulary(config, skeleton=skeleton)
        loaded = load_model(
            AutoModelForMaskedLM,
            self.recipe.model,
            config,
            skeleton=skeleton,
            quantization=quantization,
            new_head=False,
        )
        # The loss is ours; Trainer must not scale it by its own count.
        loaded.model.accepts_loss_kwargs = False
        return loaded

    # --- loss ------------------------------------------------------------------------------------------------------

    def collator(self, *, training: bool = False) -> Any:
        """Return a callable: list of rows -> masked and padded batch of tensors, with ``sample_weight`` float32 [rows]."""
        seed = self.recipe.training.seed if training else None
        return Collator(self.masking, pad_token_id=self.tokenizer.pad_token_id or 0, seed=seed)

    def targets(self, batch: Mapping[str, Any]) -> Any:
        """Return the tokens that were masked, int64 [rows, tokens]."""
        return batch["labels"]

    # --- masks of a text, to be filled ------------------------------------------------------------------------------

    def prepare_rows(self, columns: Mapping[str, list[Any]], facts: Mapping[str, Any]) -> tuple[Any, Prepared]:
        """Return rows of tokens for new texts; none of a text that has mask tokens of its own is masked beside them."""
        rows, prepared = super().prepare_rows(columns, facts)
        has_mask = {
            text for text, ids in zip(rows["row_id"], rows["input_ids"], strict=True) if self.masking.mask_id in ids
        }
        self.fills = bool(has_mask)
        if not has_mask:
            return rows, prepared
        rows = rows.add_column("asked", [text in has_mask for text in rows["row_id"]])
        return rows, replace(prepared, train=rows, validation=rows, test=rows)

    def row_outputs(self, outputs: Any, batch: Mapping[str, Any]) -> Any:
        """Return each row's summed loss, number of masked tokens, and how many were told right, float32 [rows, 3].

        Where masks are filled, the likeliest tokens and their probabilities follow for each mask of a row that is asked, in its order:
        [rows, 3 + masks * 10], NaN where a row has fewer masks.
        """
        import torch

        logits, targets = outputs["logits"], self.targets(batch)
        right = ((logits.argmax(dim=-1) == targets) & (targets != IGNORED)).sum(dim=1)
        told = torch.cat([super().row_outputs(outputs, batch), right[:, None].float()], dim=1)
        if not self.fills:
            return told
        asked = (batch["input_ids"] == self.masking.mask_id) & (targets == IGNORED).all(dim=1, keepdim=True)
        return torch.cat([told, likeliest(logits, asked)], dim=1)

    # --- evaluation ------------------------------------------------------------------------------------------------

    def predictions(self, logits: np.ndarray, split: Any, prepared: Prepared) -> Predictions:
        """Add the rows of each text up, and put its filled masks together: ``logits`` are ``row_outputs``."""
        found = super().predictions(logits, split, prepared)
        if "asked" not in split.column_names:
            return found
        of_text: dict[int, list[tuple[tuple[str, float], ...]]] = {row_id: [] for row_id in found.row_ids}
        best: dict[int, list[int]] = {row_id: [] for row_id in found.row_ids}
        for row_id, row in zip(split["row_id"], logits[:, 3:], strict=True):
            for ids, shares in row[~np.isnan(row)].reshape(-1, 2, LIKELIEST):
                tokens = [self.tokenizer.decode([int(token)]).strip() for token in ids]
                of_text[row_id].append(tuple(zip(tokens, shares.astype(float).tolist(), strict=True)))
                best[row_id].append(int(ids[0]))
        filled = [
            fill(text, best[row_id], self.tokenizer) if best[row_id] else ""
            for text, row_id in zip(found.texts, found.row_ids, strict=True)
        ]
        return replace(found, answers=tuple(filled), fills=tuple(map(tuple, of_text.values())))

    def baselines(
        self, names: Sequence[str], prepared: Prepared, predictions: Predictions, *, split: str
    ) -> list[Baseline]:
        """Return the named baselines: how often each token occurs in train, told at the places that are masked in ``split``."""
        from launcher.evaluation.baselines_tokens import unigram_baseline

        special = self.masking.special_ids
        seen = np.concatenate([ids[~np.isin(ids, special)] for _, ids in _tokens(prepared.train)])
        wanted = masked_tokens(getattr(prepared, split), self.masking)
        return [unigram_baseline(seen, list(wanted.values()), predictions) for _ in names]


# --- tokens --------------------------------------------------------------------------------------------------------


class Collator:
    """Masks rows and pads them on the right to the longest of their batch; ``sample_weight`` is 0 for padding rows."""

    def __init__(self, masking: Masking, *, pad_token_id: int, seed: int | None) -> None:
        """``seed``: of the masks of training; None: those of evaluation."""
        self.masking = masking
        self.pad_token_id = pad_token_id
        self.seed = seed

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Return ``input_ids``, ``attention_mask`` and ``labels`` int64 [rows, tokens], and ``sample_weight``."""
        import torch

        masked = [as_asked(row) if row.get("asked") else mask_row(row, self.masking, seed=self.seed) for row in rows]
        ids, mask = pad_tokens([seen for seen, _ in masked], value=self.pad_token_id)
        labels, _ = pad_tokens([wanted for _, wanted in masked], value=IGNORED)
        weights = torch.tensor([row.get("weight", 1.0) for row in rows], dtype=torch.float32)
        return {"input_ids": ids, "attention_mask": mask, "labels": labels, "sample_weight": weights}


def mask_row(row: Mapping[str, Any], masking: Masking, *, seed: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Return what the model sees of a row, and its labels: the token where one is to be told, IGNORED elsewhere; int64 [tokens]."""
    ids, words = np.asarray(row["input_ids"], dtype=np.int64), row.get("word_ids")
    generator = row_generator(row, seed=seed)
    chosen = masking.choose(ids, None if words is None else np.asarray(words), generator)
    return masking.replace(ids, chosen, generator), np.where(chosen, ids, IGNORED)


def as_asked(row: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Return what the model sees of a row with masks that are to be filled, and labels that tell nothing; int64 [tokens]."""
    ids = np.asarray(row["input_ids"], dtype=np.int64)
    return ids, np.full_like(ids, IGNORED)


def likeliest(logits: Any, places: Any) -> Any:
    """Return the likeliest tokens of each place, and their probabilities: float32 [rows, most places of a row * 2 * LIKELIEST].

    For each place all tokens and then all probabilities, the likeliest first; NaN where a row has fewer places.

    Args:
        logits: [rows, tokens, vocabulary].
        places: bool [rows, tokens].
    """
    import torch

    counts = places.sum(dim=1)
    shares, ids = logits[places].float().softmax(dim=-1).topk(LIKELIEST, dim=-1)
    # Numbers of tokens are far below 2^24, up to which float32 is exact.
    told = torch.stack([ids.to(shares.dtype), shares], dim=1).flatten(1)
    found = torch.full((len(places), int(counts.max()), told.shape[1]), float("nan"), device=logits.device)
    for row, of_row in enumerate(told.split(counts.tolist())):
        found[row, : len(of_row)] = of_row
    return found.flatten(1)


def fill(text: str, tokens: Sequence[int], tokenizer: Any) -> str:
    """Return ``text`` with its mask tokens replaced; one that goes on with the word before it takes no space before it.

    What the tokenizer itself would write (decode) has lost the case and the spaces of the text.
    """
    before, *after = text.split(tokenizer.mask_token)
    word = tokenizer("a", add_special_tokens=False)["input_ids"]
    start = tokenizer.decode(word)
    for token, rest in zip(tokens, after, strict=False):
        piece = tokenizer.decode([*word, token]).removeprefix(start)
        goes_on = bool(piece) and not piece[0].isspace()
        before = (before.rstrip() if goes_on else before) + piece.strip() + rest
    return before


def masked_tokens(split: Any, masking: Masking) -> dict[int, np.ndarray]:
    """Return number of a text -> the tokens that an evaluation masks in it, int64 [tokens], for a prepared split, in their order."""
    names = ["row_id", "input_ids", *(["word_ids"] if "word_ids" in split.column_names else [])]
    found, place = [], 0
    for batch in split.select_columns(names).iter(batch_size=1000):
        texts = batch.pop("row_id")
        for number, text in enumerate(texts):
            row = {name: values[number] for name, values in batch.items()}
            _, labels = mask_row({**row, "row_id": place}, masking, seed=None)
            found.append((text, labels[labels != IGNORED]))
            place += 1
    return by_text(found)


def _tokens(split: Any) -> list[tuple[int, np.ndarray]]:
    batches = split.select_columns(["row_id", "input_ids"]).iter(batch_size=1000)
    return [
        (number, np.asarray(ids, dtype=np.int64))
        for batch in batches
        for number, ids in zip(batch["row_id"], batch["input_ids"], strict=True)
    ]


def _has_class(auto_class: Any, config: Any) -> bool:
    """Whether transformers, or the model's own code, has a class for this configuration."""
    return type(config) in auto_class._model_mapping or auto_class.__name__ in (getattr(config, "auto_map", None) or {})
