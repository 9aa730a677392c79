"""The shipped DeepSpeed files in a plain Hugging Face script that knows nothing of launcher."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny

SCRIPT = """
import json, sys
import deepspeed
from datasets import Dataset
from transformers import AutoTokenizer, BertForSequenceClassification, DataCollatorWithPadding, Trainer, TrainingArguments
bert, out, rows = sys.argv[1], sys.argv[2], json.load(open(sys.argv[3]))
for config in sys.argv[4:]:
    arguments = TrainingArguments(
        out, deepspeed=config, use_cpu=True, per_device_train_batch_size=2, gradient_accumulation_steps=2, max_steps=3, logging_steps=1,
        learning_rate=1e-2, weight_decay=0.01, warmup_steps=1, max_grad_norm=0.5, report_to="none", save_strategy="no", seed=3,
        disable_tqdm=True,
    )
    deepspeed.init_distributed(dist_backend="gloo", auto_mpi_discovery=False)
    tokenizer = AutoTokenizer.from_pretrained(bert)
    data = Dataset.from_list([{**tokenizer(text), "labels": label} for text, label in rows])
    model = BertForSequenceClassification.from_pretrained(bert, num_labels=3)
    model.accepts_loss_kwargs = False
    trainer = Trainer(model, arguments, train_dataset=data, data_collator=DataCollatorWithPadding(tokenizer))
    trainer.train()
    assert trainer.is_deepspeed_enabled
    trainer.save_model(f"{out}/{trainer.accelerator.state.deepspeed_plugin.zero_stage}")
    found = [(row["loss"], row["learning_rate"]) for row in trainer.state.log_history if "loss" in row]
    print("FOUND", json.dumps([trainer.accelerator.state.deepspeed_plugin.zero_stage, found]))
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_plain_script_trains_with_each_of_them(tmp_path, require):
    """One process: what a user tries first. All stages compute the same."""
    import shutil

    from launcher.backends.machine import free_port
    from launcher.shipped import shipped_folder

    require(shutil.which("g++") or shutil.which("c++"), "DeepSpeed compiles with a C++ compiler")
    from transformers import BertForSequenceClassification

    # With its head: a new one would be drawn anew by every run of the script.
    bert = tiny.save_bert(tmp_path / "bert")
    BertForSequenceClassification(tiny.bert_config(num_labels=3)).save_pretrained(str(bert))
    labels = {name: k for k, name in enumerate(tiny.TOPICS)}
    (tmp_path / "rows.json").write_text(json.dumps([(text, labels[label]) for text, label in tiny.rows(12, seed=0)]))
    (tmp_path / "script.py").write_text(SCRIPT)
    found = {}
    for stage in range(4):
        config = str(shipped_folder("ds_configs") / f"zero{stage}.json")
        env = tiny.environment(
            MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free_port()), RANK="0", WORLD_SIZE="1", LOCAL_RANK="0",
            PATH=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        )  # fmt: skip
        command = [
            sys.executable,
            str(tmp_path / "script.py"),
            str(bert),
            str(tmp_path / "out"),
            str(tmp_path / "rows.json"),
            config,
        ]
        done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-3000:]
        (line,) = [line for line in done.stdout.splitlines() if line.startswith("FOUND")]
        number, found[stage] = json.loads(line.removeprefix("FOUND"))
        assert number == stage
        from safetensors.torch import load_file

        # All of BERT's 39 tensors and the head's two: also what stage 3 has gathered.
        assert len(load_file(tmp_path / f"out/{stage}/model.safetensors")) == 41
    flat = {stage: [value for row in rows for value in row] for stage, rows in found.items()}
    for stage in (1, 2, 3):
        assert flat[stage] == pytest.approx(flat[0], rel=1e-4), stage
