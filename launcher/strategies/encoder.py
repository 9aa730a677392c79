"""Encoder-only fine-tuning: the blocks train, embeddings and the pretrained task part keep their values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from launcher.contracts import Parameter, Phase, Strategy
from launcher.errors import ModelError
from launcher.recipe.schema import Recipe
from launcher.recipe.strategy_options import EncoderOptions
from launcher.strategies.layers import number_of_blocks
from launcher.strategies.tables import build_table, regularization


class Encoder(Strategy):
    """The chosen components of every block train; whatever is newly initialised trains too."""

    def phases(
        self, parameters: Sequence[Parameter], recipe: Recipe, importance: Mapping[str, Any] | None = None
    ) -> tuple[Phase, ...]:
        """Return one phase. Raises ModelError for a model without blocks, or a new head that ``train_head`` freezes."""
        options = recipe.strategy
        assert isinstance(options, EncoderOptions)
        if not number_of_blocks(parameters):
            raise ModelError(
                "strategy.type is encoder, but no numbered blocks were found in this model; use full or head"
            )
        base = recipe.training.learning_rate

        def rate(parameter: Parameter) -> float:
            if parameter.role == "head":
                return (options.head_lr or base) if options.train_head else 0.0
            if parameter.newly_initialized:
                return base
            if parameter.role == "block":
                return base if parameter.component in options.components else 0.0
            return base if parameter.role == "embeddings" and options.train_embeddings else 0.0

        pull = regularization(recipe)
        return (Phase("main", build_table(parameters, rate=rate, regularization=pull)),)
