"""A recipe as the rules between its keys see it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from launcher.errors import Fix
from launcher.recipe.data_section import FORMATS, SourceSpec
from launcher.recipe.schema import Recipe, TrainingSection

FILE_ENDINGS = tuple(FORMATS)


@dataclass(frozen=True)
class Finding:
    """A broken rule; the place is found later."""

    key: str
    message: str
    remedy: str
    fix: Fix | None = None


@dataclass(frozen=True)
class View:
    """A recipe as the rules see it."""

    recipe: Recipe
    assume_given: bool = False
    """Whether to treat every value as given, as a written-out recipe does."""
    t: TrainingSection = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "t", self.recipe.training)

    def value(self, key: str) -> Any:
        """Return the value of a dotted key; None where the recipe has no such key."""
        value: Any = self.recipe
        for part in key.split("."):
            value = getattr(value, part, None)
        return value

    def given(self, key: str) -> bool:
        """Whether a dotted key is set, and not to null."""
        above, _, name = key.rpartition(".")
        section = self.value(above) if above else self.recipe
        is_set = section is not None and (self.assume_given or name in section.model_fields_set)
        return bool(is_set and self.value(key) is not None)

    def extra(self, name: str, default: Any = None) -> Any:
        """Return a passed-through field of ``training``."""
        return self.t.passthrough.get(name, default)


def sources(recipe: Recipe) -> Iterator[tuple[str, str | SourceSpec]]:
    """Yield (dotted key, source) for every source that a recipe names."""
    for split in ("source", "train", "validation", "test"):
        value = getattr(recipe.data, split)
        if isinstance(value, list):
            yield from ((f"data.{split}[{index}]", item) for index, item in enumerate(value))
        elif value is not None:
            yield f"data.{split}", value


def is_local(name: str) -> bool:
    """Whether a model's name is a path or a package, not a hub id; told by its form alone."""
    return name.startswith(("package:", "./", "../", "/", "~"))
