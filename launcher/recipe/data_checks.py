"""Rules between the keys of data: sources that are drawn from by weight."""

from __future__ import annotations

from collections.abc import Iterator

from launcher.recipe.data_section import SourceSpec
from launcher.recipe.keys import shown
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
