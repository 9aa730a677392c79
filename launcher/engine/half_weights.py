"""Weights in 16 bits: what DeepSpeed makes of a model, what it leaves as it was, and inputs of the weights' type."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from launcher.plans import LaunchPlan

# What batch normalisation, also with fixed numbers, keeps of the batches that it has seen.
_STATISTICS = "running_mean"


def converted_to(launch: LaunchPlan) -> torch.dtype | None:
    """Return the type that DeepSpeed gives the weights; None: they stay as they are, and autocast computes in another one."""
    if launch.engine != "deepspeed" or launch.half is None:
        return None
    return torch.bfloat16 if launch.half == "bf16" else torch.float16


def convert_weights(model: Any, launch: LaunchPlan) -> None:
    """Give the weights the dtype that DeepSpeed will give them, in place; buffers keep theirs."""
    dtype = converted_to(launch)
    for tensor in model.parameters() if dtype is not None else ():
        if tensor.is_floating_point():
            tensor.data = tensor.data.to(dtype)


def convert_statistics(model: Any, launch: LaunchPlan) -> None:
    """Give the statistics of batch normalisation the dtype that DeepSpeed will give the weights, in place.

    DeepSpeed leaves them in fp32. No processor takes them so beside weights in 16 bits, and frozen ones make what follows fp32.
    A model that is loaded in 16 bits has them in that type as well. Other buffers, as those of rotary positions, keep theirs.
    """
    dtype = converted_to(launch)
    for module in model.modules() if dtype is not None else ():
        if _STATISTICS not in module._buffers:
            continue
        for tensor in module.buffers(recurse=False):
            if tensor.is_floating_point():
                tensor.data = tensor.data.to(dtype)


def inputs_for(model: Any, batch: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``batch`` with its floating tensors, as of pixels, in the type of the model's weights where these have 16 bits."""
    dtype = next((tensor.dtype for tensor in model.parameters() if tensor.is_floating_point()), None)
    if dtype not in (torch.bfloat16, torch.float16):
        return dict(batch)
    return {name: value.to(dtype) if _is_floating(value) else value for name, value in batch.items()}


def _is_floating(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.is_floating_point()
