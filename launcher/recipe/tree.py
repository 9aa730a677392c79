"""YAML text to plain values, with the place of every key."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.errors import Problem, RecipeError

KeyPath = tuple[str | int, ...]
"""Keys and list positions from the top of a recipe, such as ``("data", "train", 0, "source")``."""

_TAG = "tag:yaml.org,2002:"

# Part of the parser's words, ours, and whether the fault is where the construct opened (True) or where parsing stopped.
_SYNTAX = (
    ("character '\\t'", "a tab is not allowed as indentation", "indent with spaces", False),
    ("cannot start any token", "a value cannot start with this character", "put the value in quotes", False),
    (
        "mapping values are not allowed",
        "a second ': ' on the line",
        "put a text that contains ': ' in quotes, or break the line",
        False,
    ),
    (
        "could not find expected ':'",
        "a key without ': ' after it",
        "write 'key: value', with a space after the colon",
        True,
    ),
    ("expected ',' or ']'", "a '[' that is not closed", "close it with ']', with commas between the items", True),
    ("expected ',' or '}'", "a '{' that is not closed", "close it with '}', with commas between the items", True),
    ("found unexpected end of stream", "a quoted text that is not closed", "close the quote", True),
    (
        "expected <block end>",
        "a line that does not line up with the lines before it",
        "indent the keys of a section alike",
        False,
    ),
    (
        "found undefined alias",
        "an alias (*name) without its anchor (&name)",
        "put a text that starts with * in quotes",
        False,
    ),
    ("but found another document", "a second document", "keep one recipe in a file; remove the line '---'", False),
)


@dataclass(frozen=True)
class Tree:
    """Plain values (mappings, lists, text, numbers, true/false, null) and the place of every key and list item."""

    values: dict[str, Any]
    places: dict[KeyPath, str]

    def place(self, path: KeyPath) -> str:
        """Return the place of a key; of the nearest section that stands in the recipe, where the key does not."""
        while path not in self.places and path:
            path = path[:-1]
        return self.places[path]


def dotted(path: KeyPath) -> str:
    """Return a path as people write it: ``data.train[0].source``."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return text.removeprefix(".")


def walk(values: Any, path: KeyPath = ()) -> Iterator[tuple[KeyPath, Any]]:
    """Yield every path below ``values`` with its value, parents before their children."""
    pairs: Iterator[tuple[str | int, Any]] = iter(())
    if isinstance(values, dict):
        pairs = iter(values.items())
    elif isinstance(values, list):
        pairs = iter(enumerate(values))
    for part, value in pairs:
        yield (*path, part), value
        yield from walk(value, (*path, part))


def value_at(values: Any, path: KeyPath) -> Any:
    """Return the value at a path that exists."""
    for part in path:
        values = values[part]
    return values


def show(value: object) -> str:
    """Return a value as a message shows it: YAML's words, text in quotes, long values cut."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, str):
        text = repr(value)
        return text if len(text) <= 60 else text[:56] + "...'"
    if isinstance(value, dict):
        return "a mapping" if value else "an empty mapping"
    if isinstance(value, list | tuple):
        return "a list" if value else "an empty list"
    # Fields that take shares hold 50 as 50.0; nobody wrote the fraction.
    return str(value).removesuffix(".0") if isinstance(value, float) else str(value)


def read_text(path: Path, *, named_at: str | None = None) -> str:
    """Return the text of a recipe file; ``named_at`` is the place that names it, blamed when it cannot be read.

    Raises:
        RecipeError: no such file, a folder, not text, or not UTF-8.
    """
    place = named_at or str(path)
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        remedy = (
            "paths are relative to the file that names them"
            if named_at
            else "'launcher recipes' lists the shipped recipes"
        )
        raise _one(place, f"there is no file {str(path)!r}", remedy) from None
    except IsADirectoryError:
        raise _one(place, f"{str(path)!r} is a folder", "name the YAML file in it") from None
    except OSError as error:
        raise _one(place, f"{str(path)!r} cannot be read ({error.strerror})", "check its permissions") from None
    return _decode(raw, str(path))


def _decode(raw: bytes, name: str) -> str:
    if b"\0" in raw:
        raise _one(name, "the file is binary, not text", "name a YAML file")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        column = error.start - (raw.rfind(b"\n", 0, error.start) + 1) + 1
        raise _one(f"{name}:{line}:{column}", "a byte that is not UTF-8", "save the file as UTF-8") from None


def _one(place: str, message: str, remedy: str) -> RecipeError:
    return RecipeError([Problem(place, message, remedy)])


def parse_tree(text: str, name: str, *, what: str = "recipe") -> Tree:
    """Read the text of a recipe, or of ``what``, which may then be empty; ``name`` is the file name that places begin with.

    Raises:
        RecipeError: the text is not YAML, sets a key twice, or is not a mapping.
    """
    node = _compose(text, name)
    builder = _Builder(name)
    if node is None and what != "recipe":
        return Tree({}, {(): f"{name}:1:1"})
    if node is None:
        raise _one(f"{name}:1:1", "the recipe is empty", "'launcher init' writes one to start from")
    values = builder.value(node, ())
    if not builder.problems and not isinstance(values, dict):
        builder.problem(node, (), f"a {what} is a mapping of keys, not {_kind(values)}", "write 'key: value' lines")
    if builder.problems:
        raise RecipeError(builder.problems)
    return Tree(values, {**builder.places, (): f"{name}:1:1"})


def parse_value(text: str, place: str) -> Any:
    """Read the value of a command-line override. Raises RecipeError where it is not YAML."""
    try:
        node = _compose(text, "value")
        builder = _Builder("value")
        value = None if node is None else builder.value(node, ())
        if not builder.problems:
            return value
        problem = builder.problems[0]
    except RecipeError as error:
        problem = error.problems[0]
    raise _one(place, f"the value cannot be read: {problem.message}", problem.remedy)


def _kind(value: object) -> str:
    return "a list" if isinstance(value, list) else "a text" if isinstance(value, str) else "a single value"


def _compose(text: str, name: str) -> Any:
    from ruamel.yaml import YAML
    from ruamel.yaml.error import MarkedYAMLError, YAMLError

    try:
        return YAML(typ="safe", pure=True).compose(text)
    except MarkedYAMLError as error:
        raise _syntax_error(error, name) from None
    except YAMLError as error:
        raise _one(
            f"{name}:1:1", f"not a YAML text ({str(error).splitlines()[0]})", "save the recipe as plain text"
        ) from None


def _syntax_error(error: Any, name: str) -> RecipeError:
    said = error.problem or "it cannot be read"
    unknown = ("", said, "see https://yaml.org for the notation", False)
    _, message, remedy, at_opening = next((row for row in _SYNTAX if row[0] in said), unknown)
    mark = (error.context_mark if at_opening else error.problem_mark) or error.problem_mark or error.context_mark
    return _one(f"{name}:{mark.line + 1}:{mark.column + 1}", f"not YAML: {message}", remedy)


class _Builder:
    """Turns YAML nodes into values; one node may stand at several paths (aliases)."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.places: dict[KeyPath, str] = {}
        self.problems: list[Problem] = []
        self._open: list[int] = []

    def at(self, node: Any) -> str:
        return f"{self.name}:{node.start_mark.line + 1}:{node.start_mark.column + 1}"

    def problem(self, node: Any, path: KeyPath, message: str, remedy: str) -> None:
        self.problems.append(Problem(self.at(node), message, remedy, dotted(path)))

    def value(self, node: Any, path: KeyPath) -> Any:
        if id(node) in self._open:
            self.problem(node, path, "an anchor that contains itself", "write the values out")
            return None
        self._open.append(id(node))
        try:
            if isinstance(node.value, str):
                return self.scalar(node, path)
            if node.tag == _TAG + "map":
                return self.mapping(node, path)
            if node.tag == _TAG + "seq":
                return self.sequence(node, path)
            return self.foreign(node, path)
        finally:
            self._open.pop()

    def mapping(self, node: Any, path: KeyPath) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = key_node.value
            if not isinstance(key, str):
                self.problem(
                    key_node,
                    path,
                    "a key that is itself a mapping or a list",
                    "put text with braces or brackets in quotes",
                )
            elif key_node.tag == _TAG + "merge":
                self.problem(
                    key_node, path, "'<<' is no part of YAML 1.2", "write the keys out, or keep them in a base: file"
                )
            elif key in values:
                first = self.places[(*path, key)].removeprefix(self.name + ":")
                self.problem(
                    key_node, (*path, key), f"{dotted((*path, key))} is set twice, first at {first}", "keep one of them"
                )
            else:
                self.places[(*path, key)] = self.at(key_node)
                values[key] = self.value(value_node, (*path, key))
        return values

    def sequence(self, node: Any, path: KeyPath) -> list[Any]:
        for index, item in enumerate(node.value):
            self.places[(*path, index)] = self.at(item)
        return [self.value(item, (*path, index)) for index, item in enumerate(node.value)]

    def scalar(self, node: Any, path: KeyPath) -> Any:
        # Dates are not among YAML 1.2's core types: a name such as 2026-01-01 stays a text.
        if node.tag in (_TAG + "str", _TAG + "timestamp", _TAG + "merge", _TAG + "value"):
            return node.value
        convert = {"null": _null, "bool": _bool, "int": _int, "float": _float}.get(node.tag.removeprefix(_TAG))
        if convert is None:
            return self.foreign(node, path)
        return convert(node.value)

    def foreign(self, node: Any, path: KeyPath) -> None:
        self.problem(
            node, path, f"the YAML tag {node.tag!s} is not used in recipes", "put a text that starts with ! in quotes"
        )


def _null(text: str) -> None:
    return None


def _bool(text: str) -> bool:
    return text.lower() == "true"


def _int(text: str) -> int:
    digits = text.replace("_", "")
    # YAML 1.2 reads 012 as twelve; Python's int() with base 0 refuses it.
    base = {"0x": 16, "0o": 8, "0b": 2}.get(digits.lstrip("+-")[:2].lower(), 10)
    return int(digits, base)


def _float(text: str) -> float:
    return float(text.replace("_", "").lower().replace(".inf", "inf").replace(".nan", "nan"))
