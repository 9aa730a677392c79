"""Time limits as Slurm writes them."""

from __future__ import annotations

import re

_FORM = re.compile(r"(?:(?P<days>\d+)-(?P<hours>\d+)(?::(?P<m>\d+)(?::(?P<s>\d+))?)?|(?P<clock>\d+(?::\d+){0,2}))")
FORMS = "MINUTES, MINUTES:SECONDS, HOURS:MINUTES:SECONDS, DAYS-HOURS or DAYS-HOURS:MINUTES:SECONDS"


def limit_seconds(limit: str | int) -> int | None:
    """Return the seconds of a time limit; None where ``limit`` is none. One of 0 means no limit to Slurm, and is refused."""
    match = _FORM.fullmatch(str(limit))
    if match is None:
        return None
    if match["clock"] is None:
        seconds = ((int(match["days"]) * 24 + int(match["hours"])) * 60 + int(match["m"] or 0)) * 60 + int(
            match["s"] or 0
        )
    else:
        parts = [int(part) for part in match["clock"].split(":")]
        hours, minutes, rest = {1: (0, *parts, 0), 2: (0, *parts), 3: tuple(parts)}[len(parts)]
        seconds = (hours * 60 + minutes) * 60 + rest
    return seconds or None
