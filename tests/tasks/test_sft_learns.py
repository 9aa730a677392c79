"""Instruction tuning on real data: the answers' loss falls below the untuned model's by a margin, and answers are logged."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "engine"))
import in_process

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

# Nats per answer token that the loss on validation falls by, at least, in the steps below.
MARGINS = {"gsm8k": 3.0, "alpaca": 1.0}


@pytest.mark.parametrize("name", MARGINS)
def test_training_lowers_the_answer_loss_below_the_untuned_model_s(name: str, shared: Path, tmp_path: Path) -> None:
    data = shared / "data" / name
    source = {
        split: {"source": str(data), "split": split, "limit": limit}
        for split, limit in (("train", 800), ("validation", 100))
    }
    prepared = in_process.prepare(
        shared / "models" / "stories260k-llama", data, tmp_path / "runs",
        task={"type": "sft", "chat_template": "plain", "sample_generations": 3, "max_new_tokens": 24},
        data={"source": None, **source, "max_length": 384},
        training={"max_steps": 60, "learning_rate": 3e-3, "global_batch_size": 16, "eval_on_start": True, "eval_strategy": "steps", "eval_steps": 60, "save_strategy": "no", "load_best_model_at_end": False},
    )  # fmt: skip
    prepared.train()
    rows = [json.loads(line) for line in prepared.run.progress.read_text().splitlines()]
    untuned, tuned = (row["eval_loss"] for row in rows if "eval_loss" in row)
    print(f"{name}: {untuned:.3f} -> {tuned:.3f}")
    assert tuned < untuned - MARGINS[name]
    samples = [json.loads(line) for line in prepared.run.generations.read_text().splitlines()]
    assert [sample["step"] for sample in samples] == [0, 0, 0, 60, 60, 60]
    assert all(sample["prompt"] and sample["reference"] for sample in samples) and any(
        sample["answer"] for sample in samples[3:]
    )
