"""Data that are made on the spot from what every installation has: ``builtin:NAME``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from launcher.errors import DataError
from launcher.registry import load, suggest

PREFIX = "builtin:"

# name -> "module:attribute" of a function (cache_dir: Path | None) -> BuiltinData.
BUILTIN_SOURCES = {
    "api-topics": "launcher.data.builtin_api_topics:make_api_topics",
    "default-values": "launcher.data.builtin_default_values:make_default_values",
    "digits": "launcher.data.builtin_digits:make_digits",
    "docstrings": "launcher.data.builtin_docstrings:make_docstrings",
    "number-preferences": "launcher.data.builtin_number_preferences:make_number_preferences",
    "number-words": "launcher.data.builtin_number_words:make_number_words",
    "shapes": "launcher.data.builtin_shapes:make_shapes",
    "code-roles": "launcher.data.builtin_code_roles:make_code_roles",
}


@dataclass(frozen=True)
class BuiltinData:
    """Rows of every split as mappings of our column names to values, and what the user should know about them."""

    splits: Mapping[str, Sequence[Mapping[str, Any]]]
    facts: Mapping[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


def make_builtin(name: str, *, cache_dir: Path | None = None) -> BuiltinData:
    """Return the data of ``builtin:NAME``, from the cache where they were made before.

    Raises:
        DataError: no such source, or this installation does not give the rows that it must.
    """
    if name not in BUILTIN_SOURCES:
        near = suggest(name, BUILTIN_SOURCES)
        hint = f"; did you mean builtin:{near}?" if near else ""
        raise DataError(f"{PREFIX}{name} is not a built-in source; there is {', '.join(BUILTIN_SOURCES)}{hint}")
    made: BuiltinData = load(BUILTIN_SOURCES, name)(cache_dir=cache_dir)
    return made
