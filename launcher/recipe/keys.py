"""What the recipe's sections allow at a path: their fields, their names, their types in plain words."""

from __future__ import annotations

import difflib
import types
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from launcher.errors import Fix
from launcher.recipe.data_section import SourceSpec
from launcher.recipe.schema import Recipe
from launcher.recipe.tree import KeyPath, dotted, show
from launcher.registry import NEAR_MISSES, suggest

# Words of later versions, so that nobody looks for a spelling mistake.
LATER = {
    "task": {
        "grpo",
        "kto",
        "orpo",
        "ppo",
        "simpo",
    },
}


@dataclass(frozen=True)
class Spot:
    """What the schema says about one path."""

    annotation: Any
    field: FieldInfo | None = None


def members(annotation: Any) -> list[Any]:
    """Return the alternatives of an annotation, unions and ``Annotated`` opened."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return members(get_args(annotation)[0])
    if origin in (Union, types.UnionType):
        return [member for part in get_args(annotation) for member in members(part)]
    return [annotation]


def sections_in(annotation: Any) -> list[type[BaseModel]]:
    """Return the section classes among an annotation's alternatives."""
    return [member for member in members(annotation) if isinstance(member, type) and issubclass(member, BaseModel)]


def type_names(section: type[BaseModel]) -> tuple[str, ...]:
    """Return the values that a section's ``type`` may have; none where it has no ``type``."""
    field = section.model_fields.get("type")
    return get_args(field.annotation) if field else ()


def section_for(annotation: Any, value: Any) -> type[BaseModel] | None:
    """Return the section class that a value is meant to fill; of several, the one that its ``type`` names."""
    sections = sections_in(annotation)
    if len(sections) == 1:
        return sections[0]
    wanted = value.get("type") if isinstance(value, Mapping) else None
    return next((section for section in sections if wanted in type_names(section)), None)


def spot(values: Any, path: KeyPath) -> Spot | None:
    """Return what the schema says about ``path`` in ``values``; None where it knows no such key."""
    here: Spot | None = Spot(Recipe)
    for part in path:
        if here is None:
            return None
        here = _below(here.annotation, part, values)
        values = _child(values, part)
    return here


def _child(values: Any, part: str | int) -> Any:
    if isinstance(values, dict):
        return values.get(part)
    return values[part] if isinstance(values, list) and isinstance(part, int) and part < len(values) else None


def _below(annotation: Any, part: str | int, values: Any) -> Spot | None:
    section = section_for(annotation, values)
    if section is not None and part in section.model_fields:
        field = section.model_fields[str(part)]
        return Spot(field.annotation, field)
    wanted, position = (list, 0) if isinstance(part, int) else (dict, 1)
    inner = [get_args(member)[position] for member in members(annotation) if get_origin(member) is wanted]
    return Spot(inner[0]) if inner else None


# --- words ---------------------------------------------------------------------------------------------------------

_WORDS = {str: "text", int: "a whole number", float: "a number", bool: "true or false", type(None): "null"}


def wanted(annotation: Any) -> str:
    """Return in plain words what an annotation takes, such as ``text or a list of texts``."""
    if get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    words = list(dict.fromkeys(_wanted(member) for member in members(annotation)))
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


def _wanted(member: Any) -> str:
    origin = get_origin(member)
    if origin is Literal:
        return "one of " + ", ".join(str(choice) for choice in get_args(member))
    if origin is list:
        inner = wanted(get_args(member)[0])
        return {"text": "a list of texts"}.get(inner, "a list" if " or " in inner else f"a list of {inner}")
    if origin is dict or (isinstance(member, type) and issubclass(member, BaseModel | dict)):
        return "a mapping"
    return _WORDS.get(member, "a value")


def choices(annotation: Any) -> tuple[Any, ...]:
    """Return the values that the literals of an annotation name."""
    return tuple(
        choice for member in members(annotation) if get_origin(member) is Literal for choice in get_args(member)
    )


def sentence(field: FieldInfo | None) -> str:
    """Return the first sentence of a field's documentation."""
    text = " ".join((field.description or "").split()) if field else ""
    return text.partition(". ")[0].removesuffix(".").replace("``", "")


# --- near names ----------------------------------------------------------------------------------------------------


def clear_match(word: str, known: Iterable[str]) -> str | None:
    """Return the one name that ``word`` is a slip of; None where there is none, or where it could be two."""
    known = list(known)
    if NEAR_MISSES.get(word) in known:
        return NEAR_MISSES[word]
    folded = {name.lower().replace("-", "_"): name for name in known}
    word = word.lower().replace("-", "_")
    scored = sorted(((difflib.SequenceMatcher(None, word, name).ratio(), name) for name in folded), reverse=True)
    if not scored or scored[0][0] < 0.75 or (len(scored) > 1 and scored[1][0] > scored[0][0] - 0.05):
        return None
    return folded[scored[0][1]]


def later_word(key: str, word: object) -> bool:
    """Whether ``word`` as the value of ``key`` belongs to a later version."""
    scopes = (key, key.partition(".")[0])
    return isinstance(word, str) and any(word.lower() in LATER.get(scope, ()) for scope in scopes)


@cache
def homes() -> Mapping[str, tuple[str, ...]]:
    """Return key name -> the dotted keys that bear it, over all sections; those of one data source are left out."""
    found: dict[str, list[str]] = {}
    for path in _all_keys(Recipe, ()):
        name = str(path[-1])
        if name != "type" and dotted(path) not in found.setdefault(name, []):
            found[name].append(dotted(path))
    return {name: tuple(keys) for name, keys in found.items()}


def _all_keys(section: type[BaseModel], path: KeyPath) -> Iterator[KeyPath]:
    for name, field in section.model_fields.items():
        yield (*path, name)
        for inner in sections_in(field.annotation):
            if inner is not SourceSpec:
                yield from _all_keys(inner, (*path, name))


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return ``did you mean X?``, or the names there are."""
    known = list(known)
    near = suggest(word, known)
    if near is None and len(known) > 20:
        return "'launcher schema' lists the names"
    return f"did you mean {near}?" if near else f"the names here are {', '.join(known)}"


def shown(key: str, value: object) -> str:
    """Return ``KEY is VALUE``, as every message begins."""
    return f"{key} is {show(value.model_dump(exclude_unset=True) if isinstance(value, BaseModel) else value)}"


def rename(path: KeyPath, new: KeyPath, values: Any, **change: Any) -> Fix | None:
    """Return the edit that gives a key another name, unless the recipe has that name already."""
    here = values
    for part in new:
        if not isinstance(here, dict | list):
            return None
        if isinstance(here, dict) and part not in here:
            return Fix(dotted(path), dotted(new), **change)
        here = here[part]  # type: ignore[index]
    return None
