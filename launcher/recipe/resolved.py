"""A recipe written out with every value, as a run keeps it."""

from __future__ import annotations

import io
import re
from typing import Any

from launcher.recipe.checks import values_without_effect
from launcher.recipe.schema import Recipe
from launcher.recipe.tree import KeyPath, dotted

_HEAD = "# Every value of this run's recipe, base files, overrides and defaults included.\n"


def resolved_text(recipe: Recipe) -> str:
    """Return YAML that loads to the same recipe.

    Defaults that have no effect in this recipe are left out, because written out they would be refused as such.
    """
    from ruamel.yaml import YAML

    idle = values_without_effect(recipe)
    stream = io.StringIO()
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    yaml.width = 10**6
    yaml.dump(_without(recipe.model_dump(mode="python"), idle, ()), stream)
    return _HEAD + stream.getvalue()


def _without(values: Any, idle: frozenset[str], path: KeyPath) -> Any:
    if isinstance(values, str):
        # A text that contains ${ itself must not be read as an interpolation.
        return re.sub(r"(\\*)\$\{", r"\1\1\\${", values)
    if isinstance(values, list | tuple):
        return [_without(value, idle, (*path, index)) for index, value in enumerate(values)]
    if not isinstance(values, dict):
        return values
    return {key: _without(value, idle, (*path, key)) for key, value in values.items() if dotted((*path, key)) not in idle}
