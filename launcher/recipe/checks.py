"""Rules that bind keys of different sections: one table of settings without effect, one of contradictions.

A setting counts as given when the recipe, a base file or the command line sets it, and not to null.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from launcher.errors import Fix, Problem
from launcher.recipe.keys import clear_match, did_you_mean, shown
from launcher.recipe.schema import BUILTIN_SOURCES, COLUMNS, Recipe, SourceSpec, TrainingSection

if TYPE_CHECKING:
    from launcher.recipe.load import LoadedRecipe

_HUB_ONLY = ("name", "revision")
FILE_ENDINGS = (".csv", ".tsv", ".json", ".jsonl", ".parquet", ".txt")


@dataclass(frozen=True)
class Finding:
    """A broken rule; the place is found later."""

    key: str
    message: str
    remedy: str
    fix: Fix | None = None


@dataclass(frozen=True)
class View:
    """A recipe as the rules see it."""

    recipe: Recipe
    assume_given: bool = False
    """Whether to treat every value as given, as a written-out recipe does."""
    t: TrainingSection = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "t", self.recipe.training)

    def value(self, key: str) -> Any:
        """Return the value of a dotted key; None where the recipe has no such key."""
        value: Any = self.recipe
        for part in key.split("."):
            value = getattr(value, part, None)
        return value

    def given(self, key: str) -> bool:
        """Whether a dotted key is set, and not to null."""
        above, _, name = key.rpartition(".")
        section = self.value(above) if above else self.recipe
        is_set = section is not None and (self.assume_given or name in section.model_fields_set)
        return bool(is_set and self.value(key) is not None)

    def extra(self, name: str, default: Any = None) -> Any:
        """Return a passed-through field of ``training``."""
        return self.t.passthrough.get(name, default)


# --- settings without effect ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Idle:
    """A key that has no effect while ``because`` returns a reason."""

    key: str
    because: Callable[[View], object]
    remedy: str


def _unless_eval(name: str) -> Callable[[View], str | bool]:
    return lambda v: v.t.eval_strategy != name and f"eval_strategy is {v.t.eval_strategy}"


def _no_eval(v: View) -> str | bool:
    return v.t.eval_strategy == "no" and "training.eval_strategy is no"


def _nothing_chosen(v: View) -> str | bool:
    chosen = v.t.load_best_model_at_end or v.t.early_stopping_patience or v.t.lr_scheduler_type in ("reduce_lr_on_plateau", "greedy")
    return _no_eval(v) or (not chosen and "no checkpoint is chosen and no run stopped by a metric")


def _no_save(v: View) -> str | bool:
    return _no_eval(v) or (v.t.save_strategy == "no" and "training.save_strategy is no")


def _no_workers(v: View) -> str | bool:
    return not v.extra("dataloader_num_workers") and "training.dataloader_num_workers is 0"


def _not_adam(v: View) -> str | bool:
    optim = str(v.extra("optim", "adamw_torch"))
    return "adam" not in optim and "ademamix" not in optim and f"training.optim is {optim}"


def _no_warmup(v: View) -> str | bool:
    schedule = v.t.lr_scheduler_type
    return schedule in ("constant", "reduce_lr_on_plateau", "greedy") and f"training.lr_scheduler_type is {schedule}, which has no warm-up"


def _plain_schedule(v: View) -> str | bool:
    schedule = v.t.lr_scheduler_type
    return schedule in ("linear", "constant", "constant_with_warmup") and f"training.lr_scheduler_type is {schedule}, which takes none"


def _regression(v: View) -> str | bool:
    return v.recipe.task.problem_type == "regression" and "task.problem_type is regression"


def _not_one_label(v: View) -> str | bool:
    kind = v.recipe.task.problem_type
    return kind in ("regression", "multi_label_classification") and f"task.problem_type is {kind}"


def _not_multi_label(v: View) -> str | bool:
    kind = v.recipe.task.problem_type
    return kind not in ("auto", "multi_label_classification") and f"task.problem_type is {kind}"


def _has_validation(v: View) -> str | bool:
    return v.recipe.data.validation is not None and "data.validation gives the rows"


def _no_intervals(v: View) -> str | bool:
    return v.recipe.evaluation.bootstrap == 0 and "evaluation.bootstrap is 0"


def _no_wandb(v: View) -> str | bool:
    wandb = v.recipe.tracking.wandb
    return wandb is not None and wandb.mode == "disabled" and "tracking.wandb.mode is disabled"


def _not_on_hub(v: View) -> str | bool:
    return is_local(v.recipe.model.name_or_path) and "the model is a folder or in a package"


def _frozen_head(v: View) -> str | bool:
    return getattr(v.recipe.strategy, "train_head", True) is False and "strategy.train_head is false"


IDLE = (
    Idle("training.num_train_epochs", lambda v: v.t.max_steps and "training.max_steps sets the length of the run", "keep one of the two"),
    Idle("training.eval_steps", _unless_eval("steps"), "write eval_strategy: steps, or remove it"),
    Idle("training.save_steps", lambda v: v.t.save_strategy != "steps" and f"save_strategy is {v.t.save_strategy}", "write save_strategy: steps, or remove it"),
    Idle("training.save_total_limit", lambda v: v.t.save_strategy == "no" and "training.save_strategy is no", "save at steps or epoch, or remove it"),
    Idle("training.load_best_model_at_end", lambda v: v.t.load_best_model_at_end and _no_save(v), "evaluate and save at the same times, or write false"),
    Idle("training.early_stopping_patience", _no_eval, "write eval_strategy: epoch, or remove it"),
    Idle("training.metric_for_best_model", _nothing_chosen, "evaluate, and choose the best checkpoint by it; or remove it"),
    Idle("training.greater_is_better", lambda v: not v.given("training.metric_for_best_model") and "metric_for_best_model is not given", "name the metric, or remove it"),
    Idle("training.eval_delay", _no_eval, "write eval_strategy: epoch, or remove it"),
    Idle("training.eval_on_start", lambda v: v.extra("eval_on_start") and _no_eval(v), "write eval_strategy: epoch, or remove it"),
    Idle("training.warmup_steps", lambda v: v.t.warmup_steps and _no_warmup(v), "choose another schedule, such as constant_with_warmup, or remove it"),
    Idle("training.lr_scheduler_kwargs", _plain_schedule, "choose a schedule that takes them, or remove it"),
    Idle("training.logging_steps", lambda v: v.extra("logging_strategy", "steps") != "steps" and f"logging_strategy is {v.extra('logging_strategy')}", "remove one of the two"),
    Idle("training.adam_beta1", _not_adam, "remove it, or choose an Adam optimizer"),
    Idle("training.adam_beta2", _not_adam, "remove it, or choose an Adam optimizer"),
    Idle("training.adam_epsilon", _not_adam, "remove it, or choose an Adam optimizer"),
    Idle("training.data_seed", lambda v: v.t.train_sampling_strategy == "sequential" and "rows keep their order", "remove one of the two"),
    Idle("training.dataloader_persistent_workers", _no_workers, "set dataloader_num_workers, or remove it"),
    Idle("training.dataloader_prefetch_factor", _no_workers, "set dataloader_num_workers, or remove it"),
    Idle("training.dataloader_multiprocessing_context", _no_workers, "set dataloader_num_workers, or remove it"),
    Idle("training.liger_kernel_config", lambda v: not v.extra("use_liger_kernel") and "training.use_liger_kernel is off", "write use_liger_kernel: true, or remove it"),
    Idle("training.activation_checkpointing_kwargs", lambda v: not v.t.activation_checkpointing and "activation_checkpointing is false", "write activation_checkpointing: true, or remove it"),
    Idle("training.label_smoothing_factor", lambda v: v.t.label_smoothing_factor and _not_one_label(v), "remove it; it spreads one label over the others"),
    Idle("task.class_weights", lambda v: v.recipe.task.class_weights != "none" and _regression(v), "remove it; a number has no classes"),
    Idle("task.label_delimiter", _not_multi_label, "write problem_type: multi_label_classification, or remove it"),
    Idle("data.labels", _regression, "remove it; a number has no classes"),
    Idle("data.validation_share", _has_validation, "keep one of the two"),
    Idle("data.split_seed", _has_validation, "keep one of the two"),
    Idle("strategy.head_lr", _frozen_head, "write train_head: true, or remove it"),
    Idle("model.revision", _not_on_hub, "remove it; revisions are of models on the hub"),
    Idle("evaluation.confidence", _no_intervals, "give bootstrap a number, or remove it"),
    *(Idle(f"tracking.wandb.{name}", _no_wandb, "remove it, or write mode: auto") for name in ("project", "entity", "group", "tags", "log_predictions")),
)  # fmt: skip


def _idle(view: View) -> Iterator[Finding]:
    for row in IDLE:
        reason = view.given(row.key) and row.because(view)
        if reason:
            yield Finding(row.key, f"{shown(row.key, view.value(row.key))} but has no effect: {reason}", row.remedy)


def values_without_effect(recipe: Recipe) -> frozenset[str]:
    """Return the keys whose values are defaults that have no effect in this recipe."""
    view = View(recipe, assume_given=True)
    return frozenset(finding.key for finding in _idle(view) if _is_default(view, finding.key))


def _is_default(view: View, key: str) -> bool:
    above, _, name = key.rpartition(".")
    declared = type(view.value(above)).model_fields.get(name)
    return declared is not None and declared.get_default(call_default_factory=True, validated_data={}) == view.value(key)


# --- contradictions ------------------------------------------------------------------------------------------------


def _steps_are_named(v: View) -> Iterator[Finding]:
    for what in ("eval", "save"):
        steps, strategy = v.value(f"training.{what}_steps"), v.value(f"training.{what}_strategy")
        if strategy == "steps" and steps is None:
            yield Finding(f"training.{what}_strategy", f"training.{what}_strategy is steps, but {what}_steps is not given", f"add {what}_steps")
    for name in ("eval_steps", "save_steps", "logging_steps", "warmup_steps"):
        steps = v.value(f"training.{name}")
        if steps is not None and steps > 1 and steps != int(steps):
            yield Finding(f"training.{name}", f"{shown(f'training.{name}', steps)}; above 1 it must be a whole number", "below 1 it is a share of all steps")


def _best_can_be_saved(v: View) -> Iterator[Finding]:
    t, remedy = v.t, "write them alike, or load_best_model_at_end: false"
    if not t.load_best_model_at_end or "no" in (t.eval_strategy, t.save_strategy):
        return
    if t.eval_strategy != t.save_strategy:
        message = f"training.save_strategy is {t.save_strategy} while eval_strategy is {t.eval_strategy}, so the best model would not be saved"
        key = "training.save_strategy" if v.given("training.save_strategy") else "training.eval_strategy"
        yield Finding(key, message, remedy)
    elif t.eval_strategy == "steps" and t.eval_steps and t.save_steps and not _is_multiple(t.save_steps, t.eval_steps):
        message = f"{shown('training.save_steps', t.save_steps)}, no multiple of eval_steps ({t.eval_steps:g}), so the best model would not be saved"
        yield Finding("training.save_steps", message, f"write a multiple of {t.eval_steps:g}, or load_best_model_at_end: false")


def _is_multiple(save: float, evaluate: float) -> bool:
    if (save < 1) != (evaluate < 1):
        return False
    ratio = save / evaluate
    return abs(ratio - round(ratio)) < 1e-6 and ratio >= 1 - 1e-6


def _metric_is_on_validation(v: View) -> Iterator[Finding]:
    metric = v.t.metric_for_best_model
    if metric and metric.startswith("test"):
        message = f"{shown('training.metric_for_best_model', metric)}; checkpoints are chosen on validation, never on test"
        yield Finding("training.metric_for_best_model", message, f"write {metric.removeprefix('test').lstrip('_/') or 'macro_f1'}")


def _plateau_needs_evaluation(v: View) -> Iterator[Finding]:
    schedule = v.t.lr_scheduler_type
    if schedule in ("reduce_lr_on_plateau", "greedy") and v.t.eval_strategy == "no":
        yield Finding("training.lr_scheduler_type", f"{shown('training.lr_scheduler_type', schedule)}, which follows a metric, but eval_strategy is no", "write eval_strategy: epoch")


def _engine_fits(v: View) -> Iterator[Finding]:
    d = v.recipe.distributed
    if d.zero_stage is not None and d.engine in ("single", "ddp"):
        yield Finding("distributed.zero_stage", f"{shown('distributed.zero_stage', d.zero_stage)} but engine is {d.engine}", "write engine: deepspeed, or remove zero_stage")
    if d.engine == "deepspeed" and d.zero_stage is None:
        yield Finding("distributed.engine", "distributed.engine is 'deepspeed' but zero_stage is not given", "add zero_stage: 2 (or 0, 1, 3)")
    if d.engine == "single" and (d.nodes > 1 or (d.processes_per_node or 1) > 1):
        key = "distributed.nodes" if d.nodes > 1 else "distributed.processes_per_node"
        yield Finding(key, f"{shown(key, v.value(key))} but engine is single", "write engine: auto, or one process")
    if d.nodes > 1 and d.processes_per_node is None:
        yield Finding("distributed.nodes", f"{shown('distributed.nodes', d.nodes)} but processes_per_node is not given", "add processes_per_node: the GPUs of one node")


def _weights_fit_precision(v: View) -> Iterator[Finding]:
    if v.recipe.precision == "fp16" and v.recipe.model.dtype in ("float16", "bfloat16"):
        yield Finding("model.dtype", f"{shown('model.dtype', v.recipe.model.dtype)} while precision is fp16, whose loss scaling needs float32 weights", "write dtype: float32")


def _rows_are_named_once(v: View) -> Iterator[Finding]:
    data = v.recipe.data
    if data.source is None and data.train is None:
        yield Finding("data", "data names no rows to train on", "add source: (all splits) or train:")
    if data.source is not None and data.train is not None:
        yield Finding("data.train", "data.train and data.source are both given", "keep one of the two")


def _columns_are_ours(v: View) -> Iterator[Finding]:
    known = COLUMNS[v.recipe.task.type]
    for name in v.recipe.data.columns:
        if name not in known:
            key, sure = f"data.columns.{name}", clear_match(name, known)
            fix = Fix(key, f"data.columns.{sure}") if sure and sure not in v.recipe.data.columns else None
            yield Finding(key, f"data.columns has no column {name} of ours", f"{did_you_mean(name, known)} (ours: yours)", fix)


def _sources_fit(v: View) -> Iterator[Finding]:
    for key, spec in sources(v.recipe):
        text = spec if isinstance(spec, str) else spec.source
        kind, _, name = text.partition(":")
        if kind == "builtin" and name not in BUILTIN_SOURCES:
            yield Finding(key, f"{shown(key, text)}; there is no such built-in source", did_you_mean(name, BUILTIN_SOURCES))
        if isinstance(spec, SourceSpec):
            yield from _options_fit(key, spec)


def _options_fit(key: str, spec: SourceSpec) -> Iterator[Finding]:
    ending = PurePath(spec.source.lower().removesuffix(".gz")).suffix
    form = spec.format or (ending.removeprefix(".") if ending in FILE_ENDINGS else None)
    for name, forms in (("delimiter", ("csv", "tsv")), ("header", ("csv", "tsv")), ("encoding", ("csv", "tsv", "json", "jsonl", "txt", "labelled-text"))):
        if getattr(spec, name) is not None and form is not None and form not in forms:
            yield Finding(f"{key}.{name}", f"{key}.{name} has no effect: the format is {form}", "remove it")
    if spec.source.startswith("builtin:") or ending in FILE_ENDINGS:
        for name in _HUB_ONLY:
            if getattr(spec, name) is not None:
                yield Finding(f"{key}.{name}", f"{key}.{name} has no effect: {spec.source} is not on the hub", "remove it")


CONTRADICTIONS: tuple[Callable[[View], Iterator[Finding]], ...] = (
    _steps_are_named,
    _best_can_be_saved,
    _metric_is_on_validation,
    _plateau_needs_evaluation,
    _engine_fits,
    _weights_fit_precision,
    _rows_are_named_once,
    _columns_are_ours,
    _sources_fit,
)


# --- public --------------------------------------------------------------------------------------------------------


def sources(recipe: Recipe) -> Iterator[tuple[str, str | SourceSpec]]:
    """Yield (dotted key, source) for every source that a recipe names."""
    for split in ("source", "train", "validation", "test"):
        value = getattr(recipe.data, split)
        if isinstance(value, list):
            yield from ((f"data.{split}[{index}]", item) for index, item in enumerate(value))
        elif value is not None:
            yield f"data.{split}", value


def is_local(name: str) -> bool:
    """Whether a model's name is a path or a package, not a hub id; told by its form alone."""
    return name.startswith(("package:", "./", "../", "/", "~"))


def check_recipe(loaded: LoadedRecipe) -> list[Problem]:
    """Return what is wrong between the keys of a recipe; needs neither files nor packages."""
    view = View(loaded.recipe)
    found = [*_idle(view), *(finding for rule in CONTRADICTIONS for finding in rule(view))]
    return [Problem(loaded.place(item.key), item.message, item.remedy, item.key, item.fix) for item in found]
