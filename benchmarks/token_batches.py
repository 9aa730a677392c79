"""Steps that are bounded by tokens against steps of rows of like length, in turn, in one process.

    python benchmarks/token_batches.py [--rounds 2] [--rows 640 2560]

MiniLM with a classifier trains an epoch of random tokens in rows of lognormal lengths (median 33, at most 256: many short texts, few
long ones), once in steps of 32 rows grouped by length, the default, and once in steps of as many tokens as those have on average
(``training.tokens_per_batch``). The figure is real tokens per CPU-second, as a ratio round by round; padding is told beside it.
Each round is appended to benchmarks/results/token_batches.jsonl with the machine's description; it takes a few minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForSequenceClassification

from launcher.data.sampling import GlobalBatches
from launcher.data.token_batches import TokenBatches, padded
from launcher.tasks.models import locate

sys.path.insert(0, str(Path(__file__).resolve().parent))
from against_trainer import MODEL, processor

RESULTS = Path(__file__).resolve().parent / "results" / "token_batches.jsonl"
BATCH, LABELS, SEED = 32, 4, 1


def main() -> None:
    """Run all rounds, keep each as soon as it is done, and print the ratios."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--rows", type=int, nargs="+", default=[640, 2560])
    options = parser.parse_args()
    # Threads that wait for each other spin, which would count as work where other programs hold a core.
    torch.set_num_threads(1)
    model = AutoModelForSequenceClassification.from_pretrained(locate(MODEL), num_labels=LABELS)
    for rows in options.rows:
        lengths = np.clip(np.random.default_rng(SEED).lognormal(3.5, 0.9, rows).astype(np.int64), 4, 256)
        epoch(model, lengths, GlobalBatches(lengths, BATCH, SEED).epoch(0)[:3])
        found = [one_round(model, lengths, number) for number in range(options.rounds)]
        ratios = [one["ratio"] for one in found]
        print(
            f"{rows} rows, real tokens per CPU-second, by tokens / by rows: median {statistics.median(ratios):.2f} "
            f"({min(ratios):.2f} to {max(ratios):.2f})"
        )


def one_round(model: Any, lengths: np.ndarray, number: int) -> dict[str, Any]:
    """Train an epoch of both sides and keep what was measured; which one goes first changes."""
    by_rows = GlobalBatches(lengths, BATCH, SEED).epoch(number)
    budget = max(round(places(lengths, by_rows) / len(by_rows)), int(padded(lengths.max())))
    sides = {"by_rows": by_rows, "by_tokens": TokenBatches(lengths, budget, SEED).epoch(number)}
    found: dict[str, Any] = {"rows": len(lengths), "tokens_per_batch": budget, "real_tokens": int(lengths.sum())}
    for name in sorted(sides, reverse=number % 2 == 0):
        batches = sides[name]
        found[name] = {
            "steps": len(batches),
            "padding": round(1 - int(lengths.sum()) / places(lengths, batches), 4),
            "cpu_seconds": round(epoch(model, lengths, batches), 2),
        }
    found["ratio"] = round(found["by_rows"]["cpu_seconds"] / found["by_tokens"]["cpu_seconds"], 4)
    print(json.dumps(found), file=sys.stderr)
    machine = f"{processor()}, {len(os.sched_getaffinity(0))} cores"
    with RESULTS.open("a") as file:
        file.write(json.dumps({"date": time.strftime("%Y-%m-%d"), "machine": machine, **found}) + "\n")
    return found


def places(lengths: np.ndarray, batches: Sequence[np.ndarray]) -> int:
    """Return the tokens of batches, padding included."""
    return sum(len(rows) * int(padded(lengths[rows].max())) for rows in batches)


def epoch(model: Any, lengths: np.ndarray, batches: Sequence[np.ndarray]) -> float:
    """Train on the batches; return the CPU-seconds of all threads."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True)
    generator = torch.Generator().manual_seed(SEED)
    model.train()
    began = time.process_time()
    for rows in batches:
        own = torch.from_numpy(lengths[rows])
        shape = (len(rows), int(padded(lengths[rows].max())))
        ids = torch.randint(1000, 20000, shape, generator=generator)
        mask = (torch.arange(shape[1]) < own[:, None]).long()
        labels = torch.randint(LABELS, (len(rows),), generator=generator)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = model(input_ids=ids * mask, attention_mask=mask, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return time.process_time() - began


if __name__ == "__main__":
    main()
