"""What importance.json says, as pictures' cells and sentences: pure functions for the report."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from launcher.strategies.importance_file import Importance


def importance_facts(values: Mapping[str, Any], *, uniform_above: float | None = None) -> dict[str, Any]:
    """Return what the report shows of importance.json: ``sentences``, and ``grids`` of what, title and cells.

    ``uniform_above``: the recipe's threshold, where it is known. Raises DataError where ``values`` is no importance.json.
    """
    importance = Importance.from_json(values)
    places = module_places({name: module.depth for name, module in importance.modules.items()})
    totals = {name: math.fsum(module.scores) for name, module in importance.modules.items()}
    whole = math.fsum(totals.values())
    shares = {name: 100 * total / whole if whole else 100 / len(totals) for name, total in totals.items()}
    grids = [_decided(importance, places), _grid("share", "share in %", "Share of all importance", shares, places)]
    return {"sentences": _sentences(importance, uniform_above), "grids": [grid for grid in grids if grid]}


def module_places(depths: Mapping[str, int]) -> dict[str, tuple[str, int]]:
    """Return module -> (kind, depth): its name behind its block's, and the block that it lies in.

    A block's name ends with a number, the first in a module's name, or a later one where the first is a stage's. Modules
    without a depth (0) are counted through in the order of their blocks.
    """
    numbers = 1
    while numbers < 3 and not _tell_blocks_apart(depths, numbers):
        numbers += 1
    parts = {name: _split(name, numbers) for name in depths}
    blocks = list(dict.fromkeys(block for block, _ in sorted(parts.values(), key=_natural)))
    return {name: (kind, depths[name] or 1 + blocks.index(block)) for name, (block, kind) in parts.items()}


def _tell_blocks_apart(depths: Mapping[str, int], numbers: int) -> bool:
    found: dict[str, set[int]] = {}
    for name, depth in depths.items():
        found.setdefault(_split(name, numbers)[0], set()).add(depth)
    return all(len(inside) == 1 for inside in found.values())


def _split(name: str, numbers: int) -> tuple[str, str]:
    """Cut a name behind its n-th number; one with fewer is all kind."""
    places = [match.end() for match in re.finditer(r"(?:^|\.)\d+\.", name)]
    if len(places) < numbers:
        return "", name
    return name[: places[numbers - 1] - 1], name[places[numbers - 1] :]


def _natural(parts: tuple[str, str]) -> list[Any]:
    return [(int(word), "") if word.isdigit() else (-1, word) for word in parts[0].split(".")]


def _decided(importance: Importance, places: Mapping[str, tuple[str, int]]) -> dict[str, Any] | None:
    """Return the grid of what importance decided: ranks, rates, or what trains."""
    allocation = importance.allocation
    if "ranks" in allocation:
        return _grid("ranks", "rank", "Rank of each module's adapter", allocation["ranks"], places)
    if "scales" in allocation:
        return _grid("rates", "factor", "Factor of each module's rate", allocation["scales"], places)
    if "trainable" in allocation:
        trains = {name: float(name in allocation["trainable"]) for name in importance.modules}
        texts = {name: "yes" if on else "no" for name, on in trains.items()}
        return _grid("trains", "trains", "What trains", trains, places, texts=texts)
    return None


def _grid(
    name: str,
    what: str,
    title: str,
    values: Mapping[str, float],
    places: Mapping[str, tuple[str, int]],
    *,
    texts: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    cells = [
        {"kind": kind, "depth": depth, "value": float(values[module]) if module in values else None}
        | ({"text": texts[module]} if texts else {})
        for module, (kind, depth) in places.items()
    ]
    return {"name": name, "what": what, "title": title, "cells": cells}


def _sentences(importance: Importance, uniform_above: float | None) -> Sequence[str]:
    how = {
        "sensitivity": "Importance is the sensitivity of a probe's adapters",
        "gradient": "Importance is the size of the weights' mean gradients",
        "eva": "Importance is the variance of the modules' inputs",
    }.get(importance.score, "Importance was read from a file")
    even = importance.effective_share
    count = len(importance.modules)
    found = [f"{how}: it is spread as over {even:.0%} of the {count} modules (100%: all matter alike)."]
    if importance.allocation.get("is_uniform"):
        bound = f", more than strategy.uniform_above ({uniform_above:.0%})" if uniform_above is not None else ""
        found.append(f"That is too even to tell modules apart{bound}, so all got the same rank.")
    return found
