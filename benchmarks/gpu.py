"""Training on one GPU: tokens per second, share of the GPU's peak (MFU) and peak memory of models of 0.5 and 8 billion parameters.

    python benchmarks/gpu.py [--only NAME ...] [--steps 60]         writes benchmarks/results/gpu/DEVICE.json

Every cell is a run as a user starts it: 0.5 billion parameters classify rows of 1,024 tokens, and 8 billion (the shape of Llama 3.1 8B, random
weights) learn texts of 4,096 tokens through adapters; the first third of its steps warms up and is not counted. A token's operations
are the plan's, so MFU counts what the model needs, not what is computed twice. A cell whose package is missing is named, and a published
speed is printed beside its own.
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import json
import re
import shutil
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
WORDS = ("river", "iron", "apple", "north", "cloud", "stone", "glass", "paper", "green", "seven")


@dataclass(frozen=True)
class Shape:
    """A model and its rows."""

    config: Mapping[str, Any]
    task: str
    tokens: int
    """Of each row."""
    rows: int
    """Of a step."""
    at_once: int
    """Rows of a micro-batch."""
    dtype: str = "auto"
    """Of the weights; auto: float32."""


HALF_BILLION = Shape(
    {
        "hidden_size": 1280, "num_hidden_layers": 24, "num_attention_heads": 20, "num_key_value_heads": 20,
        "intermediate_size": 3456, "vocab_size": 32000, "max_position_embeddings": 2048, "tie_word_embeddings": True,
    },
    "text-classification", tokens=1024, rows=16, at_once=16,
)  # fmt: skip
EIGHT_BILLION = Shape(
    {
        "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
        "intermediate_size": 14336, "vocab_size": 128256, "max_position_embeddings": 8192, "tie_word_embeddings": False,
    },
    "causal-lm", tokens=4096, rows=8, at_once=1, dtype="bfloat16",
)  # fmt: skip


@dataclass(frozen=True)
class Published:
    """What somebody else has measured of the same model and method."""

    tokens_per_second: int
    who: str


@dataclass(frozen=True)
class Cell:
    """What of the model trains, and with which kernels."""

    strategy: Mapping[str, Any]
    training: Mapping[str, Any] = field(default_factory=dict)
    package: str = ""
    shape: Shape = HALF_BILLION
    published: Published | None = None


FULL, LORA = {"type": "full"}, {"type": "lora", "r": 16}
NEMO = Published(12_473, "NeMo AutoModel, Llama 3 8B, LoRA, one H100")
COMPILE, LIGER = {"torch_compile": True}, {"use_liger_kernel": True}
CELLS = {
    "full": Cell(FULL),
    "full-compile": Cell(FULL, COMPILE),
    "full-liger": Cell(FULL, LIGER, "liger_kernel"),
    "full-checkpointing": Cell(FULL, {"activation_checkpointing": True}),
    "lora": Cell(LORA),
    "lora-compile": Cell(LORA, COMPILE),
    "lora-liger": Cell(LORA, LIGER, "liger_kernel"),
    "8b-lora": Cell(LORA, shape=EIGHT_BILLION, published=NEMO),
    "8b-lora-liger": Cell(LORA, LIGER, "liger_kernel", shape=EIGHT_BILLION, published=NEMO),
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
        for cell in options.only:
            kept["cells"][cell] = measure(folder, cell, steps=options.steps, peak=spec.peak("bf16") if spec else None)
            print(cell, json.dumps(kept["cells"][cell]), flush=True)
            facts = {"device": gpus[0].name, "precision": "bf16"}
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps({**kept, **facts, "date": time.strftime("%Y-%m-%d")}, indent=1) + "\n")


def measure(folder: Path, name: str, *, steps: int, peak: float | None) -> dict[str, Any]:
    """Run one cell in ``folder``; return what was measured, or what is missing for it."""
    cell = CELLS[name]
    if cell.package and importlib.util.find_spec(cell.package) is None:
        return {"left_out": f"{cell.package} is not installed"}
    write_place(folder, cell.shape, steps=steps)
    recipe = folder / f"{name}.yaml"
    recipe.write_text(json.dumps(recipe_of(name)))
    plan = json.loads(_run(folder, "plan", recipe, "--json"))
    _run(folder, "run", recipe)
    run = max((folder / "runs").glob(f"{name}-[0-9]*"))
    found = figures(run, plan, peak=peak)
    # What it saved may be as large as the disk.
    shutil.rmtree(run)
    return {**found, **beside(cell, found["tokens_per_second"])}


def figures(run: Path, plan: Mapping[str, Any], *, peak: float | None) -> dict[str, Any]:
    """Return tokens per second (median of logged steps), MFU and the most memory that torch reserved, in bytes."""
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


def beside(cell: Cell, speed: float) -> dict[str, Any]:
    """Return a cell's rows, and a published speed beside its own."""
    shape, published = cell.shape, cell.published
    found: dict[str, Any] = {"config": dict(shape.config), "tokens": shape.tokens, "rows": shape.rows}
    if published is not None:
        theirs = {"tokens_per_second": published.tokens_per_second, "who": published.who}
        found["published"] = {**theirs, "ratio": round(speed / published.tokens_per_second, 3)}
    return found


def recipe_of(name: str) -> dict[str, Any]:
    """Return a cell's recipe."""
    cell = CELLS[name]
    shape = cell.shape
    training = {
        "num_train_epochs": 1, "global_batch_size": shape.rows, "per_device_train_batch_size": shape.at_once, "logging_steps": 2,
        "per_device_eval_batch_size": shape.at_once, "learning_rate": 1e-5, "eval_strategy": "no", "save_strategy": "no",
        "load_best_model_at_end": False, **cell.training,
    }  # fmt: skip
    return {
        "version": 1, "name": name, "task": shape.task, "model": {"name_or_path": folder_of(shape, "model"), "dtype": shape.dtype},
        "data": {"source": folder_of(shape, "data"), "max_length": shape.tokens}, "strategy": dict(cell.strategy), "training": training,
        "precision": "bf16", "distributed": {"processes_per_node": 1}, "tracking": {"wandb": None},
        "evaluation": {"bootstrap": 0, "baselines": [], "verify_saved": False},
    }  # fmt: skip


def folder_of(shape: Shape, what: str) -> str:
    """Return the folder of a shape's model or data, relative to that of all cells."""
    return f"./{what}-{shape.task}"


def write_place(folder: Path, shape: Shape, *, steps: int) -> None:
    """Write a shape's model and rows into ``folder``, unless they are there."""
    if not (folder / folder_of(shape, "data")).exists():
        write_model(folder / folder_of(shape, "model"), shape)
        write_rows(folder / folder_of(shape, "data"), shape, steps)


def write_model(folder: Path, shape: Shape) -> None:
    """Write random weights and a tokenizer of whole words."""
    import torch
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    config = LlamaConfig(**shape.config, pad_token_id=0)
    # Billions of random numbers take the processor minutes.
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        dtype = torch.float32 if shape.dtype == "auto" else getattr(torch, shape.dtype)
        LlamaForCausalLM._from_config(config, dtype=dtype).save_pretrained(folder)
    torch.cuda.empty_cache()
    backend = Tokenizer(WordLevel({word: i for i, word in enumerate(("[PAD]", "[UNK]", *WORDS))}, unk_token="[UNK]"))
    backend.pre_tokenizer = Whitespace()
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "model_max_length": shape.config["max_position_embeddings"]}
    PreTrainedTokenizerFast(tokenizer_object=backend, **names).save_pretrained(folder)


def write_rows(folder: Path, shape: Shape, steps: int) -> None:
    """Write rows of ``shape.tokens`` tokens, none of them twice, with a label where the task has one."""
    folder.mkdir()
    labelled = shape.task == "text-classification"
    for kind, (name, count) in enumerate({"train": steps * shape.rows, "validation": 2, "test": 2}.items()):
        with (folder / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
            rows = csv.writer(file)
            rows.writerow(["text", "label"] if labelled else ["text"])
            for number in range(count):
                numbered = [WORDS[int(digit)] for digit in f"{kind}{number:05d}"]
                filling = (WORDS[(number + i) % len(WORDS)] for i in range(shape.tokens - len(numbered)))
                text = " ".join([*numbered, *filling])
                rows.writerow([text, ("no", "yes")[number % 2]] if labelled else [text])


def _run(folder: Path, *arguments: str | Path) -> str:
    done = subprocess.run([LAUNCHER, *map(str, arguments)], cwd=folder, capture_output=True, text=True)
    if done.returncode:
        sys.exit(
            f"launcher {' '.join(map(str, arguments))} ended with code {done.returncode}:\n{done.stdout}{done.stderr}"
        )
    return done.stdout


if __name__ == "__main__":
    main()
