"""Words with a tag each to columns: CoNLL (a word on each line, a blank line between sentences) and CoNLL-U."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from launcher.data.readers_text import MARK, MARK_INSIDE
from launcher.data.tables import Fault, Faults
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
    fault: Fault | None = None

    def add_fault(self, reason: str, line: str, number: int) -> None:
        """Note the first fault of a line of this sentence."""
        self.fault = self.fault or Fault(reason, line, f"{number}")


Sentences = tuple[dict[str, list[Any]], list[int], Faults]
"""Columns [sentences][words], the first line of each sentence, and faults by sentence."""


def read_conll(text: str, shown: str, *, header: Sequence[str] | None) -> Sentences:
    """Return columns of lists, [sentences][words], the first line of each sentence, and what is wrong with which.

    Columns are separated by tabs where the file has one, else by blanks. ``header`` names them; None: the first is ``tokens``, the
    last ``tags``, and those between are ``column_2`` and so on. Lines ``-DOCSTART-`` and comments (``# key = value``) are left out.

    A sentence with a line that has another number of columns than the first one has a fault.

    Raises:
        DataError: the first line has one column.
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
        if width < 2:
            raise DataError(f"{shown}:{number}: {_other_width(len(cells), width=width, first=first, sep=separator)}")
        if not is_open:
            sentences.append(_Sentence(number))
        is_open = True
        if len(cells) != width:
            reason = _other_width(len(cells), width=width, first=first, sep=separator)
            sentences[-1].add_fault(reason, line, number)
        elif cells[0].startswith(MARK):
            sentences[-1].add_fault(MARK_INSIDE, line, number)
        else:
            sentences[-1].rows.append(cells)
    return _columns(sentences, names=_names(header, width=width, shown=shown))


def _other_width(found: int, *, width: int, first: int, sep: str | None) -> str:
    what = "has one column" if width < 2 else f"has {found} column(s), and line {first} has {width}"
    between = "a tab" if sep else "blanks"
    return f"{what}; every line is a word and its tag, separated by {between}, and a blank line ends a sentence"


def _columns(sentences: Sequence[_Sentence], *, names: Sequence[str]) -> Sentences:
    columns = {name: [[row[place] for row in one.rows] for one in sentences] for place, name in enumerate(names)}
    faults = {number: one.fault for number, one in enumerate(sentences) if one.fault}
    return columns, [one.line for one in sentences], faults


def _names(header: Sequence[str] | None, *, width: int, shown: str) -> list[str]:
    if header is not None:
        if len(header) != width:
            raise DataError(
                f"{shown}: `header` names {len(header)} columns, and the file has {width}; name each of them"
            )
        return list(header)
    return ["tokens", *(f"column_{place}" for place in range(2, width)), "tags"]


def read_conllu(text: str, shown: str) -> Sentences:
    """Return the columns of CoNLL-U by sentence, and the first line of each; ``id`` is the sentence's ``sent_id``, where all have one.

    Ranges of words that are written together (1-2) and empty words (1.1) are left out: the words themselves have tags.

    A sentence with a line that does not have the ten columns, or begins with no number, has a fault.
    """
    sentences: list[_Sentence] = []
    current: _Sentence | None = None
    for number, line in enumerate([*text.split("\n"), ""], start=1):
        line = line.removesuffix("\r")
        if not line.strip():
            if current is not None and (current.rows or current.fault):
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
            current.add_fault(
                f"is no line of CoNLL-U, which has {len(_CONLLU)} columns separated by tabs and begins with the "
                f"word's number; this one has {len(cells)}. Mend it, or set `format: conll`",
                line,
                number,
            )
        elif cells[0].isdigit():
            current.rows.append(cells)
    columns, lines, faults = _columns(sentences, names=_CONLLU)
    del columns["number"]
    if sentences and all(one.id for one in sentences):
        columns["id"] = [one.id for one in sentences]
    return columns, lines, faults
