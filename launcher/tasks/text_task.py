"""What all tasks on texts share: the tokenizer, the length of rows, and how they are shown."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from launcher.contracts import Prepared, ShownRow
from launcher.data.sources import SplitSet
from launcher.errors import DataError, ModelError, ModelUnreachable
from launcher.tasks.focal import focal_factors
from launcher.tasks.models import load_config, load_tokenizer, model_folders, token_limit, tokenizer_fingerprint
from launcher.tasks.prepared_task import PreparedTask

IGNORED = -100
"""Label of a place that is not predicted, as torch's cross entropy has it."""

_DEFAULT_MAX_LENGTH = 512
_FACTS = ("problem_type", "label_names", "max_length", "pairs")


class TextTask(PreparedTask):
    """A task whose rows are texts; a subclass says how they are read, what a row is, and what is learned from it."""

    @cached_property
    def tokenizer(self) -> Any:
        """The model's tokenizer, loaded when it is first asked for."""
        return load_tokenizer(self.recipe.model)

    @property
    def processor(self) -> Any:
        """What turns rows into inputs, and is saved with the model: the tokenizer."""
        return self.tokenizer

    @property
    def padding_side(self) -> str:
        """Where shorter rows of a batch are padded: left or right."""
        return str(self.tokenizer.padding_side)

    # --- data ------------------------------------------------------------------------------------------------------

    def prepare_splits(self, splits: SplitSet, folder: Path, *, max_length: int) -> dict[str, Any]:
        """Write SPLIT.arrow for each split into ``folder``; return fingerprint, problem_type, label_names, max_length, pairs, splits."""
        raise NotImplementedError

    def write_splits(self, splits: SplitSet, folder: Path) -> dict[str, Any]:
        """Write the tokens of each split into ``folder``; return facts."""
        return self.prepare_splits(splits, folder, max_length=self.max_length())

    def input_parts(self) -> dict[str, Any]:
        """Return what tokens depend on: the tokenizer, and the length."""
        return {"tokenizer": tokenizer_fingerprint(self.tokenizer), "max_length": self.max_length()}

    def model_files(self) -> list[Path] | None:
        """Return the folders of configuration and tokenizer; None where they are not on this machine's disks."""
        return model_folders(self.recipe.model)

    def max_length(self) -> int:
        """Return the greatest number of tokens of a row. Raises DataError where the recipe wants more than the model takes."""
        limit = self.token_limit()
        wanted = self.recipe.data.max_length
        if wanted is None:
            return min(limit or _DEFAULT_MAX_LENGTH, _DEFAULT_MAX_LENGTH)
        if limit is not None and wanted > limit:
            raise DataError(f"data.max_length is {wanted}, but this model takes at most {limit} tokens; lower it")
        return wanted

    def token_limit(self) -> int | None:
        """Return how many tokens the model takes; None: that is not known."""
        return token_limit(self.tokenizer, load_config(self.recipe.model, skeleton=True))

    def show_row(self, row: Mapping[str, Any], prepared: Prepared) -> ShownRow:
        """Return a prepared row as the model sees it: its tokens as text, special ones apart."""
        return ShownRow(row["row_id"], len(row["input_ids"]), tuple(self.text_parts(row["input_ids"])), "")

    def text_parts(self, ids: Sequence[int], *, learned: bool = False) -> Iterator[tuple[str, Any]]:
        """Yield stretches of tokens as text, special ones apart; ``learned``: the others are part of the loss."""
        special = set(self.tokenizer.all_special_ids)
        for is_special, stretch in itertools.groupby(ids, key=special.__contains__):
            text = self.tokenizer.decode(list(stretch), clean_up_tokenization_spaces=False)
            yield text, "special" if is_special else "learned" if learned else "read"

    # --- the model and its predictions -----------------------------------------------------------------------------

    def require_vocabulary(self, config: Any, *, skeleton: bool) -> None:
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

    def notes_on_model(self) -> list[str]:
        """Return a note where the model is not pretrained."""
        if self.recipe.model.name_or_path is not None:
            return []
        return ["the model is not pretrained: model.name_or_path is null, so its weights are random, by training.seed"]

    def model_facts(self, prepared: Prepared) -> dict[str, Any]:
        """Return what has to be known to use the saved model without its run."""
        return {"task": self.recipe.task.type, **{name: prepared.facts[name] for name in _FACTS}}


_BETWEEN_PAIRS = " ⏎ "


def joined(texts: Sequence[str], pairs: Sequence[str] | None) -> list[str]:
    """Return texts, or pairs of them as one, for people to read."""
    return list(texts) if pairs is None else [f"{a}{_BETWEEN_PAIRS}{b}" for a, b in zip(texts, pairs, strict=True)]


def second_texts_at(texts: Sequence[str]) -> list[int]:
    """Return where in pairs that were ``joined`` the second text begins, in characters; ``texts``: the first ones."""
    return [len(text) + len(_BETWEEN_PAIRS) for text in texts]


def split_joined(text: str, second_at: int | None) -> tuple[str, ...]:
    """Return the text, or the two texts that were ``joined``; ``second_at``: where the second one begins."""
    return (text,) if second_at is None else (text[: second_at - len(_BETWEEN_PAIRS)], text[second_at:])


def predicted_count(targets: Any, batch: Mapping[str, Any]) -> Any:
    """Return how many tokens of a batch are predicted, those of rows of weight 0 left out; a float32 scalar tensor."""
    return ((targets != IGNORED).float() * _row_weights(batch)).sum()


def summed_loss(logits: Any, targets: Any, batch: Mapping[str, Any], *, label_smoothing: float = 0.0) -> Any:
    """Return the summed cross entropy of the predicted tokens of a batch, in nats, a float32 scalar tensor."""
    return (token_losses(logits, targets, label_smoothing=label_smoothing) * _row_weights(batch)).sum()


def _row_weights(batch: Mapping[str, Any]) -> Any:
    """Return the rows' weights [rows, 1]; 1 where rows are shared among ranks, whose labels say what does not count."""
    return batch["sample_weight"][:, None] if "sample_weight" in batch else 1.0


def token_losses(
    logits: Any, targets: Any, *, label_smoothing: float = 0.0, class_weights: Any = None, focal_gamma: float = 0.0
) -> Any:
    """Return the cross entropy of each place, or with ``focal_gamma`` its focal loss, float32 [rows, tokens], 0 where it is IGNORED.

    ``logits`` [rows, tokens, classes] of any floating type; ``targets`` int64 [rows, tokens]; ``class_weights`` float32 [classes].
    """
    import torch.nn.functional as F

    from launcher.tasks.chunked_loss import by_place

    weight = None if class_weights is None else class_weights.to(logits.device)

    def losses(places: Any, labels: Any) -> Any:
        flat = F.cross_entropy(
            places, labels, ignore_index=IGNORED, reduction="none", label_smoothing=label_smoothing, weight=weight
        )
        return flat * focal_factors(places, labels.clamp(min=0), gamma=focal_gamma) if focal_gamma else flat

    return by_place(losses, logits.flatten(0, 1), targets.flatten()).view(targets.shape)
