"""The optimizer of a phase from its tuning groups, and the penalties and clipping that act on gradients before its step."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch.optim import Optimizer
from transformers import Trainer

from launcher.contracts import TuningTable
from launcher.errors import InstallationError
from launcher.recipe.optimizer_keys import OPTIMIZERS


def optimizer_groups(model: Any, table: TuningTable) -> list[dict[str, Any]]:
    """Return one named group for each group of ``table`` that trains, with its peak rate; ``model`` has their names."""
    tensors = dict(model.named_parameters())
    return [
        {
            "params": [tensors[name] for name in group.parameters],
            "lr": group.lr,
            "weight_decay": group.weight_decay,
            "l1_penalty": group.l1_penalty,
            "l2_penalty": group.l2_penalty,
            "name": group.name,
        }
        for group in table.trainable
    ]


def make_optimizer(arguments: Any, groups: Sequence[Mapping[str, Any]], model: Any) -> Optimizer:
    """Return the optimizer that ``arguments.optim`` names, with these groups.

    Args:
        arguments: what ``training_arguments`` returned.
        groups: ``params``, ``lr`` and ``weight_decay``, and keys of our own, which the optimizer keeps.
        model: the model that the parameters are of.

    Raises:
        InstallationError: the optimizer's package is not installed, or does not work on this machine.
    """
    optimizer_class, options = _class_and_options(arguments, model)
    optimizer: Optimizer = optimizer_class([dict(group) for group in groups], **options)
    if options.get("optim_bits") == 8:
        _keep_embeddings_in_32_bits(model)
    return optimizer


def _class_and_options(arguments: Any, model: Any) -> tuple[Any, dict[str, Any]]:
    if arguments.optim == "adam":
        betas = (arguments.adam_beta1, arguments.adam_beta2)
        return torch.optim.Adam, {"lr": arguments.learning_rate, "betas": betas, "eps": arguments.adam_epsilon}
    try:
        return Trainer.get_optimizer_cls_and_kwargs(arguments, model)
    # Trainer raises either where a package is missing.
    except (ImportError, ValueError) as error:
        name = getattr(arguments.optim, "value", arguments.optim)
        found = OPTIMIZERS.get(name)
        package = found.package if found else None
        needs = f"the package {package}" if package else "what is not on this machine"
        raise InstallationError(
            f"training.optim is {name}, which needs {needs}: {error}; or choose another one, such as adamw_torch_fused"
        ) from error


def _keep_embeddings_in_32_bits(model: Any) -> None:
    """Let bitsandbytes hold the state of embeddings in full, as Trainer does: their updates are too uneven for 8 bits."""
    # Looked up by name: it is not among the dependencies.
    manager = importlib.import_module("bitsandbytes.optim").GlobalOptimManager.get_instance()
    for module in model.modules():
        if isinstance(module, torch.nn.Embedding):
            manager.register_module_override(module, "weight", {"optim_bits": 32})


# --- before the step ---------------------------------------------------------------------------------------------------


def base_optimizer(optimizer: Any) -> Optimizer:
    """Return the optimizer that computes updates, out of accelerate's and DeepSpeed's wrappers."""
    while hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    assert isinstance(optimizer, Optimizer), type(optimizer)
    return optimizer


def regularize_before_step(optimizer: Any, *, max_grad_value: float | None) -> Any:
    """Let every step add the groups' penalties to the gradients, and then clip each element; return the hook's handle.

    The gradient g of a parameter p becomes ``clamp(g + l2_penalty * p + l1_penalty * sign(p), -v, v)`` with v =
    max_grad_value, after it was averaged over ranks and scaled to max_grad_norm. Both act on single elements, so they are
    exact on the flat pieces that ZeRO hands to the optimizer. None is returned where there is nothing to do.

    Call it when the engine is prepared: DeepSpeed takes a step with zero gradients while it prepares half-precision
    weights without ZeRO.
    """
    base = base_optimizer(optimizer)
    penalized = any(group.get("l1_penalty") or group.get("l2_penalty") for group in base.param_groups)
    if max_grad_value is None and not penalized:
        return None
    return base.register_step_pre_hook(partial(_regularize, max_grad_value=max_grad_value))


@torch.no_grad()
def _regularize(optimizer: Any, args: Any, kwargs: Any, *, max_grad_value: float | None) -> None:
    # A fused optimizer may divide by the loss scale inside its step: its gradients are that much larger here.
    scale = getattr(optimizer, "grad_scale", None)
    scale = 1.0 if scale is None else float(scale)
    for group in optimizer.param_groups:
        l1, l2 = group.get("l1_penalty") or 0.0, group.get("l2_penalty") or 0.0
        for parameter in group["params"]:
            gradient = parameter.grad
            if gradient is None:
                continue
            if l2:
                gradient.add_(parameter, alpha=l2 * scale)
            if l1:
                gradient.add_(parameter.sign(), alpha=l1 * scale)
            if max_grad_value is not None:
                gradient.clamp_(-max_grad_value * scale, max_grad_value * scale)
