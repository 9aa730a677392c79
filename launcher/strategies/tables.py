"""Build a tuning table from a rule that gives each parameter its peak rate, and carry it out on a model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from launcher.contracts import Parameter, TuningGroup, TuningTable
from launcher.errors import ModelError
from launcher.recipe.schema import Recipe

Rate = Callable[[Parameter], float]


def group_by_role(parameter: Parameter) -> str:
    """Name the group of a parameter when all blocks share one rate."""
    return "encoder" if parameter.role == "block" else parameter.role


def weight_decay(recipe: Recipe, *, default: float = 0.01) -> float:
    """Return the recipe's weight decay, or the strategy's default."""
    return default if recipe.training.weight_decay is None else recipe.training.weight_decay


def build_table(
    parameters: Sequence[Parameter],
    *,
    rate: Rate,
    weight_decay: float,
    name: Callable[[Parameter], str] = group_by_role,
) -> TuningTable:
    """Group parameters by name, trainability, rate and decay.

    Args:
        rate: peak rate of a parameter; 0 freezes it.
        weight_decay: for parameters that decay; biases and norms get 0.

    Raises:
        ModelError: nothing would train, or a newly initialised parameter would keep its random values.
    """
    members: dict[tuple[str, bool, float, float], list[Parameter]] = {}
    for parameter in parameters:
        lr = rate(parameter)
        if lr == 0 and parameter.newly_initialized:
            raise ModelError(
                f"{parameter.name} is newly initialised, so it has to train, but the strategy freezes it; let the "
                f"{parameter.role} train, or start from a model that has it"
            )
        decay = weight_decay if lr and parameter.decays else 0.0
        members.setdefault((name(parameter), lr > 0, lr, decay), []).append(parameter)
    table = TuningTable(tuple(_group(key, group, members) for key, group in members.items()))
    if not table.trainable:
        raise ModelError("no parameter trains under this strategy; choose another strategy.type or its options")
    return table


def _group(
    key: tuple[str, bool, float, float],
    group: Sequence[Parameter],
    members: dict[tuple[str, bool, float, float], list[Parameter]],
) -> TuningGroup:
    name, trainable, lr, decay = key
    suffix = "" if trainable else ".frozen"
    if trainable and any(other[:3] == key[:3] and other[3] > decay for other in members):
        suffix = ".no_decay"
    return TuningGroup(
        name=name + suffix,
        depths=(min(p.depth for p in group), max(p.depth for p in group)),
        parameters=tuple(p.name for p in group),
        numel=sum(p.numel for p in group),
        trainable=trainable,
        lr=lr,
        weight_decay=decay,
    )


def freeze(model: Any, table: TuningTable) -> Any:
    """Set ``requires_grad`` of every parameter of ``model`` as the table says, before any engine exists; return it."""
    trainable = {name for group in table.trainable for name in group.parameters}
    for name, tensor in model.named_parameters():
        tensor.requires_grad_(name in trainable)
    return model
