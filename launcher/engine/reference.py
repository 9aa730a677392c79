"""What the model before training makes of each row: computed once, kept in the run, and put into every batch.

So no second model is held, whatever trains and however it is sharded (docs/decisions/031-reference-log-probabilities-are-computed-once.md).
"""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from launcher.atomic import write_bytes
from launcher.contracts import Prepared
from launcher.data.prepare import fingerprint_of
from launcher.engine.ranks import barrier, share
from launcher.errors import RunStateError
from launcher.rundir import RunDir

Collate = Callable[[Sequence[Mapping[str, Any]]], dict[str, Any]]

_METADATA = b"launcher.reference"
_SPLITS = ("train", "validation", "test")


@dataclass
class Reference:
    """The columns that a task wants of the model before training, for every row of every split."""

    columns: tuple[str, ...]
    """Names of the first columns of the task's ``row_outputs``."""
    splits: Mapping[str, Any]
    """Name -> prepared rows."""
    fingerprint: str
    """Of the rows as they were prepared."""
    values: dict[str, np.ndarray] = field(default_factory=dict)
    """Name of a split -> float32 [rows, columns], in the order of its rows."""

    @classmethod
    def wanted(cls, task: Any, prepared: Prepared) -> Reference | None:
        """Return what is to be filled for a task's data; None: the task wants nothing."""
        if not task.reference_columns:
            return None
        assert prepared.stream is None, "rows that nobody has counted have no place"
        splits = {name: getattr(prepared, name) for name in _SPLITS if getattr(prepared, name) is not None}
        lengths = {name: np.asarray(split["length"][:], dtype=np.int64).tobytes() for name, split in splits.items()}
        # The same texts, cut elsewhere, are other rows.
        parts = {
            "data": prepared.fingerprint,
            "lengths": {name: sha256(size).hexdigest() for name, size in lengths.items()},
        }
        return cls(task.reference_columns, splits, fingerprint_of(parts))

    def collator(self, collate: Collate, split: Any) -> Collate:
        """Return ``collate`` with ``reference`` in its batches, once that is known. ``split``: one of ``splits`` itself."""
        name = next((name for name, own in self.splits.items() if own is split), None)
        assert name is not None, "rows of this split have no reference"
        return _WithReference(collate, self.values, name)

    def get(self, trainer: Any, *, is_fresh: bool) -> None:
        """Compute the values with the trainer's model and keep them, or read back what was kept. All ranks call it.

        Args:
            is_fresh: whether the model is the one before training.

        Raises:
            RunStateError: training has begun, and what was kept is missing or of other data.
        """
        context = trainer.context
        folder, fingerprint = context.run.reference, self.fingerprint
        if is_fresh:
            self._compute(trainer)
            if context.progress.rank == 0:
                for name, values in self.values.items():
                    row_ids = np.asarray(self.splits[name]["row_id"][:], dtype=np.int64)
                    write_values(folder / f"{name}.parquet", values, self.columns, row_ids, fingerprint=fingerprint)
            barrier()
            return
        found = share(lambda: self._read_or_why_not(folder))
        if isinstance(found, str):
            raise RunStateError(found)
        self.values.update(found)

    def read(self, run: RunDir) -> None:
        """Read the values that a run has kept. Raises RunStateError where they are missing or of other data."""
        self.values.update({name: self._read_split(run.reference, name) for name in self.splits})

    def _compute(self, trainer: Any) -> None:
        started, rows = time.monotonic(), 0
        for name, split in self.splits.items():
            kept, _ = trainer.logits(split, with_loss=False)
            self.values[name] = kept[:, : len(self.columns)]
            rows += len(split)
        trainer.context.progress.say(
            f"reference: {rows:,} rows by the model before training in {time.monotonic() - started:.1f} s"
        )

    def _read_or_why_not(self, folder: Path) -> dict[str, np.ndarray] | str:
        try:
            return {name: self._read_split(folder, name) for name in self.splits}
        except RunStateError as error:
            return str(error)

    def _read_split(self, folder: Path, name: str) -> np.ndarray:
        path = folder / f"{name}.parquet"
        values, of = read_values(path, self.columns)
        if of != self.fingerprint or len(values) != len(self.splits[name]):
            raise RunStateError(
                f"{path} is of other data than these, and only the model before training can tell what these want; bring the data back, "
                "or begin a new run"
            )
        return values


@dataclass(frozen=True)
class _WithReference:
    """A collator that adds each row's reference, by its number in its split."""

    collate: Collate
    values: Mapping[str, np.ndarray]
    split: str

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Return the batch with ``reference``, float32 [rows, columns]; without it, while it is being computed."""
        import torch

        batch = self.collate(rows)
        if self.split in self.values:
            batch["reference"] = torch.from_numpy(self.values[self.split][[row["row_id"] for row in rows]])
        return batch


# --- files -----------------------------------------------------------------------------------------------------------


def write_values(
    path: Path, values: np.ndarray, columns: Sequence[str], row_ids: np.ndarray, *, fingerprint: str
) -> None:
    """Write a parquet file of row_id and ``columns``, atomically. ``fingerprint``: of the data that the rows are of."""
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.table({"row_id": row_ids, **{name: values[:, i] for i, name in enumerate(columns)}})
    table = table.replace_schema_metadata({_METADATA: json.dumps({"fingerprint": fingerprint}).encode()})
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(table, buffer, compression="zstd")
    write_bytes(path, buffer.getvalue())


def read_values(path: Path, columns: Sequence[str]) -> tuple[np.ndarray, str]:
    """Return (float32 [rows, columns], fingerprint) of what ``write_values`` wrote. Raises RunStateError where it is missing or damaged."""
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path)
        facts = json.loads(table.schema.metadata[_METADATA])
        values = np.column_stack([table.column(name).to_numpy() for name in columns])
    except (OSError, pyarrow.ArrowInvalid, KeyError, TypeError, ValueError) as error:
        raise RunStateError(
            f"{path} cannot be read ({type(error).__name__}): it holds what the model before training made of the rows; bring it back, or "
            "begin a new run"
        ) from None
    return np.ascontiguousarray(values, dtype=np.float32), str(facts["fingerprint"])
