"""Layer-wise fine-tuning: lower blocks train slower or not at all, and may join in later.

The rate of depth l is lr * max(decay^(L+1-l), min_lr_scale): embeddings l = 0, block i at l = i, tail and head at L+1. That is
the convention of timm and BEiT (Bao et al. 2022); ELECTRA (Clark et al. 2020) was first to decay so. Freezing the lower blocks
and gradual unfreezing are those of ULMFiT (Howard and Ruder 2018, sections 3.2 and 3.3).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from launcher.contracts import Parameter, Phase, Strategy, TuningTable
from launcher.errors import ModelError
from launcher.recipe.schema import Recipe
from launcher.recipe.strategy_options import GradualUnfreezing, LayerwiseOptions
from launcher.strategies.layers import number_of_blocks, uses
from launcher.strategies.tables import build_table, group_by_depth, regularization

TEXT_DECAY = 0.9
VISION_DECAY = 0.75


class Layerwise(Strategy):
    """Rates by depth, the first blocks frozen, and from the top down in stages, as the recipe says."""

    def phases(
        self, parameters: Sequence[Parameter], recipe: Recipe, importance: Mapping[str, Any] | None = None
    ) -> tuple[Phase, ...]:
        """Return one phase, or one for each stage of gradual unfreezing.

        Raises:
            ModelError: the model has no blocks of its own to tell apart, or fewer than are frozen; an option has no effect in
                it; or the run ends before the last stage.
        """
        options = recipe.strategy
        assert isinstance(options, LayerwiseOptions)
        require_own_blocks(parameters, what="strategy.type is layerwise")
        blocks, frozen = number_of_blocks(parameters), frozen_blocks(parameters, options)
        stages = _stages(options, blocks=blocks, frozen=frozen)
        rates = _rates(parameters, options, lr=recipe.training.learning_rate)
        phases = tuple(
            Phase(
                name=stage.name,
                table=_table(parameters, recipe, rates=rates, trains=_trains(options, stage, blocks=blocks)),
                epochs=stage.epochs,
                frozen_eval=options.frozen_eval,
                batch_norm=options.batch_norm,
                dropout=(options.dropout.input, options.dropout.output) if options.dropout else None,
            )
            for stage in stages
        )
        _require_effect(parameters, options, phases)
        _require_time(recipe, stages)
        return phases


def layer_scale(depth: int, *, blocks: int, decay: float, least: float = 0.0) -> float:
    """Return what the rate of a depth is multiplied by: max(decay^(L+1-depth), least); 1 for tail and head.

    Args:
        depth: 0 for embeddings, 1..L for blocks, L+1 for what comes after.
        blocks: L.
    """
    return max(decay ** (blocks + 1 - depth), least)


def default_decay(parameters: Sequence[Parameter]) -> float:
    """Return 0.75 for a vision transformer (timm; He et al. 2022), told by a 2-d convolution that feeds attention, else 0.9."""
    sees_pixels = any(p.role == "embeddings" and p.module == "Conv2d" for p in parameters)
    return VISION_DECAY if sees_pixels and any(p.component == "attention" for p in parameters) else TEXT_DECAY


def require_own_blocks(parameters: Sequence[Parameter], *, what: str) -> None:
    """Raise ModelError unless the model has blocks, each with weights of its own; ``what`` is the setting that needs them."""
    if not number_of_blocks(parameters):
        raise ModelError(f"{what}, but no numbered blocks were found in this model; use strategy.type full or head")
    shared = [p for p in parameters if "block" in p.also]
    if shared:
        raise ModelError(
            f"{what}, but several layers of this model share their weights (such as {shared[0].name}), so that no layer has a "
            "rate of its own; use strategy.type full, encoder or head"
        )


def frozen_blocks(parameters: Sequence[Parameter], options: LayerwiseOptions) -> int:
    """Return how many blocks stay frozen, from the first. Raises ModelError where the model has fewer."""
    blocks = number_of_blocks(parameters)
    for key in ("freeze_layers", "trainable_layers"):
        value = getattr(options, key)
        if value is not None and value > blocks:
            raise ModelError(f"strategy.{key} is {value}, but this model has {blocks} blocks; write {blocks} or less")
    if options.trainable_layers is not None:
        return blocks - options.trainable_layers
    return options.freeze_layers or 0


# --- what trains, and at which rate ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Stage:
    """A stretch of the run: blocks below ``lowest`` are frozen."""

    name: str
    lowest: int
    has_embeddings: bool
    epochs: float | None = None


def _rates(parameters: Sequence[Parameter], options: LayerwiseOptions, *, lr: float) -> Mapping[str, float]:
    """Return name -> peak rate, the same in every stage; a tied tensor has the larger of its two."""
    blocks, decay = number_of_blocks(parameters), options.layer_decay or default_decay(parameters)

    def rate(use: Parameter) -> float:
        scale = layer_scale(use.depth, blocks=blocks, decay=decay, least=options.min_lr_scale)
        return lr * scale * (options.head_lr_mult if use.role == "head" else 1.0)

    return {p.name: max(rate(use) for use in uses(p, blocks=blocks)) for p in parameters}


def _trains(options: LayerwiseOptions, stage: _Stage, *, blocks: int) -> Callable[[Parameter], bool]:
    def in_role(use: Parameter) -> bool:
        if use.role == "embeddings":
            return stage.has_embeddings
        return use.role != "block" or use.depth >= stage.lowest

    def trains(parameter: Parameter) -> bool:
        if parameter.newly_initialized:
            return True
        if options.batch_norm == "frozen" and is_batch_norm(parameter):
            return False
        return any(in_role(use) for use in uses(parameter, blocks=blocks))

    return trains


def is_batch_norm(parameter: Parameter) -> bool:
    """Whether a parameter is the weight or bias of a BatchNorm."""
    return parameter.module.startswith(("BatchNorm", "SyncBatchNorm"))


def _table(
    parameters: Sequence[Parameter],
    recipe: Recipe,
    *,
    rates: Mapping[str, float],
    trains: Callable[[Parameter], bool],
) -> TuningTable:
    return build_table(
        parameters,
        rate=lambda p: rates[p.name] if trains(p) else 0.0,
        regularization=regularization(recipe),
        name=_group,
    )


def _group(parameter: Parameter) -> str:
    """Name a group; its members train in the same stages, so that it is the same group in all of them."""
    if "head" in parameter.also:
        return f"{parameter.role}.tied"
    is_ahead = parameter.newly_initialized and parameter.role != "head"
    return group_by_depth(parameter) + (".new" if is_ahead else "")


# --- stages ----------------------------------------------------------------------------------------------------------


def _stages(options: LayerwiseOptions, *, blocks: int, frozen: int) -> tuple[_Stage, ...]:
    has_embeddings = options.embeddings == "train" or (options.embeddings == "auto" and not frozen)
    if options.gradual_unfreezing is None:
        return (_Stage("main", frozen + 1, has_embeddings),)
    return _unfreezing(options.gradual_unfreezing, blocks=blocks, frozen=frozen, has_embeddings=has_embeddings)


def _unfreezing(gradual: GradualUnfreezing, *, blocks: int, frozen: int, has_embeddings: bool) -> tuple[_Stage, ...]:
    """Return the stages: the head, then more blocks from the top in each; the embeddings go with the last."""
    lowest = list(range(blocks + 1 - gradual.blocks_per_stage, frozen + 1, -gradual.blocks_per_stage))
    ends = [blocks + 1, *lowest, *([frozen + 1] if frozen < blocks or has_embeddings else [])]
    if len(ends) == 1:
        raise ModelError(
            f"strategy.gradual_unfreezing has no effect: all {blocks} blocks and the embeddings stay frozen; let some train, or "
            "remove it"
        )
    return tuple(
        _Stage(
            name=f"stage {number} of {len(ends)}: {_unfrozen(end, blocks=blocks, everything=is_last and has_embeddings)}",
            lowest=end,
            has_embeddings=is_last and has_embeddings,
            epochs=None if is_last else gradual.epochs_per_stage,
        )
        for number, end in enumerate(ends, 1)
        for is_last in (number == len(ends),)
    )


def _unfrozen(lowest: int, *, blocks: int, everything: bool) -> str:
    if everything:
        return (
            "embeddings"
            if lowest > blocks
            else "everything"
            if lowest == 1
            else f"blocks {lowest} and above, embeddings"
        )
    return "head" if lowest > blocks else f"block {lowest}" if lowest == blocks else f"blocks {lowest} and above"


# --- options without effect ------------------------------------------------------------------------------------------


def _require_effect(parameters: Sequence[Parameter], options: LayerwiseOptions, phases: Sequence[Phase]) -> None:
    if options.batch_norm != "tune" and not any(is_batch_norm(p) for p in parameters):
        raise ModelError(
            f"strategy.batch_norm is {options.batch_norm}, but this model has no BatchNorm layer; remove it"
        )
    if options.frozen_eval and not any(not group.trainable for phase in phases for group in phase.table.groups):
        raise ModelError("strategy.frozen_eval is true, but nothing is frozen; set freeze_layers, or remove it")


def _require_time(recipe: Recipe, stages: Sequence[_Stage]) -> None:
    needed, training = sum(stage.epochs or 0 for stage in stages), recipe.training
    if not training.max_steps and needed >= training.num_train_epochs:
        raise ModelError(
            f"strategy.gradual_unfreezing needs {needed:g} epochs before its last stage ({len(stages)} stages for this model), "
            f"but training.num_train_epochs is {training.num_train_epochs:g}; write more epochs, a smaller epochs_per_stage "
            "or a larger blocks_per_stage"
        )
