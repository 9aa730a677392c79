"""Texts that are nearly the same as others: told by the share of word triples that two have in common."""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

LEAST = 0.8
"""Share of triples in common (Jaccard) from which two texts count as nearly the same."""

MOST_TEXTS = 20_000
"""Of more texts an evenly spaced sample of that size is looked at."""

_TRIPLE = 3
# Two texts of likeness s meet in a band with probability 1 - (1 - s^4)^32: 0.9999 for 0.8, 0.24 for 0.3.
_BANDS, _ROWS = 32, 4
_MOST_IN_BUCKET = 50
_PRIME = np.uint64((1 << 31) - 1)
_WORDS = re.compile(r"\w+")


@dataclass(frozen=True)
class NearText:
    """A text that is nearly the same as another."""

    row: int
    """Its place among the texts."""
    other: int
    """Place of the one that it is like: an earlier text, or one of those that it was compared with."""
    likeness: float
    """Share of triples in common, 0 to 1."""


def near_texts(texts: Sequence[str], others: Sequence[str] | None = None, *, least: float = LEAST) -> list[NearText]:
    """Return the texts that are like an earlier one, or like one of ``others``, each with the one that it is most like.

    The same texts, case, spacing and marks aside, count too. Candidates are found by MinHash in bands, and compared exactly. Source:
    Broder 1997, "On the resemblance and containment of documents", section 4; bands: Leskovec, Rajaraman and Ullman 2014, "Mining of
    Massive Datasets", section 3.4.
    """
    earlier = [] if others is None else [_triples(text) for text in others]
    own = [_triples(text) for text in texts]
    buckets: dict[tuple[int, bytes], list[int]] = defaultdict(list)
    for place, triples in enumerate(earlier):
        _add(buckets, place, triples)
    found = []
    for row, triples in enumerate(own):
        known = own if others is None else earlier
        near = [(_likeness(triples, known[place]), -place) for place in _candidates(buckets, triples)]
        likeness, place = max(near, default=(0.0, 0))
        if likeness >= least:
            found.append(NearText(row, -place, likeness))
        if others is None:
            _add(buckets, row, triples)
    return found


def _triples(text: str) -> frozenset[int]:
    """Return a hash below 2^31 of each three words in a row; a shorter text is one piece."""
    words = _WORDS.findall(text.casefold())
    pieces = {" ".join(words[n : n + _TRIPLE]) for n in range(max(1, len(words) - _TRIPLE + 1))}
    return frozenset(
        int.from_bytes(hashlib.blake2b(piece.encode("utf-8", "replace"), digest_size=4).digest()) >> 1
        for piece in pieces
    )


def _bands(triples: frozenset[int]) -> Iterable[tuple[int, bytes]]:
    values = np.fromiter(triples, dtype=np.uint64, count=len(triples))
    smallest = ((values[:, None] * _FACTORS + _OFFSETS) % _PRIME).min(axis=0).reshape(_BANDS, _ROWS)
    return ((band, row.tobytes()) for band, row in enumerate(smallest))


def _add(buckets: dict[tuple[int, bytes], list[int]], place: int, triples: frozenset[int]) -> None:
    for key in _bands(triples):
        # Of texts that are all alike a few stand for all.
        if len(buckets[key]) < _MOST_IN_BUCKET:
            buckets[key].append(place)


def _candidates(buckets: dict[tuple[int, bytes], list[int]], triples: frozenset[int]) -> set[int]:
    return {place for key in _bands(triples) for place in buckets.get(key, ())}


def _likeness(one: frozenset[int], other: frozenset[int]) -> float:
    return len(one & other) / len(one | other)


_FACTORS, _OFFSETS = np.random.default_rng(0).integers(1, int(_PRIME), size=(2, _BANDS * _ROWS), dtype=np.uint64)
