"""``builtin:number-preferences``: numbers in English words, each with two answers in Spanish: as it is said, and with a learner's mistake.

``quinientos dos`` is chosen over ``cinco cientos dos``, ``treinta y uno`` over ``treinta uno``, ``veintidós`` over ``veinte y dos``. Mistakes make answers
longer about as often as shorter. No number is in two splits; nothing is read or downloaded.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from pathlib import Path

from launcher.data.builtin import BuiltinData
from launcher.data.builtin_number_words import english, spanish

SIZES = {"train": 2000, "validation": 200, "test": 500}
"""Pairs of each split."""

_SEED, _MOST = 2026, 9999
_PLAIN = str.maketrans("éó", "eo")
# Whether a mistake makes an answer longer -> what is said, and what a learner may say instead.
_MISTAKES: dict[bool, list[tuple[str, str | Callable[[re.Match[str]], str]]]] = {
    True: [
        (r"\b(dos|tres|cuatro|seis|ocho)cientos\b", r"\1 cientos"),
        (r"\bquinientos\b", "cinco cientos"),
        (r"\bsetecientos\b", "siete cientos"),
        (r"\bnovecientos\b", "nueve cientos"),
        (r"^mil\b", "uno mil"),
        (r"\bveinti(\w+)\b", lambda found: f"veinte y {found[1]}".translate(_PLAIN)),
        (r"\bdieci(\w+)\b", lambda found: f"diez y {found[1]}".translate(_PLAIN)),
    ],
    False: [(r" y ", " "), (r"\bciento\b", "cien"), (r"(\w+)cientos\b", r"\1cien"), (r"\bquinientos\b", "quincien")],
}


def make_number_preferences(*, cache_dir: Path | None = None) -> BuiltinData:
    """Return rows of train, validation and test: prompt, chosen, rejected and id (the number). ``cache_dir`` is not needed."""
    chance = random.Random(_SEED)
    numbers = [
        number for number in range(1, _MOST + 1) if all(mistakes(number, longer=longer) for longer in (True, False))
    ]
    drawn = chance.sample(numbers, sum(SIZES.values()))
    splits, first = {}, 0
    for split, size in SIZES.items():
        splits[split] = [_row(number, chance) for number in drawn[first : first + size]]
        first += size
    return BuiltinData(splits, {"format": "builtin", "seed": str(_SEED)})


def _row(number: int, chance: random.Random) -> dict[str, str]:
    wrong = chance.choice(mistakes(number, longer=chance.random() < 0.5))
    return {"prompt": english(number), "chosen": spanish(number), "rejected": wrong, "id": str(number)}


def mistakes(number: int, *, longer: bool) -> list[str]:
    """Return a number in Spanish words with each mistake that can be made of it, those that make it ``longer`` or those that make it shorter."""
    said = spanish(number)
    found = [re.sub(pattern, instead, said, count=1) for pattern, instead in _MISTAKES[longer]]
    return list(dict.fromkeys(wrong for wrong in found if wrong != said))
