"""A named option of a schedule or an optimizer: what its value may be, and the words where it is not."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any, Literal

REQUIRED: Any = object()
"""Default of an option that has to be given."""

_INTERVAL = re.compile(r"([\[(])([^,]+), ([^,]+)([\])])")


@dataclass(frozen=True)
class Option:
    """What an option may be, and what it is where it is not given."""

    default: Any
    """None: it is off unless given; REQUIRED: there is none."""
    interval: str = "(-inf, inf)"
    """Where a number lies, as mathematics writes it: ``(0, 1]``."""
    kind: Literal["number", "whole", "steps", "choice", "flag"] = "number"
    """``steps``: a whole number of optimizer steps, or below 1 a share of all."""
    choices: tuple[str, ...] = ()

    def must(self, value: Any) -> str | None:
        """Return what ``value`` would have to do, such as ``lie in (0, 1]``; None where it is sound."""
        if self.kind == "choice":
            return None if value in self.choices else f"be one of {', '.join(self.choices)}"
        if self.kind == "flag":
            return None if isinstance(value, bool) else "be true or false"
        if isinstance(value, bool) or not isinstance(value, int | float):
            return "be a number"
        if self.kind == "whole" and value != int(value):
            return "be a whole number"
        if self.kind == "steps" and value > 1 and value != int(value):
            return "be a whole number of steps, or below 1 a share of all steps"
        return None if self._holds(value) else f"lie in {self.interval.replace(', inf)', ', infinity)')}"

    def _holds(self, value: float) -> bool:
        match = _INTERVAL.fullmatch(self.interval)
        assert match, self.interval
        low, high = float(match[2]), float(match[3])
        above = value >= low if match[1] == "[" else value > low
        below = value <= high if match[4] == "]" else value < high
        return above and below and math.isfinite(value)


def whole(default: Any, interval: str = "[0, inf)") -> Option:
    """Return an option that is a whole number."""
    return Option(default, interval, "whole")


def steps(default: Any = REQUIRED) -> Option:
    """Return an option that is a number of steps, or below 1 a share of all."""
    return Option(default, "(0, inf)", "steps")


def choice(*names: str) -> Option:
    """Return an option that is one of some words; the first one is the default."""
    return Option(names[0], kind="choice", choices=names)


def flag(default: bool = False) -> Option:
    """Return an option that is on or off."""
    return Option(default, kind="flag")
