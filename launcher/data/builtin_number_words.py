"""``builtin:number-words``: numbers from 1 to 9,999 in English words, and the same in Spanish.

``seis mil quinientos veintidós`` is six thousand five hundred and twenty-two: some hundreds and all numbers below thirty have words of their own. No
number is in two splits; nothing is read or downloaded.
"""

from __future__ import annotations

import random
from pathlib import Path

from launcher.data.builtin import BuiltinData

SIZES = {"train": 3000, "validation": 200, "test": 500}
"""Numbers of each split."""

_SEED, _MOST = 2025, 9999
_ENGLISH = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"]  # fmt: skip
_ENGLISH_TENS = ["_", "_", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
_SPANISH = ["cero", "uno", "dos", "tres", "cuatro", "cinco", "seis", "siete", "ocho", "nueve", "diez", "once", "doce", "trece", "catorce", "quince", "dieciséis", "diecisiete", "dieciocho", "diecinueve", "veinte", "veintiuno", "veintidós", "veintitrés", "veinticuatro", "veinticinco", "veintiséis", "veintisiete", "veintiocho", "veintinueve"]  # fmt: skip
_SPANISH_TENS = ["_", "_", "_", "treinta", "cuarenta", "cincuenta", "sesenta", "setenta", "ochenta", "noventa"]
_SPANISH_HUNDREDS = [
    "_",
    "ciento",
    "doscientos",
    "trescientos",
    "cuatrocientos",
    "quinientos",
    "seiscientos",
    "setecientos",
    "ochocientos",
    "novecientos",
]


def make_number_words(*, cache_dir: Path | None = None) -> BuiltinData:
    """Return rows of train, validation and test: text (English), target (Spanish) and id (the number). ``cache_dir`` is not needed."""
    numbers = random.Random(_SEED).sample(range(1, _MOST + 1), sum(SIZES.values()))
    splits, first = {}, 0
    for split, size in SIZES.items():
        of_split = numbers[first : first + size]
        splits[split] = [{"text": english(n), "target": spanish(n), "id": str(n)} for n in of_split]
        first += size
    return BuiltinData(splits, {"format": "builtin", "seed": str(_SEED)})


def english(number: int) -> str:
    """Return a whole number from 0 to 9,999 in English words, as in British usage: ``one hundred and one``."""
    if number < 20:
        return _ENGLISH[number]
    if number < 100:
        ones = f"-{_ENGLISH[number % 10]}" if number % 10 else ""
        return _ENGLISH_TENS[number // 10] + ones
    size, word = (1000, "thousand") if number >= 1000 else (100, "hundred")
    rest = number % size
    # "and" stands before tens and ones alone.
    link = " and " if rest < 100 else " "
    return f"{_ENGLISH[number // size]} {word}" + (f"{link}{english(rest)}" if rest else "")


def spanish(number: int) -> str:
    """Return a whole number from 0 to 9,999 in Spanish words: ``treinta y uno``."""
    if number < 30:
        return _SPANISH[number]
    if number < 100:
        ones = f" y {_SPANISH[number % 10]}" if number % 10 else ""
        return _SPANISH_TENS[number // 10] + ones
    if number < 1000:
        rest = f" {spanish(number % 100)}" if number % 100 else ""
        return "cien" if number == 100 else _SPANISH_HUNDREDS[number // 100] + rest
    thousands = "mil" if number < 2000 else f"{_SPANISH[number // 1000]} mil"
    return thousands + (f" {spanish(number % 1000)}" if number % 1000 else "")
