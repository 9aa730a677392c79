"""``builtin:docstrings``: the first paragraph of a function's docstring, to be summed up in a few words: those of the function's name.

Naming a function is the shortest summary of what it does (Allamanis, Peng and Sutton 2016, "A Convolutional Attention Network for Extreme
Summarization of Source Code"). The texts are read, without importing anything, from packages that this project installs anyway; nothing is downloaded
or copied.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from launcher.data.builtin import BuiltinData
from launcher.data.builtin_api_topics import clean
from launcher.data.builtin_cache import Row, kept_rows
from launcher.data.builtin_packages import docstrings_of, files_of, parsed
from launcher.errors import DataError

PACKAGES = {
    "scipy": "scipy", "sklearn": "scikit-learn", "networkx": "networkx", "pandas": "pandas", "matplotlib": "matplotlib",
    "sympy": "sympy", "torch": "torch", "nltk": "nltk",
}  # fmt: skip
"""Package that is read -> the distribution that installs it."""
SIZES = {"train": 6000, "validation": 300, "test": 600}
"""Rows of each split, at most."""

_SHORTEST, _LONGEST = 30, 240
_NAME = re.compile(r"[a-z]{2,}(?:_[a-z]{2,}){1,3}")


def make_docstrings(*, cache_dir: Path | None = None) -> BuiltinData:
    """Return rows of train, validation and test: text, target and id (file and function).

    They differ a little between versions of the packages, which ``facts`` names. The rows are kept in ``cache_dir`` (None: the user's cache
    folder).

    Raises:
        DataError: a package is missing.
    """
    here = Path(__file__)
    code = tuple(here.with_name(f"builtin_{name}.py") for name in ("docstrings", "api_topics", "packages"))
    versions = _versions()
    rows = kept_rows("docstrings", versions=versions, code=code, make=make_rows, cache_dir=cache_dir)
    splits = {s: [{k: row[k] for k in ("text", "target", "id")} for row in rows if row["split"] == s] for s in SIZES}
    return BuiltinData(splits, {"format": "builtin", **versions})


def make_rows() -> list[Row]:
    """Return all rows (split, text, target, id), read from the installed packages; some 20 seconds."""
    found: dict[str, Row] = {}
    for row in (row for package in PACKAGES for row in _rows_of(package)):
        # Of texts that several functions have, the first one's name counts.
        found.setdefault(row["text"], row)
    ordered = sorted(found.values(), key=lambda row: hashlib.sha256(row["text"].encode()).hexdigest())
    rows, first = [], 0
    # Where versions have fewer functions, train has fewer rows.
    for split in ("test", "validation", "train"):
        rows += [{"split": split, **row} for row in ordered[first : first + SIZES[split]]]
        first += SIZES[split]
    return rows


def _rows_of(package: str) -> Iterator[Row]:
    for root, path in files_of(package, asked_by="builtin:docstrings"):
        tree = parsed(path)
        for name, docstring in docstrings_of(tree, methods=True) if tree else ():
            text, function = clean(docstring), name.rpartition(".")[2]
            if (
                _NAME.fullmatch(function)
                and _SHORTEST <= len(text) <= _LONGEST
                and function not in text
                and not text.startswith("..")
            ):
                place = f"{path.relative_to(root.parent).as_posix()}:{name}"
                yield {"text": text, "target": function.replace("_", " "), "id": place}


def _versions() -> dict[str, str]:
    found = {}
    for package, name in PACKAGES.items():
        try:
            found[package] = version(name).split("+")[0]
        except PackageNotFoundError:
            raise DataError(f"builtin:docstrings needs the package {name}; install it, or name other data") from None
    return found
