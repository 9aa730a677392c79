"""A file of another tool, read as plain values: nothing in it is executed, imported, or looked up in the environment."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from launcher.errors import Problem, RecipeError
from launcher.recipe.tree import read_text

# Configurations have a few hundred values; aliases of aliases can stand for billions.
_MOST_VALUES = 20_000
# No number of steps, rows or tokens comes near it.
_LARGEST = 1e15
_OUTSIDE = re.compile(r"\$\{|\$\(|\$[A-Za-z_]|`|\{\{\s*(env|ENV|os)\b")


def refuse(place: Path | str, message: str, remedy: str = "", key: str = "") -> RecipeError:
    """Return the error of a file that cannot be imported."""
    return RecipeError([Problem(str(place), message, remedy, key)])


def read_yaml(path: Path, text: str | None = None) -> dict[str, Any]:
    """Return the mapping that a YAML file holds.

    Raises:
        RecipeError: no such file, no YAML, a tag that would make an object, no mapping, or nothing in it.
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.error import MarkedYAMLError, YAMLError

    text = read_text(path) if text is None else text
    try:
        values = YAML(typ="safe", pure=True).load(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark
        place = f"{path}:{mark.line + 1}:{mark.column + 1}" if mark else str(path)
        problem = str(error.problem).partition("\n")[0]
        if "could not determine a constructor" in problem:
            remedy = "write the plain value; tags that make objects are never followed"
            raise refuse(place, "the value has a tag that YAML itself does not have", remedy) from None
        raise refuse(place, f"it is not YAML: {problem}", "mend it, and try the tool that it was written for") from None
    except (YAMLError, ValueError, RecursionError) as error:
        raise refuse(path, f"it is not YAML: {str(error).partition(chr(10))[0]}", "mend it") from None
    if values is None:
        raise refuse(path, "the file is empty", "name the configuration of a training run")
    if not isinstance(values, dict):
        kind = "a list" if isinstance(values, list) else "one text" if isinstance(values, str) else "one value"
        raise refuse(path, f"the file holds {kind}, not keys with values", "name the configuration of a training run")
    _refuse_floods(values, path)
    return {str(key): value for key, value in values.items()}


def _refuse_floods(values: Any, path: Path) -> None:
    waiting, seen = [values], 0
    while waiting:
        value = waiting.pop()
        seen += 1
        if seen > _MOST_VALUES:
            raise refuse(path, f"the file holds more than {_MOST_VALUES} values", "this is no configuration of a run")
        if isinstance(value, dict):
            waiting += [*value, *value.values()]
        elif isinstance(value, list | tuple | set):
            waiting += value


def refers_outside(value: Any) -> bool:
    """Whether a value names something outside the file: a variable of the shell or the environment."""
    if isinstance(value, dict):
        return any(map(refers_outside, value.values()))
    if isinstance(value, list):
        return any(map(refers_outside, value))
    return isinstance(value, str) and _OUTSIDE.search(value) is not None


def as_number(value: Any) -> float | int | None:
    """Return a number, also one that stands in quotes (``"2e-4"``); None for anything else."""
    if isinstance(value, bool):
        return None
    if isinstance(value, str):
        try:
            value = float(value) if re.search(r"[.eE]", value) else int(value)
        except ValueError:
            return None
    return value if isinstance(value, int | float) and abs(value) < _LARGEST else None


def as_flag(value: Any) -> bool | None:
    """Return a flag, also by the words that readers of YAML 1.1 take for one; None for anything else."""
    words = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
    return value if isinstance(value, bool) else words.get(str(value).lower())


def as_names(value: Any) -> list[str]:
    """Return names out of a list, or out of a text with commas."""
    found = value if isinstance(value, list) else str(value).split(",")
    return [text for one in found if (text := str(one).strip())]
