"""Feature extraction: only the head trains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from launcher.contracts import Parameter, Phase, Strategy
from launcher.errors import ModelError
from launcher.recipe.schema import Recipe
from launcher.recipe.strategy_options import HeadOptions
from launcher.strategies.tables import build_table, regularization


class Head(Strategy):
    """The head trains (and the pooler, if asked), without weight decay unless the recipe sets it."""

    def phases(
        self, parameters: Sequence[Parameter], recipe: Recipe, importance: Mapping[str, Any] | None = None
    ) -> tuple[Phase, ...]:
        """Return one phase in which the head trains. Raises ModelError where its weight is the embeddings' too."""
        options = recipe.strategy
        assert isinstance(options, HeadOptions)
        tied = next((p.name for p in parameters if "head" in p.also), None)
        if tied is not None:
            raise ModelError(
                f"strategy.type is head, but {tied} is the head's weight and the embeddings' in one, so training it would change "
                "the features; use layerwise, lora or full (or model.config: {tie_word_embeddings: false}, with a new head)"
            )
        roles = {"head", "tail"} if options.train_pooler else {"head"}

        def rate(parameter: Parameter) -> float:
            trains = parameter.role in roles or parameter.newly_initialized
            return recipe.training.learning_rate if trains else 0.0

        # Linear probes are trained without weight decay (MAE, He et al. 2022, appendix A.1).
        pull = regularization(recipe, weight_decay=0.0)
        table = build_table(parameters, rate=rate, regularization=pull)
        return (Phase("main", table, frozen_eval=options.frozen_eval),)
