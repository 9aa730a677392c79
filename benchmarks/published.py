"""Published memory figures of well-known models beside the planner's estimates of the nearest recipe.

    python benchmarks/published.py          writes the table between the marks in docs/guide/planning.md

Nothing is loaded or fetched: the architectures' numbers stand below, and rows count as long as the published ones.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from launcher.planning.gpus import find_gpu, hardware_for
from launcher.recipe.load import load_recipe
from launcher.workflows.forecast import WholePlan, plan_whole

PAGE = Path(__file__).resolve().parents[1] / "docs" / "guide" / "planning.md"
BEGIN, END = "<!-- generated: published -->", "<!-- end: published -->"


def _llama(hidden: int, inner: int, layers: int, heads: int, vocabulary: int, kv: int | None = None) -> dict[str, Any]:
    return {
        "model_type": "llama", "hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": kv or heads, "vocab_size": vocabulary,
        "max_position_embeddings": 8192, "tie_word_embeddings": False,
    }  # fmt: skip


# Numbers of each model's config.json. Qwen (of 2023) is Llama's architecture but for biases of its attention.
MODELS: dict[str, dict[str, Any]] = {
    "7.5B": {
        "model_type": "gpt2",
        "n_embd": 4096,
        "n_layer": 36,
        "n_head": 32,
        "vocab_size": 50257,
        "n_positions": 1024,
    },
    "Llama 7B": _llama(4096, 11008, 32, 32, 32000),
    "Llama 65B": _llama(8192, 22016, 80, 64, 32000),
    "Llama 3.1 8B": _llama(4096, 14336, 32, 32, 128256, kv=8),
    "Llama 3.1 70B": _llama(8192, 28672, 80, 64, 128256, kv=8),
    "Qwen 7B": _llama(4096, 11008, 32, 32, 151936),
    "Qwen 14B": _llama(5120, 13696, 40, 40, 152064),
    "Qwen 72B": _llama(8192, 24576, 80, 64, 152064),
    "BLOOMZ 7.1B": {"model_type": "bloom", "hidden_size": 4096, "n_layer": 30, "n_head": 32, "vocab_size": 250880},
}

ZERO = "[ZeRO, figure 1](https://arxiv.org/abs/1910.02054)"
QWEN = "[Qwen README](https://github.com/QwenLM/Qwen#profiling-of-memory-and-speed)"
TUNE = "[torchtune README](https://github.com/pytorch/torchtune#memory-and-training-speed)"
FACTORY = "[LLaMA-Factory README](https://github.com/hiyouga/LLaMA-Factory#hardware-requirement)"
QLORA = "[QLoRA, abstract](https://arxiv.org/abs/2305.14314)"
PEFT = "[PEFT README](https://github.com/huggingface/peft#high-performance-on-consumer-hardware)"

LORA = {"type": "lora", "r": 64, "target_modules": "all-linear"}
HALF = {"model.dtype": "bfloat16"}


@dataclass(frozen=True)
class Figure:
    """A published figure, and the recipe that comes nearest to it."""

    model: str
    method: str
    published: str
    source: str
    strategy: Mapping[str, Any] = field(default_factory=lambda: {"type": "full"})
    keys: Mapping[str, Any] = field(default_factory=dict)
    gpus: int = 1
    rows: int = 1
    length: int = 1024
    states_only: bool = False
    """Weights, gradients and optimizer state alone."""
    in_all: bool = False
    """The sum over the GPUs."""


def _zero(stage: int | None, published: str) -> Figure:
    keys = {"distributed.engine": "ddp"} if stage is None else {"distributed.zero_stage": stage}
    name = "data parallel" if stage is None else f"ZeRO-{stage}"
    return Figure("7.5B", f"full, {name}, 64 GPUs: model states", published, ZERO, keys=keys, gpus=64, states_only=True)


CHECKPOINTED = {"training.activation_checkpointing": True}
QUANTIZED = {**LORA, "load_in_4bit": True}
FIGURES = (
    _zero(None, "120 GB"),
    _zero(1, "31.4 GB"),
    _zero(2, "16.6 GB"),
    _zero(3, "1.9 GB"),
    Figure("Llama 7B", "full, 16-bit mixed precision", "120 GB (their estimate)", FACTORY, length=512),
    Figure("Llama 7B", "LoRA, 16-bit weights", "16 GB (their estimate)", FACTORY, LORA, {**HALF, **CHECKPOINTED}, length=512),
    Figure("Llama 7B", "QLoRA, 4 bits", "6 GB (their estimate)", FACTORY, QUANTIZED, CHECKPOINTED, length=512),
    Figure("Qwen 7B", "LoRA, 1 x 1,024 tokens", "21.5 GB", QWEN, LORA, {**HALF, **CHECKPOINTED}),
    Figure("Qwen 7B", "LoRA, 1 x 4,096 tokens", "29.7 GB", QWEN, LORA, {**HALF, **CHECKPOINTED}, length=4096),
    Figure("Qwen 7B", "QLoRA (theirs: GPTQ), 1 x 1,024 tokens", "12.3 GB", QWEN, QUANTIZED, CHECKPOINTED),
    Figure("Qwen 14B", "LoRA, 1 x 1,024 tokens", "35.3 GB", QWEN, LORA, {**HALF, **CHECKPOINTED}),
    Figure("Qwen 72B", "LoRA, ZeRO-3, 4 GPUs in all, 1 x 1,024 tokens", "222.6 GB", QWEN, LORA,
           {**HALF, **CHECKPOINTED, "distributed.zero_stage": 3}, gpus=4, in_all=True),
    Figure("Qwen 72B", "QLoRA (theirs: GPTQ), 1 x 1,024 tokens", "62.9 GB", QWEN, QUANTIZED, CHECKPOINTED),
    Figure("Llama 3.1 8B", "LoRA, 2 x 2,048 tokens", "16.2 GiB", TUNE, LORA | {"r": 8}, {**HALF, **CHECKPOINTED}, rows=2, length=2048),
    Figure("Llama 3.1 8B", "QLoRA, 2 x 2,048 tokens", "7.4 GiB", TUNE, QUANTIZED | {"r": 8}, CHECKPOINTED, rows=2, length=2048),
    Figure("Llama 3.1 70B", "LoRA, sharded over 8 GPUs, 2 x 2,048 tokens", "27.6 GiB", TUNE, LORA | {"r": 16},
           {**HALF, **CHECKPOINTED, "distributed.zero_stage": 3}, gpus=8, rows=2, length=2048),
    Figure("Llama 65B", "QLoRA, 4 bits", "under 48 GB", QLORA, QUANTIZED, CHECKPOINTED, length=512),
    Figure("BLOOMZ 7.1B", "LoRA, fp32 weights", "32 GB", PEFT, {"type": "lora", "r": 8}, {"precision": "fp32"}, rows=8, length=64),
)  # fmt: skip


def plan(figure: Figure) -> WholePlan:
    """Return the plan of the recipe that comes nearest to a figure."""
    values: dict[str, Any] = {
        "version": 1, "name": "published", "task": {"type": "causal-lm"},
        "model": {"name_or_path": "published/model", "config": MODELS[figure.model]},
        "data": {"source": "published/texts", "max_length": figure.length},
        "strategy": dict(figure.strategy),
        "training": {"global_batch_size": figure.rows * figure.gpus, "per_device_eval_batch_size": 1, "max_steps": 100},
        "precision": "bf16",
        "distributed": {"processes_per_node": figure.gpus},
    }  # fmt: skip
    for key, value in figure.keys.items():
        section, _, name = key.partition(".")
        values[section] = {**values[section], name: value} if name else value
    gpu = find_gpu("a100-80gb")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "recipe.yaml"
        path.write_text(json.dumps(values))
        return plan_whole(load_recipe(path), hardware_for(gpu, figure.gpus), gpu=gpu, base_folder=Path(folder))


def ours(figure: Figure) -> str:
    """Return our estimate in the unit of the published figure."""
    found = plan(figure)
    if found.forecast is None:
        return f"- ({found.unknown[:80]})"
    asked = found.forecast.memory.asked
    count: float = asked.needed
    if figure.states_only:
        parts = asked.estimate.moments["training"]
        count = sum(parts.get(name, 0) for name in ("weights", "gradients", "optimizer"))
    count *= figure.gpus if figure.in_all else 1
    return f"{count / 2**30:,.1f} GiB" if "GiB" in figure.published else f"{count / 1e9:,.1f} GB"


def table() -> str:
    """Return the table as Markdown."""
    rows = ["| model | method | published | our estimate | source |", "|---|---|---|---|---|"]
    for figure in FIGURES:
        rows.append(f"| {figure.model} | {figure.method} | {figure.published} | {ours(figure)} | {figure.source} |")
        print(rows[-1], flush=True)
    return "\n".join(rows)


def main() -> None:
    """Write the table into the guide."""
    before, _, rest = PAGE.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(f"{before}{BEGIN}\n\n{table()}\n\n{END}{after}")


if __name__ == "__main__":
    main()
