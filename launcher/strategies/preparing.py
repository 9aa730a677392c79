"""Make a model what a phase says, before any engine exists: adapters, frozen parameters, dropout."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any

from launcher.contracts import Phase
from launcher.errors import ModelError
from launcher.strategies.layers import block_modules


def prepare_model(model: Any, phase: Phase) -> Any:
    """Return ``model`` as ``phase`` trains it: with its adapters, its frozen parameters and its dropout.

    It is changed in place; only where the phase has adapters is something else returned. A model that an earlier phase has
    prepared may be prepared again.

    Raises:
        ModelError: dropout by depth for a model whose blocks have none.
    """
    if phase.dropout is not None:
        _set_dropout(block_modules(model), first=phase.dropout[0], last=phase.dropout[1])
    if phase.adapters is not None:
        from launcher.strategies.adapters import attach

        model = attach(model, phase.adapters)
    _check_names(model, phase)
    trainable = _trainable(phase)
    for name, tensor in model.named_parameters():
        tensor.requires_grad_(name in trainable)
    return model


def modules_kept_in_eval(model: Any, phase: Phase) -> tuple[Any, ...]:
    """Return the modules that a phase keeps in evaluation mode: call ``eval()`` on each after every ``model.train()``.

    Args:
        model: what prepare_model returned, not wrapped by an engine; its parameters are read by name only.

    With ``frozen_eval`` those are the topmost modules all of whose parameters are frozen (with what lies in them); and BatchNorm
    modules unless they are tuned, or where there are adapters: an adapter holds no statistics, so that they have to stay what they were.
    """
    from torch.nn.modules.batchnorm import _BatchNorm

    kept: dict[int, Any] = {}
    if phase.frozen_eval:
        names = _trainable(phase)
        trainable = {id(tensor) for name, tensor in model.named_parameters() if name in names}
        backbone = getattr(model, getattr(model, "base_model_prefix", "") or "base_model", None)
        kept = {id(module): module for module in _frozen_modules(model, trainable, backbone=backbone)}
    if phase.batch_norm != "tune" or phase.adapters is not None:
        inside = {id(module) for top in kept.values() for module in top.modules()}
        kept |= {id(m): m for m in model.modules() if isinstance(m, _BatchNorm) and id(m) not in inside}
    return tuple(kept.values())


def _trainable(phase: Phase) -> frozenset[str]:
    return frozenset(name for group in phase.table.trainable for name in group.parameters)


def _check_names(model: Any, phase: Phase) -> None:
    """Hold the table to the model: every parameter in exactly one group, and no other name."""
    named = [name for group in phase.table.groups for name in group.parameters]
    twice = {name for name in named if named.count(name) > 1} if len(set(named)) < len(named) else set()
    assert not twice, f"in several groups of the tuning table: {sorted(twice)[:3]}"
    found = {name for name, _ in model.named_parameters()}
    assert found == set(named), f"only in the model or only in the tuning table: {sorted(found ^ set(named))[:3]}"


def _frozen_modules(module: Any, trainable: Collection[int], *, backbone: Any) -> Iterator[Any]:
    """Yield the topmost modules below ``module`` whose parameters are all frozen, and the dropout that follows them.

    GPT-2 drops its embeddings by a module of its own beside them, so what stands in the backbone before anything that trains
    counts as frozen too.
    """
    parameters = list(module.parameters())
    if parameters and not any(id(tensor) in trainable for tensor in parameters):
        yield module
        return
    is_before = module is backbone
    for child in module.children():
        if is_before and not list(child.parameters()):
            yield child
        is_before = is_before and not any(id(tensor) in trainable for tensor in child.parameters())
        yield from _frozen_modules(child, trainable, backbone=backbone)


# --- dropout by depth ------------------------------------------------------------------------------------------------


def _set_dropout(blocks: Sequence[Any], *, first: float, last: float) -> None:
    """Give block i of L the probability first + (last - first) * (i - 1) / (L - 1); a single block gets ``last``."""
    found = False
    for number, block in enumerate(blocks):
        probability = first + (last - first) * number / (len(blocks) - 1) if len(blocks) > 1 else last
        for module in block.modules():
            for name in _dropout_attributes(module):
                found = True
                setattr(module, name, probability)
    if not found:
        raise ModelError("strategy.dropout has no effect: the blocks of this model have no dropout; remove it")


def _dropout_attributes(module: Any) -> tuple[str, ...]:
    """Return the attributes that hold a module's dropout probability.

    transformers' models keep it in nn.Dropout modules or, for attention, as a number that the forward pass reads
    (``dropout``, ``attention_dropout``, ``activation_dropout``). Dropping whole paths or layers is something else.
    """
    from torch.nn.modules.dropout import _DropoutNd

    if isinstance(module, _DropoutNd):
        return ("p",)
    return tuple(
        name
        for name, value in vars(module).items()
        if "dropout" in name and isinstance(value, int | float) and not isinstance(value, bool)
    )
