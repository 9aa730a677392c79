"""Which ranks hold the others up: told from how long each needs for its own part of a step, before it waits for the others."""

from __future__ import annotations

import statistics

from launcher.rundir import RunDir

_SLOWER = 1.5
_LEAST_SECONDS = 0.05


def stragglers_of(run: RunDir, attempt: int) -> tuple[str, ...]:
    """Return words for each rank that needs half as long again as the others, and at least 50 ms more."""
    own = {
        rank: (float(beat["own_seconds"]), beat["host"])
        for rank, beat in run.heartbeats(attempt).items()
        if beat.get("own_seconds")
    }
    found = []
    for rank, (seconds, host) in own.items():
        others = [other for number, (other, _) in own.items() if number != rank]
        usual = statistics.median(others) if others else seconds
        if seconds > _SLOWER * usual and seconds - usual > _LEAST_SECONDS:
            found.append(
                f"rank {rank} on {host} holds the others up: {seconds:.2f} s for its part of a step, {usual:.2f} s elsewhere"
            )
    return tuple(found)
