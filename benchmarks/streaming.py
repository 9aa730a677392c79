"""Rows that are read while training: rows for each CPU-second, the memory of the process that reads them, and going on in the middle.

    python benchmarks/streaming.py [--rows 100000 1000000] [--formats jsonl csv parquet] [--tasks text-classification masked-lm]

Rows are those of prepare.py, about 46 tokens each. A process of its own reads one epoch of global batches of 64 rows, in blocks of 10,000, and
makes features of its share, as rank 0 of 1 and of 8 ranks; nothing is trained. Memory is the growth of its largest resident set (ru_maxrss) after
the first block. The seconds to go on are those from a position in the middle to the first batch. Each run is appended to
benchmarks/results/streaming.jsonl.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from prepare import MODEL, WRITERS, make_rows, processor

RESULTS = Path(__file__).resolve().parent / "results" / "streaming.jsonl"
BATCH = 64
LABELS = [f"class {number}" for number in range(20)]


def main() -> None:
    """Write the rows, read them in processes of their own, and keep what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--formats", nargs="+", choices=tuple(WRITERS), default=["jsonl", "parquet"])
    parser.add_argument("--tasks", nargs="+", default=["text-classification"])
    parser.add_argument("--read", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.read:
        print(json.dumps(read(**json.loads(options.read))))
        return
    for rows, kind in itertools.product(options.rows, options.formats):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            for split, count, seed in (("train", rows, 1), ("validation", 500, 2)):
                WRITERS[kind](folder / f"{split}.{kind}", make_rows(count, seed=seed))
            for task, world in itertools.product(options.tasks, (1, 8)):
                given = {"folder": str(folder), "kind": kind, "task": task, "world": world}
                command = [sys.executable, __file__, "--read", json.dumps(given)]
                found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
                row = {
                    "date": time.strftime("%Y-%m-%d"),
                    "machine": f"{processor()}, {len(os.sched_getaffinity(0))} cores",
                    "rows": rows, "format": kind, "task": task, "rank": f"0 of {world}",
                    "megabytes_of_train": round((folder / f"train.{kind}").stat().st_size / 1e6, 1),
                    **found,
                }  # fmt: skip
                RESULTS.parent.mkdir(exist_ok=True)
                with RESULTS.open("a") as file:
                    file.write(json.dumps(row) + "\n")
                print(json.dumps(row))


def read(*, folder: str, kind: str, task: str, world: int) -> dict[str, Any]:
    """Read one epoch in this process."""
    from launcher.data.streams import Position
    from launcher.engine.streaming import StreamedBatches
    from launcher.recipe.schema import Recipe
    from launcher.registry import TASKS, load

    data = {
        "train": f"{folder}/train.{kind}", "validation": f"{folder}/validation.{kind}", "streaming": True, "max_length": 128,
        "cache_dir": f"{folder}/cache", **({"labels": LABELS} if task == "text-classification" else {"columns": {"text": "text"}}),
    }  # fmt: skip
    values = {"version": 1, "name": "r", "task": {"type": task}, "model": {"name_or_path": MODEL}, "data": data}
    _, prepared = load(TASKS, task)(Recipe.model_validate(values)).prepare_data()
    stream, spread = prepared.stream, {"accumulation": 1, "rank": 0, "world_size": world}

    def batches(start: Position) -> Any:
        return iter(StreamedBatches(stream, start=start, steps=10**9, size=BATCH, spread=spread))

    reading = batches(Position())
    next(reading)
    after_a_block, cpu, steps, ends = memory(), time.process_time(), 1, []
    for micro in reading:
        if micro.end.epoch:
            break
        steps += 1
        ends.append(micro.end)
    cpu = time.process_time() - cpu
    grown = memory() - after_a_block
    began = time.perf_counter()
    next(batches(ends[len(ends) // 2]))
    return {
        "rows_per_cpu_second": round(steps * BATCH / cpu),
        "peak_megabytes": round(memory() / 1e6),
        "megabytes_after_the_first_block": round(grown / 1e6),
        "seconds_to_go_on": round(time.perf_counter() - began, 2),
    }


def memory() -> int:
    """Return the largest resident set of this process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main()
