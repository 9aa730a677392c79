"""Ways to train one model, and what every run of them has to show; the same on a GPU with 0.5 billion parameters and tiny here."""

from __future__ import annotations

import csv
import importlib.util
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tiny

STEPS = 4


@dataclass(frozen=True)
class Size:
    """A Llama of random weights, and the rows that it trains on."""

    config: Mapping[str, int]
    tokens: int
    rows: int
    """Of a step."""


HALF_BILLION = Size(
    {"hidden_size": 1280, "num_hidden_layers": 24, "num_attention_heads": 20, "num_key_value_heads": 20,
     "intermediate_size": 3456, "vocab_size": 32000, "max_position_embeddings": 512},
    tokens=256, rows=8,
)  # fmt: skip
TINY = Size(
    {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2,
     "intermediate_size": 128, "vocab_size": 128, "max_position_embeddings": 512},
    tokens=16, rows=8,
)  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """A way to train."""

    changes: Mapping[str, Any]
    package: str = ""
    """What has to be installed for it, beside launcher's own requirements."""
    builds: bool = False
    """Whether DeepSpeed compiles an operation for the GPU, which needs nvcc."""
    gpus: int = 1
    loss_tolerance: float = 0.05
    """Share by which the first loss may differ from that of the same weights in bf16."""
    values: Mapping[str, Any] = field(default_factory=dict)
    """What plan.json's launch has to say."""


def _full(precision: str = "bf16", **changes: Any) -> dict[str, Any]:
    return {"precision": precision, "strategy": {"type": "full"}, **changes}


def _zero(stage: int, **distributed: Any) -> dict[str, Any]:
    return _full(distributed={"processes_per_node": 1, "zero_stage": stage, **distributed})


LORA = {"type": "lora", "r": 8}
CELLS = {
    "bf16": Cell(_full(), values={"precision": "bf16"}),
    "fp32": Cell(_full("fp32"), values={"precision": "fp32"}),
    "tf32": Cell(_full("tf32"), values={"precision": "tf32"}),
    "fp16": Cell(_full("fp16"), values={"precision": "fp16"}),
    "checkpointing": Cell(_full(training={"activation_checkpointing": True})),
    "compile": Cell(_full(training={"torch_compile": True})),
    "sdpa": Cell(_full(model={"attn_implementation": "sdpa"})),
    "flash-attention": Cell(_full(model={"attn_implementation": "flash_attention_2"}), package="flash_attn"),
    "liger": Cell(_full(training={"use_liger_kernel": True}), package="liger_kernel"),
    "zero-1": Cell(_zero(1), values={"engine": "deepspeed", "zero_stage": 1}),
    "zero-2": Cell(_zero(2), values={"engine": "deepspeed", "zero_stage": 2}),
    "zero-3": Cell(_zero(3), values={"engine": "deepspeed", "zero_stage": 3}),
    "zero-2-offload": Cell(_zero(2, offload="optimizer"), builds=True, values={"offload": "optimizer"}),
    "zero-3-offload": Cell(_zero(3, offload="all"), builds=True, values={"offload": "all"}),
    "fsdp": Cell(_full(distributed={"processes_per_node": 1, "engine": "fsdp"}), values={"engine": "fsdp"}),
    "fsdp-2": Cell(_full(distributed={"processes_per_node": 2, "engine": "fsdp"}), gpus=2, values={"engine": "fsdp"}),
    "zero-3-2": Cell(
        _full(distributed={"processes_per_node": 2, "zero_stage": 3}), gpus=2, values={"engine": "deepspeed"}
    ),
    "lora": Cell({"precision": "bf16", "strategy": LORA}),
    "qlora": Cell({"precision": "bf16", "strategy": {**LORA, "load_in_4bit": True}}, package="bitsandbytes", loss_tolerance=0.3),
    "prefix-cache": Cell({"precision": "bf16", "strategy": {"type": "head", "prefix_cache": "memory"}}),
}  # fmt: skip

# The settings whose memory is held to the plan's estimate.
MEASURED = ("bf16", "fp32", "checkpointing", "lora", "zero-2", "zero-3")


def make_place(folder: Path, size: Size) -> Path:
    """Write a model of random weights with a tokenizer, and rows of the size's length."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    model = folder / "model"
    LlamaForCausalLM(LlamaConfig(**size.config, tie_word_embeddings=True, pad_token_id=0)).save_pretrained(model)
    tiny.save_tokenizer(model)
    settings = json.loads((model / "tokenizer_config.json").read_text())
    (model / "tokenizer_config.json").write_text(json.dumps({**settings, "model_max_length": 512}))
    rng, topics = np.random.default_rng(0), list(tiny.TOPICS)
    for name, count in {"train": STEPS * size.rows, "validation": 16, "test": 16}.items():
        (folder / "data").mkdir(exist_ok=True)
        with (folder / "data" / f"{name}.csv").open("w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["text", "label"])
            for number in range(count):
                topic = topics[number % len(topics)]
                words = [*rng.choice(tiny.TOPICS[topic], 2), *rng.choice(tiny.FILLER, size.tokens - 4)]
                rows.writerow([" ".join(rng.permutation(words)), topic])
    return folder


def recipe_of(folder: Path, size: Size, name: str, **laid_over: Any) -> Path:
    """Write the recipe of a cell."""
    cell, changes = CELLS[name], {**CELLS[name].changes, **laid_over}
    values = tiny.recipe_values(
        "./model", "./data", name=name, data={"max_length": size.tokens},
        training={
            "num_train_epochs": 1, "global_batch_size": size.rows, "learning_rate": 1e-4,
            "warmup_steps": 0, "load_best_model_at_end": False,
        },
        evaluation={"bootstrap": 0, "baselines": [], "verify_saved": True},
    )  # fmt: skip
    for section, change in changes.items():
        both = isinstance(change, Mapping) and isinstance(values.get(section), Mapping)
        values[section] = {**values[section], **change} if both else change
    assert cell is CELLS[name]
    return tiny.write_recipe(folder / f"{name}.yaml", values)


def run_cell(folder: Path, size: Size, name: str, *, timeout: float = 540, **laid_over: Any) -> Path:
    """Train a cell as a user does; return its run."""
    recipe = recipe_of(folder, size, name, **laid_over)
    done = tiny.launcher("run", recipe, cwd=folder, timeout=timeout)
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    return max((folder / "runs").glob(f"{name}-[0-9]*"))


def check_run(run: Path, cell: Cell, *, device: str) -> None:
    """Assert what every finished run shows: the plan was carried out, losses are numbers, the saved model is the trained one."""
    launch = json.loads((run / "plan.json").read_text())["launch"]
    assert launch["device"] == device
    assert {name: launch[name] for name in cell.values} == dict(cell.values)
    losses = tiny.losses(run)
    assert len(losses) == STEPS and all(math.isfinite(loss) for loss in losses.values())
    verification = json.loads((run / "model" / "MANIFEST.json").read_text())["verification"]
    assert verification["passed"], verification


def predicted_bytes(folder: Path, recipe: Path) -> int:
    """Return the most bytes that the plan expects on one rank, above what the process or the device holds before."""
    done = tiny.launcher("plan", recipe, "--json", cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    moments = json.loads(done.stdout)["whole"]["forecast"]["memory"]["moments"]
    return max(sum(parts.values()) for parts in moments.values())


def measured_bytes(run: Path) -> int:
    """Return the most bytes that a rank had, above what it held before."""
    notes = [json.loads(path.read_text()) for path in run.glob("attempts/1/memory.rank-*.json")]
    return max(note["peak_bytes"] - note["base_bytes"] for note in notes)


def missing(cell: Cell, *, gpus: int) -> str:
    """Return what this machine lacks for a cell; "" where nothing is."""
    if cell.package and importlib.util.find_spec(cell.package) is None:
        return f"{cell.package} is not installed"
    if gpus < cell.gpus:
        return f"needs {cell.gpus} GPUs, {gpus} visible"
    if cell.builds:
        from torch.utils.cpp_extension import CUDA_HOME

        return "" if CUDA_HOME else "DeepSpeed builds its optimizer with nvcc, which is not installed"
    return ""
