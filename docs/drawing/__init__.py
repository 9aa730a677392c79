"""The pictures of the guide: drawn from the strategies' own tables, schedules and formulas, and from measurements in pictures/data.

``docs/generate.py`` writes them to docs/pictures. Their bytes depend on matplotlib's version, so they are compared only where
it is the one that constraints.txt names.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from importlib.metadata import version

from drawing import curves, strategies
from drawing.model import DOCS

PICTURES: dict[str, Callable[[], str]] = {
    "what-trains": strategies.what_trains,
    "what-trains-simple": strategies.what_trains_simple,
    "layerwise-rates": strategies.layerwise_rates,
    "gradual-unfreezing": strategies.gradual_unfreezing,
    "lora": strategies.lora,
    "schedules": curves.schedules,
    "prefix-cache": curves.prefix_cache,
    "lr-find": curves.range_test,
    "total-steps": curves.total_steps,
}


def pictures() -> Iterator[tuple[str, str]]:
    """Yield name and text of every picture."""
    for name, draw in PICTURES.items():
        yield name, draw()
    yield from strategies.importance_grids()


def is_comparable() -> bool:
    """Whether matplotlib is of the version whose bytes are kept."""
    pins = (DOCS.parent / "constraints.txt").read_text(encoding="utf-8")
    found = re.search(r"^matplotlib==(\S+)", pins, re.MULTILINE)
    return found is not None and version("matplotlib") == found[1]
