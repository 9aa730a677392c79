"""Full fine-tuning: every parameter trains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from launcher.contracts import Parameter, Phase, TuningTable
from launcher.recipe.schema import FullOptions, Recipe
from launcher.strategies.tables import build_table, freeze, weight_decay


class Full:
    """All parameters at ``training.learning_rate``; embeddings and head may have rates of their own."""

    def phases(
        self, parameters: Sequence[Parameter], recipe: Recipe, importance: Mapping[str, Any] | None = None
    ) -> tuple[Phase, ...]:
        """Return one phase in which everything trains."""
        options = recipe.strategy
        assert isinstance(options, FullOptions)
        own = {"embeddings": options.embedding_lr, "head": options.head_lr}

        def rate(parameter: Parameter) -> float:
            return own.get(parameter.role) or recipe.training.learning_rate

        decay = weight_decay(recipe)
        return (Phase("main", build_table(parameters, rate=rate, weight_decay=decay)),)

    def apply(self, model: Any, table: TuningTable) -> Any:
        """Mark every parameter as trainable."""
        return freeze(model, table)
