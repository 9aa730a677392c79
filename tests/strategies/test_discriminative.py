"""Discriminative fine-tuning: its probe, its stand-in before it, and the phases that importance makes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from tiny import bert_config

from launcher.contracts import Parameter, Phase
from launcher.errors import DataError, ModelError
from launcher.recipe.checks import check_recipe, values_without_effect
from launcher.recipe.load import load_recipe
from launcher.recipe.schema import Recipe
from launcher.strategies.discriminative import Discriminative, measured, with_allocation
from launcher.strategies.importance_file import Importance, importance_key
from launcher.strategies.layers import list_parameters

LAYER = "bert.encoder.layer"
RATE = 2e-3


@pytest.fixture(scope="module")
def parameters() -> tuple[Parameter, ...]:
    import torch
    from transformers import BertForSequenceClassification

    with torch.device("meta"):
        model = BertForSequenceClassification(bert_config())
    return list_parameters(model, newly_initialized={"classifier.weight", "classifier.bias"})


def recipe(**options: Any) -> Recipe:
    return tiny.recipe(training={"learning_rate": RATE}, strategy={"type": "discriminative", **options})


def scores_for(parameters: tuple[Parameter, ...], *, important: tuple[str, ...]) -> dict[str, np.ndarray]:
    weights = [p for p in parameters if p.role == "block" and p.module == "Linear" and p.name.endswith(".weight")]
    names = [p.name.removesuffix(".weight") for p in weights]
    falling = 0.99 ** np.arange(32.0)
    return {name: falling * (100.0 if name in important else 1.0) for name in names}


def importance_of(parameters: tuple[Parameter, ...], made: Recipe, *important: str) -> Importance:
    return measured(parameters, made, scores_for(parameters, important=important), key_parts={"seed": 42})


def main_phase(parameters: tuple[Parameter, ...], made: Recipe, importance: Importance | None) -> Phase:
    values = None if importance is None else json.loads(importance.to_text())
    (phase,) = Discriminative().phases(parameters, made, values)
    return phase


def adapters_numel(phase: Phase) -> int:
    return sum(group.numel for group in phase.table.trainable if group.rank is not None)


QUERY, OUTPUT = f"{LAYER}.0.attention.self.query", f"{LAYER}.1.output.dense"
# 12 modules of 32 x 32 (8 of them), 32 x 64 and 64 x 32 (2 blocks each).
COST_SUM = 2 * (4 * 64 + 2 * 96)


# --- ranks ---------------------------------------------------------------------------------------------------------


def test_before_the_probe_the_table_has_the_budgets_size_and_says_what_it_stands_for(
    parameters: tuple[Parameter, ...],
) -> None:
    phase = main_phase(parameters, recipe(), None)
    assert phase.note == f"ranks after the probe; budget {8 * COST_SUM:,} parameters, shown as rank 8 everywhere"
    assert adapters_numel(phase) == 8 * COST_SUM
    assert phase.adapters is not None and set(phase.adapters.ranks.values()) == {8}


def test_ranks_and_alphas_follow_importance_and_keep_the_budget(parameters: tuple[Parameter, ...]) -> None:
    made = recipe()
    phase = main_phase(parameters, made, importance_of(parameters, made, QUERY, OUTPUT))
    assert phase.adapters is not None and phase.name == "main"
    ranks = phase.adapters.ranks
    assert ranks[QUERY] == ranks[OUTPUT] == 32
    assert max(rank for name, rank in ranks.items() if name not in (QUERY, OUTPUT)) < 8
    assert min(ranks.values()) >= 1
    assert 8 * COST_SUM - 96 < adapters_numel(phase) <= 8 * COST_SUM
    # alpha / rank is the same everywhere: the scale of a uniform adapter of mean_rank.
    assert {alpha / ranks[name] for name, alpha in phase.adapters.alphas.items()} == {16 / 8}
    assert phase.adapters.modules_to_save == ("classifier",)
    assert {group.lr for group in phase.table.trainable} == {RATE}
    for group in phase.table.groups:
        if group.rank is not None:
            assert str(group.rank) in group.name
    assert "importance is spread over" in phase.note and "so all get" not in phase.note


def test_rslora_keeps_one_scale_too(parameters: tuple[Parameter, ...]) -> None:
    made = recipe(use_rslora=True)
    phase = main_phase(parameters, made, importance_of(parameters, made, QUERY))
    assert phase.adapters is not None
    scales = [alpha / phase.adapters.ranks[name] ** 0.5 for name, alpha in phase.adapters.alphas.items()]
    np.testing.assert_allclose(scales, 16 / 8**0.5)


def test_even_importance_gives_the_same_rank_everywhere(parameters: tuple[Parameter, ...]) -> None:
    made = recipe(mean_rank=4)
    phase = main_phase(parameters, made, importance_of(parameters, made))
    assert phase.adapters is not None and set(phase.adapters.ranks.values()) == {4}
    assert "so all get the same rank" in phase.note


def test_rank_0_means_no_adapter(parameters: tuple[Parameter, ...]) -> None:
    made = recipe(rank_min=0, mean_rank=2)
    phase = main_phase(parameters, made, importance_of(parameters, made, QUERY))
    assert phase.adapters is not None
    assert phase.adapters.ranks[QUERY] == 28, "all of the budget: 2 * 896 / 64"
    assert list(phase.adapters.ranks) == [QUERY]


def test_the_table_fits_the_model_that_peft_makes(parameters: tuple[Parameter, ...]) -> None:
    from transformers import BertForSequenceClassification

    from launcher.strategies.adapters import attach

    made = recipe()
    phase = main_phase(parameters, made, importance_of(parameters, made, QUERY, OUTPUT))
    assert phase.adapters is not None
    model = attach(BertForSequenceClassification(bert_config()), phase.adapters)
    shapes = {name: tensor.numel() for name, tensor in model.named_parameters()}
    assert sorted(shapes) == sorted(name for group in phase.table.groups for name in group.parameters)
    for group in phase.table.groups:
        assert group.numel == sum(shapes[name] for name in group.parameters)


# --- freeze and lr -------------------------------------------------------------------------------------------------


def test_freeze_trains_the_important_modules_and_the_head(parameters: tuple[Parameter, ...]) -> None:
    made = recipe(apply="freeze", trainable_share=0.25, head_lr=5e-3)
    phase = main_phase(parameters, made, importance_of(parameters, made, QUERY, OUTPUT))
    rates = {name: group.lr for group in phase.table.groups for name in group.parameters}
    assert phase.adapters is None
    assert rates[f"{QUERY}.weight"] == rates[f"{QUERY}.bias"] == rates[f"{OUTPUT}.weight"] == RATE
    assert rates["classifier.weight"] == 5e-3
    assert rates["bert.embeddings.word_embeddings.weight"] == 0
    total = sum(p.numel for p in parameters if p.role == "block" and p.module == "Linear")
    trained = sum(p.numel for p in parameters if p.role == "block" and rates[p.name])
    assert 0.15 * total < trained <= 0.25 * total


def test_freeze_before_the_probe_stands_for_its_size(parameters: tuple[Parameter, ...]) -> None:
    phase = main_phase(parameters, recipe(apply="freeze", trainable_share=0.5), None)
    trained = [name for group in phase.table.trainable for name in group.parameters if name.startswith(LAYER)]
    assert trained and all(name.startswith(f"{LAYER}.1.") for name in trained), "the last block is half of two"
    assert phase.note.startswith("which modules train follows from the probe; budget 8,416 parameters")


def test_rates_follow_importance_and_are_said_to_be_experimental(parameters: tuple[Parameter, ...]) -> None:
    made = recipe(apply="lr", rate_power=0.5)
    phase = main_phase(parameters, made, importance_of(parameters, made, QUERY))
    rates = {name: group.lr for group in phase.table.groups for name in group.parameters}
    share = 100 / (100 + 11)
    assert rates[f"{QUERY}.weight"] == pytest.approx(RATE * (share * 12) ** 0.5)
    assert rates[f"{OUTPUT}.weight"] == pytest.approx(RATE * ((1 - share) / 11 * 12) ** 0.5)
    assert rates["bert.embeddings.word_embeddings.weight"] == rates["classifier.weight"] == RATE
    assert phase.note.startswith("experimental")
    assert main_phase(parameters, made, None).note.startswith("experimental")


# --- the probe -----------------------------------------------------------------------------------------------------


def test_the_probe_has_adapters_everywhere_at_the_scale_of_the_run(parameters: tuple[Parameter, ...]) -> None:
    probe = Discriminative().probe(parameters, recipe(probe_rank=16, rank_max=16, probe_steps=50))
    assert probe is not None and (probe.steps, probe.score) == (50, "sensitivity")
    assert probe.phase.carry == "nothing" and probe.phase.adapters is not None
    assert set(probe.phase.adapters.ranks.values()) == {16} and len(probe.phase.adapters.ranks) == 12
    assert set(probe.phase.adapters.alphas.values()) == {32.0}
    assert adapters_numel(probe.phase) == 16 * COST_SUM


def test_a_gradient_probe_takes_the_gradients_of_the_targets_weights(parameters: tuple[Parameter, ...]) -> None:
    probe = Discriminative().probe(parameters, recipe(score="gradient", target_modules=["query"]))
    assert probe is not None and probe.phase.adapters is None
    trained = {name for group in probe.phase.table.trainable for name in group.parameters}
    assert trained == {f"{LAYER}.{i}.attention.self.query.weight" for i in (0, 1)} | {
        "classifier.weight",
        "classifier.bias",
    }


def test_an_eva_probe_goes_backward_through_the_head_alone(parameters: tuple[Parameter, ...]) -> None:
    probe = Discriminative().probe(parameters, recipe(score="eva"))
    assert probe is not None
    trained = {name for group in probe.phase.table.trainable for name in group.parameters}
    assert trained == {"classifier.weight", "classifier.bias"}


def test_eva_refuses_what_has_no_vectors_as_inputs(parameters: tuple[Parameter, ...]) -> None:
    with pytest.raises(ModelError, match=r"score is eva.*word_embeddings is none"):
        Discriminative().probe(parameters, recipe(score="eva", target_modules=["word_embeddings"]))


def test_what_is_made_of_the_scores_is_no_part_of_the_probes_key(parameters: tuple[Parameter, ...]) -> None:
    def key(**options: Any) -> str:
        probe = Discriminative().probe(parameters, recipe(**options))
        assert probe is not None
        return importance_key(dict(probe.options))

    assert key() == key(rank_min=2) == key(uniform_above=0.5) == key(apply="freeze")
    assert key() == key(mean_rank=4, lora_alpha=8), "the same scale"
    others = [
        {"probe_rank": 8},
        {"probe_steps": 10},
        {"lora_alpha": 8},
        {"target_modules": ["query"]},
        {"score": "eva"},
    ]
    assert len({key(), *(key(**options) for options in others)}) == 1 + len(others)


def test_the_same_scores_give_the_same_bytes(parameters: tuple[Parameter, ...]) -> None:
    made = recipe()
    first = importance_of(parameters, made, QUERY).to_text()
    assert importance_of(parameters, made, QUERY).to_text() == first
    values = json.loads(first)
    assert values["allocation"]["ranks"][QUERY] == 32
    assert values["modules"][QUERY]["depth"] == 1 and values["modules"][QUERY]["cost"] == 64


# --- an importance.json from elsewhere -----------------------------------------------------------------------------


def test_a_file_gives_the_run_its_ranks_without_a_probe(parameters: tuple[Parameter, ...], tmp_path: Path) -> None:
    path = tmp_path / "importance.json"
    found = importance_of(parameters, recipe(), QUERY)
    path.write_text(found.to_text(), encoding="utf-8")
    made = recipe(score="file", importance_file=str(path), mean_rank=4)
    assert Discriminative().probe(parameters, made) is None
    (phase,) = Discriminative().phases(parameters, made)
    assert phase.adapters is not None and phase.adapters.ranks[QUERY] == 32
    assert adapters_numel(phase) <= 4 * COST_SUM, "the budget is this recipe's"
    assert with_allocation(found, parameters, made).allocation["ranks"] == dict(phase.adapters.ranks)


def test_a_file_of_another_model_is_an_error_that_names_what_is_missing(
    parameters: tuple[Parameter, ...], tmp_path: Path
) -> None:
    path = tmp_path / "importance.json"
    path.write_text(json.dumps({"modules": {"other.query": {"scores": [1.0]}}}), encoding="utf-8")
    with pytest.raises(
        DataError, match=r"has no scores for .*layer\.0.*and 7 more \(12 of 12 modules; it has other\.q"
    ):
        Discriminative().phases(parameters, recipe(score="file", importance_file=str(path)))


def test_a_budget_that_the_least_ranks_exceed_is_an_error(parameters: tuple[Parameter, ...]) -> None:
    made = recipe(mean_rank=2, rank_min=3)
    with pytest.raises(ModelError, match="rank_min is 3"):
        importance_of(parameters, made, QUERY)


# --- rules between options -----------------------------------------------------------------------------------------


def problems(folder: Path, **options: Any) -> list[tuple[str, str]]:
    path = folder / "recipe.yaml"
    strategy = {"type": "discriminative", **options}
    head = "version: 1\nname: made\ntask: text-classification\nmodel: {name_or_path: made}\ndata: {source: made}\n"
    path.write_text(f"{head}strategy: {json.dumps(strategy)}\n", encoding="utf-8")
    return [(problem.key.removeprefix("strategy."), problem.message) for problem in check_recipe(load_recipe(path))]


@pytest.mark.parametrize(
    ("options", "key", "message"),
    [
        ({"trainable_share": 0.5}, "trainable_share", "has no effect: strategy.apply is ranks"),
        ({"rate_power": 1.0}, "rate_power", "has no effect: strategy.apply is ranks"),
        ({"apply": "freeze", "mean_rank": 4}, "mean_rank", "has no effect: strategy.apply is freeze"),
        ({"apply": "freeze", "rank_min": 2}, "rank_min", "has no effect: strategy.apply is freeze"),
        ({"apply": "lr", "uniform_above": 0.9}, "uniform_above", "has no effect: strategy.apply is lr"),
        ({"apply": "lr", "rank_max": 9}, "rank_max", "has no effect: strategy.apply is lr"),
        ({"score": "gradient", "probe_rank": 9}, "probe_rank", "has no effect: strategy.score is gradient"),
        ({"score": "eva", "probe_rank": 9}, "probe_rank", "has no effect: strategy.score is eva"),
        ({"importance_file": "a.json"}, "importance_file", "has no effect: strategy.score is sensitivity"),
        (
            {"score": "file", "importance_file": "a.json", "probe_steps": 9},
            "probe_steps",
            "has no effect: strategy.score is file",
        ),
        (
            {"apply": "freeze", "score": "gradient", "lora_alpha": 8},
            "lora_alpha",
            "has no effect: strategy.apply is freeze and strategy.score is gradient",
        ),
        ({"score": "file"}, "score", "importance_file is not given"),
        ({"mean_rank": 64}, "mean_rank", "ranks lie between rank_min (1) and rank_max (32)"),
        ({"rank_min": 9}, "rank_min", "strategy.mean_rank is 8, but ranks lie between rank_min (9)"),
        ({"probe_rank": 16}, "probe_rank", "below rank_max (32)"),
        ({"rank_max": 64}, "rank_max", "strategy.probe_rank is 32, below rank_max (64)"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: dict[str, Any], key: str, message: str, tmp_path: Path) -> None:
    ((found, text),) = problems(tmp_path, **options)
    assert found == key and message in text


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"apply": "freeze", "trainable_share": 0.5, "probe_rank": 8, "lora_alpha": 8},
        {"apply": "lr", "score": "gradient", "rate_power": 1.0, "probe_steps": 20},
        {"score": "file", "importance_file": "a.json", "lora_dropout": 0.1, "rank_max": 64},
        {"score": "eva", "mean_rank": 4, "rank_min": 0, "uniform_above": 1.0},
    ],
)
def test_options_that_fit_are_accepted(options: dict[str, Any], tmp_path: Path) -> None:
    assert problems(tmp_path, **options) == []


def test_defaults_without_effect_are_left_out_of_the_written_recipe() -> None:
    idle = values_without_effect(recipe(apply="freeze", score="gradient"))
    names = {"mean_rank", "rank_min", "rank_max", "uniform_above", "rate_power", "probe_rank", "lora_alpha"}
    assert {f"strategy.{name}" for name in names} <= idle
    assert "strategy.trainable_share" not in idle and "strategy.probe_steps" not in idle
