"""A recipe written out with every value, as a run keeps it."""

from __future__ import annotations

import io
import re
from typing import Any

from launcher.recipe.checks import values_without_effect
from launcher.recipe.schema import Recipe
from launcher.recipe.tree import KeyPath, dotted

_HEAD = "# Every value of this run's recipe, base files, overrides and defaults included.\n"

# Texts that readers of YAML 1.1 take for something else; quoted, every reader sees a text.
AMBIGUOUS = re.compile(r"(?i)y|n|yes|no|on|off|[-+]?[\d.][\d_.]*([:e][-+\d:._]*)?|\d{4}-\d\d?-\d\d?.*")


def resolved_text(recipe: Recipe) -> str:
    """Return YAML that loads to the same recipe.

    Defaults that have no effect in this recipe are left out, because written out they would be refused as such.
    """
    idle = values_without_effect(recipe)
    stream = io.StringIO()
    _yaml().dump(_without(recipe.model_dump(mode="python"), idle, ()), stream)
    return _HEAD + stream.getvalue()


def _yaml() -> Any:
    from ruamel.yaml import YAML
    from ruamel.yaml.representer import SafeRepresenter

    class Representer(SafeRepresenter):
        """Quotes what would not come back as it is."""

    def represent(representer: Any, text: str) -> Any:
        style = None if text.isprintable() else '"'
        return representer.represent_scalar(
            "tag:yaml.org,2002:str", text, style="'" if AMBIGUOUS.fullmatch(text) else style
        )

    Representer.add_representer(str, represent)
    yaml = YAML(typ="safe", pure=True)
    yaml.Representer = Representer
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    yaml.width = 10**6
    return yaml


def _without(values: Any, idle: frozenset[str], path: KeyPath) -> Any:
    if isinstance(values, str):
        # A text that contains ${ itself must not be read as an interpolation.
        return re.sub(r"(\\*)\$\{", r"\1\1\\${", values)
    if isinstance(values, list | tuple):
        return [_without(value, idle, (*path, index)) for index, value in enumerate(values)]
    if not isinstance(values, dict):
        return values
    return {
        key: _without(value, idle, (*path, key)) for key, value in values.items() if dotted((*path, key)) not in idle
    }
