"""Tensors that a model's code keeps for later calls (functools.lru_cache): those of a trace must not meet another trace, or a real model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def nothing_kept(model: Any) -> Iterator[None]:
    """Forget what the classes of ``model``'s modules keep, before and after a trace without data."""
    caches = [cache for kind in {type(module) for module in model.modules()} for cache in _caches(kind)]
    for cache in caches:
        cache.cache_clear()
    try:
        yield
    finally:
        for cache in caches:
            cache.cache_clear()


def _caches(kind: type) -> Iterator[Any]:
    """Yield the cached functions of a class: its own, and those that a function around them holds."""
    for value in vars(kind).values():
        function = value.__func__ if isinstance(value, staticmethod | classmethod) else value
        cells = getattr(function, "__closure__", None) or ()
        for held in (function, *(cell.cell_contents for cell in cells if _is_filled(cell))):
            if hasattr(held, "cache_clear"):
                yield held


def _is_filled(cell: Any) -> bool:
    try:
        return cell.cell_contents is not None
    except ValueError:
        return False
