"""How an attempt ended: a true verdict for every rank, and the one whose end made the others end."""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from launcher.atomic import read_jsonl, write_json
from launcher.errors import RunStalled
from launcher.rundir import RunDir, is_that_process

GOOD_ENDS = ("running", "finished", "interrupted")
"""Verdicts of ranks that have not failed."""
_ENDS = ("finished", "interrupted", "failed")
# What a rank says when another one has gone: not the cause, and not to be shown as it.
_ECHOES = ("connection closed by peer", "connection reset by peer", "broken pipe", "gloo", "nccl", "socket timeout")
# Every other verdict is a fault of the rank's own, such as failed or diverged.
_NO_FAULTS = ("running", "finished", "interrupted", "stalled", "killed", "ended")
_OUT_OF_MEMORY = "killed by the kernel, because the memory that this machine or job allows was full"
_WITHOUT_A_WORD = "it ended without a word: killed, or out of memory"
# torchrun's line about the rank that ended first.
_REPORT = re.compile(r"failed \(exitcode: (-?\d+)\) local_rank: (\d+) \(pid: (\d+)\)")


def first_failure(run: RunDir, attempt: int) -> tuple[int, dict[str, Any]] | None:
    """Return (rank, verdict) of the rank whose end made the others end, or None where all finished.

    A rank that was killed left ``running`` as its verdict. It is the cause where every other verdict is only about a lost
    connection, or about being asked to stop, as launchers ask the ranks that are left.
    """
    verdicts = run.verdicts(attempt)
    named = sorted(verdicts.items(), key=lambda pair: pair[1]["time"])
    stalled = [pair for pair in named if pair[1]["verdict"] == "stalled"]
    failed = [pair for pair in named if pair[1]["verdict"] not in _NO_FAULTS]
    causes = [pair for pair in failed if not any(echo in str(pair[1].get("error", "")).lower() for echo in _ECHOES)]
    killed = [pair for pair in named if pair[1]["verdict"] == "killed"]
    interrupted = [pair for pair in named if pair[1]["verdict"] == "interrupted"]
    if not (stalled or causes or killed) and (failed or interrupted or not run.live_ranks(attempt)):
        killed = [(rank, _killed(v)) for rank, v in named if v["verdict"] == "running" and not is_that_process(v)]
    ended = [pair for pair in named if pair[1]["verdict"] == "ended"]
    return next(iter([*stalled, *causes, *killed, *interrupted, *failed, *ended]), None)


def _killed(verdict: Mapping[str, Any], code: int | None = None) -> dict[str, Any]:
    """Return the verdict of a rank that left none; ``code``: as Python's subprocess gives it, negative for a signal."""
    if code is None:
        return {**verdict, "verdict": "killed", "error": _WITHOUT_A_WORD, "exit_code": 137}
    if code >= 0:
        return {
            **verdict,
            "verdict": "failed",
            "error": f"it ended without a word, exit code {code}",
            "exit_code": code or 1,
        }
    name = _signal_name(-code)
    why = " (by hand, or by the kernel when it was out of memory)" if -code == signal.SIGKILL else ""
    return {**verdict, "verdict": "killed", "signal": name, "error": f"killed by {name}{why}", "exit_code": 128 - code}


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def in_words(failed: tuple[int, Mapping[str, Any]]) -> str:
    """Return the words for (rank, verdict) of the rank whose end made the others end."""
    rank, verdict = failed
    return f"rank {rank} {verdict['verdict']}: {verdict.get('error', '')}"


def all_finished(verdicts: Mapping[int, Mapping[str, Any]]) -> bool:
    """Whether there are ranks with a verdict, and all of them have finished."""
    return bool(verdicts) and all(verdict["verdict"] == "finished" for verdict in verdicts.values())


def report_of_torchrun(text: str) -> dict[int, int]:
    """Return process id -> exit code of the ranks that torchrun saw fail first."""
    return {int(pid): int(code) for code, _, pid in _REPORT.findall(text)}


def close_verdicts(
    run: RunDir,
    attempt: int,
    *,
    ranks: range,
    codes: Mapping[int, int],
    ended: Mapping[int, str],
    stalled: tuple[int, str] | None,
    code: int,
    is_out_of_memory: bool = False,
) -> None:
    """Give every rank of a machine whose part of an attempt is over a verdict that says how it ended; none stays ``running``.

    Args:
        ranks: those of the machine.
        codes: process id -> exit code, of those that are known.
        ended: process id -> why this launcher ended it.
        stalled: the rank that stood still, and the words for it.
        code: of the process that was started.
        is_out_of_memory: whether the kernel has killed a process meanwhile, for want of memory.
    """
    verdicts = {rank: verdict for rank, verdict in run.verdicts(attempt).items() if rank in ranks}
    for rank, verdict in verdicts.items():
        if stalled is not None and rank == stalled[0]:
            closed = {**verdict, "verdict": "stalled", "error": stalled[1], "exit_code": RunStalled.exit_code}
        elif verdict["verdict"] != "running" or is_that_process(verdict):
            continue
        elif verdict["pid"] in codes:
            closed = _killed(verdict, codes[verdict["pid"]])
        elif verdict["pid"] in ended:
            closed = {**verdict, "verdict": "ended", "error": ended[verdict["pid"]], "exit_code": 137}
        else:
            closed = _killed(verdict)
        if is_out_of_memory and closed["verdict"] == "killed" and closed["exit_code"] == 137:
            closed |= {"verdict": "out_of_memory", "error": _OUT_OF_MEMORY}
        write_json(run.verdict(attempt, rank), {**closed, "time": time.time()})
    if code:
        unknown = [number for pid, number in codes.items() if pid not in {v.get("pid") for v in verdicts.values()}]
        for rank in (rank for rank in ranks if rank not in verdicts):
            write_json(
                run.verdict(attempt, rank), {**_never_began(unknown, code, alone=not verdicts), "time": time.time()}
            )


def _never_began(unknown: list[int], code: int, *, alone: bool) -> dict[str, Any]:
    if unknown and unknown[0] < 0:
        return _killed({}, unknown[0])
    words = "it ended before it could begin"
    if unknown or alone:
        return {
            "verdict": "failed",
            "error": f"{words} (exit code {code}); its last words are above",
            "exit_code": code,
        }
    return {"verdict": "ended", "error": words, "exit_code": code}


def close_events(run: RunDir, attempt: int, failed: tuple[int, dict[str, Any]] | None, *, was_stopped: bool) -> None:
    """Add why an attempt ended, where its rank 0 was killed before it could say, or said only that another had gone."""
    if failed is None:
        return
    rank, verdict = failed
    reason = in_words(failed)
    ends = [row for row in read_jsonl(run.events) if row.get("attempt") == attempt and row["event"] in _ENDS]
    told_by_rank_0 = rank == 0 and verdict["verdict"] not in ("killed", "stalled", "ended")
    last = ends[-1]["event"] if ends else ""
    if ends and (told_by_rank_0 or last == "finished" or (last == "interrupted" and was_stopped)):
        return
    run.add_event("interrupted" if was_stopped else "failed", attempt=attempt, reason=reason)


def memory_kills(cgroups: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> int:
    """Return how many processes of this one's control group the kernel has killed for want of memory; 0 where it does not say."""
    try:
        own = next(line.partition("::")[2] for line in cgroups.read_text().splitlines() if line.startswith("0::"))
        counts = dict(line.split() for line in (root / own.lstrip("/") / "memory.events").read_text().splitlines())
        return int(counts["oom_kill"])
    except (OSError, StopIteration, ValueError, KeyError):
        return 0
