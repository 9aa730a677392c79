"""A user's list of words that may stand for each other: groups of them, a line for each."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

WORD = re.compile(r"\w+(?:['’-]\w+)*")
"""A word as texts are divided for it: letters and digits, with apostrophes and hyphens inside."""

_BETWEEN = re.compile(r"[,\t]")
_FORM = "write groups of words that may stand for each other, one on each line, with commas or tabs between them: film, movie"


class BadSynonyms(Exception):
    """The list is missing, or a line of it is no group of words; the text names file, line, value and remedy."""


def read_synonyms(path: Path) -> Mapping[str, tuple[str, ...]]:
    """Return word -> the words that may stand for it, as the list writes them and in its order; keys are in lower case.

    A word of several groups has the other words of all of them. Empty lines count for nothing. Raises BadSynonyms.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise BadSynonyms(f"{path}: cannot be read ({error.strerror}); name a text file: {_FORM}") from None
    except UnicodeDecodeError as error:
        bad = error.object[: error.start].count(b"\n") + 1
        raise BadSynonyms(f"{path}:{bad}: is not UTF-8; save the list as UTF-8") from None
    found: dict[str, dict[str, None]] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        words = _group(line, place=f"{path}:{number}")
        for word in words:
            others = (other for other in words if other != word)
            found.setdefault(word.lower(), {}).update(dict.fromkeys(others))
    if not found:
        raise BadSynonyms(f"{path}: has no words; {_FORM}")
    return {word: tuple(others) for word, others in found.items()}


def _group(line: str, *, place: str) -> list[str]:
    words = [word for part in _BETWEEN.split(line) if (word := part.strip())]
    if len(words) == 1:
        raise BadSynonyms(f"{place}: {words[0]!r} stands alone, and nothing may stand for it; {_FORM}")
    seen: set[str] = set()
    for word in words:
        if not WORD.fullmatch(word):
            raise BadSynonyms(f"{place}: {word!r} is not one word; words are replaced whole: remove it, or {_FORM}")
        if word.lower() in seen:
            raise BadSynonyms(f"{place}: {word!r} stands twice in the line (case aside); remove one of the two")
        seen.add(word.lower())
    return words
