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
from launcher.data.sources import SplitSet, load_rows, load_splits
from launcher.errors import DataError, ModelError, ModelUnreachable
from launcher.recipe.schema import Recipe
from launcher.recipe.task_options import CausalLMOptions
from launcher.tasks.models import LoadedModel, load_config, load_model
from launcher.tasks.padding import MULTIPLE
from launcher.tasks.text_task import IGNORED, SPLITS, TextTask, token_losses, write_features

PROBLEM = "causal_lm"
_OPTIONAL = ("id",)
# Their output layers read a text in both directions: each token would see what it is to predict.
_NOT_CAUSAL = ("xlm", "xlnet")


class CausalLM(TextTask):
    """The task ``causal-lm``."""

    def __init__(self, recipe: Recipe, *, base_folder: Path = Path()) -> None:
        super().__init__(recipe, base_folder=base_folder)
        assert isinstance(recipe.task, CausalLMOptions)
        self.options = recipe.task

    # --- data ------------------------------------------------------------------------------------------------------

    def load_splits(self) -> SplitSet:
        """Return the texts of every split. Raises DataError."""
        return load_splits(
            self.recipe.data, base_folder=self.base_folder, optional=_OPTIONAL, plain_text=True, may_be_empty=True
        )

    def token_limit(self) -> int | None:
        """Return how many tokens the model takes; None: that is not known."""
        config = load_config(self.recipe.model, skeleton=True)
        known = [self.tokenizer.model_max_length, getattr(config, "max_position_embeddings", None)]
        return min((size for size in known if size and 0 < size < 10**7), default=None)

    def notes(self, facts: Mapping[str, Any]) -> list[str]:
        """Return what a reader should know of how texts became rows, and of the model."""
        return [*_notes(facts), *self._model_notes()]

    def _model_notes(self) -> list[str]:
        if self.recipe.model.name_or_path is not None:
            return []
        return ["the model is not pretrained: model.name_or_path is null, so its weights are random, by training.seed"]

    def prepare_splits(self, splits: SplitSet, folder: Path, *, max_length: int) -> dict[str, Any]:
        """Write the tokens of each split into ``folder``; return facts."""
        counts: dict[str, dict[str, Any]] = {}
        for name in SPLITS:
            if getattr(splits, name) is None:
                continue
            counts[name] = {
                **write_features(splits, name, folder, self._maker(max_length=max_length)),
                "labelled": True,
            }
            if not counts[name]["rows"]:
                raise DataError(
                    f"no {name} text has two tokens, so there is nothing to predict; check data.columns: {{text: ...}}"
                )
        return {
            "fingerprint": splits.fingerprint,
            "problem_type": PROBLEM,
            "label_names": [],
            "max_length": max_length,
            "pairs": False,
            "splits": counts,
        }

    def _maker(self, *, max_length: int) -> Any:
        end = self.tokenizer.eos_token_id if self.options.append_end else None
        return functools.partial(block_features, tokenizer=self.tokenizer, max_length=max_length, end=end)

    def show_row(self, row: Mapping[str, Any], prepared: Prepared) -> ShownRow:
        """Return a prepared row as the model sees it: each token but the first is learned."""
        first, *others = row["input_ids"]
        parts = (*self.text_parts([first]), *self.text_parts(others, learned=True))
        return ShownRow(row["row_id"], len(row["input_ids"]), parts, "")

    def prepare_rows(self, columns: Mapping[str, list[Any]], facts: Mapping[str, Any]) -> tuple[Any, Prepared]:
        """Return rows of tokens for new texts, and what they are to be read with. Raises DataError for pairs or no token."""
        from datasets import Dataset

        numbers = list(range(len(columns["text"])))
        if "text_pair" in columns:
            raise DataError("a language model reads single texts; give it no second ones")
        make = self._maker(max_length=facts["max_length"])
        features, counts = make({**columns, "row_id": numbers}, least_tokens=1)
        if counts["empty"]:
            present = set(features["row_id"])
            first = next(number for number in numbers if number not in present)
            raise DataError(f"text {first + 1} has no token; remove it")
        rows = Dataset.from_dict(features)
        return rows, Prepared(rows, rows, rows, "", (), PROBLEM)

    def read_rows(self, source: str) -> dict[str, list[Any]]:
        """Return the columns of a file under our names. Raises DataError."""
        rows = load_rows(source, data=self.recipe.data, base_folder=Path(), optional=_OPTIONAL, plain_text=True)
        return rows.lists()

    # --- model -----------------------------------------------------------------------------------------------------

    def build_model(
        self, prepared: Prepared | None, *, skeleton: bool = False, quantization: Any = None
    ) -> LoadedModel:
        """Return the model with its output layer; nothing in it depends on the data. Raises ModelError."""
        from transformers import AutoModelForCausalLM

        config = load_config(self.recipe.model, skeleton=skeleton)
        if config.model_type in _NOT_CAUSAL:
            raise ModelError(
                f"a {config.model_type} model reads texts in both directions, so it cannot be trained on next tokens; choose "
                "another model"
            )
        if getattr(config, "is_decoder", None) is False:
            # Encoders read in both directions unless they are told to be decoders: each token would see what it predicts.
            config.is_decoder = True
        self._require_vocabulary(config, skeleton=skeleton)
        loaded = load_model(
            AutoModelForCausalLM,
            self.recipe.model,
            config,
            skeleton=skeleton,
            quantization=quantization,
            new_head=False,
        )
        # Keys and values of all tokens are of use to generation only; generation_config.json keeps them there.
        loaded.model.config.use_cache = False
        # The loss is ours; Trainer must not scale it by its own count.
        loaded.model.accepts_loss_kwargs = False
        return loaded

    def _require_vocabulary(self, config: Any, *, skeleton: bool) -> None:
        """Raise ModelError where the tokenizer has tokens that the model does not know."""
        try:
            tokens = len(self.tokenizer)
        except ModelUnreachable:
            if not skeleton:
                raise
            return
        known = getattr(config.get_text_config(), "vocab_size", None)
        if known is not None and tokens > known:
            raise ModelError(
                f"the tokenizer has {tokens:,} tokens, but the model knows {known:,} (vocab_size); use the model's own tokenizer, "
                "or for a random model a larger model.config.vocab_size"
            )

    def load_trained(self, folder: Path, facts: Mapping[str, Any]) -> Any:
        """Return a saved model in evaluation mode."""
        return self.build_model(None).model.eval()

    # --- loss ------------------------------------------------------------------------------------------------------

    def collator(self, *, training: bool = False) -> Any:
        """Return a callable: list of rows -> padded batch of tensors, with ``sample_weight`` float32 [rows]."""
        parts = self.recipe.distributed.sequence_parallel_size
        return Collator(pad_token_id=self.tokenizer.pad_token_id or 0, parts=parts)

    def items(self, batch: Mapping[str, Any]) -> Any:
        """Return how many tokens a batch predicts, those of rows of weight 0 left out; a float32 scalar tensor."""
        return ((next_tokens(batch) != IGNORED).float() * _weights(batch)).sum()

    def loss(self, outputs: Any, batch: Mapping[str, Any], *, label_smoothing: float = 0.0) -> Any:
        """Return the summed cross entropy of the next tokens, in nats, a float32 scalar tensor."""
        losses = token_losses(outputs["logits"], next_tokens(batch), label_smoothing=label_smoothing)
        return (losses * _weights(batch)).sum()

    def row_outputs(self, outputs: Any, batch: Mapping[str, Any]) -> Any:
        """Return each row's summed loss and number of predicted tokens, float32 [rows, 2]; the logits would fill the memory."""
        import torch

        targets = next_tokens(batch)
        losses = token_losses(outputs["logits"], targets).sum(dim=1)
        return torch.stack([losses, (targets != IGNORED).sum(dim=1).to(losses.dtype)], dim=1)

    # --- evaluation ------------------------------------------------------------------------------------------------

    @property
    def default_metric(self) -> str:
        """The validation metric that chooses the best checkpoint unless the recipe names one."""
        return "loss"

    def predictions(self, logits: np.ndarray, split: Any, prepared: Prepared) -> Predictions:
        """Add the rows of each text up: ``logits`` are ``row_outputs`` [rows, 2]; Predictions have a row for each text."""
        row_ids, places = np.unique(np.asarray(split["row_id"][:], dtype=np.int64), return_inverse=True)
        firsts = np.unique(places, return_index=True)[1]
        totals = np.zeros((len(row_ids), 2))
        np.add.at(totals, places, logits.astype(np.float64))
        texts = split["text"]
        return Predictions(
            problem_type=PROBLEM,
            scores=totals[:, :1],
            labels=totals[:, 1].astype(np.int64),
            label_names=(),
            texts=tuple(texts[int(first)] for first in firsts),
            row_ids=tuple(row_ids.tolist()),
        )

    def baselines(
        self, names: Sequence[str], prepared: Prepared, predictions: Predictions, *, split: str
    ) -> list[Baseline]:
        """Return the named baselines: how often each token occurs in train."""
        from launcher.evaluation.baselines import unigram_baseline

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
    pieces: dict[int, list[np.ndarray]] = {}
    for batch in split.select_columns(["row_id", "input_ids"]).iter(batch_size=1000):
        for row_id, ids in zip(batch["row_id"], batch["input_ids"], strict=True):
            pieces.setdefault(int(row_id), []).append(np.asarray(ids[1:], dtype=np.int64))
    return {row_id: np.concatenate(pieces[row_id]) for row_id in sorted(pieces)}


def _weights(batch: Mapping[str, Any]) -> Any:
    """Return the rows' weights [rows, 1]; 1 where rows are shared among ranks, whose labels say what does not count."""
    return batch["sample_weight"][:, None] if "sample_weight" in batch else 1.0


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

        multiple = math.lcm(MULTIPLE, self.parts)
        length = -(-max(len(row["input_ids"]) for row in rows) // multiple) * multiple
        ids = torch.full((len(rows), length), self.pad_token_id, dtype=torch.long)
        mask = torch.zeros((len(rows), length), dtype=torch.long)
        for number, row in enumerate(rows):
            tokens = len(row["input_ids"])
            ids[number, :tokens] = torch.as_tensor(row["input_ids"], dtype=torch.long)
            mask[number, :tokens] = 1
        labels = ids.masked_fill(mask == 0, IGNORED)
        weights = torch.tensor([row.get("weight", 1.0) for row in rows], dtype=torch.float32)
        batch = {"input_ids": ids, "attention_mask": mask, "labels": labels}
        if self.parts == 1:
            return {**batch, "sample_weight": weights}
        batch["labels"] = labels.masked_fill(weights[:, None] == 0, IGNORED)
        return {**batch, "position_ids": torch.arange(length).expand(len(rows), -1).contiguous()}


# --- rows ----------------------------------------------------------------------------------------------------------


def block_features(
    rows: Mapping[str, list[Any]],
    *,
    tokenizer: Any,
    max_length: int,
    end: int | None,
    least_tokens: int = 2,
    origin: Any = None,
) -> tuple[dict[str, Any], dict[str, int]]:
    """Return columns of tokens for texts, and counts; a text stands with the first of its rows only."""
    texts = rows["text"]
    blocks = make_blocks(tokenizer, texts, max_length=max_length, end=end, least_tokens=least_tokens)
    owners = blocks.texts.tolist()
    is_first = [number == 0 or owners[number - 1] != owner for number, owner in enumerate(owners)]
    columns = {
        "input_ids": blocks.input_ids,
        "length": blocks.lengths,
        "row_id": [rows["row_id"][owner] for owner in owners],
        "text": [texts[owner] if first else "" for owner, first in zip(owners, is_first, strict=True)],
    }
    return columns, {
        "rows": len(blocks.input_ids),
        "texts": len(texts),
        "tokens": int(blocks.lengths.sum()),
        "divided": blocks.divided,
        "empty": blocks.empty,
        "cut": 0,
    }


def _notes(facts: Mapping[str, Any]) -> list[str]:
    """Return what a reader should know of how texts became rows."""
    found = []
    for name, counts in facts["splits"].items():
        if counts["divided"]:
            found.append(
                f"{counts['divided']:,} of the {counts['texts']:,} {name} texts are longer than {facts['max_length']:,} tokens "
                f"and were divided; all texts together are {counts['rows']:,} rows, and no token was left out"
            )
        if counts["empty"]:
            found.append(
                f"{counts['empty']:,} of the {counts['texts']:,} {name} texts have fewer than two tokens, so nothing to predict, "
                "and were left out"
            )
    return found
