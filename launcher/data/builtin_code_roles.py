"""``builtin:code-roles``: what is each word of a Python statement: a parameter, a method, an attribute, a class, ...?

The statements are read, without importing anything, from modules of Python's own standard library, and their roles from its
parser: so there is something true to tag on any machine, and nothing is downloaded or copied. A module's statements all go to
one split.
"""

from __future__ import annotations

import ast
import hashlib
import io
import keyword
import tokenize
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from launcher.data.builtin import BuiltinData
from launcher.data.builtin_cache import Row, kept_rows
from launcher.data.builtin_stdlib import MODULES, VERSIONS, source_of
from launcher.errors import DataError

ROLES = (
    "argument", "attribute", "class", "function", "keyword", "method", "module", "number", "operator", "parameter", "string",
    "variable",
)  # fmt: skip
TRAIN, VALIDATION, TEST = 1600, 300, 800

_SIZES = {"train": TRAIN, "validation": VALIDATION, "test": TEST}
_FEWEST_WORDS, _MOST_WORDS, _LONGEST_WORD = 6, 40, 30
_LEFT_OUT = (tokenize.COMMENT, tokenize.NL, tokenize.INDENT, tokenize.DEDENT, tokenize.ENCODING)

Place = tuple[int, int]


def make_code_roles(*, cache_dir: Path | None = None) -> BuiltinData:
    """Return rows of train (1,600), validation (300) and test (800): tokens, label (a role for each) and id (module and line).

    They differ a little between Python versions, which ``facts`` names. The rows are kept in ``cache_dir`` (None: the user's cache
    folder).

    Raises:
        DataError: this installation has no sources of the standard library.
    """
    code = (Path(__file__), Path(__file__).with_name("builtin_stdlib.py"))
    rows = kept_rows("code-roles", versions=VERSIONS, code=code, make=make_rows, cache_dir=cache_dir)
    splits = {
        split: [{k: row[k] for k in ("tokens", "label", "id")} for row in rows if row["split"] == split]
        for split in _SIZES
    }
    if any(len(splits[split]) < size // 2 for split, size in _SIZES.items()):
        raise DataError(
            "builtin:code-roles reads the sources of Python's standard library, and this installation has few or none; name other "
            "data"
        )
    return BuiltinData(splits, {"format": "builtin", **VERSIONS})


def make_rows() -> list[Row]:
    """Return all rows (split, tokens, label, id), read from the standard library; some seconds."""
    rows: list[Row] = []
    for split, modules in MODULES.items():
        known = {tuple(one.words): one for name in modules for one in _statements_of(name)}
        ordered = sorted(known.values(), key=lambda one: hashlib.sha256(" ".join(one.words).encode()).hexdigest())
        chosen = ordered[: _SIZES[split]]
        rows += [{"split": split, "tokens": one.words, "label": one.roles, "id": one.place} for one in chosen]
    return rows


@dataclass
class _Statement:
    place: str
    words: list[str] = field(default_factory=list)
    roles: list[str] = field(default_factory=list)

    @property
    def is_kept(self) -> bool:
        """Whether it is a row: neither trivial nor long, and without texts of prose."""
        return _FEWEST_WORDS <= len(self.words) <= _MOST_WORDS and max(map(len, self.words)) <= _LONGEST_WORD


def _statements_of(module: str) -> Iterator[_Statement]:
    text = source_of(module)
    places = _roles_by_place(ast.parse(text))
    current: _Statement | None = None
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type in (tokenize.NEWLINE, tokenize.ENDMARKER):
            if current is not None and current.is_kept:
                yield current
            current = None
        elif token.type not in _LEFT_OUT:
            current = current or _Statement(f"{module}:{token.start[0]}")
            current.words.append(token.string)
            current.roles.append(_role(token, places, before=current.words[-2:-1]))


def _role(token: tokenize.TokenInfo, places: Mapping[Place, str], *, before: list[str]) -> str:
    if token.type == tokenize.NUMBER:
        return "number"
    if token.type != tokenize.NAME:
        return "operator" if token.type == tokenize.OP else "string"
    if keyword.iskeyword(token.string):
        return "keyword"
    if before in (["def"], ["class"]):
        return "function" if before == ["def"] else "class"
    # An attribute is known by where it ends, everything else by where it begins.
    return places.get(token.start) or places.get((-token.end[0], token.end[1])) or "variable"


def _roles_by_place(tree: ast.Module) -> dict[Place, str]:
    """Return (line, column) -> role; (-line, column) for attributes, which are known by their end."""
    found: dict[Place, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.arg):
            found[node.lineno, node.col_offset] = "parameter"
            _name_types(node.annotation, found)
        elif isinstance(node, ast.keyword) and node.arg:
            found[node.lineno, node.col_offset] = "argument"
        elif isinstance(node, ast.alias):
            found[node.lineno, node.col_offset] = "module"
        elif isinstance(node, ast.ClassDef):
            for base in node.bases:
                _name_types(base, found)
        elif isinstance(node, ast.ExceptHandler):
            _name_types(node.type, found)
        elif isinstance(node, ast.Attribute):
            found.setdefault((-(node.end_lineno or 0), node.end_col_offset or 0), "attribute")
        elif isinstance(node, ast.Call):
            if isinstance(node.func, ast.Name):
                found.setdefault((node.func.lineno, node.func.col_offset), _called(node.func.id))
            elif isinstance(node.func, ast.Attribute):
                found[-(node.func.end_lineno or 0), node.func.end_col_offset or 0] = "method"
    return found


def _called(name: str) -> str:
    return "class" if name[:1].isupper() else "function"


def _name_types(node: ast.AST | None, found: dict[Place, str]) -> None:
    for one in ast.walk(node) if node is not None else ():
        if isinstance(one, ast.Name):
            found[one.lineno, one.col_offset] = "class"
