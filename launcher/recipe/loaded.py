"""A recipe that was read: its sections, and where each key stands."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from launcher.recipe.schema import Recipe


@dataclass(frozen=True)
class LoadedRecipe:
    """A recipe together with where each of its keys was set."""

    recipe: Recipe
    source_text: str
    """The file as given, without its base files and overrides."""
    places: Mapping[str, str]
    """Dotted key -> ``file:line:column``, or ``command line: OVERRIDE``."""
    path: Path
    notes: tuple[str, ...] = ()
    """What was decided on the way and the user should know."""

    def place(self, key: str) -> str:
        """Return the place of a key; of its section, where the key itself is not set."""
        while key and key not in self.places:
            key = key.rpartition(".")[0] if "." in key or "[" not in key else key.rpartition("[")[0]
        return self.places[key]
