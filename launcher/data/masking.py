"""Tokens that are hidden from a model, for it to tell which they were (Devlin et al. 2019, arXiv:1810.04805, section 3.1)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Masking:
    """How the tokens of a row are masked."""

    probability: float
    """Of a token, or of a word, to be one that is predicted."""
    mask_share: float
    """Share of predicted tokens that are replaced by the mask token."""
    random_share: float
    """Share of predicted tokens that are replaced by a random one; the others stay as they are."""
    mask_id: int
    special_ids: np.ndarray
    """Tokens that are never predicted, int64."""
    random_ids: np.ndarray
    """Tokens that a random one is drawn from, int64."""

    def choose(self, ids: np.ndarray, words: np.ndarray | None, generator: np.random.Generator) -> np.ndarray:
        """Return which tokens are predicted, bool [tokens].

        Each token, or each word with all of its tokens, is chosen by itself; where none is, one is: so each row that has a token
        to predict counts. Special tokens are never chosen, also inside a word.

        Args:
            ids: int [tokens].
            words: int [tokens], the number of each token's word; None: each token is chosen by itself.
        """
        candidates = np.flatnonzero(~np.isin(ids, self.special_ids))
        chosen = np.zeros(len(ids), dtype=bool)
        if not len(candidates):
            return chosen
        units, unit_of = np.unique(candidates if words is None else words[candidates], return_inverse=True)
        drawn = generator.random(len(units)) < self.probability
        if not drawn.any():
            drawn[generator.integers(len(units))] = True
        chosen[candidates] = drawn[unit_of]
        return chosen

    def replace(self, ids: np.ndarray, chosen: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """Return what the model sees, int64 [tokens]: ``ids`` with those that are ``chosen`` masked, replaced or left."""
        seen, places = ids.astype(np.int64), np.flatnonzero(chosen)
        draw = generator.random(len(places))
        others = self.random_ids[generator.integers(len(self.random_ids), size=len(places))]
        seen[places[draw < self.mask_share]] = self.mask_id
        is_random = (draw >= self.mask_share) & (draw < self.mask_share + self.random_share)
        seen[places[is_random]] = others[is_random]
        return seen
