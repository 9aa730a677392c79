"""Build a tuning table from a rule that gives each parameter its peak rate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from launcher.contracts import Parameter, TuningGroup, TuningTable
from launcher.errors import ModelError
from launcher.recipe.schema import Recipe
from launcher.strategies.layers import number_of_blocks, uses

Rate = Callable[[Parameter], float]


@dataclass(frozen=True)
class Regularization:
    """What pulls the weights that decay to zero; biases and norms are left alone."""

    weight_decay: float = 0.0
    l1_penalty: float = 0.0
    l2_penalty: float = 0.0


NONE = Regularization()


def regularization(recipe: Recipe, *, weight_decay: float = 0.01) -> Regularization:
    """Return the recipe's regularization; ``weight_decay`` is the strategy's default."""
    training = recipe.training
    decay = weight_decay if training.weight_decay is None else training.weight_decay
    return Regularization(decay, training.l1_penalty, training.l2_penalty)


def group_by_role(parameter: Parameter) -> str:
    """Name the group of a parameter when all blocks share one rate."""
    return "encoder" if parameter.role == "block" else _role(parameter)


def group_by_depth(parameter: Parameter) -> str:
    """Name the group of a parameter when every block has a group of its own."""
    return f"block.{parameter.depth}" if parameter.role == "block" else _role(parameter)


def _role(parameter: Parameter) -> str:
    """Return a parameter's role; what is tied to the head may have another rate than its fellows."""
    return f"{parameter.role}.tied" if "head" in parameter.also else parameter.role


def build_table(
    parameters: Sequence[Parameter],
    *,
    rate: Rate,
    regularization: Regularization,
    name: Callable[[Parameter], str] = group_by_role,
    rank: Callable[[Parameter], int | None] = lambda parameter: None,
) -> TuningTable:
    """Group parameters by name, rate, rank and regularization.

    Args:
        rate: peak rate of a parameter; 0 freezes it.
        regularization: for parameters that decay; biases and norms get none.
        rank: LoRA rank of a parameter, where it is a part of an adapter.

    Raises:
        ModelError: nothing would train, or a newly initialised parameter would keep its random values.
    """
    members: dict[tuple[str, float, int | None, Regularization], list[Parameter]] = {}
    blocks = number_of_blocks(parameters)
    for parameter in parameters:
        # A tied tensor has the larger of its rates: the output layer must not train as slowly as embeddings may.
        lr = max(rate(use) for use in uses(parameter, blocks=blocks))
        if lr == 0 and parameter.newly_initialized:
            raise ModelError(
                f"{parameter.name} is newly initialised, so it has to train, but the strategy freezes it; let the "
                f"{parameter.role} train, or start from a model that has it"
            )
        pull = regularization if lr and parameter.decays else NONE
        members.setdefault((name(parameter), lr, rank(parameter), pull), []).append(parameter)
    decaying = {key[:3] for key in members if key[3] != NONE}
    table = TuningTable(tuple(_group(*key, group, is_split=key[:3] in decaying) for key, group in members.items()))
    if not table.trainable:
        raise ModelError("no parameter trains under this strategy; choose another strategy.type or its options")
    return table


def _group(
    name: str, lr: float, rank: int | None, pull: Regularization, group: Sequence[Parameter], *, is_split: bool
) -> TuningGroup:
    suffix = ".frozen" if not lr else ".no_decay" if is_split and pull == NONE else ""
    return TuningGroup(
        name=name + suffix,
        depths=(min(p.depth for p in group), max(p.depth for p in group)),
        parameters=tuple(p.name for p in group),
        numel=sum(p.numel for p in group),
        trainable=lr > 0,
        lr=lr,
        weight_decay=pull.weight_decay,
        rank=rank,
        l1_penalty=pull.l1_penalty,
        l2_penalty=pull.l2_penalty,
    )
