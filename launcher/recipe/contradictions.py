"""Keys that contradict each other: a function for each rule, and the table of them at the end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import PurePath

from launcher.errors import Fix
from launcher.recipe.addresses import address_fault, is_address
from launcher.recipe.batch_checks import token_batches_fit
from launcher.recipe.chat_checks import packing_fits
from launcher.recipe.data_checks import streaming_fits, weights_fit
from launcher.recipe.data_section import BUILTIN_SOURCES, FORMATS, SourceSpec
from launcher.recipe.distributed_checks import engine_fits, offload_fits, parallelism_fits, precision_fits
from launcher.recipe.keys import clear_match, did_you_mean, shown
from launcher.recipe.optimizer_keys import optimizer_rules
from launcher.recipe.schedule_keys import FOLLOW_METRIC, schedule_rules
from launcher.recipe.strategy_checks import adapter_options_fit, discriminative_options_fit, layerwise_options_fit
from launcher.recipe.task_checks import (
    baselines_fit,
    loss_fits,
    masks_fit,
    metric_fits,
    model_type_is_a_name,
    pair_loss_fits,
    random_model_fits,
    sampling_fits,
    windows_advance,
)
from launcher.recipe.task_options import COLUMNS
from launcher.recipe.time_limit import FORMS, limit_seconds
from launcher.recipe.view import Finding, View, sources

_HUB_ONLY = ("name", "revision")


def _steps_are_named(v: View) -> Iterator[Finding]:
    for what in ("eval", "save"):
        steps, strategy = v.value(f"training.{what}_steps"), v.value(f"training.{what}_strategy")
        if strategy == "steps" and steps is None:
            yield Finding(
                f"training.{what}_strategy",
                f"training.{what}_strategy is steps, but {what}_steps is not given",
                f"add {what}_steps",
            )
    for name in ("eval_steps", "save_steps", "logging_steps", "warmup_steps"):
        steps = v.value(f"training.{name}")
        if steps is not None and steps > 1 and steps != int(steps):
            yield Finding(
                f"training.{name}",
                f"{shown(f'training.{name}', steps)}; above 1 it must be a whole number",
                "below 1 it is a share of all steps",
            )


def _best_can_be_saved(v: View) -> Iterator[Finding]:
    t, remedy = v.t, "write them alike, or load_best_model_at_end: false"
    lost = "so the best model would not be saved"
    if not t.load_best_model_at_end or "no" in (t.eval_strategy, t.save_strategy):
        return
    if t.eval_strategy != t.save_strategy:
        message = f"training.save_strategy is {t.save_strategy} while eval_strategy is {t.eval_strategy}, {lost}"
        key = "training.save_strategy" if v.given("training.save_strategy") else "training.eval_strategy"
        yield Finding(key, message, remedy)
    elif t.eval_strategy == "steps" and t.eval_steps and t.save_steps and not _is_multiple(t.save_steps, t.eval_steps):
        message = f"{shown('training.save_steps', t.save_steps)}, no multiple of eval_steps ({t.eval_steps:g}), {lost}"
        yield Finding(
            "training.save_steps", message, f"write a multiple of {t.eval_steps:g}, or load_best_model_at_end: false"
        )


def _is_multiple(save: float, evaluate: float) -> bool:
    if (save < 1) != (evaluate < 1):
        return False
    ratio = save / evaluate
    return abs(ratio - round(ratio)) < 1e-6 and ratio >= 1 - 1e-6


def _engine_saves_in_background(v: View) -> Iterator[Finding]:
    d = v.recipe.distributed
    sharded = d.engine in ("deepspeed", "fsdp") or d.zero_stage is not None or d.offload != "none" or d.deepspeed_config
    if v.t.async_save and sharded:
        yield Finding(
            "training.async_save",
            "training.async_save is true, but DeepSpeed and FSDP write their own files, and training waits for them",
            "write async_save: false, or use engine: ddp",
        )


def _metric_is_on_validation(v: View) -> Iterator[Finding]:
    metric = v.t.metric_for_best_model
    if metric and metric.startswith("test"):
        message = (
            f"{shown('training.metric_for_best_model', metric)}; checkpoints are chosen on validation, never on test"
        )
        yield Finding(
            "training.metric_for_best_model", message, f"write {metric.removeprefix('test').lstrip('_/') or 'macro_f1'}"
        )


def _plateau_needs_evaluation(v: View) -> Iterator[Finding]:
    schedule = v.t.lr_scheduler_type
    if schedule in FOLLOW_METRIC and v.t.eval_strategy == "no":
        yield Finding(
            "training.lr_scheduler_type",
            f"{shown('training.lr_scheduler_type', schedule)}, which follows a metric, but eval_strategy is no",
            "write eval_strategy: epoch",
        )


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
            yield Finding(
                key, f"data.columns has no column {name} of ours", f"{did_you_mean(name, known)} (ours: yours)", fix
            )


def _sources_fit(v: View) -> Iterator[Finding]:
    for key, spec in sources(v.recipe):
        text = spec if isinstance(spec, str) else spec.source
        if is_address(text) and (fault := address_fault(text)):
            yield Finding(key, f"{shown(key, text)}; {fault[0]}", fault[1])
        kind, _, name = text.partition(":")
        if kind == "builtin" and name not in BUILTIN_SOURCES:
            yield Finding(
                key, f"{shown(key, text)}; there is no such built-in source", did_you_mean(name, BUILTIN_SOURCES)
            )
        if isinstance(spec, SourceSpec):
            yield from _options_fit(key, spec)


def _options_fit(key: str, spec: SourceSpec) -> Iterator[Finding]:
    ending = PurePath(spec.source.lower().removesuffix(".gz")).suffix
    form = spec.format or FORMATS.get(ending)
    for name, forms in (
        ("delimiter", ("csv", "tsv")),
        ("header", ("csv", "tsv", "xlsx", "conll")),
        ("encoding", ("csv", "tsv", "json", "jsonl", "labelled-text", "text", "paragraphs", "conll", "conllu")),
    ):
        if getattr(spec, name) is not None and form is not None and form not in forms:
            yield Finding(f"{key}.{name}", f"{key}.{name} has no effect: the format is {form}", "remove it")
    if spec.source.startswith("builtin:") or ending in FORMATS or is_address(spec.source):
        for name in _HUB_ONLY:
            if getattr(spec, name) is not None:
                yield Finding(
                    f"{key}.{name}", f"{key}.{name} has no effect: {spec.source} is not on the hub", "remove it"
                )


def _labels_are_told_apart(v: View) -> Iterator[Finding]:
    labels = v.recipe.data.labels
    if not isinstance(labels, list):
        return
    for place, name in enumerate(labels):
        if name in labels[:place]:
            key = f"data.labels[{place}]"
            yield Finding(key, f"{key} is {name!r}, a label that stands twice", "every label needs a name of its own")


def _time_limit_is_slurms(v: View) -> Iterator[Finding]:
    time = v.recipe.slurm.time
    if limit_seconds(time) is None:
        yield Finding(
            "slurm.time", f"{shown('slurm.time', time)}; it must be {FORMS}, and above 0", 'such as "12:00:00"'
        )


CONTRADICTIONS: tuple[Callable[[View], Iterator[Finding]], ...] = (
    _steps_are_named,
    _best_can_be_saved,
    _engine_saves_in_background,
    _metric_is_on_validation,
    _plateau_needs_evaluation,
    schedule_rules,
    optimizer_rules,
    engine_fits,
    offload_fits,
    parallelism_fits,
    precision_fits,
    _rows_are_named_once,
    _columns_are_ours,
    _sources_fit,
    weights_fit,
    packing_fits,
    streaming_fits,
    token_batches_fit,
    _labels_are_told_apart,
    layerwise_options_fit,
    adapter_options_fit,
    discriminative_options_fit,
    baselines_fit,
    loss_fits,
    masks_fit,
    metric_fits,
    model_type_is_a_name,
    pair_loss_fits,
    random_model_fits,
    sampling_fits,
    windows_advance,
    _time_limit_is_slurms,
)
