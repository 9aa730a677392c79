"""Frozen weights in 4 or 8 bits by bitsandbytes, with adapters of full precision on top (QLoRA)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from launcher.errors import InstallationError
from launcher.recipe.strategy_options import LoraOptions


def is_quantized(options: Any) -> bool:
    """Whether a recipe's ``strategy`` asks for weights in 4 or 8 bits."""
    return isinstance(options, LoraOptions) and (options.load_in_4bit or options.load_in_8bit)


def quantization_config(options: Any, *, compute_dtype: str = "bfloat16", skip: tuple[str, ...] = ()) -> Any | None:
    """Return transformers' BitsAndBytesConfig, or None where nothing is quantised.

    4 bits are nf4 with double quantisation (QLoRA, Dettmers et al. 2023, section 3).

    Args:
        options: the recipe's ``strategy``.
        compute_dtype: type in which 4-bit weights are multiplied.
        skip: modules that keep full precision, as ``kept_whole`` names them.

    Raises:
        InstallationError: bitsandbytes is missing.
    """
    if not is_quantized(options):
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


def kept_whole(skeleton: Any, modules_to_save: Sequence[str]) -> tuple[str, ...]:
    """Return the modules that are not quantised: those that train whole, and those that transformers keeps (the output layer, tied ones).

    transformers' own are lost as soon as any are named, so all of them are.
    """
    from transformers.quantizers.base import get_keys_to_not_convert

    return (
        *modules_to_save,
        *(name for name in sorted(get_keys_to_not_convert(skeleton)) if name not in modules_to_save),
    )


def quantized_bytes(skeleton: Any, options: Any, kept: Sequence[str]) -> dict[str, float]:
    """Return name of a quantised weight -> bytes of one of its elements, its scales included.

    4 bits: blocks of 64 share a scale of 8 bits, and 256 of these one of 32 (QLoRA, section 3). 8 bits: a scale for each row.

    Args:
        skeleton: the model without its weights.
        kept: what ``kept_whole`` returned.
    """
    from torch import nn
    from transformers.pytorch_utils import Conv1D
    from transformers.quantizers.quantizers_utils import should_convert_module

    patterns = [*kept, *(getattr(skeleton, "_keep_in_fp32_modules", None) or ())]
    found: dict[str, float] = {}
    for name, module in skeleton.named_modules():
        if (type(module) is nn.Linear or isinstance(module, Conv1D)) and should_convert_module(name, patterns):
            found[f"{name}.weight"] = (4 + 8 / 64 + 32 / (64 * 256)) / 8 if options.load_in_4bit else 1.0
    return found


def prepare_quantized(model: Any) -> Any:
    """Return a model that was loaded in 4 or 8 bits, ready for adapters: its other weights in float32 and all of it frozen.

    Checkpointing of activations is left to the trainer, which uses its non-reentrant form: that one needs no gradients of the
    inputs.
    """
    from peft import prepare_model_for_kbit_training

    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            # On such processors bitsandbytes packs 4-bit weights in the first evaluation, for good: layers of other widths than multiples of 32
            # end there, and no gradient passes a packed layer when training goes on.
            module.support_avx512bf16_for_cpu = False
    return prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)


def whole_state(model: Any) -> dict[str, Any]:
    """Return the state of a model with adapters on the CPU in float32, its quantised weights as what they stand for.

    Merged into these, adapters give the model that was trained; merged into the pretrained weights, they would give another.
    """
    state = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
    for name, module in model.named_modules():
        # PEFT's layers also answer for the weight of the layer that they adapt.
        if type(module).__module__.startswith("bitsandbytes."):
            # Beside the packed weight stand its scales and tables (weight.absmax, SCB).
            state = {key: tensor for key, tensor in state.items() if not _is_of(name, key)}
            state[f"{name}.weight"] = _dequantized(module).detach().float().cpu()
    return state


def _dequantized(module: Any) -> Any:
    from peft.utils.integrations import dequantize_bnb_weight

    if type(module.weight).__name__ == "Params4bit":
        return dequantize_bnb_weight(module.weight, state=module.weight.quant_state)
    if module.state.SCB is None:
        # The scales move from the weight to the layer's state with its first forward pass.
        module.state.SCB = module.weight.SCB
    return dequantize_bnb_weight(module.weight, state=module.state)


def _is_of(module: str, key: str) -> bool:
    return key == f"{module}.weight" or key.startswith(
        (f"{module}.weight.", f"{module}.SCB", f"{module}.weight_format")
    )


def _require_installation(bits: str) -> None:
    import importlib.util

    if importlib.util.find_spec("bitsandbytes") is None:
        raise InstallationError(
            f"strategy.load_in_{bits}bit is true, but bitsandbytes is not installed; pip install bitsandbytes, or remove it"
        )
