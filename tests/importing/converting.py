"""A configuration as text, brought through the import and its own check, in the current folder."""

from __future__ import annotations

from pathlib import Path

from launcher.importing.conversion import Conversion
from launcher.importing.tools import import_recipe, written
from launcher.recipe.examine import examine


def converted(text: str, tool: str, name: str = "given.yaml", **options) -> Conversion:
    path = Path(name)
    path.parent.mkdir(exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return import_recipe(path, tool=tool, **options)


def recipe_of(text: str, tool: str, **options):
    """The checked recipe of a configuration, and its conversion."""
    made = converted(text, tool, **options)
    target = Path("recipe.yaml")
    target.unlink(missing_ok=True)
    written(made, target)
    loaded, problems = examine(target)
    assert problems == [], [str(problem) for problem in problems]
    return loaded.recipe, made
