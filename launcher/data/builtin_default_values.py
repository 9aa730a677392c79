"""``builtin:default-values``: questions about signatures of Python's standard library that the signature answers, or does not.

A text is a function's signature and the first paragraph of its docstring; the question is which value a parameter has unless it is given.
About one question in five is about a parameter that must be given: it has no answer. Nothing is imported, downloaded or copied.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterator
from pathlib import Path

from launcher.data.builtin import BuiltinData
from launcher.data.builtin_cache import Row, kept_rows
from launcher.data.builtin_stdlib import MODULES, VERSIONS, source_of
from launcher.errors import DataError

SIZES = {"train": 900, "validation": 100, "test": 400}
"""Questions of each split, at most."""

_FEWEST_PARAMETERS, _LONGEST_DOCUMENTATION, _LONGEST_SIGNATURE = 2, 240, 200
_WITHOUT_ANSWER = 5


def make_default_values(*, cache_dir: Path | None = None) -> BuiltinData:
    """Return rows of train, validation and test: question, context, answers and id (module, line and parameter).

    They differ a little between Python versions, which ``facts`` names. The rows are kept in ``cache_dir`` (None: the user's cache
    folder).

    Raises:
        DataError: this installation has no sources of the standard library.
    """
    code = (Path(__file__), Path(__file__).with_name("builtin_stdlib.py"))
    rows = kept_rows("default-values", versions=VERSIONS, code=code, make=make_rows, cache_dir=cache_dir)
    names = ("question", "context", "answers", "id")
    splits = {split: [{k: row[k] for k in names} for row in rows if row["split"] == split] for split in SIZES}
    if not all(splits.values()):
        raise DataError(
            "builtin:default-values reads the sources of Python's standard library, and this installation has none; name other data"
        )
    return BuiltinData(splits, {"format": "builtin", **VERSIONS})


def make_rows() -> list[Row]:
    """Return all rows (split, question, context, answers, id), read from the standard library; some seconds."""
    rows: list[Row] = []
    for split, modules in MODULES.items():
        found = {(row["question"], row["context"]): row for module in modules for row in _questions_of(module)}
        ordered = sorted(found.values(), key=_rank)
        has_answer = [row for row in ordered if row["answers"]["text"]]
        others = [row for row in ordered if not row["answers"]["text"]]
        size = min(SIZES[split], len(has_answer))
        chosen = [*has_answer[: size - size // _WITHOUT_ANSWER], *others[: size // _WITHOUT_ANSWER]]
        rows += [{"split": split, **row} for row in sorted(chosen, key=_rank)]
    return rows


def _rank(row: Row) -> str:
    return hashlib.sha256(f"{row['question']}\n{row['context']}".encode()).hexdigest()


def _questions_of(module: str) -> Iterator[Row]:
    for node in ast.walk(ast.parse(source_of(module))):
        if not isinstance(node, ast.FunctionDef) or node.name.startswith("__") or not _is_plain(node.args):
            continue
        parameters, signature = _parameters(node.args), f"{node.name}({ast.unparse(node.args)})"
        if len(parameters) < _FEWEST_PARAMETERS or len(signature) > _LONGEST_SIGNATURE:
            continue
        paragraph = " ".join((ast.get_docstring(node) or "").split("\n\n")[0].split())[:_LONGEST_DOCUMENTATION]
        context = f"{signature}: {paragraph}" if paragraph else signature
        for name, default in parameters:
            question = f"Which value does {name} of {node.name} have unless it is given?"
            place = None if default is None else _place(signature, f"{name}={default}")
            if default is not None and place is None:
                continue
            start = None if place is None else place + len(name) + 1
            answers = {
                "text": [default] if start is not None else [],
                "answer_start": [start] if start is not None else [],
            }
            yield {"question": question, "context": context, "answers": answers, "id": f"{module}:{node.lineno}:{name}"}


def _is_plain(arguments: ast.arguments) -> bool:
    """Whether a default stands right behind its parameter's name and "="."""
    is_annotated = any(one.annotation for one in (*arguments.args, *arguments.kwonlyargs))
    return not is_annotated and not arguments.posonlyargs


def _parameters(arguments: ast.arguments) -> list[tuple[str, str | None]]:
    """Return (name, default as written; None: there is none) of each parameter but self."""
    defaults = [None] * (len(arguments.args) - len(arguments.defaults)) + list(arguments.defaults)
    pairs = [
        *zip(arguments.args, defaults, strict=True),
        *zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True),
    ]
    return [
        (one.arg, None if default is None else ast.unparse(default))
        for one, default in pairs
        if one.arg not in ("self", "cls")
    ]


def _place(signature: str, written: str) -> int | None:
    """Return where a parameter and its default stand in a signature; None where that is not certain."""
    places = [f"{before}{written}" for before in ("(", ", ")]
    found = [signature.index(text) + len(text) - len(written) for text in places if text in signature]
    return found[0] if len(found) == 1 else None
