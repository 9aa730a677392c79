"""The model that a run starts from, as every program that trains builds it."""

from __future__ import annotations

from typing import Any

from transformers import set_seed

from launcher.contracts import Parameter, Prepared
from launcher.plans import LaunchPlan
from launcher.recipe.schema import Recipe
from launcher.strategies.layers import list_parameters
from launcher.strategies.quantization import is_quantized, kept_whole, prepare_quantized, quantization_config
from launcher.strategies.targets import modules_to_save_for


def build_model(recipe: Recipe, launch: LaunchPlan, task: Any, prepared: Prepared) -> tuple[Any, tuple[Parameter, ...]]:
    """Return the model with its pretrained weights and a head of the seed's, and its parameters as a strategy sees them.

    Raises:
        ModelError: the model cannot be loaded.
        InstallationError: the recipe asks for quantised weights, and bitsandbytes is missing.
    """
    if not is_quantized(recipe.strategy):
        set_seed(recipe.training.seed)
        loaded = task.build_model(prepared)
        return loaded.model, list_parameters(loaded.model, newly_initialized=loaded.newly_initialized)
    # Quantised weights no longer have their shapes: those are told from a model without weights.
    skeleton = task.build_model(prepared, skeleton=True)
    parameters = list_parameters(skeleton.model, newly_initialized=skeleton.newly_initialized)
    dtype = "bfloat16" if launch.precision == "bf16" else "float32"
    whole = modules_to_save_for(parameters, recipe.strategy.modules_to_save)  # type: ignore[union-attr]
    skip = kept_whole(skeleton.model, whole)
    quantization = quantization_config(recipe.strategy, compute_dtype=dtype, skip=skip)
    set_seed(recipe.training.seed)
    return prepare_quantized(task.build_model(prepared, quantization=quantization).model), parameters
