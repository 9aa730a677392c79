"""The story of a run: each attempt, where it ran, from which step to which, why it ended, what was lost, and what followed."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from launcher.atomic import read_jsonl
from launcher.backends.endings import all_finished, first_failure, in_words as cause_in_words
from launcher.launching.aftermath import Outcome
from launcher.rundir import RunDir

_FOLLOWING = {
    "requeued": "requeued",
    "left_to_next": "left to the next job of the chain",
    "chain_ended": "no job of the chain is left",
}


@dataclass(frozen=True)
class AttemptStory:
    """One attempt, as ``launcher explain`` tells it."""

    number: int
    where: str
    began: float | None
    """Seconds since 1970."""
    from_step: int
    to_step: int | None
    """The last step that was made; None: none was."""
    ending: str
    """Of the rank whose end made the others end."""
    kind: str
    """What the ending means for a submitted run, as launching/aftermath.py names it; "" elsewhere, and while it runs."""
    lost_steps: int
    """Steps that were made and not saved, and are made again."""
    followed: str
    """What came next, and which nodes are avoided; "" where nothing did."""
    ranks: dict[int, dict[str, Any]]


def story_of(run: RunDir) -> tuple[AttemptStory, ...]:
    """Return what is known of each attempt."""
    events = read_jsonl(run.events)
    rows = [row for row in read_jsonl(run.progress) if "step" in row]
    return tuple(_attempt(run, number, events, rows) for number in range(1, run.last_attempt + 1))


def _attempt(run: RunDir, number: int, events: list[dict[str, Any]], rows: list[dict[str, Any]]) -> AttemptStory:
    own = [row for row in events if row.get("attempt") == number]
    steps = [row["step"] for row in rows if row.get("attempt") == number]
    outcome = next((Outcome.from_row(row) for row in own if row["event"] == "attempt_ended"), None)
    place = json.loads(run.place(number).read_text()) if run.place(number).is_file() else {}
    verdicts = run.verdicts(number)
    return AttemptStory(
        number=number,
        where=_where(place, verdicts),
        began=own[0]["time"] if own else None,
        from_step=place.get("resumed_from", steps[0] - 1 if steps else 0),
        to_step=steps[-1] if steps else None,
        ending=outcome.reason or outcome.kind if outcome else _ending(run, number, verdicts),
        kind=outcome.kind if outcome else "",
        lost_steps=outcome.lost if outcome else 0,
        followed="; ".join(_followed(own)),
        ranks=verdicts,
    )


def _followed(events: list[dict[str, Any]]) -> Iterator[str]:
    for row in events:
        if row["event"] in _FOLLOWING:
            away = f", away from {', '.join(row['exclude'])}" if row.get("exclude") else ""
            yield _FOLLOWING[row["event"]] + away


def _ending(run: RunDir, number: int, verdicts: dict[int, dict[str, Any]]) -> str:
    failed = first_failure(run, number)
    if failed is not None:
        return cause_in_words(failed)
    if all_finished(verdicts):
        return "finished"
    return "still running" if number == run.last_attempt else "it ended without a word"


def _where(place: dict[str, Any], verdicts: dict[int, dict[str, Any]]) -> str:
    if place:
        again = f", start {place['restarts'] + 1} of the job" if place["restarts"] else ""
        return f"job {place['id']} on {', '.join(place['nodes'])}{again}"
    hosts = sorted({str(verdict.get("host", "?")) for verdict in verdicts.values()})
    return f"this machine ({', '.join(hosts)})" if hosts else "nowhere yet"


def in_words(story: AttemptStory) -> str:
    """Return the lines that tell an attempt."""
    began = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(story.began)) if story.began else "?"
    start = f"from step {story.from_step}" if story.from_step else "from the start"
    steps = f"{start} to step {story.to_step}" if story.to_step is not None else f"{start}; no step was made"
    lost = f"; {story.lost_steps} step(s) were not saved, and are made again" if story.lost_steps else ""
    followed = f"\n  then: {story.followed}" if story.followed else ""
    return f"attempt {story.number}, {began}: {story.where}\n  {steps}{lost}\n  ended: {story.ending}{followed}"
