"""Rows that are read while training: this rank's share of each global batch, and the place where a resumed run goes on."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch.utils.data import IterableDataset, get_worker_info

from launcher.atomic import append_json, read_jsonl
from launcher.data.bad_rows import SkippedRow, skip_notes
from launcher.data.sampling import rank_share
from launcher.data.streams import Position, Row, Stream, StreamBatch
from launcher.engine.loading import NOT_FEATURES, WithRowIds


class MicroBatch(NamedTuple):
    """This rank's rows of one pass."""

    rows: list[Row]
    end: Position
    """Where the next global batch begins."""
    skipped: Sequence[SkippedRow]
    """Rows of all ranks that were left out since the global batch before; with its first pass only."""


class StreamedBatches(IterableDataset[MicroBatch]):
    """A rank's micro-batches of a stream.

    Every process reads all rows, so that each knows every global batch without asking another, and makes features of its own share alone
    (of texts that are divided, of all). Of several workers each makes the micro-batches whose turn it is.
    """

    def __init__(
        self, stream: Stream, *, start: Position, steps: int, size: int, spread: Mapping[str, int],
        also: Sequence[str] = (),
    ) -> None:  # fmt: skip
        """``spread``: accumulation, rank, world_size and least_rows (``launcher.data.sampling.rank_share``); ``also``: as of ``Rows``."""
        self.stream = stream
        self.start = start
        self.steps = steps
        self.size = size
        self.spread = dict(spread)
        self.left_out = NOT_FEATURES - set(also)

    def __len__(self) -> int:
        """Micro-batches on one rank."""
        return self.steps * self.spread["accumulation"]

    def __iter__(self) -> Iterator[MicroBatch]:
        """Yield the micro-batches in their order, or those of this worker."""
        worker = get_worker_info()
        mine, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        turns = itertools.cycle(range(workers))
        for batch in itertools.islice(self.stream.batches(self.start, size=self.size), self.steps):
            shares = rank_share(np.arange(len(batch.rows)), **self.spread)
            for number, share in enumerate(shares):
                if next(turns) == mine:
                    yield MicroBatch(self._rows(batch, share), batch.end, [] if number else batch.skipped)

    def _rows(self, batch: StreamBatch, share: Sequence[int]) -> list[Row]:
        """Return the features of some rows of a batch; ``-1 - number`` is a copy of weight 0."""
        rows = [batch.rows[number if number >= 0 else -1 - number] for number in share]
        if not self.stream.features.divides:
            rows = self.stream.featured(rows)
        return [
            {
                **{name: value for name, value in row.items() if name not in self.left_out},
                "row_id": row["row_id"],
                "weight": float(number >= 0),
                "epoch": batch.epoch,
            }
            for number, row in zip(share, rows, strict=True)
        ]


class WithPosition:
    """A collator that also keeps row numbers, and what the stream says of a micro-batch."""

    def __init__(self, collate: Callable[[Sequence[Row]], dict[str, Any]]) -> None:
        self.collate = WithRowIds(collate)

    def __call__(self, part: MicroBatch) -> dict[str, Any]:
        """Return the batch, with ``row_numbers``, ``stream_end`` and ``stream_skipped``."""
        return {**self.collate(part.rows), "stream_end": part.end, "stream_skipped": part.skipped}


class Streamed:
    """Where a run stands in its stream, and the list of what was left out of it."""

    def __init__(self, listed: Path, progress: Any) -> None:
        """``listed``: the file that lists rows which were left out."""
        self.position = Position()
        self.listed = listed
        self.progress = progress
        self._known: set[tuple[str, int]] | None = None

    def resume(self, manifest: Mapping[str, Any], fingerprint: str) -> None:
        """Go on where a checkpoint was written; with other files (which had to be allowed) in the epoch after that."""
        if "stream" in manifest:
            found = Position.from_json(manifest["stream"])
            is_same = manifest["data_fingerprint"] == fingerprint
            self.position = found if is_same else Position(epoch=found.epoch + 1)

    def note(self, batches: Sequence[dict[str, Any]]) -> None:
        """Take what the stream says out of the micro-batches of a step, and list the rows that were left out."""
        for batch in batches:
            self.position = batch.pop("stream_end", self.position)
            skipped = batch.pop("stream_skipped", ())
            if skipped and self.progress.rank == 0:
                self._list(skipped)

    def _list(self, skipped: Sequence[SkippedRow]) -> None:
        if self._known is None:
            # What was left out before a crash is left out again after it.
            self._known = {(row["file"], row["row"]) for row in read_jsonl(self.listed)}
        new = [row for row in skipped if (row.file, row.row) not in self._known]
        for row in new:
            self._known.add((row.file, row.row))
            append_json(self.listed, asdict(row))
        for note in skip_notes(new, file=str(self.listed)):
            self.progress.warn(note)
