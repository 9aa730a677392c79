"""From prepared rows to batches of tensors on one rank."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch.utils.data import Dataset

from launcher.data.sampling import Drawn

# Columns that are about a row, not input to the model.
NOT_FEATURES = {
    "row_id",
    "text",
    "second_text_at",
    "length",
    "words",
    "word_starts",
    "first_word",
    "tags",
    "context",
    "places",
    "references",
    "size",
    "left_out",
}


class Rows(Dataset[dict[str, Any]]):
    """Rows of a prepared split by number, or as they are drawn for training; ``-1 - number`` is the same row with weight 0."""

    def __init__(self, split: Any, *, also: Sequence[str] = ()) -> None:
        """``also``: columns that are read although they are no features, where the split has them."""
        left_out = NOT_FEATURES - set(also)
        self.features = split.select_columns([name for name in split.column_names if name not in left_out])
        self.row_ids = split["row_id"]

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, wanted: int | Drawn) -> dict[str, Any]:
        return self.__getitems__([wanted])[0]

    def __getitems__(self, wanted: Sequence[int | Drawn]) -> list[dict[str, Any]]:
        """Return several rows with one read; each also has ``row_id`` and ``weight``, and one that is drawn its ``epoch`` and ``copy``.

        What a collator draws by chance follows from these and the seed alone: so it is the same on any number of ranks, in any
        micro-batch or worker, and after a run was resumed.
        """
        numbers = [one.number if isinstance(one, Drawn) else one for one in wanted]
        places = [number if number >= 0 else -1 - number for number in numbers]
        columns = self.features[places]
        return [
            {**{name: values[i] for name, values in columns.items()}, "row_id": place, "weight": float(number >= 0)}
            | ({"epoch": one.epoch, "copy": one.copy} if isinstance(one, Drawn) else {})
            for i, (one, number, place) in enumerate(zip(wanted, numbers, places, strict=True))
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
