"""Counts of right and wrong decisions by class, and the precision, recall and F1 that follow from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Counts:
    """Counts per class, float64 [c] (or [resamples, c]): right predictions, all predictions, and rows of the class."""

    hits: np.ndarray
    predicted: np.ndarray
    support: np.ndarray

    @property
    def present(self) -> np.ndarray:
        """Classes that occur in labels or predictions, bool; averages run over these, as scikit-learn's do."""
        return np.asarray((self.predicted + self.support) > 0)

    @property
    def precision(self) -> np.ndarray:
        """Right share of a class's predictions; 0 where it is never predicted."""
        return ratio(self.hits, self.predicted)

    @property
    def recall(self) -> np.ndarray:
        """Share of a class's rows that is found; 0 where it has no rows."""
        return ratio(self.hits, self.support)

    @property
    def f1(self) -> np.ndarray:
        """Harmonic mean of precision and recall; 0 where both are."""
        return ratio(2 * self.hits, self.predicted + self.support)

    def macro(self, values: np.ndarray) -> np.ndarray:
        """Return the mean of ``values`` over the classes that are present, [] (or [resamples])."""
        return ratio((values * self.present).sum(axis=-1), self.present.sum(axis=-1))

    def micro_f1(self) -> np.ndarray:
        """Return F1 over all decisions together, [] (or [resamples])."""
        return ratio(2 * self.hits.sum(axis=-1), (self.predicted + self.support).sum(axis=-1))

    def records(self, names: Sequence[str]) -> list[dict[str, Any]]:
        """Return one record per class [c]: name, support, predicted, precision, recall, f1."""
        return [
            {"name": name, "support": int(self.support[k]), "predicted": int(self.predicted[k]),
             "precision": float(self.precision[k]), "recall": float(self.recall[k]), "f1": float(self.f1[k])}
            for k, name in enumerate(names)
        ]  # fmt: skip


def ratio(above: Any, below: Any) -> np.ndarray:
    """Return ``above / below`` elementwise; 0 where ``below`` is not positive."""
    above, below = np.asarray(above, dtype=np.float64), np.asarray(below, dtype=np.float64)
    return np.asarray(np.divide(above, below, out=np.zeros(np.broadcast(above, below).shape), where=below > 0))
