"""Full fine-tuning: every parameter trains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from launcher.contracts import Parameter, Phase, Strategy
from launcher.recipe.schema import Recipe
from launcher.recipe.strategy_options import FullOptions
from launcher.strategies.tables import build_table, regularization


class Full(Strategy):
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

        pull = regularization(recipe)
        return (Phase("main", build_table(parameters, rate=rate, regularization=pull)),)
