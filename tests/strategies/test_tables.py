"""Nine families of models x every strategy: the table is right, and one real step moves what it says and nothing else.

What a table has to say is written here by hand from names alone, without the code that finds depths.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import families
import pytest
import torch

from launcher.contracts import Phase
from launcher.recipe.schema import Recipe
from launcher.registry import STRATEGIES, load
from launcher.strategies.layers import list_parameters
from launcher.strategies.preparing import prepare_model

LR = 1e-2

# --- what each strategy does, by hand --------------------------------------------------------------------------------

Rule = Callable[[families.Place, str], float]


def by_role(**rates: float) -> Rule:
    return lambda at, name: rates.get(at.role, 0.0)


def decayed(factor: float, *, least: float = 0.0, head: float = 1.0, frozen: int = 0, embeddings: bool = True) -> Rule:
    def rate(at: families.Place, name: str) -> float:
        if at.role == "head":
            return LR * head
        if at.role == "embeddings" and not embeddings or at.role == "block" and at.depth <= frozen:
            return 0.0
        scale = 1.0
        for _ in range(at.depth, at.last + 1):
            scale *= factor
        return LR * max(scale, least)

    return rate


def only(rule: Rule, *, down_to: int, embeddings: bool) -> Rule:
    """``rule``, where blocks below ``down_to`` and perhaps the embeddings still wait."""

    def rate(at: families.Place, name: str) -> float:
        waits = at.role == "block" and at.depth < down_to or at.role == "embeddings" and not embeddings
        return 0.0 if waits else rule(at, name)

    return rate


def norms_only(at: families.Place, name: str) -> float:
    is_norm = re.search(r"norm|\.ln_|LayerNorm|normalization", name) is not None
    return LR if at.role == "head" or (at.role == "block" and is_norm) else 0.0


Options = dict[str, Any]
CASES: dict[str, tuple[Options, Callable[[int], list[Rule]]]] = {
    "full": ({"type": "full"}, lambda last: [by_role(embeddings=LR, block=LR, tail=LR, head=LR)]),
    "full, own rates": (
        {"type": "full", "embedding_lr": 1e-3, "head_lr": 2e-2},
        lambda last: [by_role(embeddings=1e-3, block=LR, tail=LR, head=2e-2)],
    ),
    "encoder": ({"type": "encoder", "head_lr": 2e-2}, lambda last: [by_role(block=LR, head=2e-2)]),
    "encoder, norms": ({"type": "encoder", "components": ["norm"]}, lambda last: [norms_only]),
    "head": ({"type": "head"}, lambda last: [by_role(head=LR)]),
    "head and pooler": ({"type": "head", "train_pooler": True}, lambda last: [by_role(head=LR, tail=LR)]),
    "layerwise, decay": ({"type": "layerwise", "layer_decay": 0.5}, lambda last: [decayed(0.5)]),
    "layerwise, floor": (
        {"type": "layerwise", "layer_decay": 0.5, "min_lr_scale": 0.2, "head_lr_mult": 3},
        lambda last: [decayed(0.5, least=0.2, head=3)],
    ),
    "layerwise, freeze": (
        {"type": "layerwise", "layer_decay": 0.8, "freeze_layers": 2},
        lambda last: [decayed(0.8, frozen=2, embeddings=False)],
    ),
    "layerwise, freeze blocks, train embeddings": (
        {"type": "layerwise", "layer_decay": 1, "freeze_layers": 1, "embeddings": "train"},
        lambda last: [decayed(1, frozen=1)],
    ),
    "layerwise, no trainable layers": (
        {"type": "layerwise", "trainable_layers": 0},
        lambda last: [decayed(1, frozen=last, embeddings=False)],
    ),
    "layerwise, gradual": (
        {"type": "layerwise", "layer_decay": 0.9, "gradual_unfreezing": {"epochs_per_stage": 1}},
        lambda last: [only(decayed(0.9), down_to=b, embeddings=b == 1) for b in range(last + 1, 0, -1)],
    ),
    "layerwise, gradual down to the second block": (
        {"type": "layerwise", "layer_decay": 0.9, "freeze_layers": 1,
         "gradual_unfreezing": {"epochs_per_stage": 1, "blocks_per_stage": 9}},
        lambda last: [only(decayed(0.9), down_to=b, embeddings=False) for b in (last + 1, 2)],
    ),
}  # fmt: skip


def recipe(options: Options) -> Recipe:
    values = {"version": 1, "name": "a", "task": {"type": "text-classification"}, "model": {"name_or_path": "m"},
              "data": {"source": "d"}, "training": {"learning_rate": LR, "num_train_epochs": 9}}  # fmt: skip
    return Recipe.model_validate({**values, "strategy": options})


def phases_of(family: str, model: Any, options: Options) -> tuple[Phase, ...]:
    parameters = list_parameters(model, newly_initialized=families.head_names(family, model))
    found: tuple[Phase, ...] = load(STRATEGIES, options["type"])().phases(parameters, recipe(options))
    return found


def expected(family: str, model: Any, rule: Rule) -> dict[str, float]:
    return {name: rule(families.place(family, name), name) for name, _ in model.named_parameters()}


@pytest.fixture(scope="module", params=families.FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize("case", CASES)
def test_the_table_is_right(family: str, case: str) -> None:
    options, rules = CASES[case]
    model = families.build(family)
    phases = phases_of(family, model, options)
    wanted = [expected(family, model, rule) for rule in rules(families.PLACES[family][0])]
    assert len(phases) == len(wanted)
    numel = {name: tensor.numel() for name, tensor in model.named_parameters()}
    for phase, rates in zip(phases, wanted, strict=True):
        found = [(name, group) for group in phase.table.groups for name in group.parameters]
        assert sorted(name for name, _ in found) == sorted(rates), "every parameter in exactly one group"
        assert {name: group.lr for name, group in found} == pytest.approx(rates, rel=1e-12)
        assert all(group.trainable is (group.lr > 0) for _, group in found)
        assert len({group.name for group in phase.table.groups}) == len(phase.table.groups)
        assert phase.table.total_numel == sum(numel.values())
        assert phase.table.trainable_numel == sum(numel[name] for name, rate in rates.items() if rate)
        decay = 0.0 if options["type"] == "head" else 0.01
        for name, group in found:
            is_left_alone = name.endswith("bias") or is_norm(model, name)
            assert group.weight_decay == (decay if group.trainable and not is_left_alone else 0.0), name


def is_norm(model: Any, name: str) -> bool:
    return "norm" in type(model.get_submodule(name.rpartition(".")[0])).__name__.lower()


@pytest.mark.parametrize("case", [case for case in CASES if case.startswith("layerwise")])
def test_every_block_has_its_own_group(family: str, case: str) -> None:
    """An optimizer counts steps for each group, and blocks may begin to train at different steps."""
    for phase in phases_of(family, families.build(family), CASES[case][0]):
        for group in phase.table.trainable:
            places = {families.place(family, name) for name in group.parameters}
            assert len({(at.role, at.depth) for at in places}) == 1, group.name


def each_phase() -> Iterator[Any]:
    for name, (last, _) in families.PLACES.items():
        for case, (_, rules) in CASES.items():
            for stage in range(len(rules(last))):
                yield pytest.param(name, case, stage, id=f"{name}-{case}" + (f" {stage + 1}" if stage else ""))


@pytest.mark.parametrize(("family", "case", "stage"), each_phase())
def test_a_step_moves_what_trains_and_nothing_else(family: str, case: str, stage: int) -> None:
    options, rules = CASES[case]
    model = families.build(family)
    phase = phases_of(family, model, options)[stage]
    trains = {name for name, rate in expected(family, model, rules(families.PLACES[family][0])[stage]).items() if rate}
    before = {name: tensor.detach().clone() for name, tensor in model.named_parameters()}

    families.one_step(prepare_model(model, phase), phase.table)

    after = dict(model.named_parameters())
    moved = {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    pattern = families.WITHOUT_GRADIENT.get(family, r"(?!)")
    assert moved <= trains, "frozen, but moved"
    assert {name for name in trains - moved if not re.fullmatch(pattern, name)} == set(), "trains, but did not move"
    assert all((tensor.grad is not None) is (name in trains) for name, tensor in after.items())
