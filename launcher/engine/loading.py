"""From prepared rows to batches of tensors on one rank."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch.utils.data import Dataset

# Columns that are about a row, not input to the model.
_NOT_FEATURES = {
    "row_id",
    "text",
    "length",
    "words",
    "word_starts",
    "first_word",
    "tags",
    "context",
    "places",
    "references",
}


class Rows(Dataset[dict[str, Any]]):
    """Rows of a prepared split by number; ``-1 - number`` is the same row with weight 0."""

    def __init__(self, split: Any) -> None:
        self.features = split.select_columns([name for name in split.column_names if name not in _NOT_FEATURES])
        self.row_ids = split["row_id"]

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, number: int) -> dict[str, Any]:
        return self.__getitems__([number])[0]

    def __getitems__(self, numbers: Sequence[int]) -> list[dict[str, Any]]:
        """Return several rows with one read; each also has ``row_id`` and ``weight``."""
        places = [number if number >= 0 else -1 - number for number in numbers]
        columns = self.features[places]
        return [
            {**{name: values[i] for name, values in columns.items()}, "row_id": place, "weight": float(number >= 0)}
            for i, (number, place) in enumerate(zip(numbers, places, strict=True))
        ]


class WithRowIds:
    """A collator that also keeps the numbers of the rows that count."""

    def __init__(self, collate: Callable[[Sequence[dict[str, Any]]], dict[str, Any]]) -> None:
        self.collate = collate

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Return the batch, with ``row_numbers``: a list of the rows of weight 1."""
        batch = self.collate(rows)
        batch["row_numbers"] = [row["row_id"] for row in rows if row["weight"]]
        return batch
