"""Words with a tag each to columns: CoNLL (a word on each line, a blank line between sentences) and CoNLL-U."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from launcher.errors import DataError

_DOCUMENT = "-DOCSTART-"
# The ten columns of CoNLL-U (universaldependencies.org/format), under the names that data sets give them.
_CONLLU = ("number", "tokens", "lemmas", "upos", "xpos", "feats", "heads", "deprels", "deps", "misc")


@dataclass
class _Sentence:
    line: int
    """Number of its first line, from 1."""
    rows: list[list[str]] = field(default_factory=list)
    """The columns of each word."""
    id: str | None = None


def read_conll(text: str, shown: str, *, header: Sequence[str] | None) -> tuple[dict[str, list[Any]], list[int]]:
    """Return columns of lists, [sentences][words], and the first line of each sentence.

    Columns are separated by tabs where the file has one, else by blanks. ``header`` names them; None: the first is ``tokens``, the
    last ``tags``, and those between are ``column_2`` and so on. Lines ``-DOCSTART-`` and comments (``# key = value``) are left out.

    Raises:
        DataError: a line has another number of columns than the first one.
    """
    separator = "\t" if "\t" in text else None
    sentences: list[_Sentence] = []
    width, first, is_open = 0, 0, False
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            is_open = False
            continue
        if line.startswith(_DOCUMENT) or (line.startswith("# ") and " = " in line):
            continue
        cells = line.removesuffix("\r").split(separator)
        width, first = width or len(cells), first or number
        if len(cells) != width or width < 2:
            raise DataError(
                _other_width(f"{shown}:{number}", found=len(cells), width=width, first=first, sep=separator)
            )
        if not is_open:
            sentences.append(_Sentence(number))
        is_open = True
        sentences[-1].rows.append(cells)
    return _columns(sentences, names=_names(header, width=width, shown=shown))


def _other_width(place: str, *, found: int, width: int, first: int, sep: str | None) -> str:
    what = "has one column" if width < 2 else f"has {found} column(s), and line {first} has {width}"
    between = "a tab" if sep else "blanks"
    return (
        f"{place}: {what}; every line is a word and its tag, separated by {between}, and a blank line ends a sentence"
    )


def _columns(sentences: Sequence[_Sentence], *, names: Sequence[str]) -> tuple[dict[str, list[Any]], list[int]]:
    columns = {name: [[row[place] for row in one.rows] for one in sentences] for place, name in enumerate(names)}
    return columns, [one.line for one in sentences]


def _names(header: Sequence[str] | None, *, width: int, shown: str) -> list[str]:
    if header is not None:
        if len(header) != width:
            raise DataError(
                f"{shown}: `header` names {len(header)} columns, and the file has {width}; name each of them"
            )
        return list(header)
    return ["tokens", *(f"column_{place}" for place in range(2, width)), "tags"]


def read_conllu(text: str, shown: str) -> tuple[dict[str, list[Any]], list[int]]:
    """Return the columns of CoNLL-U by sentence, and the first line of each; ``id`` is the sentence's ``sent_id``, where all have one.

    Ranges of words that are written together (1-2) and empty words (1.1) are left out: the words themselves have tags.

    Raises:
        DataError: a line does not have the ten columns, or begins with no number.
    """
    sentences: list[_Sentence] = []
    current: _Sentence | None = None
    for number, line in enumerate([*text.split("\n"), ""], start=1):
        line = line.removesuffix("\r")
        if not line.strip():
            if current is not None and current.rows:
                sentences.append(current)
            current = None
            continue
        current = current or _Sentence(number)
        if line.startswith("#"):
            key, _, value = line[1:].partition("=")
            current.id = value.strip() if key.strip() == "sent_id" else current.id
            continue
        cells = line.split("\t")
        place = cells[0].replace("-", "").replace(".", "")
        if len(cells) != len(_CONLLU) or not place.isdigit():
            raise DataError(
                f"{shown}:{number}: is no line of CoNLL-U, which has {len(_CONLLU)} columns separated by tabs and begins with the "
                f"word's number; this one has {len(cells)}. Mend it, or set `format: conll`"
            )
        if cells[0].isdigit():
            current.rows.append(cells)
    columns, lines = _columns(sentences, names=_CONLLU)
    del columns["number"]
    if sentences and all(one.id for one in sentences):
        columns["id"] = [one.id for one in sentences]
    return columns, lines
