"""What a run with adapters saves is what it has trained: merged in model/, and apart in adapter/; also from 4-bit weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tiny
import torch

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def scores_of(model: Any, run: Path, rows: pd.DataFrame) -> np.ndarray:
    """Probabilities of a loaded model for the texts of a run's predictions."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(run / "model"))
    with torch.no_grad():
        batch = tokenizer(list(rows["text"]), padding=True, truncation=True, max_length=32, return_tensors="pt")
        return model.eval()(**batch).logits.float().softmax(-1).numpy()


@pytest.mark.parametrize(
    "options, tolerance",
    # bitsandbytes computes with 4-bit weights in bf16 on a processor, and with 8 bits rounds the inputs too.
    [
        pytest.param({"use_dora": True}, 1e-5, marks=pytest.mark.soak),
        ({"load_in_4bit": True}, 1e-3),
        pytest.param({"load_in_8bit": True}, 2e-2, marks=pytest.mark.soak),
    ],
    ids=["dora", "4-bit", "8-bit"],
)
def test_the_saved_model_is_the_trained_one(place, options, tolerance):
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification

    name = "saved-" + "-".join(options)
    # bitsandbytes quantises 64 elements of a row together.
    wide = place.folder / "wide"
    if not wide.exists():
        tiny.save_bert(wide, hidden_size=64, intermediate_size=128)
    shutil.rmtree(place.folder / "runs" / f"{name}-001", ignore_errors=True)
    recipe = place.recipe(
        name, name=name, strategy={"type": "lora", "r": 4, **options}, 
        evaluation={"bootstrap": 0, "baselines": [], "verify_saved": True},
        training={"learning_rate": 0.01, "num_train_epochs": 1}, model={"name_or_path": "./wide"},
    )  # fmt: skip
    done = tiny.launcher("run", recipe, cwd=place.folder)
    assert done.returncode == 0, done.stdout + done.stderr
    run = place.folder / "runs" / f"{name}-001"
    rows = pd.read_parquet(run / "evaluation/predictions.parquet")
    names = json.loads((run / "model/launcher.json").read_text())["label_names"]
    wanted = rows[[next(c for c in rows.columns if c.endswith(label)) for label in names]].to_numpy()

    verified = json.loads((run / "model/MANIFEST.json").read_text())["verification"]
    assert verified["passed"] and (verified["adapter"] is not None) == ("use_dora" in options), verified
    merged = AutoModelForSequenceClassification.from_pretrained(str(run / "model"))
    assert not any("lora" in key for key in merged.state_dict())
    assert np.abs(scores_of(merged, run, rows) - wanted).max() < tolerance
    if "use_dora" in options:
        base = AutoModelForSequenceClassification.from_pretrained(str(wide), num_labels=3)
        adapted = PeftModel.from_pretrained(base, str(run / "adapter"))
        assert np.abs(scores_of(adapted, run, rows) - wanted).max() < tolerance
