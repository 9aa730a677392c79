"""What tasks that predict the tokens of plain texts share: how texts become rows."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from launcher.contracts import Prepared
from launcher.data.blocks import Blocks
from launcher.data.sources import SplitSet, load_rows, load_splits
from launcher.data.streams import Features
from launcher.errors import DataError
from launcher.tasks.causal_model import longest_row
from launcher.tasks.models import LoadedModel, load_config
from launcher.tasks.predicted_tokens import PredictedTokens
from launcher.tasks.prepared_task import write_unlabelled

Cut = Callable[[Sequence[str]], Blocks]

_OPTIONAL = ("id",)


class LanguageTask(PredictedTokens):
    """A task on plain texts; a subclass says how they are cut, which tokens are predicted, and with which model."""

    nothing: str
    """What a text without a token to predict lacks, in words."""

    # --- for a subclass to give ------------------------------------------------------------------------------------

    def cutter(self, *, max_length: int, to_learn: bool) -> Cut:
        """Return what cuts texts into rows of tokens, in this process or, by pickle, in others.

        ``to_learn``: a text with nothing to predict becomes no row, also where it has tokens.
        """
        raise NotImplementedError

    def build_model(
        self, prepared: Prepared | None, *, skeleton: bool = False, quantization: Any = None
    ) -> LoadedModel:
        """Return the model with its output layer; nothing in it depends on the data. Raises ModelError."""
        raise NotImplementedError

    # --- data ------------------------------------------------------------------------------------------------------

    def load_splits(self) -> SplitSet:
        """Return the texts of every split. Raises DataError."""
        return load_splits(
            self.recipe.data, base_folder=self.base_folder, optional=_OPTIONAL, plain_text=True, may_be_empty=True
        )

    def token_limit(self) -> int | None:
        """Return how many tokens the model takes; None: that is not known."""
        return longest_row(self.tokenizer, load_config(self.recipe.model, skeleton=True))

    def notes(self, facts: Mapping[str, Any]) -> list[str]:
        """Return what a reader should know of how texts became rows, and of the model."""
        return [*self._notes_on_rows(facts), *self.notes_on_model()]

    def _notes_on_rows(self, facts: Mapping[str, Any]) -> list[str]:
        found = []
        for name, counts in facts["splits"].items():
            if counts["divided"]:
                found.append(
                    f"{counts['divided']:,} of the {counts['texts']:,} {name} texts are longer than {facts['max_length']:,} tokens "
                    f"and were divided; all texts together are {counts['rows']:,} rows, and no token was left out"
                )
            if counts["empty"]:
                found.append(
                    f"{counts['empty']:,} of the {counts['texts']:,} {name} texts have {self.nothing}, so nothing to predict, "
                    "and were left out"
                )
        return found

    def prepare_splits(self, splits: SplitSet, folder: Path, *, max_length: int) -> dict[str, Any]:
        """Write the tokens of each split into ``folder``; return facts."""
        make = functools.partial(block_features, cut=self.cutter(max_length=max_length, to_learn=True))
        return write_unlabelled(
            splits, folder, make, problem_type=self.problem, max_length=max_length,
            nothing=lambda name: f"every {name} text has {self.nothing}, so there is nothing to predict; check data.columns: {{text: ...}}",
        )  # fmt: skip

    def stream_features(self, facts: Mapping[str, Any]) -> Features:
        """Return how texts that are read while training become rows of tokens."""
        cut = self.cutter(max_length=facts["max_length"], to_learn=True)
        return Features(functools.partial(block_features, cut=cut), divides=True, may_be_empty=True)

    def prepare_rows(self, columns: Mapping[str, list[Any]], facts: Mapping[str, Any]) -> tuple[Any, Prepared]:
        """Return rows of tokens for new texts, and what they are to be read with. Raises DataError for pairs or no token."""
        from datasets import Dataset

        numbers = list(range(len(columns["text"])))
        if "text_pair" in columns:
            raise DataError("a language model reads single texts; give it no second ones")
        cut = self.cutter(max_length=facts["max_length"], to_learn=False)
        features, counts = block_features({**columns, "row_id": numbers}, cut=cut)
        if counts["empty"]:
            present = set(features["row_id"])
            first = next(number for number in numbers if number not in present)
            raise DataError(f"text {first + 1} has no token; remove it")
        rows = Dataset.from_dict(features)
        return rows, Prepared(rows, rows, rows, "", (), self.problem)

    def read_rows(self, source: str) -> dict[str, list[Any]]:
        """Return the columns of a file under our names. Raises DataError."""
        rows = load_rows(source, data=self.recipe.data, base_folder=Path(), optional=_OPTIONAL, plain_text=True)
        return rows.lists()

    # --- model -----------------------------------------------------------------------------------------------------

    def load_trained(self, folder: Path, facts: Mapping[str, Any]) -> Any:
        """Return a saved model in evaluation mode."""
        return self.build_model(None).model.eval()


# --- rows ----------------------------------------------------------------------------------------------------------


def block_features(
    rows: Mapping[str, list[Any]], *, cut: Cut, origin: Any = None
) -> tuple[dict[str, Any], dict[str, int]]:
    """Return columns of tokens for texts, and counts; a text stands with the first of its rows only."""
    texts = rows["text"]
    blocks = cut(texts)
    owners = blocks.texts.tolist()
    is_first = [number == 0 or owners[number - 1] != owner for number, owner in enumerate(owners)]
    columns = {
        "input_ids": blocks.input_ids,
        **({} if blocks.word_ids is None else {"word_ids": blocks.word_ids}),
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
