"""The script that a practitioner would write: transformers' Trainer at its defaults, on CSV files of text and label.

    python benchmarks/plain_trainer.py FOLDER --epochs 1 [--max-steps N]

Prints JSON: the time of the first optimizer step (seconds since the epoch) and the real tokens trained on.
"""

from __future__ import annotations

import argparse
import json
import time

from datasets import load_dataset
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)


class Clock(TrainerCallback):
    first_step: float | None = None

    def on_step_end(self, args, state, control, **kwargs):
        if self.first_step is None:
            self.first_step = time.time()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("--model", required=True)
    parser.add_argument("--epochs", type=float, default=1)
    parser.add_argument("--max-steps", type=int, default=-1)
    parser.add_argument("--max-length", type=int, default=128)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--output", default="trainer_output")
    options = parser.parse_args()

    data = load_dataset("csv", data_files={"train": f"{options.folder}/train.csv"})["train"]
    data = data.class_encode_column("label")
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    data = data.map(lambda rows: tokenizer(rows["text"], truncation=True, max_length=options.max_length), batched=True)
    model = AutoModelForSequenceClassification.from_pretrained(
        options.model, num_labels=data.features["label"].num_classes
    )
    clock = Clock()
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=options.output,
            num_train_epochs=options.epochs,
            max_steps=options.max_steps,
            per_device_train_batch_size=options.batch,
            learning_rate=3e-4,
            report_to="none",
            save_strategy="no",
        ),
        train_dataset=data,
        data_collator=DataCollatorWithPadding(tokenizer),
        callbacks=[clock],
    )
    trainer.train()
    tokens = sum(len(ids) for ids in data["input_ids"]) * options.epochs
    print(json.dumps({"first_step": clock.first_step, "tokens": tokens}))


if __name__ == "__main__":
    main()
