"""The guide's page of mistakes: its examples give what it says, and launcher does not make them."""

from __future__ import annotations

import doctest
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "guide" / "mistakes.md"


def test_the_examples_of_the_page(monkeypatch):
    monkeypatch.chdir(ROOT)
    found = doctest.testfile(str(PAGE), module_relative=False, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert found.failed == 0 and found.attempted > 30


@pytest.fixture(scope="module")
def ready(tmp_path_factory):
    """Return (model with dropout, task, prepared data)."""
    from launcher.recipe.load import load_recipe
    from launcher.tasks.text_classification import TextClassification

    folder = tmp_path_factory.mktemp("mistakes")
    tiny.save_bert(folder / "bert", hidden_dropout_prob=0.5)
    tiny.write_data(folder / "data")
    data = {"source": str(folder / "data"), "cache_dir": str(folder / "cache")}
    values = tiny.recipe_values(folder / "bert", folder / "data", data=data)
    recipe = load_recipe(tiny.write_recipe(folder / "recipe.yaml", values)).recipe
    task = TextClassification(recipe, base_folder=folder)
    _, prepared = task.prepare_data()
    return task.build_model(prepared).model, task, prepared


def logits(ready, *, batch_size: int) -> np.ndarray:
    from launcher.engine.predicting import predict_logits

    model, task, prepared = ready
    found, _ = predict_logits(model, prepared.validation, task.collator(), batch_size=batch_size, device="cpu")
    return found


def test_a_texts_answer_does_not_depend_on_its_batch(ready):
    together, alone = logits(ready, batch_size=64), logits(ready, batch_size=1)
    assert len({*ready[2].validation["length"]}) > 3 and together.shape == (len(ready[2].validation), 3)
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_evaluation_is_without_dropout_and_training_goes_on_with_it(ready):
    model = ready[0].train()
    assert np.array_equal(logits(ready, batch_size=8), logits(ready, batch_size=8))
    assert all(module.training for module in model.modules())
    with torch.no_grad():
        batch = {"input_ids": torch.tensor([[2, 7, 8, 3]])}
        assert not torch.equal(model(**batch).logits, model(**batch).logits)


@pytest.mark.parametrize("block", ["optimizer", "scheduler"])
def test_a_deepspeed_file_that_flattens_the_rates_is_refused(block):
    from launcher.errors import PlanMismatch
    from launcher.launching.deepspeed import deepspeed_config
    from launcher.plans import BatchPlan, LaunchPlan
    from launcher.recipe.load import load_recipe

    plan = LaunchPlan("deepspeed", 2, "fp32", "cpu", nodes=1, processes_per_node=2, batch=BatchPlan(32, 2, 16, 1))
    recipe = load_recipe("quickstart/api-topics", ["strategy.type=layerwise", "strategy.layer_decay=0.9"]).recipe
    assert block not in deepspeed_config(recipe, plan)
    with pytest.raises(PlanMismatch, match=f"the DeepSpeed file has a block '{block}'"):
        deepspeed_config(recipe, plan, base={"zero_optimization": {"stage": 2}, block: {"type": "AdamW"}})


THAW = """
import torch, torch.distributed as dist
dist.init_process_group("gloo")
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 2))
model[0].requires_grad_(False)
wrapped = torch.nn.parallel.DistributedDataParallel(model)
optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
for step in range(4):
    if step == 2:
        model[0].requires_grad_(True)
    torch.manual_seed(10 * step + dist.get_rank())
    wrapped(torch.randn(8, 4)).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    least, most = model[0].weight.detach().clone(), model[0].weight.detach().clone()
    dist.all_reduce(least, op=dist.ReduceOp.MIN), dist.all_reduce(most, op=dist.ReduceOp.MAX)
    if dist.get_rank() == 0:
        print("DIFFERENCE", float((most - least).max()))
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_ranks_drift_apart_when_a_parameter_is_thawed_under_ddp(tmp_path):
    script = tmp_path / "thaw.py"
    script.write_text(THAW)
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script)],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = [float(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("DIFFERENCE")]
    assert found[:2] == [0.0, 0.0] and found[3] > 0.01
