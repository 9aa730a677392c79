"""Docstrings of installed packages that built-in sources are made from; nothing is imported."""

from __future__ import annotations

import ast
import warnings
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from launcher.errors import DataError

_SKIPPED_FOLDERS = {"tests", "test", "testing", "_testing", "__pycache__"}


def files_of(part: str, *, asked_by: str) -> Iterator[tuple[Path, Path]]:
    """Yield (the package's folder, file) of a module or of a package without its tests, in order of their names.

    Raises DataError where the package is missing, said to be ``asked_by``.
    """
    top, _, inner = part.partition("/")
    spec = find_spec(top)
    if spec is None or not spec.submodule_search_locations:
        raise DataError(f"{asked_by}: the package {top} has no folder of Python files; install it again")
    root = Path(spec.submodule_search_locations[0])
    base = root / inner
    if base.with_name(base.name + ".py").is_file():
        yield root, base.with_name(base.name + ".py")
    for path in sorted(base.rglob("*.py")) if base.is_dir() else ():
        inside = path.relative_to(base)
        if not _SKIPPED_FOLDERS & set(inside.parts[:-1]) and not path.name.startswith(("test", "conftest")):
            yield root, path


def parsed(path: Path) -> ast.Module | None:
    """Return what Python's parser makes of a file; None where it cannot read it."""
    try:
        with warnings.catch_warnings():
            # Invalid escapes in other people's files are no news for our user.
            warnings.simplefilter("ignore")
            return ast.parse(path.read_text("utf-8"))
    except SyntaxError:
        return None


def docstrings_of(node: ast.AST, *, methods: bool, outer: str = "") -> Iterator[tuple[str, str]]:
    """Yield (dotted name, docstring) of public functions and classes, and of public methods where they are wanted."""
    for child in getattr(node, "body", ()):
        if isinstance(child, ast.If | ast.Try):
            yield from docstrings_of(child, methods=methods, outer=outer)
        if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) or child.name.startswith("_"):
            continue
        name = f"{outer}.{child.name}" if outer else child.name
        docstring = ast.get_docstring(child, clean=False)
        if docstring:
            yield name, docstring
        if isinstance(child, ast.ClassDef) and methods:
            yield from docstrings_of(child, methods=methods, outer=name)
