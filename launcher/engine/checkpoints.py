"""The weights of a model, in checkpoints and as the folder that a run leaves."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from launcher.atomic import default_file_mode, replace_folder, write_json
from launcher.errors import ModelError
from launcher.strategies.adapters import load_adapter_weights, save_adapter

# --- weights ---------------------------------------------------------------------------------------------------------


def has_adapters(model: Any) -> bool:
    """Whether ``model`` is PEFT's, so that its checkpoints hold adapters only."""
    return hasattr(model, "peft_config")


def base_model(model: Any) -> Any:
    """Return transformers' model, without PEFT's around it."""
    return model.get_base_model() if has_adapters(model) else model


def save_weights(model: Any, folder: Path, *, state_dict: Any) -> None:
    """Write a checkpoint's weights under the names that the model's parameters have; with adapters, those alone.

    transformers would write the names of an older format where it has read one (``LayerNorm.gamma``), and Trainer would then
    leave these weights out when it resumes.
    """
    if has_adapters(model):
        save_adapter(model, folder, state=state_dict)
    else:
        model.save_pretrained(folder, state_dict=state_dict, save_original_format=False)


def load_weights(model: Any, folder: Path, *, zero_stage: int | None) -> None:
    """Put a checkpoint's weights into ``model``, in place; every name has to fit. All ranks call it.

    Raises:
        ModelError: a name is missing or unknown.
    """
    if has_adapters(model):
        tensors = [tensor for tensor in model.parameters() if tensor.requires_grad]
        with _whole(tensors, zero_stage=zero_stage):
            load_adapter_weights(model, folder)
        return
    stored, own = _stored(folder), model.state_dict(keep_vars=True)
    found = {id(own[name]) for name in stored if name in own}
    wrong = [*(stored.keys() - own.keys()), *(name for name, tensor in own.items() if id(tensor) not in found)]
    if wrong:
        raise ModelError(f"the weights in {folder} do not fit the model: {', '.join(sorted(wrong)[:5])}")
    for name, path in stored.items():
        with _whole([own[name]], zero_stage=zero_stage), torch.no_grad(), safe_open(str(path), framework="pt") as file:
            own[name].copy_(file.get_tensor(name))


def _stored(folder: Path) -> dict[str, Path]:
    """Return name -> file of the weights in ``folder``."""
    found: dict[str, Path] = {}
    for path in sorted(folder.glob("model*.safetensors")):
        with safe_open(str(path), framework="pt") as file:
            found |= dict.fromkeys(file.keys(), path)
    if not found:
        raise ModelError(f"{folder} has no weights (model.safetensors)")
    return found


def _whole(tensors: list[Any], *, zero_stage: int | None) -> AbstractContextManager[Any]:
    """Return a context in which tensors that ZeRO-3 has partitioned are whole, and after which they are as rank 0 left them."""
    partitioned = [tensor for tensor in tensors if hasattr(tensor, "ds_id")] if zero_stage == 3 else []
    if not partitioned:
        return nullcontext()
    import deepspeed

    context: AbstractContextManager[Any] = deepspeed.zero.GatheredParameters(partitioned, modifier_rank=0)
    return context


def save_model_folder(
    model: Any, tokenizer: Any, target: Path, *, state_dict: Any, zero_stage: int | None, facts: dict[str, Any]
) -> None:
    """Write the finished model as a folder that transformers loads, in one piece.

    When it loads under ZeRO-3, transformers 5.23 notes renamings that it did not make (``LayerNorm.gamma`` to
    ``LayerNorm.weight``) and would undo them here: the file would then have names that only transformers understands.
    """

    def fill(folder: Path) -> None:
        # transformers takes tensors out of the mapping as it writes them.
        own = None if state_dict is None else dict(state_dict)
        model.save_pretrained(folder, state_dict=own, save_original_format=zero_stage != 3)
        tokenizer.save_pretrained(folder)
        write_json(folder / "launcher.json", facts)
        _share_files(folder)

    replace_folder(target, fill)


def save_adapter_folder(model: Any, target: Path, *, state_dict: Any) -> None:
    """Write the adapters of a finished model, as PEFT loads them onto the pretrained model."""

    def fill(folder: Path) -> None:
        save_adapter(model, folder, state=state_dict)
        _share_files(folder)

    replace_folder(target, fill)


def _share_files(folder: Path) -> None:
    # safetensors makes its files private; a model is for the group to load.
    for path in folder.iterdir():
        path.chmod(default_file_mode())
