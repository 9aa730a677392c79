"""How long a run takes: floating-point operations of a token, and the time of a run from a stated or measured speed.

A token costs 2 operations for each parameter that it is multiplied with in the forward pass, 2 more in the backward pass
where a gradient has to pass through, and 2 more where the parameter trains: 6 N in all for a model that trains whole
(Kaplan et al. 2020, arXiv:2001.08361, section 2.1). Attention adds 4 * length * width for each layer in the forward pass and
twice that in the backward pass (Chowdhery et al. 2022, PaLM, arXiv:2204.02311, appendix B).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from launcher.contracts import TuningTable

GPU_UTILISATION = 0.35
"""Share of a GPU's peak that a step of plain data parallelism reaches, assumed where nothing is measured. PaLM reports 0.46
and GPT-3 0.21 (PaLM, table 3); fine-tuning with short rows and small micro-batches lies below long pre-training runs."""
CPU_UTILISATION = 0.5
"""Share of the rate of one large matrix product that a step reaches on a processor; assumed."""


@dataclass(frozen=True)
class Work:
    """What of a model costs time: parameters by what a token does with them, and the width of attention."""

    multiplied: int
    """Parameters that every token is multiplied with: all but embedding tables, which are looked up."""
    passed: int
    """Those of them that lie at or above the first layer that trains: a gradient passes through."""
    trained: int
    """Those of them that train."""
    attention_width: int = 0
    """Sum over layers of heads * size of a head."""


def work_of(table: TuningTable, *, layers: int, width: int, tied: bool) -> Work:
    """Return the work of a model whose parameters lie in a tuning table.

    Args:
        layers: number of attention layers.
        width: heads times the size of a head.
        tied: whether the embedding table is also the output layer's matrix, which is multiplied with.
    """
    first = min((group.depths[0] for group in table.trainable), default=0)
    multiplied = passed = trained = 0.0
    for group in table.groups:
        low, high = group.depths
        if high == 0 and not tied:
            continue
        above = max(0, high - max(low, first) + 1) / (high - low + 1)
        multiplied += group.numel
        # A tied matrix works at the end, above everything.
        passed += group.numel * (1.0 if high == 0 else above)
        trained += group.numel if group.trainable else 0
    return Work(round(multiplied), round(passed), round(trained), layers * width)


def flops_per_token(work: Work, *, length: int, checkpointing: bool = False) -> float:
    """Return floating-point operations of one token of a row of ``length`` tokens, in training.

    Checkpointing computes the forward pass twice.
    """
    forward = 2.0 * work.multiplied + 4.0 * length * work.attention_width
    share = work.passed / work.multiplied if work.multiplied else 0.0
    backward = 2.0 * work.passed + 2.0 * work.trained + 8.0 * length * work.attention_width * share
    return forward * (2 if checkpointing else 1) + backward


@dataclass(frozen=True)
class Speed:
    """Tokens per second of all ranks together, and where that number is from."""

    tokens_per_second: float
    source: Literal["measured", "stated", "estimate"]
    note: str = ""


def estimated_speed(
    flops: float, *, peak: float, ranks: int, utilisation: float, slowdown: float = 1.0, note: str = ""
) -> Speed:
    """Return the speed of ``ranks`` devices that reach a share of their peak.

    Args:
        flops: operations of a token.
        peak: FLOP/s of one device.
        utilisation: share of it that plain data parallelism reaches.
        slowdown: how much longer sharding and offloading make a step.
    """
    return Speed(ranks * peak * utilisation / slowdown / flops, "estimate", note)


@dataclass(frozen=True)
class Duration:
    """How long the steps of a run take; evaluations and saves come on top."""

    tokens: int
    """Tokens of all training steps."""
    seconds: float
    device_hours: float
    """Hours of all devices together."""
    speed: Speed


def duration(tokens: int, speed: Speed, *, ranks: int) -> Duration:
    """Return the time of ``tokens`` training tokens."""
    seconds = tokens / speed.tokens_per_second
    return Duration(tokens, seconds, seconds * ranks / 3600, speed)


def tokens_of_steps(lengths: Sequence[int] | None, *, rows: int, longest: int, steps: int, batch_rows: int) -> int:
    """Return the tokens of ``steps`` steps of ``batch_rows`` rows.

    ``lengths``: tokens of each of the ``rows`` rows; None: unknown, so each counts as ``longest``.
    """
    mean = sum(lengths) / rows if lengths is not None and rows else float(longest)
    return round(mean * steps * batch_rows)


def in_words(seconds: float) -> str:
    """Return a time span as a person says it: 40 s, 12 min, 3.4 h, 5.1 days."""
    if seconds < 90:
        return f"{seconds:.0f} s" if seconds >= 1 else "under 1 s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} days"
