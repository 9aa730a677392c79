"""What becomes of a row of text in an epoch: synonyms and token dropout, by the recipe's task.augmentation."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from launcher.data.chance import row_generator
from launcher.data.prepare import tokenize
from launcher.data.text_augmentation import kept_tokens, with_synonyms, without_tokens
from launcher.errors import DataError
from launcher.recipe.synonyms_file import BadSynonyms, read_synonyms
from launcher.tasks.text_task import IGNORED, split_joined


class TextAugmenter:
    """Changes rows of tokens; a pure function of the seed and the row with its epoch."""

    def __init__(
        self,
        tokenizer: Any,
        *,
        seed: int,
        token_dropout: float,
        words_whole: bool = False,
        synonyms: Mapping[str, tuple[str, ...]] | None = None,
        synonym_probability: float = 0.0,
        max_length: int = 0,
    ) -> None:
        """``words_whole``: words of rows with a label at the first token of each are left out, not tokens.

        ``max_length``: tokens that a row with replaced words is cut to.
        """
        self.tokenizer = tokenizer
        self.seed = seed
        self.token_dropout = token_dropout
        self.words_whole = words_whole
        self.synonyms = synonyms
        self.synonym_probability = synonym_probability
        self.max_length = max_length
        self.fixed = fixed_tokens(tokenizer)
        self.by_token = {*tokenizer.model_input_names, *(["labels"] if words_whole else [])}

    def __call__(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Return a row of features, with ``row_id``, ``epoch`` and, for synonyms, its text, as its epoch has it."""
        generator, found = row_generator(row, seed=self.seed), dict(row)
        if self.synonyms is not None:
            found |= self._with_synonyms(found, generator)
        if self.token_dropout:
            ids = np.asarray(found["input_ids"], dtype=np.int64)
            kept = kept_tokens(self._units(found, ids), probability=self.token_dropout, generator=generator)
            found = without_tokens(found, kept, names=self.by_token)
        return found

    def _with_synonyms(self, row: Mapping[str, Any], generator: np.random.Generator) -> dict[str, Any]:
        """Return the features of the row's texts with words replaced; {} where none is."""
        assert self.synonyms is not None
        texts = split_joined(row["text"], row.get("second_text_at"))
        changed = [
            with_synonyms(text, self.synonyms, probability=self.synonym_probability, generator=generator)
            for text in texts
        ]
        if changed == list(texts):
            return {}
        pair = [changed[1]] if len(changed) > 1 else None
        found = tokenize(self.tokenizer, [changed[0]], pair, max_length=self.max_length)
        return {name: values[0] for name, values in found.features.items()}

    def _units(self, row: Mapping[str, Any], ids: np.ndarray) -> np.ndarray:
        stays = np.isin(ids, self.fixed)
        units = np.arange(len(ids))
        if self.words_whole:
            # The first token of a word has its label. What is before the first word is never left out.
            units = np.cumsum(np.asarray(row["labels"]) != IGNORED) - 1
        return np.where(stays, -1, units)


def fixed_tokens(tokenizer: Any) -> np.ndarray:
    """Return the special tokens, int64; the unknown token stands for words of a text, and is none of them unless it has another part."""
    own = {tokenizer.unk_token} - {
        token for part, token in tokenizer.special_tokens_map.items() if part != "unk_token" and isinstance(token, str)
    }
    ids = [tokenizer.convert_tokens_to_ids(token) for token in tokenizer.all_special_tokens if token not in own]
    return np.asarray(sorted(ids), dtype=np.int64)


def synonyms_of(path: str, *, base_folder: Path) -> Mapping[str, tuple[str, ...]]:
    """Return the words of the recipe's list. Raises DataError."""
    try:
        return read_synonyms(base_folder / Path(path).expanduser())
    except BadSynonyms as error:
        raise DataError(f"task.augmentation.synonyms: {error}") from None


def as_in_first_epoch(row: Mapping[str, Any], augment: TextAugmenter) -> dict[str, Any]:
    """Return a prepared row with ``place``, its number in its split, as the first epoch of a run has it; its own ``row_id`` stays."""
    found = augment({**row, "row_id": row["place"], "epoch": 0})
    return {**found, "row_id": row["row_id"], "length": len(found["input_ids"])}
