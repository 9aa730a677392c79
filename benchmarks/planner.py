"""The planner's memory estimate against measured runs: real ranks on this machine, models of random weights.

    python benchmarks/planner.py [--only NAME ...] [--keep FOLDER]      measure settings that have no result yet
    python benchmarks/planner.py --predict                              predict all settings anew; nothing is measured
    python benchmarks/planner.py --report                               write docs/guide/planner-measured.md

A setting is a model, what of it trains, and how the run is spread. Its model is made from its configuration and saved with random
weights; `launcher run` then trains it for two steps on rows of one length, with an evaluation and a checkpoint as in any run.
Measured is, over the ranks, the highest memory (VmHWM) above what the rank held after its imports: attempts/1/memory.rank-R.json.
Each setting's result is a file in benchmarks/results/planner.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "planner"
PAGE = ROOT / "docs" / "guide" / "planner-measured.md"
STEPS = 2
EVALUATION_ROWS = 8
WORDS = 20_000
"""Different words in the rows, drawn at random: a text of natural language touches as much of a table of embeddings."""
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


@dataclass(frozen=True)
class Setting:
    """One cell: a model, what of it trains, and how the run is spread over ranks."""

    name: str
    model: str
    """Name in MODELS."""
    rows: int
    """Rows of one forward pass."""
    length: int
    """Tokens of every row."""
    engine: str = "single"
    stage: int | None = None
    precision: str = "fp32"
    checkpointing: bool = False
    accumulation: int = 1
    strategy: Mapping[str, Any] = field(default_factory=lambda: {"type": "full"})
    training: Mapping[str, Any] = field(default_factory=dict)
    task: str = "text-classification"

    @property
    def ranks(self) -> int:
        """Processes."""
        return 1 if self.engine == "single" else 2


@dataclass(frozen=True)
class Shape:
    """A model's configuration: its type, and the fields that decide its size."""

    type: str
    fields: Mapping[str, Any]


def _bert(layers: int, hidden: int, heads: int, vocabulary: int = 30522) -> Shape:
    fields = {"num_hidden_layers": layers, "hidden_size": hidden, "num_attention_heads": heads}
    return Shape("bert", {**fields, "intermediate_size": 4 * hidden, "vocab_size": vocabulary})


def _llama(layers: int, hidden: int, heads: int, key_heads: int, inner: int, vocabulary: int) -> Shape:
    fields = {"num_hidden_layers": layers, "hidden_size": hidden, "num_attention_heads": heads}
    fields |= {"num_key_value_heads": key_heads, "intermediate_size": inner, "vocab_size": vocabulary}
    return Shape("llama", {**fields, "max_position_embeddings": 2048, "tie_word_embeddings": True})


MODELS = {
    "bert-base": _bert(12, 768, 12),
    "bert-60m": _bert(8, 640, 10),
    "bert-150m": _bert(9, 1024, 16),
    "deberta-180m": Shape(
        "deberta-v2",
        {
            "num_hidden_layers": 12, "hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072,
            "vocab_size": 128100, "relative_attention": True, "position_buckets": 256, "norm_rel_ebd": "layer_norm",
            "share_att_key": True, "pos_att_type": ["p2c", "c2p"], "position_biased_input": False, "type_vocab_size": 0,
        },
    ),
    "gpt2": Shape("gpt2", {"n_layer": 12, "n_embd": 768, "n_head": 12, "vocab_size": 50257}),
    "llama-130m": _llama(12, 768, 12, 4, 2048, 32000),
    "llama-280m": _llama(16, 1024, 16, 8, 2816, 64000),
    "modernbert-150m": Shape(
        "modernbert",
        {
            "num_hidden_layers": 22, "hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 1152,
            "vocab_size": 50368, "pad_token_id": 0,
        },
    ),
    "qwen2-180m": Shape(
        "qwen2",
        {
            "num_hidden_layers": 12, "hidden_size": 896, "num_attention_heads": 14, "num_key_value_heads": 2,
            "intermediate_size": 2432, "vocab_size": 64000, "tie_word_embeddings": True,
        },
    ),
    "roberta-80m": Shape(
        "roberta",
        {
            "num_hidden_layers": 10, "hidden_size": 640, "num_attention_heads": 10, "intermediate_size": 2560,
            "vocab_size": 50265, "pad_token_id": 1, "max_position_embeddings": 514,
        },
    ),
    "distilbert-66m": Shape("distilbert", {"n_layers": 6, "dim": 768, "n_heads": 12, "hidden_dim": 3072, "vocab_size": 30522}),
    "opt-125m": Shape(
        "opt",
        {
            "num_hidden_layers": 12, "hidden_size": 768, "num_attention_heads": 12, "ffn_dim": 3072, "vocab_size": 50272,
            "word_embed_proj_dim": 768,
        },
    ),
    "bert-285m": _bert(20, 1024, 16),
    "electra-110m": Shape(
        "electra",
        {
            "num_hidden_layers": 12, "hidden_size": 768, "embedding_size": 768, "num_attention_heads": 12,
            "intermediate_size": 3072, "vocab_size": 30522,
        },
    ),
}  # fmt: skip

SETTINGS = (
    Setting("bert-110m-full", "bert-base", 8, 128),
    Setting("bert-110m-bf16", "bert-base", 8, 128, precision="bf16"),
    Setting("bert-110m-checkpointing", "bert-base", 8, 128, checkpointing=True),
    Setting("bert-110m-accumulation", "bert-base", 4, 64, accumulation=2),
    Setting("bert-110m-lora", "bert-base", 8, 128, strategy={"type": "lora"}),
    Setting("bert-60m-layerwise", "bert-60m", 16, 64, strategy={"type": "layerwise", "freeze_layers": 4}),
    Setting("bert-110m-ddp", "bert-base", 4, 64, engine="ddp"),
    Setting("bert-150m-ddp-bf16", "bert-150m", 4, 64, engine="ddp", precision="bf16"),
    Setting("bert-110m-zero1", "bert-base", 4, 64, engine="deepspeed", stage=1),
    Setting("bert-110m-zero2", "bert-base", 4, 64, engine="deepspeed", stage=2),
    Setting("bert-110m-zero2-bf16", "bert-base", 4, 64, engine="deepspeed", stage=2, precision="bf16"),
    Setting("bert-110m-zero3", "bert-base", 4, 64, engine="deepspeed", stage=3),
    Setting("bert-110m-zero3-bf16", "bert-base", 4, 64, engine="deepspeed", stage=3, precision="bf16"),
    Setting("llama-130m-full", "llama-130m", 4, 128),
    Setting("llama-280m-bf16-checkpointing", "llama-280m", 2, 128, precision="bf16", checkpointing=True),
    Setting("llama-280m-zero2", "llama-280m", 1, 64, engine="deepspeed", stage=2),
    Setting("gpt2-124m-full", "gpt2", 4, 64),
    Setting("deberta-180m-full", "deberta-180m", 2, 64),
    Setting("modernbert-150m-full", "modernbert-150m", 4, 128),
    Setting("gpt2-124m-causal-lm", "gpt2", 2, 128, task="causal-lm"),
    Setting("qwen2-180m-causal-lm", "qwen2-180m", 2, 128, task="causal-lm", checkpointing=True),
    Setting("qwen2-180m-causal-lm-zero3", "qwen2-180m", 1, 128, task="causal-lm", engine="deepspeed", stage=3),
    # Tried when the rules stood; only what an evaluation's libraries hold, and ZeRO-1's accumulation, were mended after them.
    Setting(
        "roberta-80m-zero1-bf16",
        "roberta-80m",
        8,
        64,
        engine="deepspeed",
        stage=1,
        precision="bf16",
        checkpointing=True,
        accumulation=2,
    ),
    Setting(
        "distilbert-66m-ddp-lora-bf16",
        "distilbert-66m",
        8,
        64,
        engine="ddp",
        strategy={"type": "lora"},
        precision="bf16",
    ),
    Setting("opt-125m-causal-lm-ddp", "opt-125m", 2, 128, engine="ddp", task="causal-lm", checkpointing=True),
    Setting("bert-285m-checkpointing", "bert-285m", 2, 128, checkpointing=True),
    Setting("electra-110m-head", "electra-110m", 16, 64, strategy={"type": "head"}),
    Setting(
        "electra-110m-zero3-accumulation",
        "electra-110m",
        2,
        64,
        engine="deepspeed",
        stage=3,
        accumulation=2,
        checkpointing=True,
    ),
    Setting("distilbert-66m-sgd", "distilbert-66m", 32, 128, training={"optim": "sgd"}),
    Setting("roberta-80m-zero2-lora", "roberta-80m", 4, 256, engine="deepspeed", stage=2, strategy={"type": "lora"}),
)


# --- a setting as files ----------------------------------------------------------------------------------------------


def save_model(model: str, folder: Path) -> Path:
    """Write a model of random weights with a tokenizer of whole words."""
    import torch
    from transformers import CONFIG_MAPPING, AutoModel

    target = folder / "models" / model
    if (target / "tokenizer.json").is_file():
        return target
    torch.manual_seed(0)
    shape = MODELS[model]
    made = AutoModel.from_config(CONFIG_MAPPING[shape.type](**shape.fields))
    made.save_pretrained(str(target))
    _save_tokenizer(target)
    return target


def _save_tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(
        WordLevel({word: i for i, word in enumerate([*SPECIAL, *(f"w{i}" for i in range(WORDS))])}, unk_token="[UNK]")
    )
    backend.pre_tokenizer = Whitespace()
    backend.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    names = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    fast = PreTrainedTokenizerFast(
        tokenizer_object=backend, model_max_length=2048, **dict(zip(names, SPECIAL, strict=True))
    )
    fast.save_pretrained(str(folder))


def write_rows(setting: Setting, folder: Path) -> Path:
    """Write rows that all have the setting's length."""
    folder.mkdir(parents=True, exist_ok=True)
    random = Random(0)
    train = setting.rows * setting.ranks * setting.accumulation * STEPS
    for name, count in {"train": train, "validation": EVALUATION_ROWS, "test": EVALUATION_ROWS}.items():
        with (folder / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
            rows = csv.writer(file)
            labelled = setting.task != "causal-lm"
            rows.writerow(["text", "label"] if labelled else ["text"])
            for number in range(count):
                words = (f"w{random.randrange(WORDS)}" for _ in range(setting.length - 2))
                rows.writerow([" ".join(words), *(("no", "yes")[number % 2],) * labelled])
    return folder


def recipe_of(setting: Setting, model: Path, data: Path) -> dict[str, Any]:
    """Return the setting's recipe as plain values."""
    distributed: dict[str, Any] = {"engine": setting.engine, "processes_per_node": setting.ranks}
    if setting.stage is not None:
        distributed["zero_stage"] = setting.stage
    return {
        "version": 1,
        "name": setting.name,
        "task": {"type": setting.task},
        "model": {"name_or_path": str(model)},
        "data": {"source": str(data), "max_length": setting.length, "cache_dir": str(data.parent / "cache")},
        "strategy": dict(setting.strategy),
        "training": {
            "num_train_epochs": 1,
            "global_batch_size": setting.rows * setting.ranks * setting.accumulation,
            "per_device_train_batch_size": setting.rows,
            "per_device_eval_batch_size": EVALUATION_ROWS,
            "activation_checkpointing": setting.checkpointing,
            "logging_steps": 1,
            **setting.training,
        },
        "precision": setting.precision,
        "distributed": distributed,
        "evaluation": {"bootstrap": 50},
        "tracking": {"wandb": None},
    }


# --- measuring -------------------------------------------------------------------------------------------------------


def measure(setting: Setting, folder: Path) -> dict[str, Any]:
    """Run a setting; return the notes of its ranks. Raises RuntimeError where the run fails."""
    model = save_model(setting.model, folder)
    place = folder / "cells" / setting.name
    shutil.rmtree(place, ignore_errors=True)
    data = write_rows(setting, place / "data")
    recipe = place / "recipe.yaml"
    recipe.write_text(json.dumps(recipe_of(setting, model, data), indent=1))
    started = time.time()
    launcher = Path(sys.executable).with_name("launcher")
    command = [str(launcher), "run", str(recipe), "--runs-dir", str(place / "runs")]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    if done.returncode != 0:
        raise RuntimeError(f"{setting.name} failed:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
    attempt = place / "runs" / f"{setting.name}-001" / "attempts" / "1"
    notes = [json.loads(path.read_text()) for path in sorted(attempt.glob("memory.rank-*.json"))]
    for unwanted in ("checkpoints", "model", "adapter"):
        shutil.rmtree(attempt.parents[1] / unwanted, ignore_errors=True)
    return {"setting": asdict(setting), "seconds": round(time.time() - started, 1), "ranks": notes}


# --- predicting ------------------------------------------------------------------------------------------------------


def predict(setting: Setting, folder: Path) -> dict[str, Any]:
    """Return what the planner says about a setting, from its recipe alone."""
    from launcher import registry
    from launcher.launching.launch_plan import plan_launch
    from launcher.planning.forecast import memory_setting
    from launcher.planning.memory import MemoryPlanner
    from launcher.plans import Hardware
    from launcher.recipe.schema import Recipe
    from launcher.strategies.layers import list_parameters

    place = folder / "cells" / setting.name
    data = write_rows(setting, place / "data")
    recipe = Recipe.model_validate(recipe_of(setting, save_model(setting.model, folder), data))
    launch = plan_launch(recipe, Hardware((), 2, 2**34, cpu_has_fast_bf16=False))
    task = registry.load(registry.TASKS, recipe.task.type)(recipe, base_folder=place)
    _, prepared = task.prepare_data()
    skeleton = task.build_model(prepared, skeleton=True)
    strategy = registry.load(registry.STRATEGIES, recipe.strategy.type)()
    phases = strategy.phases(list_parameters(skeleton.model, newly_initialized=skeleton.newly_initialized), recipe)
    planner = MemoryPlanner(recipe, task, prepared, phases, skeleton=skeleton)
    estimate = planner.estimate(memory_setting(recipe, launch, prepared))
    return {
        "parameters": sum(tensor.numel() for tensor in skeleton.model.parameters()),
        "peak_bytes": estimate.peak,
        "moment": estimate.peak_moment,
        "moments": {moment: dict(parts) for moment, parts in estimate.moments.items()},
    }


# --- reporting -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """A setting with what was measured and predicted, in bytes above the base."""

    setting: Setting
    parameters: int
    measured: int
    predicted: int

    @property
    def error(self) -> float:
        """Predicted over measured, less 1."""
        return self.predicted / self.measured - 1


def read_rows() -> list[Row]:
    """Return the settings that have been measured, in their order."""
    rows = []
    for setting in SETTINGS:
        path = RESULTS / f"{setting.name}.json"
        if path.is_file():
            found = json.loads(path.read_text())
            measured = max(note["peak_bytes"] - note["base_bytes"] for note in found["ranks"])
            predicted = found["predicted"]
            rows.append(Row(setting, predicted["parameters"], measured, predicted["peak_bytes"]))
    return rows


def report(rows: Sequence[Row]) -> str:
    """Return the page that shows the table."""
    within = sum(abs(row.error) <= 0.15 for row in rows)
    least, most = min(row.error for row in rows), max(row.error for row in rows)
    lines = [
        "# The planner, measured",
        "",
        "`launcher plan` tells the memory of a rank before anything starts: what an engine holds for each parameter is known, what a",
        "step makes beside it is traced on a model without weights. Here its predictions stand beside real runs on the processor:",
        "the highest memory of any rank (VmHWM) above what it held after its imports. Models have random weights; each run trains",
        "two steps on rows of one length, evaluates and saves, as `launcher run` does. Every setting that was measured is shown.",
        "",
        f"Of {len(rows)} settings, {within} are predicted within 15 %; the errors lie between {least:+.1%} and {most:+.1%}.",
        "",
        "| model | task | trains | engine | precision | rows x tokens | checkpointing | measured MB | predicted MB | error |",
        "|---|---|---|---|---|---|---|---|---|---|",
        *(_line(row) for row in rows),
        "",
        "`benchmarks/planner.py` measures; results are kept in `benchmarks/results/planner/`. Calibrated on these runs is one",
        "number, what libraries and data hold beside the tensors (75 MB, and 65 MB more for an evaluation); everything else follows",
        "from the sources of PyTorch and DeepSpeed and from traces. The part for GPUs has no number that was calibrated: CUDA's",
        "context, NCCL's buffers and the workspaces of cuBLAS are taken from their documentation and experience.",
        "",
        "A frozen table of embeddings is counted whole, though a short run may not touch all of it: such runs need less than is said.",
        "",
    ]
    return "\n".join(lines)


def _line(row: Row) -> str:
    setting = row.setting
    engine = setting.engine if setting.stage is None else f"ZeRO-{setting.stage}"
    engine += f", {setting.ranks} ranks" if setting.ranks > 1 else ""
    passes = f" x {setting.accumulation} passes" if setting.accumulation > 1 else ""
    return (
        f"| {setting.model} ({row.parameters / 1e6:.0f} M) | {setting.task} | {setting.strategy['type']} | {engine} | {setting.precision} | "
        f"{setting.rows} x {setting.length}{passes} | {'yes' if setting.checkpointing else 'no'} | {row.measured / 1e6:,.0f} | "
        f"{row.predicted / 1e6:,.0f} | {row.error:+.1%} |"
    )


def main() -> None:
    """Measure, predict or report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=None, help="settings, measured again where they have been")
    parser.add_argument("--keep", type=Path, default=None, help="folder for models and runs, kept for the next time")
    parser.add_argument("--predict", action="store_true")
    parser.add_argument("--report", action="store_true")
    options = parser.parse_args()
    if options.report:
        PAGE.write_text(report(read_rows()))
        return
    folder = options.keep or Path(tempfile.mkdtemp(prefix="planner-"))
    RESULTS.mkdir(parents=True, exist_ok=True)
    try:
        for setting in SETTINGS:
            _one(setting, folder, only=options.only, measures=not options.predict)
    finally:
        if options.keep is None:
            shutil.rmtree(folder)


def _one(setting: Setting, folder: Path, *, only: list[str] | None, measures: bool) -> None:
    """Measure a setting where that is due, predict it, keep both and show them."""
    target = RESULTS / f"{setting.name}.json"
    if only is not None and setting.name not in only:
        return
    if measures == (target.is_file() and only is None):
        return
    found = measure(setting, folder) if measures else json.loads(target.read_text())
    found["predicted"] = predict(setting, folder)
    target.write_text(json.dumps(found, indent=1) + "\n")
    for note in found["ranks"]:
        above = {name: round((value - note["base_bytes"]) / 1e6) for name, value in note["moments"].items()}
        print(setting.name, f"base {note['base_bytes'] / 1e6:.0f} MB, above it", above, flush=True)
    told = found["predicted"]
    print(f"{setting.name} predicted {told['peak_bytes'] / 1e6:.0f} MB at {told['moment']}", flush=True)


if __name__ == "__main__":
    main()
