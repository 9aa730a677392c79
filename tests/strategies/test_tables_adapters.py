"""Nine families of models x the strategies with adapters or importance: the table is right, one step moves what it says."""

from __future__ import annotations

import re
from typing import Any

import families
import pytest
import torch

from launcher.contracts import Phase
from launcher.errors import ModelError
from launcher.recipe.schema import Recipe
from launcher.registry import STRATEGIES, load
from launcher.strategies.layers import list_parameters
from launcher.strategies.preparing import prepare_model

LR = 1e-2
LINEAR = ("Linear", "Conv1D")


def phases_of(family: str, model: Any, importance: Any = None, **options: Any) -> tuple[Phase, ...]:
    # A ResNet's blocks have no linear layers; its convolutions are adapted when they are named.
    named = {"target_modules": ["convolution"]} if family == "resnet" else {}
    values = {"version": 1, "name": "a", "task": {"type": "text-classification"}, "model": {"name_or_path": "m"},
              "data": {"source": "d"}, "training": {"learning_rate": LR, "num_train_epochs": 9},
              "strategy": {**named, **options}}  # fmt: skip
    parameters = list_parameters(model, newly_initialized=families.head_names(family, model))
    strategy = load(STRATEGIES, options["type"])()
    found: tuple[Phase, ...] = strategy.phases(parameters, Recipe.model_validate(values), importance)
    return found


def targets(family: str, model: Any) -> dict[str, families.Place]:
    """The modules that get adapters: the blocks' linear layers; all convolutions of a ResNet."""
    kinds = ("Conv2d",) if family == "resnet" else LINEAR
    found = {}
    for path, module in model.named_modules():
        if type(module).__name__ in kinds:
            at = families.place(family, f"{path}.weight")
            if at.role == "block" or (family == "resnet" and at.role == "embeddings"):
                found[path] = at
    return found


def numel(module: Any) -> int:
    return sum(tensor.numel() for tensor in module.parameters(recurse=False))


def check_partition(model: Any, phase: Phase) -> dict[str, Any]:
    """Return name -> group, having seen that each parameter of the prepared model is in exactly one."""
    found = [(name, group) for group in phase.table.groups for name in group.parameters]
    assert sorted(name for name, _ in found) == sorted(name for name, _ in model.named_parameters())
    assert len({group.name for group in phase.table.groups}) == len(phase.table.groups)
    assert all(group.trainable is (group.lr > 0) for _, group in found)
    assert phase.table.total_numel == sum(tensor.numel() for tensor in model.parameters())
    return dict(found)


def check_step(family: str, model: Any, phase: Phase, trains: set[str]) -> None:
    before = {name: tensor.detach().clone() for name, tensor in model.named_parameters()}
    families.one_step(model, phase.table)
    moved = {name for name, tensor in model.named_parameters() if not torch.equal(tensor, before[name])}
    pattern = families.WITHOUT_GRADIENT.get(family, r"(?!)")
    assert moved <= trains, "frozen, but moved"
    assert {name for name in trains - moved if not re.fullmatch(pattern, name)} == set(), "trains, but did not move"


@pytest.fixture(params=families.FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


# --- adapters --------------------------------------------------------------------------------------------------------


def adapter_rates(
    family: str, model: Any, *, decay: float = 1.0, ratio: float = 1.0, head: float = LR, dora: bool = False
) -> dict[str, float]:
    """Name of the model with adapters -> rate, for everything that trains."""
    rates = {}
    for path, at in targets(family, model).items():
        rate = LR * decay ** (at.last + 1 - at.depth)
        rates[f"base_model.model.{path}.lora_A.default.weight"] = rate
        rates[f"base_model.model.{path}.lora_B.default.weight"] = rate * ratio
        if dora:
            rates[f"base_model.model.{path}.lora_magnitude_vector.default.weight"] = rate
    return rates | dict.fromkeys(families.head_names(family, model), head)


def plain_head(name: str) -> str:
    """The head's own name, where the name is that of its copy that trains."""
    return re.sub(r"^base_model\.model\.(.*)\.modules_to_save\.default\.", r"\1.", name)


ADAPTERS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "lora": ({}, {}),
    "head's own rate": ({"head_lr": 0.05}, {"head": 0.05}),
    "decay": ({"layer_decay": 0.5}, {"decay": 0.5}),
    "lora+": ({"loraplus_lr_ratio": 8}, {"ratio": 8}),
    "dora": ({"use_dora": True}, {"dora": True}),
}


@pytest.mark.parametrize("case", ADAPTERS)
def test_lora(family: str, case: str) -> None:
    options, rule = ADAPTERS[case]
    model = families.build(family)
    wanted, modules = adapter_rates(family, model, **rule), targets(family, model)
    # B begins at zero, so that A gets no gradient at the first step; here both begin at random.
    (phase,) = phases_of(family, model, type="lora", r=2, init_lora_weights=False, **options)
    model = prepare_model(model, phase)
    groups = check_partition(model, phase)
    trains = {name for name, group in groups.items() if group.trainable}
    assert {plain_head(name): groups[name].lr for name in trains} == pytest.approx(wanted)
    assert {name for name in trains if groups[name].rank} == {
        name for path in modules for part in ("A", "B", "magnitude_vector")
        for name in (f"base_model.model.{path}.lora_{part}.default.weight",) if plain_head(name) in wanted
    }  # fmt: skip
    assert {groups[name].rank for name in trains} <= {2, None}
    assert {name for name, tensor in model.named_parameters() if tensor.requires_grad} == trains
    check_step(family, model, phase, trains)


def test_a_fresh_adapter_changes_nothing_and_moves_b_first(family: str) -> None:
    model = families.build(family).eval()
    with torch.no_grad():
        before = model(**families.inputs(model)).logits
    (phase,) = phases_of(family, model, type="lora", r=2)
    model = prepare_model(model, phase).eval()
    with torch.no_grad():
        assert torch.equal(model(**families.inputs(model)).logits, before)
    trains = {name for group in phase.table.trainable for name in group.parameters}
    check_step(family, model, phase, {name for name in trains if ".lora_A." not in name})


def test_a_model_without_linear_layers_in_its_blocks() -> None:
    with pytest.raises(ModelError, match="no linear layers"):
        phases_of("resnet", families.build("resnet"), type="lora", target_modules="all-linear")


# --- importance ------------------------------------------------------------------------------------------------------


def importance(family: str, model: Any, *, top: float = 1.0, rest: float = 1.0) -> dict[str, Any]:
    """An importance.json in which the modules of the last block have another importance for each of their parameters."""
    return {
        "modules": {
            path: {"scores": [(top if at.depth == at.last else rest) * numel(model.get_submodule(path))] * 4}
            for path, at in targets(family, model).items()
        }
    }


def test_ranks_of_equal_importance(family: str) -> None:
    model = families.build(family)
    found = {"modules": {path: {"scores": [1.0] * 4} for path in targets(family, model)}}
    options = {"type": "discriminative", "mean_rank": 2, "rank_max": 4, "init_lora_weights": False}
    wanted = adapter_rates(family, model)
    (phase,) = phases_of(family, model, found, **options)
    model = prepare_model(model, phase)
    groups = check_partition(model, phase)
    trains = {name for name, group in groups.items() if group.trainable}
    assert {plain_head(name): groups[name].lr for name in trains} == pytest.approx(wanted)
    assert {groups[name].rank for name in trains if ".lora_" in name} == {2}
    check_step(family, model, phase, trains)


def test_the_important_modules_train(family: str) -> None:
    model = families.build(family)
    modules = targets(family, model)
    sizes = {path: numel(model.get_submodule(path)) for path in modules}
    chosen = {path for path, at in modules.items() if at.depth == at.last}
    share = sum(sizes[path] for path in chosen) / sum(sizes.values())
    scores = importance(family, model, top=100)
    (phase,) = phases_of(family, model, scores, type="discriminative", apply="freeze", trainable_share=share)
    model = prepare_model(model, phase)
    groups = check_partition(model, phase)
    trains = {name for name, group in groups.items() if group.trainable}
    wanted = {f"{path}.{n}" for path in chosen for n, _ in model.get_submodule(path).named_parameters(recurse=False)}
    assert trains == wanted | families.head_names(family, model)
    assert {groups[name].lr for name in trains} == {LR}
    check_step(family, model, phase, trains)


def test_rates_by_importance(family: str) -> None:
    model = families.build(family)
    modules = targets(family, model)
    found = {"modules": {path: {"scores": [4.0 if at.depth == at.last else 1.0]} for path, at in modules.items()}}
    (phase,) = phases_of(family, model, found, type="discriminative", apply="lr", rate_power=0.5)
    mean = sum(scores["scores"][0] for scores in found["modules"].values()) / len(modules)
    groups = check_partition(prepare_model(model, phase), phase)
    wanted = {}
    for name, _ in model.named_parameters():
        path = name.rpartition(".")[0]
        scores = found["modules"].get(path)
        wanted[name] = LR * (scores["scores"][0] / mean) ** 0.5 if scores else LR
    assert {name: group.lr for name, group in groups.items()} == pytest.approx(wanted)
    check_step(family, model, phase, set(wanted))
