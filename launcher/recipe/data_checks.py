"""Rules between the keys of data: sources that are drawn from by weight, and rows that are read while training."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from launcher.recipe.data_section import STREAMED_FORMATS, SourceSpec
from launcher.recipe.keys import shown
from launcher.recipe.task_options import STREAMED_TASKS
from launcher.recipe.view import Finding, View, sources


def weights_fit(v: View) -> Iterator[Finding]:
    """Yield weights of sources that draw nothing, or that something else contradicts."""
    found = {key: spec.weight if isinstance(spec, SourceSpec) else None for key, spec in sources(v.recipe)}
    mixed = [key for key in found if key.startswith("data.train[")]
    given = [key for key in mixed if found[key] is not None]
    for key, weight in found.items():
        if weight is not None and key not in mixed:
            why = "it is the only source of train" if key == "data.train" else "only sources of train are drawn from"
            yield Finding(f"{key}.weight", f"{shown(f'{key}.weight', weight)} but has no effect: {why}", "remove it")
    if len(mixed) == 1 and given:
        key = f"{given[0]}.weight"
        yield Finding(
            key, f"{shown(key, found[given[0]])} but has no effect: it is the only source of train", "remove it"
        )
    elif given:
        for key in mixed:
            if key not in given:
                yield Finding(
                    key, f"{key} has no weight, and {given[0]} has one", "give each source of train one, or none"
                )
        yield from _draws_fit(v, f"{given[0]}.weight", found[given[0]])


def _draws_fit(v: View, key: str, weight: float | None) -> Iterator[Finding]:
    sampling = v.value("task.class_sampling")
    if sampling not in (None, "natural"):
        message = f"{shown(key, weight)} and task.class_sampling is {sampling}: rows are drawn by their source or by their label"
        yield Finding(key, message, "keep one of the two")
    if v.t.train_sampling_strategy == "sequential":
        message = (
            f"{shown(key, weight)}, but training.train_sampling_strategy is sequential, which takes rows as they are"
        )
        yield Finding(key, message, "write train_sampling_strategy: random or group_by_length, or remove the weights")


# Key, whether its value needs all rows before training, why, and the remedy.
_NEEDS_ALL_ROWS: tuple[tuple[str, Callable[[Any], object], str, str], ...] = (
    ("task.class_sampling", lambda value: value not in (None, "natural"), "draws by counted labels", "remove it"),
    ("task.class_weights", lambda value: value == "balanced", "counts the labels of all rows", "name the weights"),
    ("evaluation.label_errors", bool, "judges all rows of train", "remove it"),
    ("evaluation.baselines", bool, "learns from all rows of train", "write baselines: []"),
    ("strategy.prefix_cache", lambda value: value in ("memory", "disk"), "keeps states of all rows", "remove it"),
    ("strategy.gradual_unfreezing", bool, "counts its stages in epochs", "remove it"),
    ("training.batch_size_schedule", bool, "counts its changes in epochs", "remove it"),
)


def streaming_fits(v: View) -> Iterator[Finding]:
    """Yield what rows that are read while training need, and what needs all rows before."""
    if not v.recipe.data.streaming:
        return
    key, data = "data.streaming", v.recipe.data
    if v.recipe.task.type not in STREAMED_TASKS:
        tasks = ", ".join(STREAMED_TASKS)
        yield Finding(key, f"data.streaming is for {tasks}, and the task is {v.recipe.task.type}", "remove it")
    if v.t.max_steps is None:
        message = "data.streaming is true but training.max_steps is not given: how many rows there are is not known"
        yield Finding(key, message, "add training.max_steps")
    yield from _streams_are_named(v)
    if (
        v.recipe.task.type == "text-classification"
        and data.labels is None
        and v.value("task.problem_type") != "regression"
    ):
        yield Finding(
            key, "data.streaming is true but data.labels is not given: the names of labels are not known before all rows are read",
            "add data.labels, a list of them or a file with one a line",
        )  # fmt: skip
    for name, needs, why, remedy in _NEEDS_ALL_ROWS:
        if needs(v.value(name)):
            yield Finding(name, f"{name} {why}, and data.streaming is true", remedy)
    for what in ("eval", "save", "logging"):
        name = f"{what}_strategy"
        if (v.extra(name) if what == "logging" else getattr(v.t, name)) == "epoch":
            yield Finding(
                f"training.{name}" if v.given(f"training.{name}") else key,
                f"training.{name} is epoch, but with data.streaming nobody knows where an epoch ends",
                f"write {name}: steps and {what}_steps" + ("" if what == "logging" else f", or {name}: 'no'"),
            )


def _streams_are_named(v: View) -> Iterator[Finding]:
    data = v.recipe.data
    if data.source is not None:
        message = "data.source is given and data.streaming is true: only the rows of train are read while training"
        yield Finding("data.source", message, "name the sources as train:, validation: and test:")
    elif data.validation is None:
        message = "data.streaming is true but data.validation is not given: no share of train can be set aside"
        yield Finding("data.streaming", message, "add data.validation, rows of their own")
    for key, spec in sources(v.recipe):
        if key.startswith("data.train") and isinstance(spec, SourceSpec):
            for name, why in (
                ("weight", "draws from rows that are counted"),
                ("limit", "counts rows from the first one on"),
            ):
                if getattr(spec, name) is not None:
                    yield Finding(f"{key}.{name}", f"{key}.{name} {why}, and data.streaming is true", "remove it")
            if spec.format is not None and spec.format not in STREAMED_FORMATS:
                formats = ", ".join(STREAMED_FORMATS)
                message = f"{shown(f'{key}.format', spec.format)}, and data.streaming is true"
                yield Finding(f"{key}.format", message, f"what can be streamed is {formats}")
