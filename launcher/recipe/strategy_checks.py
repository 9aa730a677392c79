"""Rules between the options of a strategy: a function for each strategy whose options can contradict each other."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from launcher.recipe.keys import shown
from launcher.recipe.strategy_options import DiscriminativeOptions, LayerwiseOptions, LoraOptions
from launcher.recipe.view import Finding, View


def layerwise_options_fit(v: View) -> Iterator[Finding]:
    """Yield what is wrong between layerwise's options; what depends on the number of blocks is left to the strategy."""
    options = v.recipe.strategy
    if not isinstance(options, LayerwiseOptions):
        return
    if options.freeze_layers is not None and options.trainable_layers is not None:
        yield Finding(
            "strategy.trainable_layers",
            "strategy.trainable_layers and freeze_layers are both given",
            "keep one of the two",
        )
    if options.min_lr_scale and options.layer_decay == 1:
        yield _idle("strategy.min_lr_scale", options.min_lr_scale, "strategy.layer_decay is 1", "remove it")
    yield from _frozen_part_fits(options)
    yield from _stages_fit(v, options)


def _frozen_part_fits(options: LayerwiseOptions) -> Iterator[Finding]:
    is_staged = options.gradual_unfreezing is not None
    freezes = options.freeze_layers or options.trainable_layers is not None or options.embeddings == "freeze"
    if options.frozen_eval and not freezes and not is_staged:
        yield _idle("strategy.frozen_eval", True, "nothing is frozen", "set freeze_layers, or remove it")
    if options.trainable_layers == 0 and options.embeddings != "train":
        frozen = "all blocks and the embeddings are frozen (strategy.trainable_layers is 0)"
        if options.layer_decay is not None:
            yield _idle("strategy.layer_decay", options.layer_decay, frozen, "let blocks train, or remove it")
        if is_staged:
            yield Finding(
                "strategy.gradual_unfreezing",
                f"strategy.gradual_unfreezing has no effect: {frozen}",
                "let blocks train, or remove it",
            )
    if options.trainable_layers == 0 and options.frozen_eval and options.dropout:
        because = "all blocks are frozen and kept in evaluation mode (trainable_layers is 0, frozen_eval is true)"
        yield Finding(
            "strategy.dropout", f"strategy.dropout has no effect: {because}", "let blocks train, or remove it"
        )


def _stages_fit(v: View, options: LayerwiseOptions) -> Iterator[Finding]:
    gradual = options.gradual_unfreezing
    if gradual and not v.t.max_steps and gradual.epochs_per_stage >= v.t.num_train_epochs:
        key = "strategy.gradual_unfreezing.epochs_per_stage"
        yield Finding(
            key,
            f"{shown(key, gradual.epochs_per_stage)} but training.num_train_epochs is {v.t.num_train_epochs:g}, so the "
            "first stage would be the only one",
            "write fewer epochs for a stage, or more for the run",
        )


def _idle(key: str, value: object, because: str, remedy: str) -> Finding:
    return Finding(key, f"{shown(key, value)} but has no effect: {because}", remedy)


# --- discriminative ------------------------------------------------------------------------------------------------


def discriminative_options_fit(v: View) -> Iterator[Finding]:
    """Yield what is wrong between discriminative's options, as far as no model is needed to tell."""
    options = v.recipe.strategy
    if not isinstance(options, DiscriminativeOptions):
        return
    if options.score == "file" and not options.importance_file:
        yield Finding(
            "strategy.score",
            "strategy.score is 'file' but importance_file is not given",
            "add importance_file: the importance.json of an earlier run, or write score: sensitivity",
        )
    if options.apply != "ranks":
        return
    if not options.rank_min <= options.mean_rank <= options.rank_max:
        yield Finding(
            _blamed(v, "mean_rank", "rank_max", "rank_min"),
            f"strategy.mean_rank is {options.mean_rank:g}, but ranks lie between rank_min ({options.rank_min}) and rank_max "
            f"({options.rank_max})",
            "write a mean_rank between them, or other limits",
        )
    if options.score == "sensitivity" and options.probe_rank < options.rank_max:
        yield Finding(
            _blamed(v, "probe_rank", "rank_max"),
            f"strategy.probe_rank is {options.probe_rank}, below rank_max ({options.rank_max}): ranks above the probe's have "
            "no score",
            f"write rank_max: {options.probe_rank}, or raise probe_rank",
        )


def _blamed(v: View, *names: str) -> str:
    keys = [f"strategy.{name}" for name in names]
    return next((key for key in keys if v.given(key)), keys[0])


def _unless(**wanted: str) -> Callable[[View], str | bool]:
    """Return why a discriminative option has no effect: none of ``wanted`` (apply, score) is so."""

    def because(v: View) -> str | bool:
        options = v.recipe.strategy
        if not isinstance(options, DiscriminativeOptions):
            return False
        found = {name: getattr(options, name) for name in wanted}
        if any(found[name] == value for name, value in wanted.items()):
            return False
        return " and ".join(f"strategy.{name} is {value}" for name, value in found.items())

    return because


def _from_file(v: View) -> str | bool:
    options = v.recipe.strategy
    return isinstance(options, DiscriminativeOptions) and options.score == "file" and "strategy.score is file"


# (key, why it has no effect, remedy): rows of the table of settings without effect.
DISCRIMINATIVE_IDLE: tuple[tuple[str, Callable[[View], object], str], ...] = (
    *(
        (f"strategy.{name}", _unless(apply="ranks"), "write apply: ranks, or remove it")
        for name in ("mean_rank", "rank_min", "rank_max", "uniform_above")
    ),
    ("strategy.trainable_share", _unless(apply="freeze"), "write apply: freeze, or remove it"),
    ("strategy.rate_power", _unless(apply="lr"), "write apply: lr, or remove it"),
    ("strategy.probe_rank", _unless(score="sensitivity"), "write score: sensitivity, or remove it"),
    ("strategy.probe_steps", _from_file, "remove it; nothing is measured"),
    ("strategy.importance_file", _unless(score="file"), "write score: file, or remove it"),
    *(
        (f"strategy.{name}", _unless(apply="ranks", score="sensitivity"), "remove it; there are no adapters")
        for name in ("lora_alpha", "lora_dropout", "use_rslora", "init_lora_weights")
    ),
)


# --- adapters ------------------------------------------------------------------------------------------------------


def adapter_options_fit(v: View) -> Iterator[Finding]:
    """Yield what is wrong between the options of lora and discriminative that concern adapters."""
    options = v.recipe.strategy
    if not isinstance(options, LoraOptions | DiscriminativeOptions):
        return
    yield from _modules_are_named(options)
    if isinstance(options, LoraOptions):
        yield from _quantisation_fits(v, options)


def _modules_are_named(options: LoraOptions | DiscriminativeOptions) -> Iterator[Finding]:
    for name in ("target_modules", "exclude_modules", "modules_to_save"):
        if getattr(options, name) == []:
            yield Finding(f"strategy.{name}", f"strategy.{name} is []; it must name a module", "name one, or remove it")
    patterns = [("strategy.target_modules", options.target_modules)] if isinstance(options.target_modules, str) else []
    if isinstance(options, LoraOptions):
        for name in ("rank_pattern", "alpha_pattern"):
            patterns += [(f"strategy.{name}", entry) for entry in getattr(options, name)]
    for key, pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as error:
            message = f"{key}: {pattern!r} is no regular expression: {error}"
            yield Finding(key, message, "write names of modules, such as query, or mend the expression")


def _quantisation_fits(v: View, options: LoraOptions) -> Iterator[Finding]:
    if options.load_in_4bit and options.load_in_8bit:
        yield Finding(
            "strategy.load_in_8bit", "strategy.load_in_4bit and load_in_8bit are both true", "keep one of the two"
        )
        return
    if not (options.load_in_4bit or options.load_in_8bit):
        return
    name = "load_in_4bit" if options.load_in_4bit else "load_in_8bit"
    if options.init_lora_weights in ("pissa", "olora"):
        key = "strategy.init_lora_weights"
        message = f"{shown(key, options.init_lora_weights)} while {name} is true"
        yield Finding(
            key,
            f"{message}: the adapters could not be merged into the weights of full precision",
            f"write init_lora_weights: true, or remove {name}",
        )
    if v.recipe.distributed.zero_stage == 3:
        message = f"strategy.{name} is true while distributed.zero_stage is 3; quantised weights are not sharded here"
        yield Finding(f"strategy.{name}", message, f"write zero_stage: 2, or remove {name}")
