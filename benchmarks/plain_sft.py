"""The script that a practitioner would write: instruction tuning with transformers' Trainer at its defaults, on jsonl files of messages.

    python benchmarks/plain_sft.py FOLDER --model MODEL [--lora]

FOLDER has train.jsonl and validation.jsonl. Prints JSON: CPU-seconds of training, peak memory in KiB after it (VmHWM), the real tokens of an
epoch, and the loss for each learned token of validation.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
from datasets import load_dataset
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)


class Clock(TrainerCallback):
    def on_train_begin(self, args, state, control, **kwargs):
        self.began = time.process_time()

    def on_train_end(self, args, state, control, **kwargs):
        self.seconds = time.process_time() - self.began
        lines = Path("/proc/self/status").read_text().splitlines()
        self.peak = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("--model", required=True)
    parser.add_argument("--lora", action="store_true")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument("--output", default="trainer_output")
    options = parser.parse_args()

    tokenizer = AutoTokenizer.from_pretrained(options.model)

    def encode(row):
        ids = tokenizer.apply_chat_template(row["messages"], return_dict=True)["input_ids"]
        read = tokenizer.apply_chat_template(row["messages"][:-1], add_generation_prompt=True, return_dict=True)
        prompt = len(read["input_ids"])
        found = {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": [-100] * prompt + ids[prompt:]}
        return {name: values[: options.max_length] for name, values in found.items()}

    files = {name: f"{options.folder}/{name}.jsonl" for name in ("train", "validation")}
    data = load_dataset("json", data_files=files)
    data = data.map(encode, remove_columns=data["train"].column_names)
    model = AutoModelForCausalLM.from_pretrained(options.model)
    if options.lora:
        from peft import LoraConfig, get_peft_model

        model = get_peft_model(model, LoraConfig(r=16, lora_alpha=32, target_modules="all-linear"))
    clock = Clock()
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=options.output,
            num_train_epochs=1,
            per_device_train_batch_size=options.batch,
            learning_rate=1e-3,
            report_to="none",
        ),
        train_dataset=data["train"],
        eval_dataset=data["validation"],
        data_collator=DataCollatorForSeq2Seq(tokenizer, padding="longest"),
        callbacks=[clock],
    )
    trainer.train()
    trainer.save_model()
    found = {"loop": clock.seconds, "peak_kib": clock.peak, "loss": loss(trainer.model, data["validation"])}
    print(json.dumps({**found, "tokens": sum(len(ids) for ids in data["train"]["input_ids"])}))


@torch.no_grad()
def loss(model, rows):
    model.eval()
    total, count = 0.0, 0
    for row in rows:
        ids, labels = torch.tensor([row["input_ids"]]), torch.tensor([row["labels"]])
        learned = int((labels[:, 1:] != -100).sum())
        if learned:
            total += float(model(input_ids=ids, labels=labels).loss) * learned
            count += learned
    return total / count


if __name__ == "__main__":
    main()
