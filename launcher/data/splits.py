"""A seeded share of train to validate on: stratified by label, with equal texts, and rows of a group, kept on one side."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Hashable, Sequence

from launcher.errors import DataError


def split_share(
    keys: Sequence[Hashable], *, share: float, seed: int, strata: Sequence[Hashable] | None = None
) -> tuple[list[int], list[int]]:
    """Return (rows to train on, rows to validate on), both ascending, from 0; together each row once.

    ``keys``: [rows] rows with equal keys (equal texts) stay on one side. ``strata``: [rows] their labels, each of which
    gives the same share within one group of equal rows; a label with a single group stays in train. None: no strata.
    The choice depends on seed and order only (sha256, no generator), so it is the same on every machine.

    Raises:
        DataError: fewer than two different rows.
    """
    groups: dict[Hashable, list[int]] = defaultdict(list)
    for row, key in enumerate(keys):
        groups[key].append(row)
    members = list(groups.values())
    if len(members) < 2:
        raise DataError(
            f"train has {len(members)} different row(s), from which no validation rows can be set aside; "
            "add rows, or name a validation source"
        )
    held = _held_out([strata[rows[0]] if strata is not None else None for rows in members], share=share, seed=seed)
    validation = sorted(row for group in held for row in members[group])
    chosen = set(validation)
    return [row for row in range(len(keys)) if row not in chosen], validation


def linked(keys: Sequence[Hashable], groups: Sequence[Hashable | None]) -> list[int]:
    """Return [rows] numbers that are equal where rows have the same key or group, or are joined by others that have.

    ``groups``: None for a row of no group.
    """
    above = list(range(len(keys)))

    def top(row: int) -> int:
        while above[row] != row:
            above[row] = above[above[row]]
            row = above[row]
        return row

    first: dict[tuple[str, Hashable], int] = {}
    for row, (key, group) in enumerate(zip(keys, groups, strict=True)):
        for name in (("key", key), ("group", group))[: 1 if group is None else 2]:
            above[top(row)] = top(first.setdefault(name, row))
    return [top(row) for row in range(len(keys))]


def _held_out(strata: Sequence[Hashable], *, share: float, seed: int) -> list[int]:
    """Return the numbers of the held-out items: of each stratum its share, the total rounded once over all."""
    by_stratum: dict[Hashable, list[int]] = defaultdict(list)
    for item, stratum in enumerate(strata):
        by_stratum[stratum].append(item)
    pools = [sorted(items, key=lambda item: _rank(seed, item)) for items in by_stratum.values()]
    sizes = _sizes([len(pool) for pool in pools], share=share, seed=seed)
    return [item for pool, size in zip(pools, sizes, strict=True) for item in pool[:size]]


def _sizes(totals: Sequence[int], *, share: float, seed: int) -> list[int]:
    """Largest remainders: each stratum's share rounded down, and what is missing to the total given by remainder.

    No stratum gives its last item.
    """
    sizes = [min(int(total * share), total - 1) for total in totals]
    missing = max(1, round(sum(totals) * share)) - sum(sizes)
    order = sorted(range(len(totals)), key=lambda s: (-(totals[s] * share - sizes[s]), _rank(seed, s)))
    for stratum in order:
        if missing > 0 and sizes[stratum] < totals[stratum] - 1:
            sizes[stratum] += 1
            missing -= 1
    if not any(sizes):
        raise DataError(
            f"each of the {len(totals)} labels of train stands on one row only, so no validation rows can be set aside; "
            "add rows, or name a validation source (if the labels are numbers to predict, set problem_type: regression)"
        )
    return sizes


def _rank(seed: int, item: int) -> bytes:
    return hashlib.sha256(f"{seed}:{item}".encode()).digest()
