"""lora: its tuning table, what a step moves, and what is refused."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import families
import pytest
import tiny
import torch

from launcher.contracts import Parameter, Phase, TuningGroup
from launcher.errors import InstallationError, ModelError
from launcher.recipe.examine import examine
from launcher.recipe.schema import Recipe
from launcher.strategies.adapters import part_of
from launcher.strategies.layers import list_parameters
from launcher.strategies.lora import Lora
from launcher.strategies.preparing import prepare_model
from launcher.strategies.quantization import quantization_config

LR = 1e-3
LINEAR_FAMILIES = [name for name in families.FAMILIES if name != "resnet"]


def recipe(training: dict[str, Any] | None = None, **options: Any) -> Recipe:
    values = tiny.recipe_values("model", "data", strategy={"type": "lora", **options}, training=training or {})
    return Recipe.model_validate({**values, "task": {"type": "text-classification"}})


def parameters_of(name: str) -> tuple[Parameter, ...]:
    model = families.build(name)
    return list_parameters(model, newly_initialized=families.head_names(name, model))


def phase(name: str = "bert", training: dict[str, Any] | None = None, **options: Any) -> Phase:
    (found,) = Lora().phases(parameters_of(name), recipe(training, **options))
    return found


def groups(*arguments: Any, **options: Any) -> dict[str, TuningGroup]:
    table = phase(*arguments, **options).table
    found = {group.name: group for group in table.groups}
    assert len(found) == len(table.groups), "names of groups are unique"
    return found


# --- the table -----------------------------------------------------------------------------------------------------


def test_adapters_and_head_train_at_one_rate_without_decay() -> None:
    found = groups()
    trains = {name: (g.lr, g.weight_decay, g.rank, g.depths) for name, g in found.items() if g.trainable}
    assert trains == {"lora": (LR, 0.0, 8, (1, 3)), "head": (LR, 0.0, None, (4, 4))}
    assert set(found) - set(trains) == {"embeddings.frozen", "encoder.frozen", "tail.frozen", "head.frozen"}
    assert found["lora"].numel == 3 * 8 * (4 * (32 + 32) + 2 * (32 + 64))
    assert {part_of(name) for name in found["lora"].parameters} == {"A", "B"}


def test_rates_by_depth_of_head_and_of_b() -> None:
    found = groups(layer_decay=0.5, loraplus_lr_ratio=16, head_lr=5e-3)
    for block, scale in ((1, 1 / 8), (2, 1 / 4), (3, 1 / 2)):
        assert found[f"lora_A.block.{block}"].lr == pytest.approx(LR * scale)
        assert found[f"lora_B.block.{block}"].lr == pytest.approx(16 * LR * scale)
        assert {part_of(name) for name in found[f"lora_B.block.{block}"].parameters} == {"B"}
    assert found["head"].lr == 5e-3


def test_ranks_are_split_and_alphas_resolved() -> None:
    found = groups(r=4, rank_pattern={"query": 2, r"layer\.0\..*\.dense": 16}, alpha_pattern={"key": 3})
    assert {name: g.rank for name, g in found.items() if g.rank} == {
        "lora.rank2": 2,
        "lora.rank4": 4,
        "lora.rank16": 16,
    }
    assert all(".query." in name for name in found["lora.rank2"].parameters)
    plan = phase(r=4, alpha_pattern={"key": 3}).adapters
    assert plan is not None
    assert {alpha for name, alpha in plan.alphas.items() if name.endswith("key")} == {3}
    assert {alpha for name, alpha in plan.alphas.items() if not name.endswith("key")} == {16}


def test_weight_decay_of_the_recipe_spares_magnitudes_and_biases() -> None:
    found = groups(training={"weight_decay": 0.1}, use_dora=True)
    assert found["lora"].weight_decay == 0.1 and found["lora.no_decay"].weight_decay == 0.0
    assert {part_of(name) for name in found["lora.no_decay"].parameters} == {"magnitude"}
    assert [name.rpartition(".")[2] for name in found["head.no_decay"].parameters] == ["bias"]


def test_modules_that_train_whole() -> None:
    found = groups(modules_to_save=["LayerNorm", "pooler"], head_lr=2e-3)
    assert found["tail"].lr == found["encoder"].lr == found["head"].lr == 2e-3
    assert all("LayerNorm" in name for name in found["encoder"].parameters)


@pytest.mark.parametrize("name", LINEAR_FAMILIES)
def test_one_step_moves_what_the_table_says_and_nothing_else(name: str) -> None:
    found = phase(name, use_dora=name == "llama", init_lora_weights="gaussian", layer_decay=0.9)
    model = prepare_model(families.build(name), found)
    tensors = dict(model.named_parameters())
    assert sorted(n for group in found.table.groups for n in group.parameters) == sorted(tensors)
    before = {n: tensor.detach().clone() for n, tensor in tensors.items()}
    optimizer = torch.optim.AdamW(
        [{"params": [tensors[n] for n in g.parameters], "lr": g.lr, "weight_decay": 0.1} for g in found.table.trainable]
    )
    for _ in range(2):  # a step moves B alone: the gradient of A is 0 while B is
        loss = model(**families.inputs(model.get_base_model())).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    moved = {n for n, tensor in tensors.items() if not torch.equal(tensor, before[n])}
    assert moved == {n for group in found.table.trainable for n in group.parameters}


# --- what is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("bert", {"init_lora_weights": "orthogonal", "rank_pattern": {"query": 3}}, "whose rank is 3, an odd number"),
        ("bert", {"init_lora_weights": "pissa", "r": 64}, "whose rank, 64, is above the 32"),
        ("gpt2", {"init_lora_weights": "olora"}, "h.0.attn.c_attn, which is a Conv1D"),
        ("resnet", {"init_lora_weights": "pissa", "target_modules": ["convolution"]}, "which is a convolution"),
        ("resnet", {}, "the model's blocks have no linear layers"),
        ("bert", {"rank_pattern": {"qury": 3}}, "strategy.rank_pattern: 'qury' matches no layer.*did you mean query"),
        ("bert", {"alpha_pattern": {"qury": 3}}, "strategy.alpha_pattern: 'qury' matches no layer"),
    ],
)
def test_options_that_do_not_fit_the_model(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        phase(name, **options)


def test_layers_that_share_their_weights_have_no_rates_by_depth() -> None:
    from transformers import AlbertConfig, AlbertForSequenceClassification

    shared = list_parameters(
        AlbertForSequenceClassification(AlbertConfig(vocab_size=40, embedding_size=16, num_labels=3, **families.SIZES))
    )
    assert Lora().phases(shared, recipe())
    with pytest.raises(ModelError, match=r"strategy.layer_decay is 0.5, but several layers of this model share"):
        Lora().phases(shared, recipe(layer_decay=0.5))


def faults(tmp_path: Path, distributed: dict[str, Any], **options: Any) -> list[str]:
    values = tiny.recipe_values("bert-base-uncased", "ag_news", strategy={"type": "lora", **options})
    values["distributed"] = distributed
    _, problems = examine(tiny.write_recipe(tmp_path / "recipe.yaml", values))
    return [str(problem) for problem in problems if "bitsandbytes" not in str(problem)]


ZERO_3 = {"engine": "deepspeed", "zero_stage": 3}


@pytest.mark.parametrize(
    ("distributed", "options", "message"),
    [
        ({}, {"load_in_4bit": True, "load_in_8bit": True}, "load_in_4bit and load_in_8bit are both true; keep one"),
        ({}, {"load_in_4bit": True, "init_lora_weights": "olora"}, "is 'olora' while load_in_4bit is true"),
        (ZERO_3, {"load_in_8bit": True}, "load_in_8bit is true while distributed.zero_stage is 3"),
        ({}, {"target_modules": "layer("}, "strategy.target_modules: 'layer(' is no regular expression"),
        ({}, {"rank_pattern": {"*.query": 4}}, "strategy.rank_pattern: '*.query' is no regular expression"),
        ({}, {"target_modules": []}, "strategy.target_modules is []; it must name a module"),
        ({}, {"rank_pattern": {"query": 0}}, "rank_pattern.query is 0"),
    ],
)
def test_contradictions(tmp_path: Path, distributed: dict[str, Any], options: dict[str, Any], message: str) -> None:
    (found,) = faults(tmp_path, distributed, **options)
    assert message in found


def test_plain_options_have_no_faults(tmp_path: Path) -> None:
    assert faults(tmp_path, ZERO_3, use_dora=True, use_rslora=True, layer_decay=0.9, loraplus_lr_ratio=16) == []
    assert faults(tmp_path, ZERO_3, init_lora_weights="pissa", rank_pattern={"query": 4}) == []


# --- quantised weights ---------------------------------------------------------------------------------------------


def test_quantised_weights_need_an_installation(monkeypatch: pytest.MonkeyPatch) -> None:
    assert quantization_config(recipe().strategy) is None
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(InstallationError, match="strategy.load_in_4bit is true, but"):
        quantization_config(recipe(load_in_4bit=True).strategy)
    with pytest.raises(InstallationError, match="strategy.load_in_8bit is true, but"):
        quantization_config(recipe(load_in_8bit=True).strategy)
