"""Run a model over rows on all ranks, the one way in which this program evaluates."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from launcher.contracts import LABELS, TARGETS
from launcher.data.sampling import evaluation_batches
from launcher.engine.half_weights import inputs_for
from launcher.engine.loading import Rows
from launcher.engine.ranks import everyone, rank_and_world


@torch.no_grad()
def predict_logits(
    model: Any,
    split: Any,
    collate: Callable[[Sequence[dict[str, Any]]], dict[str, Any]],
    *,
    batch_size: int,
    device: Any,
    loss: Callable[[Any, dict[str, Any]], tuple[Any, Any]] | None = None,
    on_batch: Callable[[int, int], None] | None = None,
    row_outputs: Callable[[Any, dict[str, Any]], Any] = lambda outputs, batch: outputs["logits"],
    generate: Callable[[Any, dict[str, Any]], Any] | None = None,
) -> tuple[np.ndarray, float | None]:
    """Return (outputs float32 [rows, outputs] or [rows, tokens, outputs] in the order of the rows, mean loss), the same on all ranks.

    Every rank runs the same number of passes, which sharded weights need: a rank without rows left repeats its first.

    Args:
        loss: (outputs, batch) -> (summed loss, total weight), for labelled rows.
        on_batch: told (passes done, passes in all).
        row_outputs: (outputs, batch) -> what is kept for each row [rows, outputs]; the logits, unless they are many.
        generate: (model, batch) -> the tokens that the model writes [rows, tokens], which are kept instead; NaN stands where a row has fewer.
    """
    rank, world = rank_and_world()
    rows = Rows(split)
    batches = evaluation_batches(split["length"][:], batch_size=batch_size)
    mine = batches[rank::world]
    passes = -(-len(batches) // world)
    found: list[tuple[np.ndarray, np.ndarray]] = []
    totals = torch.zeros(2, dtype=torch.float64)
    with evaluating(model):
        for number in range(passes):
            counts = number < len(mine)
            numbers = mine[number] if counts else batches[0][:1]
            batch = collate(rows.__getitems__([int(n) for n in numbers]))
            batch = {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in batch.items()}
            has_loss = loss is not None and any(name in batch for name in LABELS)
            outputs = model(**inputs_for(model, _inputs(batch))) if has_loss or generate is None else None
            kept = row_outputs(outputs, batch) if generate is None else generate(model, batch)
            if counts:
                # Numbers of tokens are far below 2^24, up to which float32 is exact.
                found.append((numbers, kept.float().cpu().numpy()))
                if loss is not None and has_loss:
                    totals += torch.stack([part.double().cpu() for part in loss(outputs, batch)])
            if on_batch is not None:
                on_batch(number + 1, passes)
    gathered = everyone((found, totals.tolist()))
    return _in_order([pair for part, _ in gathered for pair in part], len(rows)), _mean_loss([t for _, t in gathered])


def _inputs(batch: dict[str, Any]) -> dict[str, Any]:
    return {name: v for name, v in batch.items() if name not in (*TARGETS, "row_numbers")}


def _in_order(parts: list[tuple[np.ndarray, np.ndarray]], rows: int) -> np.ndarray:
    """Return [rows, outputs], or where each token has outputs [rows, tokens, outputs], filled up with NaN."""
    width = max(outputs.shape[1] for _, outputs in parts)
    result = np.full((rows, width, *parts[0][1].shape[2:]), np.nan, dtype=np.float32)
    for numbers, outputs in parts:
        result[numbers, : outputs.shape[1]] = outputs
    return result


def _mean_loss(totals: list[list[float]]) -> float | None:
    summed, weight = (sum(column) for column in zip(*totals, strict=True))
    return summed / weight if weight else None


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Put ``model`` into evaluation mode for a while."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
