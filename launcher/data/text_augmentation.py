"""Changes of texts in training that seldom change what they say: words replaced by others of a list, and tokens left out."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from launcher.recipe.synonyms_file import WORD


def with_synonyms(
    text: str, synonyms: Mapping[str, Sequence[str]], *, probability: float, generator: np.random.Generator
) -> str:
    """Return ``text`` with words replaced by words that may stand for them; the same generator gives the same text.

    Each word that has synonyms is replaced with this probability, by one of them, each as likely (Zhang et al. 2015, arXiv:1509.01626,
    section 2.4, draws from a thesaurus too). A word counts whole, in any case; a capital first letter stays one.

    Args:
        synonyms: word in lower case -> what may stand for it.
    """
    return WORD.sub(lambda match: _replaced(match[0], synonyms, probability, generator), text)


def _replaced(word: str, synonyms: Mapping[str, Sequence[str]], probability: float, rng: np.random.Generator) -> str:
    others = synonyms.get(word.lower())
    if not others or rng.random() >= probability:
        return word
    other = others[int(rng.integers(len(others)))]
    return other[0].upper() + other[1:] if word[0].isupper() else other


def kept_tokens(units: np.ndarray, *, probability: float, generator: np.random.Generator) -> np.ndarray:
    """Return which tokens of a row stay, bool [tokens]: each unit is left out with this probability, by itself; one at least stays.

    Args:
        units: int [tokens], the number of what each token is left out with (itself, or its word); -1: it always stays.
    """
    known, unit_of = np.unique(units, return_inverse=True)
    stays = (generator.random(len(known)) >= probability) | (known < 0)
    ordinary = np.flatnonzero(known >= 0)
    if len(ordinary) and not stays[ordinary].any():
        stays[ordinary[generator.integers(len(ordinary))]] = True
    return np.asarray(stays[unit_of])


def without_tokens(row: Mapping[str, Any], kept: np.ndarray, *, names: Collection[str]) -> dict[str, Any]:
    """Return a row with those of its tokens that are ``kept``, bool [tokens], in the columns ``names``, which have a value for each."""
    places = np.flatnonzero(kept).tolist()
    return {name: [values[place] for place in places] if name in names else values for name, values in row.items()}
