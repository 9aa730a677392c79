"""LoRA adapters: what a model's parameters are called with them, and how PEFT attaches, merges, saves and loads them.

The first part works on names and shapes alone. The second has effects on models; it imports torch and PEFT inside.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, cast

from launcher.contracts import AdapterPlan, Parameter
from launcher.errors import ModelError
from launcher.strategies.targets import find_targets, module_of, modules_to_save_for, resolve_pattern

__all__ = [
    "adapted_parameters",
    "attach",
    "find_targets",
    "load_adapter_weights",
    "lora_config",
    "merged",
    "merged_from_state",
    "module_of",
    "modules_to_save_for",
    "part_of",
    "resolve_pattern",
    "save_adapter",
    "target_of",
]

PREFIX = "base_model.model."
"""What PEFT puts before the names of a model with adapters."""
NAME = "default"
"""PEFT's name of our one adapter."""

Part = Literal["A", "B", "magnitude", "whole"]


# --- names and shapes with adapters --------------------------------------------------------------------------------


def adapted_parameters(parameters: Sequence[Parameter], plan: AdapterPlan) -> tuple[Parameter, ...]:
    """Return the parameters of the model once ``plan`` is attached, under PEFT's names; depth and role stay.

    A module that trains whole is there twice: its copy, which trains and is as new as the module was, and the original.
    """
    return tuple(found for parameter in parameters for found in _with_adapter(parameter, plan))


def part_of(name: str) -> Part | None:
    """Return what a parameter of a model with adapters is: a part of an adapter, one that trains whole; None: frozen."""
    if re.search(rf"\.lora_(embedding_)?A\.{NAME}(\.weight)?$", name):
        return "A"
    if re.search(rf"\.lora_(embedding_)?B\.{NAME}(\.weight)?$", name):
        return "B"
    if name.endswith(f".lora_magnitude_vector.{NAME}.weight"):
        return "magnitude"
    return "whole" if f".modules_to_save.{NAME}." in name else None


def target_of(name: str) -> str:
    """Return the module, as it is called without adapters, that a part of an adapter belongs to."""
    return name.removeprefix(PREFIX).partition(".lora_")[0]


def _with_adapter(parameter: Parameter, plan: AdapterPlan) -> Iterator[Parameter]:
    module, leaf = module_of(parameter), parameter.name.rpartition(".")[2]
    saved = next((name for name in plan.modules_to_save if parameter.name.startswith(f"{name}.")), None)
    if saved is not None:
        rest = parameter.name.removeprefix(f"{saved}.")
        yield replace(parameter, name=f"{PREFIX}{saved}.original_module.{rest}", newly_initialized=False)
        yield replace(parameter, name=f"{PREFIX}{saved}.modules_to_save.{NAME}.{rest}")
    elif not plan.ranks.get(module):
        yield replace(parameter, name=PREFIX + parameter.name)
    else:
        yield replace(parameter, name=f"{PREFIX}{module}.base_layer.{leaf}")
        if leaf == "weight":
            for name, shape in _adapter_tensors(parameter, plan.ranks[module], use_dora=plan.use_dora):
                decays = "magnitude" not in name
                yield replace(parameter, name=f"{PREFIX}{module}.{name}", shape=shape, decays=decays)


def _adapter_tensors(weight: Parameter, rank: int, *, use_dora: bool) -> Iterator[tuple[str, tuple[int, ...]]]:
    first, second, *kernel = weight.shape
    if weight.module == "Embedding":
        yield f"lora_embedding_A.{NAME}", (rank, first)
        yield f"lora_embedding_B.{NAME}", (second, rank)
        magnitude: tuple[int, ...] = (second,)
    else:
        # A Conv1D of GPT-2 holds its weight as (inputs, outputs), a Linear as (outputs, inputs).
        outputs, inputs = (second, first) if weight.module == "Conv1D" else (first, second)
        ones = (1,) * len(kernel)
        yield f"lora_A.{NAME}.weight", (rank, inputs, *kernel)
        yield f"lora_B.{NAME}.weight", (outputs, rank, *ones)
        magnitude = (1, outputs, *ones) if kernel else (outputs,)
    if use_dora:
        yield f"lora_magnitude_vector.{NAME}.weight", magnitude


# --- models --------------------------------------------------------------------------------------------------------


def lora_config(plan: AdapterPlan) -> Any:
    """Return PEFT's LoraConfig for ``plan``; every name in it is exact."""
    from peft import LoraConfig

    ranks = {name: rank for name, rank in plan.ranks.items() if rank}
    alphas = {name: plan.alphas[name] for name in ranks}
    rank, alpha = _most_common(ranks.values()), _most_common(alphas.values())
    return LoraConfig(
        r=rank,
        lora_alpha=alpha,
        target_modules=list(ranks),
        # PEFT puts ``(.*\.)?`` before a key: the caret keeps it from matching the end of a longer name.
        rank_pattern={f"^{re.escape(name)}": value for name, value in ranks.items() if value != rank},
        alpha_pattern={f"^{re.escape(name)}": value for name, value in alphas.items() if value != alpha},
        modules_to_save=list(plan.modules_to_save) or None,
        lora_dropout=plan.dropout,
        use_rslora=plan.use_rslora,
        use_dora=plan.use_dora,
        init_lora_weights=cast(Any, plan.init_lora_weights),
        # A task type would make PEFT save every module whose name ends in "classifier" or "score".
        task_type=None,
    )


def attach(model: Any, plan: AdapterPlan) -> Any:
    """Return a PeftModel of ``model``, which is changed in place; what trains is decided afterwards.

    A model on the meta device gets adapters there, without values.

    Raises:
        ModelError: PEFT would adapt or save other modules than planned, or could not merge the adapters again.
    """
    import torch
    from peft import get_peft_model

    _refuse_grouped(model, plan)
    config = lora_config(plan)
    config.fan_in_fan_out = any(type(model.get_submodule(name)).__name__ == "Conv1D" for name in config.target_modules)
    is_skeleton = any(tensor.device == torch.device("meta") for tensor in model.parameters())
    if is_skeleton:
        config.init_lora_weights = False
    attached = get_peft_model(model, config, low_cpu_mem_usage=is_skeleton)
    attached.peft_config[NAME].init_lora_weights = plan.init_lora_weights
    _check_attached(attached, plan)
    return attached


def merged(model: Any) -> Any:
    """Return the plain model with its adapters merged into its weights; they lie on one device. ``model`` is used up."""
    plain = model.merge_and_unload(safe_merge=True)
    plain.tie_weights()
    return plain


def merged_from_state(model: Any, plan: AdapterPlan, state: Mapping[str, Any]) -> Any:
    """Return ``model`` with the weights of a training with adapters, ready for ``save_pretrained``.

    Args:
        model: without adapters; on the meta device (``state`` then has everything), or with its pretrained weights in full
            precision (``state`` may then be without them, as it has to be when they were quantised in training).
        plan: the adapters that were trained.
        state: tensors on the CPU under PEFT's names, as ``state_dict()`` of the model with adapters has them.

    Raises:
        ModelError: ``state`` lacks a tensor that was trained, or has one that the model has not.
    """
    starts_from_pretrained = not any(tensor.is_meta for tensor in model.parameters())
    if starts_from_pretrained and plan.init_lora_weights in ("pissa", "olora") and not _has_base(state):
        raise ModelError(
            f"adapters that began with {plan.init_lora_weights} can only be merged into the weights they changed"
        )
    # The initial values are replaced at once, so that pretrained weights have to stay as they are.
    attached = attach(model, replace(plan, init_lora_weights=True))
    wanted = {name for name, _ in attached.named_parameters() if part_of(name) or not starts_from_pretrained}
    result = attached.load_state_dict(dict(state), strict=False, assign=True)
    wrong = [*(wanted - state.keys()), *result.unexpected_keys]
    if wrong:
        raise ModelError(f"the trained weights do not fit the model: {', '.join(sorted(wrong)[:5])}")
    # DeepSpeed hands out tied weights as copies of each other; PEFT would take them for untied, and say so in the configuration.
    attached.get_base_model().tie_weights()
    return merged(attached)


def save_adapter(model: Any, folder: Path, *, state: Mapping[str, Any] | None = None) -> None:
    """Write PEFT's adapter folder: adapter_config.json and adapter_model.safetensors, with the modules that train whole.

    Args:
        model: a PeftModel; only its names are used when ``state`` is given, so it may lie on the meta device.
        folder: is made.
        state: all tensors under PEFT's names, where the model's own are sharded.
    """
    tensors = None if state is None else dict(state)
    # Embeddings are saved where they are a part of the adapter; PEFT would otherwise ask the hub whether they were resized.
    model.save_pretrained(str(folder), state_dict=tensors, save_embedding_layers=False)


def load_adapter_weights(model: Any, folder: Path) -> None:
    """Put the weights of an adapter folder into a PeftModel, in place. Raises ModelError where they do not fit."""
    from peft import load_peft_weights, set_peft_model_state_dict

    result: Any = set_peft_model_state_dict(model, load_peft_weights(str(folder), device="cpu"), adapter_name=NAME)
    missing = [name for name in result.missing_keys if part_of(name)]
    if missing or result.unexpected_keys:
        wrong = ", ".join(sorted([*missing, *result.unexpected_keys])[:5])
        raise ModelError(f"the adapter in {folder} does not fit the model: {wrong}")


def _most_common(values: Iterable[Any]) -> Any:
    return Counter(values).most_common(1)[0][0]


def _has_base(state: Mapping[str, Any]) -> bool:
    return any(".base_layer.weight" in name for name in state)


def _refuse_grouped(model: Any, plan: AdapterPlan) -> None:
    for name, rank in plan.ranks.items():
        if rank and getattr(model.get_submodule(name), "groups", 1) > 1:
            raise ModelError(f"{name} is a grouped convolution, whose adapter cannot be merged; exclude it")


def _check_attached(model: Any, plan: AdapterPlan) -> None:
    from peft.tuners.lora import LoraLayer
    from peft.utils import ModulesToSaveWrapper

    modules = [(name.removeprefix(PREFIX), module) for name, module in model.named_modules()]
    adapted = {name for name, module in modules if isinstance(module, LoraLayer)}
    whole = {name for name, module in modules if isinstance(module, ModulesToSaveWrapper)}
    planned = {name for name, rank in plan.ranks.items() if rank}
    wrong = sorted((adapted ^ planned) | (whole ^ set(plan.modules_to_save)))
    if wrong:
        raise ModelError(
            f"PEFT matches names by their ends and took {', '.join(wrong[:5])} otherwise than planned; such a model needs "
            "other strategy.target_modules or modules_to_save"
        )
