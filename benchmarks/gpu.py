"""Training on one GPU: tokens per second, share of the GPU's peak (MFU) and peak memory of a model of 0.5 billion parameters.

    python benchmarks/gpu.py [--only NAME ...] [--steps 60]         writes benchmarks/results/gpu/DEVICE.json

Every cell is a run as a user starts it, on rows of 1,024 tokens; the first third of its steps warms up and is not counted. A token's
operations are the plan's, so MFU counts what the model needs, not what is computed twice. A cell whose package is missing is named.
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "gpu"
LAUNCHER = str(Path(sys.executable).with_name("launcher"))
TOKENS, ROWS = 1024, 16
WORDS = ("river", "iron", "apple", "north", "cloud", "stone", "glass", "paper", "green", "seven")
CONFIG = {
    "hidden_size": 1280, "num_hidden_layers": 24, "num_attention_heads": 20, "num_key_value_heads": 20,
    "intermediate_size": 3456, "vocab_size": 32000, "max_position_embeddings": 2048,
}  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """What of the model trains, and with which kernels."""

    strategy: Mapping[str, Any]
    training: Mapping[str, Any] = field(default_factory=dict)
    package: str = ""


FULL, LORA = {"type": "full"}, {"type": "lora", "r": 16}
COMPILE, LIGER = {"torch_compile": True}, {"use_liger_kernel": True}
CELLS = {
    "full": Cell(FULL),
    "full-compile": Cell(FULL, COMPILE),
    "full-liger": Cell(FULL, LIGER, "liger_kernel"),
    "full-checkpointing": Cell(FULL, {"activation_checkpointing": True}),
    "lora": Cell(LORA),
    "lora-compile": Cell(LORA, COMPILE),
    "lora-liger": Cell(LORA, LIGER, "liger_kernel"),
}


def main() -> None:
    """Measure the cells and write one file for this kind of GPU."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=CELLS, default=list(CELLS))
    parser.add_argument("--steps", type=int, default=60)
    options = parser.parse_args()
    from launcher.planning.gpus import spec_of
    from launcher.planning.hardware import detect_hardware

    gpus = detect_hardware().gpus
    if not gpus:
        sys.exit("no GPU is visible here")
    spec = spec_of(gpus[0])
    path = RESULTS / (re.sub(r"[^a-z0-9]+", "-", gpus[0].name.lower()) + ".json")
    kept = json.loads(path.read_text()) if path.is_file() else {"cells": {}}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_model(folder / "model")
        write_rows(folder / "data", options.steps)
        for cell in options.only:
            kept["cells"][cell] = measure(folder, cell, peak=spec.peak("bf16") if spec else None)
            print(cell, json.dumps(kept["cells"][cell]), flush=True)
            facts = {"device": gpus[0].name, "precision": "bf16", "rows": ROWS, "tokens": TOKENS, "config": CONFIG}
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps({**kept, **facts, "date": time.strftime("%Y-%m-%d")}, indent=1) + "\n")


def measure(folder: Path, name: str, *, peak: float | None) -> dict[str, Any]:
    """Run one cell; return tokens per second (median of logged steps), MFU and the most memory that torch reserved, in bytes."""
    cell = CELLS[name]
    if cell.package and importlib.util.find_spec(cell.package) is None:
        return {"left_out": f"{cell.package} is not installed"}
    recipe = folder / f"{name}.yaml"
    recipe.write_text(json.dumps(recipe_of(name)))
    plan = json.loads(_run(folder, "plan", recipe, "--json"))
    _run(folder, "run", recipe)
    run = max((folder / "runs").glob(f"{name}-[0-9]*"))
    rows = [json.loads(line) for line in (run / "progress.jsonl").read_text().splitlines()]
    speeds = [row["tokens_per_second"] for row in rows if "tokens_per_second" in row]
    speed = statistics.median(speeds[len(speeds) // 3 :])
    flops = plan["whole"]["forecast"]["flops_per_token"]
    memory = json.loads((run / "attempts/1/memory.rank-0.json").read_text())
    return {
        "tokens_per_second": round(speed),
        "flops_per_token": flops,
        "mfu": None if peak is None or flops is None else round(speed * flops / peak, 4),
        "peak_bytes": memory["peak_bytes"],
        "planned_bytes": max(sum(parts.values()) for parts in plan["whole"]["forecast"]["memory"]["moments"].values()),
    }


def recipe_of(name: str) -> dict[str, Any]:
    """Return a cell's recipe."""
    cell = CELLS[name]
    training = {
        "num_train_epochs": 1, "global_batch_size": ROWS, "per_device_train_batch_size": ROWS, "logging_steps": 2,
        "learning_rate": 1e-5, "save_strategy": "no", "load_best_model_at_end": False, **cell.training,
    }  # fmt: skip
    return {
        "version": 1, "name": name, "task": "text-classification", "model": {"name_or_path": "./model"},
        "data": {"source": "./data", "max_length": TOKENS}, "strategy": dict(cell.strategy), "training": training,
        "precision": "bf16", "distributed": {"processes_per_node": 1}, "tracking": {"wandb": None},
        "evaluation": {"bootstrap": 0, "baselines": [], "verify_saved": False},
    }  # fmt: skip


def write_model(folder: Path) -> None:
    """Write random weights and a tokenizer of whole words."""
    import torch
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**CONFIG, tie_word_embeddings=True, pad_token_id=0)).save_pretrained(folder)
    backend = Tokenizer(WordLevel({word: i for i, word in enumerate(("[PAD]", "[UNK]", *WORDS))}, unk_token="[UNK]"))
    backend.pre_tokenizer = Whitespace()
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "model_max_length": 2048}
    PreTrainedTokenizerFast(tokenizer_object=backend, **names).save_pretrained(folder)


def write_rows(folder: Path, steps: int) -> None:
    """Write rows of TOKENS tokens, none of them twice."""
    folder.mkdir()
    for kind, (name, count) in enumerate({"train": steps * ROWS, "validation": ROWS, "test": ROWS}.items()):
        with (folder / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
            rows = csv.writer(file)
            rows.writerow(["text", "label"])
            for number in range(count):
                numbered = [WORDS[int(digit)] for digit in f"{kind}{number:05d}"]
                filling = (WORDS[(number + i) % len(WORDS)] for i in range(TOKENS - len(numbered)))
                rows.writerow([" ".join([*numbered, *filling]), ("no", "yes")[number % 2]])


def _run(folder: Path, *arguments: str | Path) -> str:
    done = subprocess.run([LAUNCHER, *map(str, arguments)], cwd=folder, capture_output=True, text=True)
    if done.returncode:
        sys.exit(
            f"launcher {' '.join(map(str, arguments))} ended with code {done.returncode}:\n{done.stdout}{done.stderr}"
        )
    return done.stdout


if __name__ == "__main__":
    main()
