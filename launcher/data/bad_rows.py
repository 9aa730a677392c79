"""Rows that cannot be used: the first one is an error, or all are left out, counted and listed; by ``data.on_bad_row``."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from launcher.atomic import write_text
from launcher.data.tables import Fault, Places
from launcher.errors import DataError

SKIPPED_FILE = "skipped.jsonl"
OnBadRow = Literal["error", "skip"]
MOST_SKIPPED = 0.1
"""Share of a split's rows; where more cannot be used something is wrong with the file."""
MOST_LISTED = 100
_SHOWN = 3
_VALUE_WIDTH = 80


@dataclass(frozen=True)
class SkippedRow:
    """A row that was left out."""

    split: str
    file: str
    row: int
    """Number in its file, from 1."""
    place: str
    value: str
    """What it holds, shortened."""
    reason: str


def skipped_row(fault: Fault, *, split: str, places: Places, row: int) -> SkippedRow:
    """Return the ``row``-th row (from 0) of a table as one that is left out."""
    return SkippedRow(
        split,
        places.shown,
        places.before + row + 1,
        places.of(fault, row),
        _short(fault.value),
        " ".join(fault.reason.split()),
    )


def refuse(skipped: Sequence[SkippedRow], *, on_bad_row: OnBadRow) -> None:
    """Raise DataError for the first row that cannot be used, unless they are to be skipped."""
    if skipped and on_bad_row == "error":
        raise DataError(f"{skipped[0].place}: {skipped[0].reason}")


def refuse_many(skipped: Sequence[SkippedRow], *, split: str, kept: int) -> None:
    """Raise DataError where more than MOST_SKIPPED of the rows of ``split`` cannot be used."""
    bad = [row for row in skipped if row.split == split]
    total = len(bad) + kept
    if len(bad) > MOST_SKIPPED * total:
        raise DataError(
            f"{len(bad):,} of the {total:,} {split} rows ({len(bad) / total:.0%}) cannot be used, which is more than the {MOST_SKIPPED:.0%} that "
            f"data.on_bad_row: skip leaves out; look at the file, the format and data.columns. {_first(bad)}"
        )


def skip_notes(skipped: Sequence[SkippedRow], *, file: str) -> list[str]:
    """Return a warning for each split of which rows were left out; ``file`` lists them all."""
    return [
        f"{len(bad):,} {split} rows cannot be used and were skipped (data.on_bad_row: skip); all are listed in {file}. {_first(bad)}"
        for split, bad in _by_split(skipped).items()
    ]


def skip_facts(skipped: Sequence[SkippedRow], *, file: str) -> dict[str, Any]:
    """Return plain values: how many rows were left out by split, the first MOST_LISTED of them, and the file that lists all."""
    counts = {split: len(bad) for split, bad in _by_split(skipped).items()}
    return {"counts": counts, "rows": [asdict(row) for row in skipped[:MOST_LISTED]], "file": file}


def as_lines(skipped: Iterable[SkippedRow]) -> str:
    """Return one JSON object a line."""
    return "".join(json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in skipped)


def list_beside(folder: Path, skipped: Sequence[SkippedRow]) -> None:
    """Write the rows that were left out beside the prepared ones, unless the list is there."""
    if listed_beside(folder, number=len(skipped)) is None:
        write_text(folder / SKIPPED_FILE, as_lines(skipped))


def listed_beside(folder: Path, *, number: int) -> tuple[SkippedRow, ...] | None:
    """Return the ``number`` rows that are listed beside prepared ones; None where the list is missing or is not whole."""
    if not number:
        return ()
    try:
        lines = (folder / SKIPPED_FILE).read_text(encoding="utf-8").split("\n")
        found = tuple(SkippedRow(**json.loads(line)) for line in lines if line)
    except (OSError, ValueError, TypeError):
        return None
    return found if len(found) == number else None


def _by_split(skipped: Sequence[SkippedRow]) -> dict[str, list[SkippedRow]]:
    names = dict.fromkeys(row.split for row in skipped)
    return {name: [row for row in skipped if row.split == name] for name in names}


def _first(bad: Sequence[SkippedRow]) -> str:
    more = f"; and {len(bad) - _SHOWN:,} more" if len(bad) > _SHOWN else ""
    return "The first: " + "; ".join(f"{row.place}: {row.reason}" for row in bad[:_SHOWN]) + more


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else repr(value)
    # Bytes that are no text, and halves of characters, cannot be written.
    flat = " ".join(text[: 4 * _VALUE_WIDTH].encode("utf-8", "backslashreplace").decode().split())
    return flat if len(flat) <= _VALUE_WIDTH else f"{flat[: _VALUE_WIDTH - 3]}..."
