"""A tiny BERT, tiny data and recipes for it, made on the spot; and the installed ``launcher`` as a user starts it."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from launcher.recipe.schema import Recipe

LAUNCHER = str(Path(sys.executable).with_name("launcher"))
TOPICS = {
    "fruit": ["apple", "pear", "plum", "cherry", "grape", "lemon"],
    "metal": ["iron", "copper", "zinc", "silver", "gold", "tin"],
    "river": ["rhine", "nile", "volga", "ganges", "loire", "tiber"],
}
FILLER = ["the", "a", "is", "was", "very", "old", "new", "near", "far", "and", "of", "with"]
# Every strategy, as a task on a tiny model can have it.
STRATEGIES: dict[str, dict[str, Any]] = {
    "full": {"type": "full"},
    "encoder": {"type": "encoder"},
    "head": {"type": "head"},
    "layerwise": {"type": "layerwise", "layer_decay": 0.8, "freeze_layers": 1},
    "discriminative": {"type": "discriminative"},
    "lora": {"type": "lora", "r": 4, "target_modules": "all-linear"},
}
# Two ranks on each engine.
TWO_RANKS: dict[str, dict[str, Any]] = {
    "ddp": {"processes_per_node": 2, "engine": "ddp"},
    **{f"zero-{stage}": {"processes_per_node": 2, "zero_stage": stage} for stage in range(4)},
}
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def save_tokenizer(folder: Path) -> None:
    """Write a WordPiece tokenizer that knows the words above."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordPiece
    from tokenizers.normalizers import BertNormalizer
    from tokenizers.pre_tokenizers import BertPreTokenizer
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    words = [*SPECIAL, *(w for ws in TOPICS.values() for w in ws), *FILLER]
    letters = [f"{mark}{letter}" for letter in "abcdefghijklmnopqrstuvwxyz0123456789" for mark in ("", "##")]
    vocab = {word: i for i, word in enumerate(dict.fromkeys([*words, *letters]))}
    backend = Tokenizer(WordPiece(vocab, unk_token="[UNK]"))
    backend.normalizer = BertNormalizer()
    backend.pre_tokenizer = BertPreTokenizer()
    ends = [("[CLS]", vocab["[CLS]"]), ("[SEP]", vocab["[SEP]"])]
    backend.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ends
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]",
        mask_token="[MASK]", model_max_length=64, model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )  # fmt: skip
    tokenizer.save_pretrained(str(folder))


def bert_config(**fields: Any) -> Any:
    """A two-layer BERT's configuration."""
    from transformers import BertConfig

    values = {
        "vocab_size": 128, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64,
        "max_position_embeddings": 64, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
    }  # fmt: skip
    return BertConfig(**(values | fields))


def save_bert(folder: Path, **fields: Any) -> Path:
    """Write a tiny pretrained BERT (random weights of a fixed seed) with its tokenizer."""
    import torch
    from transformers import BertModel

    torch.manual_seed(0)
    BertModel(bert_config(**fields)).save_pretrained(str(folder))
    save_tokenizer(folder)
    return folder


def rows(number: int, *, seed: int, topics: Sequence[str] = tuple(TOPICS)) -> list[tuple[str, str]]:
    """(text, label) rows that a tiny model can learn; texts of 3 to 20 words."""
    rng = np.random.default_rng(seed)
    found = []
    for i in range(number):
        label = topics[i % len(topics)]
        words = [*rng.choice(TOPICS[label], 2), *rng.choice(FILLER, int(rng.integers(1, 19)))]
        found.append((" ".join(rng.permutation(words)), label))
    return found


def write_csv(path: Path, table: Sequence[Sequence[str]], head: Sequence[str] = ("text", "label")) -> Path:
    """Write a csv file with a head line."""
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([head, *table])
    return path


def write_data(folder: Path, *, train: int = 50, validation: int = 18, test: int = 30) -> Path:
    """Write train.csv, validation.csv and test.csv."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, (name, count) in enumerate({"train": train, "validation": validation, "test": test}.items()):
        write_csv(folder / f"{name}.csv", rows(count, seed=number))
    return folder


def recipe_values(model: Path | str, data: Path | str, /, **changes: Any) -> dict[str, Any]:
    """A recipe for the tiny model as plain values; ``changes`` are sections laid over it."""
    values: dict[str, Any] = {
        "version": 1,
        "name": "tiny",
        "task": "text-classification",
        "model": {"name_or_path": str(model)},
        "data": {"source": str(data), "max_length": 32},
        "training": {
            "num_train_epochs": 2, "learning_rate": 1e-3, "global_batch_size": 8, "logging_steps": 1, "seed": 1,
        },
        "precision": "fp32",
        "distributed": {"processes_per_node": 1},
        # A process for each run would take longer than the run; tests of it switch it on.
        "evaluation": {"bootstrap": 50, "verify_saved": False},
        "tracking": {"wandb": None},
    }  # fmt: skip
    for name, change in changes.items():
        both = isinstance(change, Mapping) and isinstance(values.get(name), Mapping)
        values[name] = {**values[name], **change} if both else change
    return values


def recipe(**sections: Any) -> Recipe:
    """A recipe whose model and data are only names; ``sections`` are laid over it."""
    named = {"version": 1, "name": "r", "task": {"type": "text-classification"}, "model": {"name_or_path": "m"}}
    return Recipe.model_validate({**named, "data": {"source": "s"}, **sections})


def write_recipe(path: Path, values: Mapping[str, Any]) -> Path:
    """Write a recipe; JSON is YAML too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values, indent=1))
    return path


def environment(**changes: str) -> dict[str, str]:
    """The environment of a launcher started by a test: no network, and nothing that a test runner set for ranks.

    The tools beside Python come first: two versions of ninja would each build DeepSpeed's operations anew after the other.
    """
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    return {**os.environ, "PATH": path, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", **changes}


def launcher(
    *arguments: str | Path, cwd: Path, env: Mapping[str, str] | None = None, timeout: float = 240
) -> subprocess.CompletedProcess[str]:
    """Run the installed console script and wait."""
    command = [LAUNCHER, *map(str, arguments)]
    return subprocess.run(
        command, cwd=cwd, env=environment(**(env or {})), capture_output=True, text=True, timeout=timeout
    )


def jsonl(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON-lines file."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def losses(run: Path) -> dict[int, float]:
    """Step -> training loss."""
    return {row["step"]: row["loss"] for row in jsonl(run / "progress.jsonl") if "loss" in row}


def ledger(run: Path) -> dict[int, list[int]]:
    """Step -> sorted numbers of the rows of that step, over all ranks and attempts."""
    steps: dict[int, list[int]] = {}
    for path in sorted(run.glob("attempts/*/ledger.rank-*.jsonl")):
        for row in jsonl(path):
            steps[row["step"]] = sorted([*steps.get(row["step"], []), *row["rows"]])
    return steps
