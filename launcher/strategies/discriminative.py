"""Discriminative fine-tuning: a short probe measures which modules matter, and they get the ranks, or train, or train faster."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from launcher.contracts import AdapterPlan, Parameter, Phase, Probe, Strategy
from launcher.errors import DataError, ModelError
from launcher.recipe.schema import Recipe
from launcher.recipe.strategy_options import DiscriminativeOptions
from launcher.strategies.importance import Scores, allocate_freeze, allocate_ranks, rate_scales
from launcher.strategies.importance_file import Importance, ModuleImportance, importance_key, read_importance
from launcher.strategies.lora import adapter_table, check_initial_values
from launcher.strategies.tables import build_table, group_by_role, regularization
from launcher.strategies.targets import find_targets, module_of, modules_to_save_for

_MISSING_SHOWN = 5


class Discriminative(Strategy):
    """Ranks, trainable modules or rates in proportion to importance; before the probe, the phases carry a stand-in."""

    def phases(
        self, parameters: Sequence[Parameter], recipe: Recipe, importance: Mapping[str, Any] | None = None
    ) -> tuple[Phase, ...]:
        """Return one phase; without ``importance`` (and unless ``score`` is file), one that stands for it and says so.

        Raises ModelError where the options do not fit the model, DataError where the importance does not.
        """
        options = _options(recipe)
        if importance is not None:
            found = Importance.from_json(importance)
        elif options.score == "file":
            found = read_importance(Path(options.importance_file or "").expanduser())
        else:
            return (_stand_in(parameters, recipe),)
        return (_main_phase(parameters, recipe, with_allocation(found, parameters, recipe).allocation),)

    def probe(self, parameters: Sequence[Parameter], recipe: Recipe) -> Probe | None:
        """Return the probe that ``score`` asks for; None for an importance.json from elsewhere.

        Raises ModelError where the options do not fit the model.
        """
        options = _options(recipe)
        if options.score == "file":
            return None
        if options.score == "sensitivity":
            ranks = {module_of(p): options.probe_rank for p in _targets(parameters, recipe)}
            phase = _adapter_phase("probe", parameters, recipe, ranks)
        else:
            _require_inputs(_targets(parameters, recipe), options)
            phase = _gradient_phase(parameters, recipe)
        return Probe(
            phase=replace(phase, carry="nothing"),
            steps=options.probe_steps,
            score=options.score,
            weights=tuple(p.name for p in _targets(parameters, recipe)),
            options=_measured_options(options),
        )


def measured(
    parameters: Sequence[Parameter], recipe: Recipe, scores: Scores, *, key_parts: Mapping[str, Any]
) -> Importance:
    """Return what importance.json says of a finished probe: its scores, and what the recipe makes of them.

    Args:
        parameters: those of the model without adapters.
        scores: module name -> scores, float64, descending; every target has them.
        key_parts: everything that the scores depend on.

    Raises:
        DataError: a target has no scores.
    """
    probe = Discriminative().probe(parameters, recipe)
    assert probe is not None, "there was a probe"
    importance = Importance(
        key=importance_key(key_parts),
        key_parts=key_parts,
        score=probe.score,
        modules={
            module_of(target): ModuleImportance(
                depth=target.depth,
                cost=_cost(target),
                numel=target.numel,
                scores=tuple(float(score) for score in scores[module_of(target)]),
            )
            for target in _targets(parameters, recipe)
        },
    )
    return with_allocation(importance, parameters, recipe)


def with_allocation(importance: Importance, parameters: Sequence[Parameter], recipe: Recipe) -> Importance:
    """Return ``importance`` with what this recipe makes of it, for a run that reuses the scores of another.

    Raises DataError where a target has no scores, ModelError where the budget allows nothing.
    """
    allocation = _allocate(parameters, recipe, _scores(importance, parameters, recipe))
    return replace(importance, allocation=allocation)


# --- what importance decides ---------------------------------------------------------------------------------------


def _allocate(parameters: Sequence[Parameter], recipe: Recipe, scores: Scores) -> dict[str, Any]:
    options = _options(recipe)
    if options.apply == "freeze":
        numels = _module_numels(parameters, recipe)
        chosen = allocate_freeze(scores, numels, share=options.trainable_share)
        used = sum(numels[name] for name in chosen)
        return {"apply": "freeze", "trainable": list(chosen), "used": used, "of": sum(numels.values())}
    if options.apply == "lr":
        return {"apply": "lr", "scales": rate_scales(scores, power=options.rate_power)}
    allocation = allocate_ranks(
        scores,
        {module_of(p): _cost(p) for p in _targets(parameters, recipe)},
        mean_rank=options.mean_rank,
        rank_min=options.rank_min,
        rank_max=options.rank_max,
        uniform_above=options.uniform_above,
    )
    return {"apply": "ranks", **asdict(allocation), "ranks": dict(allocation.ranks)}


def _main_phase(parameters: Sequence[Parameter], recipe: Recipe, allocation: Mapping[str, Any]) -> Phase:
    if allocation["apply"] == "freeze":
        note = (
            f"{len(allocation['trainable'])} modules train: {allocation['used']:,} of {allocation['of']:,} parameters"
        )
        return replace(_frozen_phase(parameters, recipe, allocation["trainable"]), note=note)
    if allocation["apply"] == "lr":
        note = "experimental: rates are scaled by importance, which has not been shown to help"
        return replace(_rates_phase(parameters, recipe, allocation["scales"]), note=note)
    spread = f"importance is spread over {allocation['effective_share']:.0%} of the modules"
    note = f"{spread}, so all get the same rank" if allocation["is_uniform"] else spread
    note += f"; {allocation['used']:,} of {allocation['budget']:,.0f} parameters of adapters"
    return replace(_adapter_phase("main", parameters, recipe, allocation["ranks"]), note=note)


def _stand_in(parameters: Sequence[Parameter], recipe: Recipe) -> Phase:
    """Return a phase of the size that the real one will have, with a note that says what is not known yet."""
    options = _options(recipe)
    targets = _targets(parameters, recipe)
    if options.apply == "freeze":
        numels = _module_numels(parameters, recipe)
        budget = options.trainable_share * sum(numels.values())
        chosen = allocate_freeze(
            {module_of(p): _depth_score(p) for p in targets}, numels, share=options.trainable_share
        )
        note = (
            f"which modules train follows from the probe; budget {budget:,.0f} parameters, shown for the last modules"
        )
        return replace(_frozen_phase(parameters, recipe, chosen), note=note)
    if options.apply == "lr":
        note = "experimental: rates by importance follow from the probe; shown are those of mean importance"
        return replace(_rates_phase(parameters, recipe, {}), note=note)
    rank = max(math.floor(options.mean_rank), 1)
    budget = options.mean_rank * sum(_cost(p) for p in targets)
    note = f"ranks after the probe; budget {budget:,.0f} parameters, shown as rank {rank} everywhere"
    return replace(_adapter_phase("main", parameters, recipe, {module_of(p): rank for p in targets}), note=note)


def _depth_score(target: Parameter) -> Any:
    import numpy as np

    # Falls so fast with distance from the end that no module's size changes the order.
    return np.array([float(target.numel) * 2.0 ** (2 * target.depth)])


# --- phases --------------------------------------------------------------------------------------------------------


def _adapter_phase(name: str, parameters: Sequence[Parameter], recipe: Recipe, ranks: Mapping[str, int]) -> Phase:
    options = _options(recipe)
    ranks = {module: rank for module, rank in ranks.items() if rank}
    plan = AdapterPlan(
        ranks=ranks,
        alphas={module: _alpha(rank, options) for module, rank in ranks.items()},
        modules_to_save=modules_to_save_for(parameters, options.modules_to_save),
        dropout=options.lora_dropout,
        use_rslora=options.use_rslora,
        init_lora_weights=options.init_lora_weights,
    )
    check_initial_values(_targets(parameters, recipe), plan)
    return Phase(name, adapter_table(parameters, plan, recipe, head_lr=options.head_lr), adapters=plan)


def _alpha(rank: int, options: DiscriminativeOptions) -> float:
    """Return lora_alpha of a module such that every adapter has the scale of one with mean_rank."""
    power = 0.5 if options.use_rslora else 1.0
    return float(options.lora_alpha * (rank / options.mean_rank) ** power)


def _frozen_phase(parameters: Sequence[Parameter], recipe: Recipe, trainable: Sequence[str]) -> Phase:
    options, chosen = _options(recipe), frozenset(trainable)
    whole = modules_to_save_for(parameters, options.modules_to_save)
    base = recipe.training.learning_rate

    def rate(parameter: Parameter) -> float:
        if _lies_in(parameter, whole):
            return options.head_lr or base
        return base if module_of(parameter) in chosen else 0.0

    return Phase("main", build_table(parameters, rate=rate, regularization=regularization(recipe)))


def _rates_phase(parameters: Sequence[Parameter], recipe: Recipe, scales: Mapping[str, float]) -> Phase:
    options = _options(recipe)
    whole = modules_to_save_for(parameters, options.modules_to_save)
    base = recipe.training.learning_rate

    def rate(parameter: Parameter) -> float:
        if _lies_in(parameter, whole):
            return options.head_lr or base
        return base * scales.get(module_of(parameter), 1.0)

    def name(parameter: Parameter) -> str:
        module = module_of(parameter)
        return module if module in scales and not _lies_in(parameter, whole) else group_by_role(parameter)

    return Phase("main", build_table(parameters, rate=rate, regularization=regularization(recipe), name=name))


def _gradient_phase(parameters: Sequence[Parameter], recipe: Recipe) -> Phase:
    """Return the phase of a probe that changes no weight: what has a rate in it only has its gradients taken."""
    options = _options(recipe)
    # EVA looks at the modules' inputs alone: a backward pass through the head keeps every engine's step as it is.
    modules = {module_of(p) for p in _targets(parameters, recipe)} if options.score == "gradient" else set()
    names = {f"{module}.weight" for module in modules}
    whole = modules_to_save_for(parameters)

    def rate(parameter: Parameter) -> float:
        return recipe.training.learning_rate if parameter.name in names or _lies_in(parameter, whole) else 0.0

    table = build_table(parameters, rate=rate, regularization=regularization(recipe, weight_decay=0.0))
    what = "gradients are summed" if modules else "inputs are observed"
    return Phase("probe", table, note=f"{what}; no weight changes")


# --- small things --------------------------------------------------------------------------------------------------


def _options(recipe: Recipe) -> DiscriminativeOptions:
    options = recipe.strategy
    assert isinstance(options, DiscriminativeOptions)
    return options


def _targets(parameters: Sequence[Parameter], recipe: Recipe) -> tuple[Parameter, ...]:
    options = _options(recipe)
    return find_targets(
        parameters,
        target_modules=options.target_modules,
        exclude_modules=options.exclude_modules,
        modules_to_save=modules_to_save_for(parameters, options.modules_to_save),
    )


def _cost(target: Parameter) -> int:
    """Return the parameters of an adapter of rank 1: outputs + inputs, times the kernel for a convolution."""
    return target.shape[0] + target.numel // target.shape[0]


def _require_inputs(targets: Sequence[Parameter], options: DiscriminativeOptions) -> None:
    unfit = [module_of(p) for p in targets if len(p.shape) > 2 or p.module == "Embedding"]
    if options.score == "eva" and unfit:
        raise ModelError(
            f"strategy.score is eva, which looks at the inputs of linear layers, but {unfit[0]} is none; leave it out of "
            "strategy.target_modules, or write score: sensitivity"
        )


def _module_numels(parameters: Sequence[Parameter], recipe: Recipe) -> dict[str, int]:
    """Return target module -> its parameters, biases included."""
    numels = {module_of(p): 0 for p in _targets(parameters, recipe)}
    for parameter in parameters:
        if module_of(parameter) in numels:
            numels[module_of(parameter)] += parameter.numel
    return numels


def _lies_in(parameter: Parameter, modules: Sequence[str]) -> bool:
    return any(parameter.name.startswith(f"{module}.") for module in modules)


def _scores(importance: Importance, parameters: Sequence[Parameter], recipe: Recipe) -> Scores:
    found = importance.scores
    wanted = [module_of(p) for p in _targets(parameters, recipe)]
    missing = [name for name in wanted if name not in found]
    if missing:
        more = f" and {len(missing) - _MISSING_SHOWN} more" if len(missing) > _MISSING_SHOWN else ""
        raise DataError(
            f"{_options(recipe).importance_file or 'importance.json'} has no scores for {', '.join(missing[:_MISSING_SHOWN])}{more} ({len(missing)} of "
            f"{len(wanted)} modules; it has {next(iter(found))}, for one); measure this model, or leave these out with "
            "strategy.exclude_modules"
        )
    return {name: found[name] for name in wanted}


def _measured_options(options: DiscriminativeOptions) -> dict[str, Any]:
    """Return the options that the scores depend on; what is made of them later is none of these."""
    names = ["score", "probe_steps", "target_modules", "exclude_modules", "modules_to_save"]
    values: dict[str, Any] = {}
    if options.score == "sensitivity":
        names += ["probe_rank", "lora_dropout", "use_rslora", "init_lora_weights", "head_lr"]
        values["lora_alpha"] = _alpha(options.probe_rank, options)
    return {name: getattr(options, name) for name in names} | values
