"""The JSON Schema of recipes, for editors and for machines that write recipes."""

from __future__ import annotations

from typing import Any

from launcher.recipe.keys import sections_in, type_names
from launcher.recipe.schedule_keys import KWARGS
from launcher.recipe.schema import Recipe
from launcher.recipe.training_fields import TrainingField, passthrough_fields

_DRAFT = "https://json-schema.org/draft/2020-12/schema"
_TYPES = {
    "bool": "boolean",
    "int": "integer",
    "float": "number",
    "str": "string",
    "list": "array",
    "dict": "object",
    "None": "null",
}


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema of a recipe file, ``base`` and the task's short form included."""
    schema = Recipe.model_json_schema()
    sections = schema["$defs"]
    _add_passthrough(sections["TrainingSection"])
    # A recipe with a base file may leave out what its base sets.
    sections["ModelSection"].pop("required", None)
    required = schema.pop("required")
    schema["properties"]["base"] = _base()
    schema["properties"]["task"] = _task(schema["properties"]["task"])
    return {
        "$schema": _DRAFT,
        "$id": "urn:launcher:recipe:1",
        **schema,
        "title": "launcher recipe",
        "anyOf": [{"required": ["base"]}, {"required": required}],
    }


def _add_passthrough(training: dict[str, Any]) -> None:
    training["additionalProperties"] = False
    training["properties"] |= {name: _property(field) for name, field in sorted(passthrough_fields().items())}
    training["properties"]["lr_scheduler_type"]["enum"] = list(KWARGS)


def _property(field: TrainingField) -> dict[str, Any]:
    found: dict[str, Any] = {"description": field.help}
    if field.default is not None:
        found["default"] = field.default
    if field.choices:
        found["enum"] = [*field.choices, *([None] if "None" in field.kinds else [])]
    elif set(field.kinds) <= set(_TYPES):
        found["type"] = [_TYPES[kind] for kind in field.kinds]
    return found


def _base() -> dict[str, Any]:
    description = "Recipes that this one starts from, relative to this file; of several, the later one wins."
    return {
        "description": description,
        "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}, "minItems": 1}],
    }


def _task(mapping: dict[str, Any]) -> dict[str, Any]:
    inner = {key: value for key, value in mapping.items() if key != "description"}
    sections = sections_in(Recipe.model_fields["task"].annotation)
    names = [name for section in sections for name in type_names(section)]
    return {"description": mapping.get("description", ""), "anyOf": [{"enum": names}, inner]}
