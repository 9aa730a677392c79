"""What becomes of keys that no rule read: not needed, known but not translated, empty, or not known."""

from __future__ import annotations

from collections.abc import Mapping

from launcher.importing.conversion import Conversion

NotNeeded = Mapping[str, str]
"""Key -> why."""
NotTranslated = Mapping[str, tuple[str, str]]
"""Key -> why, and what to do."""


def all_of(names: str, *text: str) -> dict[str, tuple[str, ...]]:
    """Return the same text for several keys."""
    return dict.fromkeys(names.split(), text)


def finish(c: Conversion, *, not_needed: NotNeeded, not_translated: NotTranslated) -> None:
    """Give every key that has none yet its verdict."""
    for key in c.keys:
        if key in c.fates:
            continue
        name = key.rpartition("].")[2] if "]." in key else key
        value = c.raw(key)
        known = name in not_needed or name in not_translated or name in c.dialect.aliases.values()
        if name in not_needed:
            c.unneeded(key, not_needed[name])
        elif name in not_translated and value not in (None, False, "", 0, [], {}):
            c.missed(key, *not_translated[name])
        elif known or (value is None and name in c.dialect.known):
            c.unneeded(key, "it is empty or off in the file")
        else:
            empty = "; it is empty in the file" if value is None else ""
            c.missed(
                key,
                f"launcher does not know this key of {c.dialect.shown}{empty}",
                "look whether it changes what is trained",
            )
