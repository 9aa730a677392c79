"""Strategies against each other: ten arms on Banking77 and GoEmotions with MiniLM, on a CPU, resumable.

    OMP_NUM_THREADS=1 python benchmarks/strategies.py --data FOLDER     trains what is missing
    python benchmarks/strategies.py --report                      writes the summary, the pictures and the tables of the guide

Every arm tries the same three rates with a seed that is used for nothing else; the best on validation trains with six more
seeds, the same for all arms: same order of rows, same new head. A cell of the grid (set, arm, rate, seed) is a line of
results/strategies/cells.jsonl. A killed grid goes on where it was. FOLDER has banking77/{train,validation,test}.csv (text,category) and
go_emotions/{train,validation,test}.tsv (text, labels) with labels.txt.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from strategies_cells import (
    ARMS,
    TUNING_SEED,
    Cell,
    OtherSettings,
    Settings,
    append_cell,
    chosen_rate,
    next_cells,
    read_cells,
    total_cells,
)

HERE = Path(__file__).resolve().parent
CELLS, MEMORY, IMPORTANCE = "cells.jsonl", "memory.jsonl", "importance"
MEMORY_STEPS = 85
"""Enough for every phase of gradual to begin on the first set."""
PACKAGES = ("torch", "transformers", "peft")


def main() -> None:
    """Train what is missing, or write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=HERE.parent.parent / "shared" / "data")
    parser.add_argument("--results", type=Path, default=HERE / "results" / "strategies")
    parser.add_argument("--hours", type=float, default=24.0, help="begin no cell after so long")
    parser.add_argument("--only", metavar="SET", help="train this set alone")
    parser.add_argument("--arms", nargs="+", choices=tuple(ARMS), default=tuple(ARMS), help="train these alone")
    parser.add_argument("--report", action="store_true", help="write the report of what there is")
    parser.add_argument("--memory-of", metavar="SET:ARM", help="measure one arm's memory in this process, and print it")
    options = parser.parse_args()
    settings = this_settings()
    try:
        if options.report:
            from strategies_report import write_report

            write_report(settings, options.results)
        elif options.memory_of:
            print(json.dumps(memory_of(settings, options, *options.memory_of.split(":"))))
        else:
            train_grid(settings, options)
            if len(options.arms) == len(ARMS):
                measure_all_memory(settings, options)
    except OtherSettings as error:
        sys.exit(str(error))


def this_settings() -> Settings:
    """Return the settings, with the versions of what results depend on most."""
    return Settings(versions={name: version(name).partition("+")[0] for name in PACKAGES})


def train_grid(settings: Settings, options: argparse.Namespace) -> None:
    """Train cell after cell in this process, which starts only once, and keep each as soon as it is done."""
    from strategies_train import Workshop, train_cell, write_data

    until = time.monotonic() + 3600 * options.hours
    path = options.results / CELLS
    with tempfile.TemporaryDirectory(prefix="strategies-") as name:
        shop = Workshop(settings, Path(name), options.results / IMPORTANCE)
        write_data(settings, options.data, shop.folder / "data")
        while time.monotonic() < until:
            rows = read_cells(path, settings)
            cell = next(next_cells(settings, rows, only=options.only, arms=options.arms), None)
            if cell is None:
                return
            started = time.perf_counter()
            row = train_cell(shop, cell, importance_of=measured_by(settings, rows, cell))
            append_cell(path, row)
            told = {name: row.get(name, "-") for name in ("validation", "test", "cpu_seconds")}
            print(
                f"{len(rows) + 1}/{total_cells(settings)} {cell.data} {cell.arm} {cell.rate:g} seed {cell.seed}: {told}, "
                f"{time.perf_counter() - started:.1f} s in all",
                flush=True,
            )


def measured_by(settings: Settings, rows: list[dict[str, Any]], cell: Cell) -> Cell | None:
    """Return the cell of discriminative whose ranks ``permuted`` takes: of the same seed, at that arm's own rate."""
    if cell.arm != "permuted":
        return None
    rate = chosen_rate(settings, rows, data=cell.data, arm="discriminative")
    assert rate is not None, "discriminative comes first"
    return Cell(cell.data, "discriminative", rate, cell.seed)


# --- memory ----------------------------------------------------------------------------------------------------------


def measure_all_memory(settings: Settings, options: argparse.Namespace) -> None:
    """Measure every arm's memory in a process of its own; those that are known are left out."""
    path = options.results / MEMORY
    known = {(row["data"], row["arm"]) for row in read_cells(path, settings)}
    for data in settings.sets[:1]:
        for arm in ARMS:
            if (data.name, arm) in known:
                continue
            command = [sys.executable, __file__, "--data", str(options.data), "--results", str(options.results)]
            command += ["--memory-of", f"{data.name}:{arm}"]
            done = subprocess.run(command, capture_output=True, text=True, env=os.environ)
            if done.returncode:
                sys.exit(f"measuring the memory of {arm} failed:\n{done.stdout}\n{done.stderr}")
            append_cell(path, {"settings": settings.key(data.name), **json.loads(done.stdout.splitlines()[-1])})


def memory_of(settings: Settings, options: argparse.Namespace, data: str, arm: str) -> dict[str, Any]:
    """Return the peak of resident memory of a short run of an arm."""
    from strategies_train import Workshop, measure_memory, write_data

    rows = read_cells(options.results / CELLS, settings)
    cell = Cell(data, arm, settings.rates_for(data)[0], TUNING_SEED)
    with tempfile.TemporaryDirectory(prefix="strategies-") as name:
        shop = Workshop(settings, Path(name), options.results / IMPORTANCE)
        write_data(settings, options.data, shop.folder / "data")
        return measure_memory(shop, cell, steps=MEMORY_STEPS, importance_of=measured_by(settings, rows, cell))


if __name__ == "__main__":
    main()
