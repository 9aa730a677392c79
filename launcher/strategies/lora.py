"""LoRA: the pretrained weights stay, and low-rank matrices beside them train.

A layer W x becomes W x + (alpha / r) B A x with A [r, inputs] and B [outputs, r] (Hu et al. 2021, section 4.1); rsLoRA has
alpha / sqrt(r) (Kalajdzievski 2023), DoRA learns a length for each output apart from its direction (Liu et al. 2024, section 4),
LoRA+ gives B a higher rate than A (Hayou et al. 2024).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from launcher.contracts import AdapterPlan, Parameter, Phase, Strategy, TuningTable
from launcher.errors import ModelError
from launcher.recipe.schema import Recipe
from launcher.recipe.strategy_options import LoraOptions
from launcher.strategies.adapters import adapted_parameters, part_of, target_of
from launcher.strategies.layers import number_of_blocks
from launcher.strategies.layerwise import layer_scale, require_own_blocks
from launcher.strategies.tables import build_table, group_by_depth, group_by_role, regularization
from launcher.strategies.targets import find_targets, module_of, modules_to_save_for, resolve_pattern


class Lora(Strategy):
    """Adapters by PEFT; the head and what is newly initialised train whole."""

    def phases(
        self, parameters: Sequence[Parameter], recipe: Recipe, importance: Mapping[str, Any] | None = None
    ) -> tuple[Phase, ...]:
        """Return one phase in which the adapters train. Raises ModelError where the options do not fit the model."""
        options = recipe.strategy
        assert isinstance(options, LoraOptions)
        if options.layer_decay != 1:
            require_own_blocks(parameters, what=f"strategy.layer_decay is {options.layer_decay:g}")
        plan = plan_adapters(parameters, options)
        table = adapter_table(
            parameters,
            plan,
            recipe,
            head_lr=options.head_lr,
            layer_decay=options.layer_decay,
            loraplus_lr_ratio=options.loraplus_lr_ratio or 1.0,
        )
        return (Phase("main", table, adapters=plan),)


def plan_adapters(parameters: Sequence[Parameter], options: LoraOptions) -> AdapterPlan:
    """Return which modules get an adapter of which rank and scale. Raises ModelError where the options do not fit the model."""
    saved = modules_to_save_for(parameters, options.modules_to_save)
    targets = find_targets(
        parameters,
        target_modules=options.target_modules,
        exclude_modules=options.exclude_modules,
        modules_to_save=saved,
    )
    plan = AdapterPlan(
        ranks=resolve_pattern(options.rank_pattern, targets, default=options.r, key="strategy.rank_pattern"),
        alphas=resolve_pattern(
            options.alpha_pattern, targets, default=options.lora_alpha, key="strategy.alpha_pattern"
        ),
        modules_to_save=saved,
        dropout=options.lora_dropout,
        use_rslora=options.use_rslora,
        use_dora=options.use_dora,
        init_lora_weights=options.init_lora_weights,
    )
    check_initial_values(targets, plan)
    return plan


def check_initial_values(targets: Sequence[Parameter], plan: AdapterPlan) -> None:
    """Raise ModelError where PEFT cannot begin with ``plan.init_lora_weights``.

    Its ``orthogonal`` needs even ranks; ``pissa`` and ``olora`` take singular vectors, or a QR decomposition, of the weight, of
    which there are no more than the weight has rows or columns, and ``olora`` mistakes the shape of GPT-2's Conv1D.
    """
    begin = plan.init_lora_weights
    if not isinstance(begin, str):
        return
    for weight in targets:
        rank, name = plan.ranks.get(module_of(weight), 0), module_of(weight)
        if weight.module == "Conv2d" and begin != "gaussian":
            reason = "which is a convolution"
        elif begin == "orthogonal" and rank % 2:
            reason = f"whose rank is {rank}, an odd number"
        elif begin in ("pissa", "olora") and rank > min(weight.shape):
            reason = f"whose rank, {rank}, is above the {min(weight.shape)} that its weight can have"
        elif begin == "olora" and weight.module == "Conv1D":
            reason = "which is a Conv1D"
        else:
            continue
        raise ModelError(
            f"strategy.init_lora_weights is {begin!r}, which PEFT cannot do for {name}, {reason}; write true, or change the "
            "rank or the target modules"
        )


def adapter_table(
    parameters: Sequence[Parameter],
    plan: AdapterPlan,
    recipe: Recipe,
    *,
    head_lr: float | None = None,
    layer_decay: float = 1.0,
    loraplus_lr_ratio: float = 1.0,
) -> TuningTable:
    """Return the tuning table of a phase with adapters; weight decay is 0 unless the recipe sets it.

    Args:
        parameters: those of the model without adapters.
        head_lr: peak rate of what trains whole; None: training.learning_rate.
        layer_decay: factor of an adapter's rate from one block to the one below, ``lr * layer_decay^(L+1-l)``.
        loraplus_lr_ratio: rate of B over the rate of A.
    """
    lr, blocks = recipe.training.learning_rate, number_of_blocks(parameters)
    has_ranks = len({rank for rank in plan.ranks.values() if rank}) > 1

    def rank(parameter: Parameter) -> int | None:
        return plan.ranks.get(target_of(parameter.name)) if part_of(parameter.name) in _ADAPTER else None

    def rate(parameter: Parameter) -> float:
        part = part_of(parameter.name)
        if part is None:
            return 0.0
        if part == "whole":
            return head_lr or lr
        scale = layer_scale(parameter.depth, blocks=blocks, decay=layer_decay)
        return lr * scale * (loraplus_lr_ratio if part == "B" else 1.0)

    def name(parameter: Parameter) -> str:
        part = part_of(parameter.name)
        if part not in _ADAPTER:
            return group_by_role(parameter)
        words = ["lora" if loraplus_lr_ratio == 1 else f"lora_{part}"]
        words += [group_by_depth(parameter)] if layer_decay != 1 else []
        words += [f"rank{rank(parameter)}"] if has_ranks else []
        return ".".join(words)

    return build_table(
        adapted_parameters(parameters, plan),
        rate=rate,
        # A decay of B A towards 0 is one of the tuned weights towards the pretrained ones, which their low rank limits already.
        regularization=regularization(recipe, weight_decay=0.0),
        name=name,
        rank=rank,
    )


_ADAPTER = ("A", "B", "magnitude")
