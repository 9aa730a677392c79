"""What becomes of keys that no rule read: not needed, known but not translated, empty, or not known."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from launcher.importing.conversion import Conversion
from launcher.recipe import training_tables as tables
from launcher.recipe.schema import TrainingSection

NotNeeded = Mapping[str, str]
"""Key -> why."""
NotTranslated = Mapping[str, tuple[str, str]]
"""Key -> why, and what to do."""


# What a rule may read of transformers' TrainingArguments.
_TRAINERS = frozenset({*tables.PASSTHROUGH, *tables.RENAMED, *TrainingSection.model_fields})
_OFF: tuple[Any, ...] = (None, False, "", 0, [], {})


def finish(c: Conversion, *, not_needed: NotNeeded, not_translated: NotTranslated) -> None:
    """Give every key that has none yet its verdict."""
    for key in c.keys:
        if key not in c.fates:
            _judge(c, key, not_needed, not_translated)


def _judge(c: Conversion, key: str, not_needed: NotNeeded, not_translated: NotTranslated) -> None:
    # Keys of a list's items have the names that stand in the tables.
    name, value = key.rpartition("].")[2], c.raw(key)
    is_read = name in c.dialect.known or name in c.dialect.aliases.values() or name in _TRAINERS
    if key in c.outside:
        if name in not_needed:
            c.unneeded(key, not_needed[name])
        else:
            c.missed(
                key,
                "it names something outside the file, which is not read",
                "write the value into the recipe, or import again with it",
            )
    elif value is None and (is_read or name in not_needed or name in not_translated):
        c.unneeded(key, "it is empty in the file")
    elif value is None:
        c.unneeded(key, "launcher does not know it, and it is empty in the file")
    elif name in not_needed:
        c.unneeded(key, not_needed[name])
    elif name in not_translated and value not in _OFF:
        c.missed(key, *not_translated[name])
    elif is_read or name in not_translated:
        c.unneeded(key, "it is off in the file" if value in _OFF else "no other key of the file asks for it")
    else:
        c.missed(
            key, f"launcher does not know this key of {c.dialect.shown}", "look whether it changes what is trained"
        )
