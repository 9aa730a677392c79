"""The range test on a tiny model: rates that grow, the run's own rows and loss, and nothing left behind."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import tiny

from launcher.evaluation.range_test import RangeTest
from launcher.plans import Hardware
from launcher.recipe.load import load_recipe
from launcher.workflows import lr_find

CPU = Hardware((), 2, 2**33, cpu_has_fast_bf16=False)


@pytest.fixture(scope="module")
def bert(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("lr_find")
    tiny.save_bert(folder / "bert")
    tiny.write_data(folder / "data", train=50, validation=9, test=6)
    return folder


def find(folder: Path, tmp_path: Path, *, steps: int = 20, max_lr: float = 1.0, **changes: Any) -> RangeTest:
    path = tiny.write_recipe(tmp_path / "r.yaml", tiny.recipe_values(folder / "bert", folder / "data", **changes))
    return lr_find.find_rate(
        load_recipe(path), min_lr=1e-6, max_lr=max_lr, steps=steps, hardware=CPU, base_folder=tmp_path
    )


def test_rates_grow_and_losses_are_those_of_the_run(bert, tmp_path):
    found = find(bert, tmp_path, max_lr=1e-3)
    assert found.rates[0] == pytest.approx(1e-6) and found.rates[-1] == pytest.approx(1e-3) and len(found.losses) == 20
    assert found.losses[0] == pytest.approx(math.log(3), abs=0.05), "three labels that a new head cannot tell apart"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["r.yaml"], "nothing is left behind"


def test_it_is_deterministic(bert, tmp_path):
    assert find(bert, tmp_path) == find(bert, tmp_path)


def test_accumulation_does_not_change_the_losses(bert, tmp_path):
    whole = find(bert, tmp_path, max_lr=1e-2)
    parts = find(bert, tmp_path, max_lr=1e-2, training={"per_device_train_batch_size": 3})
    assert parts.losses == pytest.approx(whole.losses, rel=1e-4)


def test_it_stops_where_the_loss_diverges(bert, tmp_path):
    found = find(bert, tmp_path, steps=60, max_lr=1e4, training={"optim": "sgd", "max_grad_norm": 0})
    assert found.divergence is not None and len(found.losses) < 60


@pytest.mark.parametrize(
    "strategy",
    [
        {"type": "head"},
        {"type": "layerwise", "layer_decay": 0.5, "gradual_unfreezing": {"epochs_per_stage": 0.5}},
        {"type": "lora", "r": 2},
        {"type": "discriminative", "mean_rank": 2},
    ],
    ids=lambda strategy: strategy["type"],
)
def test_every_strategy_can_be_tested(bert, tmp_path, strategy):
    assert len(find(bert, tmp_path, steps=3, strategy=strategy).losses) == 3


def test_groups_keep_their_ratios(bert, tmp_path, monkeypatch):
    seen = []
    step = lr_find._step

    def look(setting: Any, *args: Any, **more: Any) -> float:
        loss = step(setting, *args, **more)
        seen.append({group["name"]: group["lr"] for group in setting.optimizer.param_groups})
        return loss

    monkeypatch.setattr(lr_find, "_step", look)
    found = find(bert, tmp_path, steps=4, strategy={"type": "full", "head_lr": 5e-3})
    for rate, groups in zip(found.rates, seen, strict=True):
        assert groups["encoder"] == pytest.approx(rate) and groups["head"] == pytest.approx(5 * rate)


@pytest.mark.slow
def test_quantised_weights_are_those_of_the_run(bert, tmp_path, monkeypatch):
    from launcher.workflows import building

    asked = []
    quantize = building.quantization_config
    monkeypatch.setattr(
        building, "quantization_config", lambda *args, **kw: asked.append(quantize(*args, **kw)) or asked[-1]
    )
    wide = tiny.save_bert(tmp_path / "wide", hidden_size=64, intermediate_size=128)
    strategy = {"type": "lora", "r": 4, "load_in_8bit": True}
    found = find(bert, tmp_path, steps=12, strategy=strategy, model={"name_or_path": str(wide)})
    assert asked[0].load_in_8bit and len(found.losses) >= 5
