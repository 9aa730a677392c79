"""Instruction tuning by launcher against a plain Trainer script on the same rows, in turn, in one run on one machine.

    python benchmarks/sft.py [--rounds 3] [--only full-auto ...] [--batch 8] [--rows 128]

A random Llama of 17 million parameters (384 wide, 8 blocks, 8,192 tokens whose embeddings are the output layer too) and rows of Alpaca, with a
tokenizer that is trained on them, one thread on one core. The script is transformers' Trainer at its defaults (fp32, rows in random
order); launcher at its own (rows of like length together, logits at answers alone, bf16 where it is fast) or in fp32. Both have
the same rows in a batch, the same rate and LoRA.

Figures, each as a ratio round by round, with median and range: real tokens per CPU-second of the training loop and of the whole command
(imports, reading, training, saving, one evaluation), and peak memory (VmHWM at the end of training). Each round is appended to
benchmarks/results/sft.jsonl.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from against_trainer import processor

HERE = Path(__file__).resolve().parent
ALPACA = HERE.parents[1] / "shared" / "data" / "alpaca"
RESULTS = HERE / "results" / "sft.jsonl"
CHATML = HERE.parent / "launcher" / "data" / "chat_templates" / "chatml.jinja"
MAX_LENGTH, VALIDATION_ROWS, VOCABULARY = 512, 32, 8192
CONFIG = {
    "hidden_size": 384, "num_hidden_layers": 8, "num_attention_heads": 6, "num_key_value_heads": 6, "intermediate_size": 1024,
    "vocab_size": VOCABULARY, "max_position_embeddings": 1024, "tie_word_embeddings": True,
}  # fmt: skip
LOOK_SECONDS = 0.02


@dataclass(frozen=True)
class Side:
    """A program to measure. ``strategy``: full or lora."""

    strategy: str
    precision: str | None = None
    """Of launcher; None: the plain script."""
    packing: bool = False


SIDES = {
    "plain-full": Side("full"),
    "plain-lora": Side("lora"),
    "full-auto": Side("full", "auto"),
    "full-fp32": Side("full", "fp32"),
    "lora-auto": Side("lora", "auto"),
    "lora-fp32": Side("lora", "fp32"),
    "packed-auto": Side("full", "auto", packing=True),
    "packed-fp32": Side("full", "fp32", packing=True),
}


def main() -> None:
    """Run all rounds, keep each as soon as it is done, and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=[name for name in SIDES if SIDES[name].precision])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rows", type=int, default=128)
    parser.add_argument("--core", type=int, default=max(os.sched_getaffinity(0)))
    options = parser.parse_args()
    names = sides_for(options.only)
    rounds: list[dict[str, dict[str, float]]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        mean_length = make_place(folder, rows=options.rows)
        os.sched_setaffinity(0, {options.core})
        # Whether bf16 is fast here is measured once, and files are in memory then.
        measure(
            folder, next(name for name in names if SIDES[name].precision), batch=options.batch, mean_length=mean_length
        )
        for number in range(options.rounds):
            found = {}
            for side in names if number % 2 else reversed(names):
                found[side] = measure(folder, side, batch=options.batch, mean_length=mean_length)
                print(number + 1, side, json.dumps(found[side]), file=sys.stderr, flush=True)
            require_same_tokens(found)
            keep({"batch": options.batch, "rows": options.rows, "sides": found})
            rounds.append(found)
    for side, ratios in compared(rounds).items():
        print(side, json.dumps(ratios))


def sides_for(only: list[str] | None) -> list[str]:
    """Return the sides to run: those that are asked for, and the plain ones that they are compared with."""
    return [name for name in SIDES if not only or name in only or name in {plain_of(one) for one in only}]


def plain_of(name: str) -> str:
    """Return the plain script that a side is compared with."""
    return f"plain-{SIDES[name].strategy}"


def require_same_tokens(found: Mapping[str, Mapping[str, float]]) -> None:
    """Stop where two sides did not learn from the same tokens."""
    tokens = {name: values["tokens"] for name, values in found.items()}
    if len(set(tokens.values())) > 1:
        sys.exit(f"the sides have rows of different tokens: {tokens}")


def compared(rounds: list[dict[str, dict[str, float]]]) -> dict[str, dict[str, Any]]:
    """Return for each side of launcher its ratios to the plain script: more than 1 is faster, or needs more memory."""
    found: dict[str, dict[str, Any]] = {}
    for name in rounds[0] if rounds else ():
        if SIDES[name].precision is None:
            continue
        pairs = [(one[plain_of(name)], one[name]) for one in rounds]
        found[name] = {
            "tokens per CPU-second, training": spread([plain["loop"] / ours["loop"] for plain, ours in pairs]),
            "tokens per CPU-second, command": spread([plain["cpu"] / ours["cpu"] for plain, ours in pairs]),
            "peak memory": spread([ours["peak_kib"] / plain["peak_kib"] for plain, ours in pairs]),
            "validation loss, plain and launcher": [round(value["loss"], 3) for value in pairs[0]],
        }
    return found


def spread(values: list[float]) -> dict[str, float]:
    """Return minimum, median and maximum."""
    return {"min": round(min(values), 3), "median": round(statistics.median(values), 3), "max": round(max(values), 3)}


def keep(row: dict[str, Any]) -> None:
    """Append a round to the results, with the machine's description."""
    RESULTS.parent.mkdir(exist_ok=True)
    machine = f"1 of {os.cpu_count()} cores of {processor()}, one thread"
    with RESULTS.open("a") as file:
        file.write(json.dumps({"date": time.strftime("%Y-%m-%d"), "machine": machine, **row}) + "\n")


# --- a place to train in ---------------------------------------------------------------------------------------------


def make_place(folder: Path, *, rows: int) -> float:
    """Write rows, a tokenizer and random weights; return the mean of the rows' tokens."""
    held = {"train": conversations("train")[:rows], "validation": conversations("validation")[:VALIDATION_ROWS]}
    (folder / "data").mkdir()
    for name, found in held.items():
        lines = "".join(json.dumps({"messages": messages}) + "\n" for messages in found)
        (folder / "data" / f"{name}.jsonl").write_text(lines)
    tokenizer = write_model(folder / "model")
    lengths = [len(tokenizer.apply_chat_template(one, return_dict=True)["input_ids"]) for one in held["train"]]
    return statistics.mean(min(length, MAX_LENGTH) for length in lengths)


def conversations(split: str) -> list[list[dict[str, str]]]:
    """Return the rows of Alpaca as messages."""
    return [
        [
            {"role": "user", "content": "\n\n".join(filter(None, (row["instruction"], row["input"])))},
            {"role": "assistant", "content": row["output"]},
        ]
        for row in json.loads((ALPACA / f"{split}.json").read_text())
    ]


def write_model(folder: Path) -> Any:
    """Write random weights and a tokenizer of bytes that is trained on all rows; return the tokenizer."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    texts = (message["content"] for messages in conversations("train") for message in messages)
    backend.train_from_iterator(texts, trainer)
    names = {"eos_token": special[2], "pad_token": special[0], "model_max_length": CONFIG["max_position_embeddings"]}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **names)
    tokenizer.chat_template = CHATML.read_text()
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    ids = {"pad_token_id": 0, "bos_token_id": None, "eos_token_id": 2}
    LlamaForCausalLM(LlamaConfig(**CONFIG, **ids)).save_pretrained(folder)
    return tokenizer


# --- one side --------------------------------------------------------------------------------------------------------


def measure(folder: Path, name: str, *, batch: int, mean_length: float) -> dict[str, float]:
    """Run one side; return CPU-seconds of the loop and of the command, peak memory, real tokens of an epoch, and validation loss."""
    side = SIDES[name]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    if side.precision is None:
        found = run_plain(folder, side, batch=batch)
    else:
        found = run_launcher(folder, name, recipe_of(name, batch=batch, mean_length=mean_length))
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {**found, "cpu": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime}


def run_plain(folder: Path, side: Side, *, batch: int) -> dict[str, float]:
    """Run the plain script."""
    command = [sys.executable, str(HERE / "plain_sft.py"), "data", "--model", "model", "--batch", str(batch)]
    done = subprocess.run(
        [*command, *(["--lora"] if side.strategy == "lora" else [])], capture_output=True, text=True, cwd=folder
    )
    if done.returncode:
        sys.exit(f"the plain script failed:\n{done.stdout}\n{done.stderr}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def recipe_of(name: str, *, batch: int, mean_length: float) -> dict[str, Any]:
    """Return a side's recipe: defaults, but for what the script does not do, and packed rows of as many tokens in a step."""
    side = SIDES[name]
    rows = max(1, round(batch * mean_length / MAX_LENGTH)) if side.packing else batch
    lora = {"type": "lora", "r": 16, "lora_alpha": 32, "target_modules": "all-linear"}
    return {
        "version": 1,
        "name": name,
        "task": {"type": "sft", "packing": side.packing, "sample_generations": 0},
        "model": {"name_or_path": "./model"},
        "data": {"train": "./data/train.jsonl", "validation": "./data/validation.jsonl", "max_length": MAX_LENGTH, "cache_dir": "./cache"},
        "strategy": lora if side.strategy == "lora" else {"type": "full"},
        "training": {
            "num_train_epochs": 1, "learning_rate": 1e-3, "global_batch_size": rows, "eval_strategy": "no", "save_strategy": "no",
            "load_best_model_at_end": False,
        },
        "precision": side.precision,
        "evaluation": {"bootstrap": 0, "baselines": [], "verify_saved": False},
        "tracking": {"wandb": None},
    }  # fmt: skip


def run_launcher(folder: Path, name: str, recipe: Mapping[str, Any]) -> dict[str, float]:
    """Run `launcher run`, looking at its worker meanwhile."""
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(dict(recipe)))
    known = set(folder.glob(f"runs/{name}-*"))
    command = [str(Path(sys.executable).with_name("launcher")), "run", path.name]
    with (folder / "output.txt").open("w") as output:
        process = subprocess.Popen(command, cwd=folder, stdout=output, stderr=subprocess.STDOUT)
        marks: dict[str, float] = {}
        while process.poll() is None:
            time.sleep(LOOK_SECONDS)
            for run in set(folder.glob(f"runs/{name}-*")) - known:
                look(run, process.pid, marks)
    if process.returncode:
        sys.exit(f"launcher failed:\n{(folder / 'output.txt').read_text()}")
    (run,) = set(folder.glob(f"runs/{name}-*")) - known
    metrics = json.loads((run / "evaluation/metrics.json").read_text())
    memory = json.loads((run / "attempts/1/memory.rank-0.json").read_text())
    plan = json.loads((run / "plan.json").read_text())
    return {
        "loop": marks["trained"] - marks["began"],
        "peak_kib": memory["moments"]["training"] / 1024,
        "loss": metrics["metrics"]["loss"],
        "tokens": plan["facts"]["splits"]["train"]["tokens"],
        "bf16": float(plan["launch"]["precision"] == "bf16"),
    }


def look(run: Path, parent: int, marks: dict[str, float]) -> None:
    """Note the worker's CPU-seconds as training begins and as it is over, each when it is first seen."""
    attempt = run / "attempts" / "1"
    begun = (attempt / "memory.rank-0.json").exists()
    over = begun and '"trained"' in (run / "events.jsonl").read_text()
    if (begun and "began" not in marks) or (over and "trained" not in marks):
        seconds = sum(cpu_seconds(pid) for pid in workers(parent))
        marks.setdefault("trained" if over else "began", seconds)


def workers(parent: int) -> Iterator[int]:
    """Yield the numbers of the processes below ``parent`` that train."""
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    for child in map(int, children):
        if b"launcher.train" in Path(f"/proc/{child}/cmdline").read_bytes():
            yield child
        else:
            yield from workers(child)


def cpu_seconds(pid: int) -> float:
    """Return the seconds of processor time that a process has had."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()
