"""Sources of train that are drawn from by weight: how many rows of each an epoch has, and how often each row comes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from typing import Any

import numpy as np

from launcher.contracts import Prepared
from launcher.errors import DataError
from launcher.recipe.data_section import DataSection


@dataclass(frozen=True)
class SourceShare:
    """A source of train, and its part of an epoch."""

    source: str
    rows: int
    """Rows of it that train; of a task that divides texts, rows of the model."""
    weight: float
    drawn: int
    """Rows of it in each epoch; more than it has where rows are repeated."""
    share: float
    """Of the rows of an epoch, 0 to 1."""


def rows_of_sources(rows: Sequence[int], weights: Sequence[float], *, stopping_strategy: str) -> list[int]:
    """Return how many rows of each source an epoch has, the same in every epoch.

    ``first_exhausted``: the epoch ends where the first source is used up, of which each row comes once; of others a part comes.
    ``all_exhausted``: it ends where the last one is used up; rows of the others come several times. Shares are exact but for less
    than a row; the weights are taken as the decimal numbers that they are written as.
    """
    exact = [Fraction(str(weight)) for weight in weights]
    total = sum(exact)
    # The rows of an epoch whose part of each source would be all of it, once.
    lengths = [count * total / weight for count, weight in zip(rows, exact, strict=True)]
    length = min(lengths) if stopping_strategy == "first_exhausted" else max(lengths)
    whole = [number for number, one in enumerate(lengths) if one == length]
    # Towards what neither takes a row twice under first_exhausted nor leaves one out under all_exhausted.
    epoch = int(length) if stopping_strategy == "first_exhausted" else -int(-length // 1)
    rest = epoch - sum(rows[number] for number in whole)
    others = sum(weight for number, weight in enumerate(exact) if number not in whole)
    parts = [
        Fraction(rows[number]) if number in whole else rest * weight / others for number, weight in enumerate(exact)
    ]
    found = [int(part) for part in parts]
    by_remainder = sorted(range(len(parts)), key=lambda number: found[number] - parts[number])
    for number in by_remainder[: epoch - sum(found)]:
        found[number] += 1
    return found


def with_mixture(prepared: Prepared, data: DataSection) -> Prepared:
    """Return prepared rows that are drawn in training as the weights of ``data.train`` say, and that among their facts.

    Raises DataError where a source would give no row.
    """
    specs = data.weighted
    if not specs:
        return prepared
    # Where the rows of a source begin is kept with them; weights are not, so that new ones prepare nothing anew.
    firsts = np.asarray(prepared.facts["sources"], dtype=np.int64)
    numbers = np.searchsorted(firsts, np.asarray(prepared.train["row_id"][:], dtype=np.int64), side="right") - 1
    counts = np.bincount(numbers, minlength=len(specs)).tolist()
    weights = [float(spec.weight or 0) for spec in specs]
    for number, count in enumerate(counts):
        if not count:
            raise DataError(f"data.train[{number}]: no row of {specs[number].source} trains; remove this source")
    drawn = rows_of_sources(counts, weights, stopping_strategy=data.stopping)
    for number, count in enumerate(drawn):
        if not count:
            raise DataError(
                f"data.train[{number}].weight is {weights[number]:g}, so an epoch of {sum(drawn):,} rows would have none of "
                f"{specs[number].source}; raise it, write stopping_strategy: all_exhausted, or remove the source"
            )
    draws = _draws(numbers, counts, drawn)
    return replace(
        prepared, draws=draws, facts={**prepared.facts, "mixture": _facts(prepared, data, counts, drawn, draws)}
    )


def _draws(numbers: np.ndarray, counts: Sequence[int], drawn: Sequence[int]) -> np.ndarray:
    """Return how often each row comes in an epoch, float64 [rows]; no two sources have equal numbers but where each row comes once.

    Rows of equal numbers are drawn as one group (``data.sampling.draw_rows``): two sources in one would have their shares by chance.
    """
    each: list[float] = []
    for count, wanted in zip(counts, drawn, strict=True):
        value = wanted / count
        while value != 1 and value in each:
            value = float(np.nextafter(value, np.inf))
        each.append(value)
    return np.asarray(each, dtype=np.float64)[numbers]


def _facts(
    prepared: Prepared, data: DataSection, counts: Sequence[int], drawn: Sequence[int], draws: np.ndarray
) -> dict[str, Any]:
    rows = sum(drawn)
    sources = [
        SourceShare(spec.source, count, float(spec.weight or 0), wanted, wanted / rows)
        for spec, count, wanted in zip(data.weighted, counts, drawn, strict=True)
    ]
    lengths = np.asarray(prepared.train["length"][:], dtype=np.float64)
    return {
        "stopping_strategy": data.stopping,
        "rows": rows,
        "tokens": round(float((lengths * draws).sum())),
        "sources": [asdict(source) for source in sources],
        "told": _told(sources, rows=rows, stopping_strategy=data.stopping),
    }


def _told(sources: Sequence[SourceShare], *, rows: int, stopping_strategy: str) -> str:
    parts = ", ".join(f"{one.drawn:,} of {one.source} ({one.share:.1%})" for one in sources)
    return f"{stopping_strategy}; an epoch has {rows:,} rows: {parts}"
