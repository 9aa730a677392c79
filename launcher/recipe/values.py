"""The words for a value that does not fit: what it is, what it must be, what to write."""

from __future__ import annotations

from typing import Any, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from launcher.errors import Fix
from launcher.recipe.keys import Spot, choices, clear_match, did_you_mean, later_word, members, sentence, shown, wanted
from launcher.recipe.tree import show

# The key that a text stands for where a section should be.
_MAIN_KEYS = {"model": "name_or_path", "data": "source", "tracking.wandb": "project", "distributed": "engine"}

_BOUNDS = ("greater_than", "greater_than_equal", "less_than", "less_than_equal")

Words = tuple[str, str, Fix | None]
"""Message, remedy, edit."""


def value_fault(details: ErrorDetails, key: str, here: Spot) -> Words:
    """Return the words for a value that pydantic refused at ``here``."""
    value, kind = details["input"], details["type"]
    if kind == "literal_error":
        return wrong_choice(key, value, choices(here.annotation))
    if kind in _BOUNDS:
        return f"{shown(key, value)}; it must {_bounds(here.field, details)}", _default(here.field), None
    if kind == "finite_number":
        return f"{shown(key, value)}; it must be finite", _default(here.field), None
    if kind == "string_pattern_mismatch":
        return (
            f"{shown(key, value)}; it must consist of letters, digits, '.', '_' and '-'",
            "begin with a letter or digit; at most 80",
            None,
        )
    if kind in ("string_too_short", "too_short"):
        return (
            f"{shown(key, value)}; it must not be empty",
            _default(here.field) or "give it a value, or remove the key",
            None,
        )
    if kind == "string_too_long":
        return f"{shown(key, value)}; it must be one character", 'write a tab as "\\t"', None
    return wrong_type(key, value, here.annotation, here.field)


def wrong_choice(key: str, value: Any, known: tuple[Any, ...]) -> Words:
    """Return the words for a value that is not one of ``known``."""
    names = ", ".join(str(choice) for choice in known)
    message = f"{shown(key, value)}; it must be {names if len(known) == 1 else f'one of {names}'}"
    if later_word(key, value):
        return message, f"{value} is not in this version", None
    same = [choice for choice in known if str(choice) == str(value)]
    near = same[0] if same else clear_match(str(value), [str(choice) for choice in known])
    if near is None:
        hint = did_you_mean(str(value), [str(choice) for choice in known])
        return (
            message,
            hint if hint.startswith("did") else f"write {known[0]}" if len(known) == 1 else "choose one of them",
            None,
        )
    return message, f"did you mean {near}?", Fix(key, key, near, keep_value=False)


def wrong_type(key: str, value: Any, annotation: Any, field: FieldInfo | None) -> Words:
    """Return the words for a value of the wrong type, with the edit where what was meant is plain."""
    value_text = repr(value) if isinstance(value, float) else show(value)
    message = f"{key} is {value_text}; it must be {wanted(annotation)}"
    if value is None and field is not None and not field.is_required():
        keys = "; or give it keys" if wanted(annotation) == "a mapping" else ""
        return message, f"remove the key for its default{keys}", Fix(key, None)
    if isinstance(value, str) and value and key in _MAIN_KEYS:
        return (
            message,
            f"write {key}: {{{_MAIN_KEYS[key]}: {value}}}",
            Fix(key, key, {_MAIN_KEYS[key]: value}, keep_value=False),
        )
    meant = _meant(value, members(annotation))
    if meant is not None:
        name = "" if key.endswith("]") else f"{key.rpartition('.')[2]}: "
        return message, f"write {name}{_written(meant)}", Fix(key, key, meant, keep_value=False)
    if any(get_origin(member) is list for member in members(annotation)) and isinstance(value, str):
        return message, f"write [{value}]", Fix(key, key, [value], keep_value=False)
    return message, _default(field), None


def _written(value: object) -> str:
    return f'"{value}"' if isinstance(value, str) else show(value)


def _meant(value: Any, wanted_types: list[Any]) -> Any:
    """Return the value of a wanted type that ``value`` plainly stands for, or None."""
    if isinstance(value, str):
        word = value.strip().lower()
        if bool in wanted_types:
            return {"yes": True, "on": True, "true": True, "no": False, "off": False, "false": False}.get(word)
        return _number(word, wanted_types)
    if isinstance(value, float) and int in wanted_types and value.is_integer():
        return int(value)
    if isinstance(value, int) and not isinstance(value, bool) and str in wanted_types:
        return str(value)
    return None


def _number(word: str, wanted_types: list[Any]) -> int | float | None:
    try:
        if int in wanted_types and word.lstrip("+-").isdigit():
            return int(word)
        return float(word) if float in wanted_types else None
    except ValueError:
        return None


def _default(field: FieldInfo | None) -> str:
    if field is None or field.is_required():
        return sentence(field)
    default = field.get_default(call_default_factory=True, validated_data={})
    if default is None or isinstance(default, BaseModel | list | dict):
        return sentence(field)
    return f"the default is {show(default)}"


def _bounds(field: FieldInfo | None, details: ErrorDetails) -> str:
    found: dict[str, Any] = {}
    for limit in field.metadata if field else ():
        found |= {
            name: getattr(limit, name) for name in ("gt", "ge", "lt", "le") if getattr(limit, name, None) is not None
        }
    low, high = found.get("gt", found.get("ge")), found.get("lt", found.get("le"))
    if low is not None and high is not None:
        return f"lie in {'(' if 'gt' in found else '['}{low:g}, {high:g}{')' if 'lt' in found else ']'}"
    limit = next(iter(details.get("ctx", {}).values()), low)
    words = {"greater_than": "greater than", "greater_than_equal": "at least", "less_than": "less than"}
    return f"be {words.get(details['type'], 'at most')} {show(limit)}"
