"""The model whose tables are drawn, the recipes, and what was measured."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from launcher import registry
from launcher.contracts import Parameter, Phase
from launcher.plans import BatchPlan, LaunchPlan, RunPlan
from launcher.recipe.load import load_recipe
from launcher.recipe.schema import Recipe

DOCS = Path(__file__).resolve().parents[1]
ROWS = 560
"""Training rows of the built-in data."""


@functools.cache
def parameters() -> tuple[Parameter, ...]:
    """Return those of the quickstart's model, a BERT with six blocks of width 384, and a new head for 14 labels."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    from launcher.strategies.layers import list_parameters

    config = BertConfig(
        hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536, num_labels=14
    )
    with torch.device("meta"):
        model = BertForSequenceClassification(config)
    return list_parameters(model, newly_initialized={"classifier.weight", "classifier.bias"})


@functools.cache
def recipe(name: str, *changes: str) -> Recipe:
    """Return a shipped recipe with changes."""
    return load_recipe(name, changes).recipe


def phases_of(changed: Recipe, importance: Mapping[str, Any] | None = None) -> tuple[Phase, ...]:
    """Return the phases of a recipe on the model."""
    found = registry.load(registry.STRATEGIES, changed.strategy.type)()
    phases: tuple[Phase, ...] = found.phases(parameters(), changed, importance)
    return phases


def measured(name: str) -> Any:
    """Return the values of a measurement."""
    return json.loads((DOCS / "pictures" / "data" / f"{name}.json").read_text(encoding="utf-8"))


def plan_of(changed: Recipe) -> RunPlan:
    """Return the plan of a recipe on one process."""
    from launcher.planning.plan import plan_run

    batch = BatchPlan(changed.training.global_batch_size, 1, changed.training.global_batch_size, 1)
    launch = LaunchPlan("single", None, "fp32", "cpu", nodes=1, processes_per_node=1, batch=batch)
    return plan_run(changed, launch, phases_of(changed), train_rows=ROWS, facts={})


def quickstart(*options: str) -> Recipe:
    """Return the quickstart's recipe with options of the strategy."""
    return recipe("quickstart/api-topics", *(f"strategy.{option}" for option in options))
