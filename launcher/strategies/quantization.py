"""Frozen weights in 4 or 8 bits by bitsandbytes, with adapters of full precision on top (QLoRA)."""

from __future__ import annotations

from typing import Any

from launcher.errors import InstallationError
from launcher.recipe.strategy_options import LoraOptions


def quantization_config(options: Any, *, compute_dtype: str = "bfloat16", skip: tuple[str, ...] = ()) -> Any | None:
    """Return transformers' BitsAndBytesConfig, or None where nothing is quantised.

    4 bits are nf4 with double quantisation (QLoRA, Dettmers et al. 2023, section 3).

    Args:
        options: the recipe's ``strategy``.
        compute_dtype: type in which 4-bit weights are multiplied.
        skip: modules that keep full precision: those that train whole.

    Raises:
        InstallationError: bitsandbytes or a GPU is missing.
    """
    if not isinstance(options, LoraOptions) or not (options.load_in_4bit or options.load_in_8bit):
        return None
    _require_installation("4" if options.load_in_4bit else "8")
    import torch
    from transformers import BitsAndBytesConfig

    if options.load_in_8bit:
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=list(skip))
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=getattr(torch, compute_dtype),
        llm_int8_skip_modules=list(skip),
    )


def prepare_quantized(model: Any) -> Any:
    """Return a model that was loaded in 4 or 8 bits, ready for adapters: its other weights in float32 and all of it frozen.

    Checkpointing of activations is left to the trainer, which uses its non-reentrant form: that one needs no gradients of the
    inputs.
    """
    from peft import prepare_model_for_kbit_training

    return prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)


def _require_installation(bits: str) -> None:
    import importlib.util

    import torch

    key = f"strategy.load_in_{bits}bit"
    if importlib.util.find_spec("bitsandbytes") is None:
        raise InstallationError(
            f"{key} is true, but bitsandbytes is not installed; pip install bitsandbytes, or remove it"
        )
    if not torch.cuda.is_available():
        raise InstallationError(f"{key} is true, but this machine has no GPU that torch can use; remove it, or use one")
