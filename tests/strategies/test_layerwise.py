"""Layer-wise fine-tuning: rates by depth, freezing, stages, and options that do not fit a model."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import families
import pytest
import torch
import transformers as tf

from launcher.contracts import Parameter, Phase
from launcher.errors import ModelError
from launcher.recipe.schema import Recipe
from launcher.strategies.layers import list_parameters
from launcher.strategies.layerwise import Layerwise, default_decay, layer_scale

SMALL = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": 2}


def recipe(training: dict[str, Any] | None = None, **options: Any) -> Recipe:
    values = {"version": 1, "name": "a", "task": {"type": "text-classification"}, "model": {"name_or_path": "m"},
              "data": {"source": "d"}}  # fmt: skip
    training = {"learning_rate": 1e-2, "num_train_epochs": 20, **(training or {})}
    return Recipe.model_validate({**values, "training": training, "strategy": {"type": "layerwise", **options}})


def blocks(number: int, *, kind: str = "Linear") -> list[Parameter]:
    """A made-up model: an embedding, ``number`` blocks of one weight, a tail, a new head."""

    def parameter(name: str, depth: int, role: Any, **fields: Any) -> Parameter:
        values = {"decays": True, "newly_initialized": False, "module": kind, **fields}
        return Parameter(name=name, shape=(2, 2), depth=depth, role=role, **values)

    return [
        parameter("embeddings", 0, "embeddings", module="Embedding"),
        *(parameter(f"block.{i}", i, "block") for i in range(1, number + 1)),
        parameter("tail", number + 1, "tail"),
        parameter("head", number + 1, "head", newly_initialized=True),
    ]


def phases(parameters: list[Parameter], **options: Any) -> tuple[Phase, ...]:
    return Layerwise().phases(parameters, recipe(**options))


def rates(phase: Phase) -> dict[str, float]:
    return {name: group.lr for group in phase.table.groups for name in group.parameters}


def trains(phase: Phase) -> list[str]:
    return [name for group in phase.table.trainable for name in group.parameters]


# --- rates -----------------------------------------------------------------------------------------------------------


def test_rates_written_out() -> None:
    (phase,) = phases(blocks(3), layer_decay=0.5)
    assert rates(phase) == {
        "embeddings": 0.000625, "block.1": 0.00125, "block.2": 0.0025, "block.3": 0.005, "tail": 0.01, "head": 0.01,
    }  # fmt: skip
    assert (phase.name, phase.epochs, phase.carry) == ("main", None, "weights_and_adam")


def test_the_floor_and_the_heads_factor() -> None:
    (phase,) = phases(blocks(3), layer_decay=0.5, min_lr_scale=0.25, head_lr_mult=5)
    assert rates(phase) == {
        "embeddings": 0.0025, "block.1": 0.0025, "block.2": 0.0025, "block.3": 0.005, "tail": 0.01, "head": 0.05,
    }  # fmt: skip


def test_scale_of_a_depth() -> None:
    assert [layer_scale(depth, blocks=2, decay=0.5) for depth in range(4)] == [0.125, 0.25, 0.5, 1]
    assert layer_scale(0, blocks=2, decay=0.5, least=0.2) == 0.2


@pytest.mark.parametrize("name", families.FAMILIES)
def test_default_decay_by_kind_of_model(name: str) -> None:
    with torch.device("meta"):
        parameters = list_parameters(families.FAMILIES[name]())
    # ViT is a vision transformer; a convolutional network is none.
    assert default_decay(parameters) == (0.75 if name == "vit" else 0.9)
    (phase,) = Layerwise().phases(parameters, recipe())
    depth = {p.name: p.depth for p in parameters}
    top = max(depth.values())
    assert rates(phase) == pytest.approx(
        {n: 1e-2 * (0.75 if name == "vit" else 0.9) ** (top - d) for n, d in depth.items()}
    )


# --- freezing --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "frozen"),
    [
        ({}, []),
        ({"freeze_layers": 0}, []),
        ({"freeze_layers": 1}, ["embeddings", "block.1"]),
        ({"trainable_layers": 2}, ["embeddings", "block.1"]),
        ({"trainable_layers": 3}, []),
        ({"freeze_layers": 3}, ["embeddings", "block.1", "block.2", "block.3"]),
        ({"trainable_layers": 0}, ["embeddings", "block.1", "block.2", "block.3"]),
        ({"freeze_layers": 1, "embeddings": "train"}, ["block.1"]),
        ({"embeddings": "freeze"}, ["embeddings"]),
    ],
)
def test_what_is_frozen(options: dict[str, Any], frozen: list[str]) -> None:
    (phase,) = phases(blocks(3), **options)
    assert [name for name, rate in rates(phase).items() if rate == 0] == frozen
    assert {g.name for g in phase.table.groups if not g.trainable} == {f"{name}.frozen" for name in frozen}


@pytest.mark.parametrize("key", ["freeze_layers", "trainable_layers"])
def test_more_blocks_than_there_are(key: str) -> None:
    with pytest.raises(ModelError, match=rf"strategy.{key} is 4, but this model has 3 blocks; write 3 or less"):
        phases(blocks(3), **{key: 4})


def test_what_is_new_trains_wherever_it_lies() -> None:
    parameters = blocks(2)
    new = Parameter("token_type", (2, 2), 0, "embeddings", decays=True, newly_initialized=True, module="Embedding")
    (phase,) = phases([*parameters, new], freeze_layers=2, layer_decay=0.5)
    assert rates(phase)["token_type"] == 0.00125 and rates(phase)["embeddings"] == 0


# --- tied and shared tensors -----------------------------------------------------------------------------------------


def tied() -> list[Parameter]:
    config = tf.GPT2Config(vocab_size=20, n_embd=16, n_head=2, n_layer=2, n_positions=16, tie_word_embeddings=True)
    return list(list_parameters(tf.GPT2LMHeadModel(config)))


def test_a_tied_tensor_takes_the_larger_of_its_two_rates() -> None:
    wte, wpe = "transformer.wte.weight", "transformer.wpe.weight"
    (phase,) = phases(tied(), layer_decay=0.5)
    assert (rates(phase)[wte], rates(phase)[wpe]) == (1e-2, 1.25e-3)
    (phase,) = phases(tied(), layer_decay=0.5, head_lr_mult=0.05)
    assert (rates(phase)[wte], rates(phase)[wpe]) == (1.25e-3, 1.25e-3)


def test_a_tied_tensor_trains_with_its_head() -> None:
    (phase,) = phases(tied(), freeze_layers=2, layer_decay=0.5)
    assert trains(phase) == ["transformer.wte.weight", "transformer.ln_f.weight", "transformer.ln_f.bias"]


def test_a_tied_tensor_has_one_rate_in_all_stages() -> None:
    found = phases(tied(), layer_decay=0.5, head_lr_mult=0.05, gradual_unfreezing={})
    assert {rates(phase)["transformer.wte.weight"] for phase in found} == {1.25e-3}


@pytest.mark.parametrize("options", [{}, {"freeze_layers": 1}, {"gradual_unfreezing": {}}])
def test_layers_that_share_weights_are_refused(options: dict[str, Any]) -> None:
    with torch.device("meta"):
        model = tf.AlbertForSequenceClassification(tf.AlbertConfig(vocab_size=20, embedding_size=8, **SMALL))
    with pytest.raises(ModelError, match=r"share their weights .*albert_layers.0.* use strategy.type full"):
        phases(list(list_parameters(model)), **options)


def test_albert_with_a_group_for_each_layer_is_not_refused() -> None:
    config = tf.AlbertConfig(vocab_size=20, embedding_size=8, num_hidden_groups=2, **SMALL)
    with torch.device("meta"):
        model = tf.AlbertForSequenceClassification(config)
    (phase,) = phases(list(list_parameters(model)), freeze_layers=1)
    assert not any("albert_layer_groups.0." in name for name in trains(phase))
    assert any("albert_layer_groups.1." in name for name in trains(phase))


def test_a_model_without_blocks() -> None:
    with pytest.raises(ModelError, match=r"strategy.type is layerwise, but no numbered blocks"):
        phases(blocks(0))


# --- gradual unfreezing ----------------------------------------------------------------------------------------------


def stages(**options: Any) -> list[tuple[str, list[str], float | None]]:
    gradual = options.pop("gradual_unfreezing", {})
    return [
        (phase.name, sorted(set(trains(phase)) - {"head", "tail"}), phase.epochs)
        for phase in phases(blocks(3), gradual_unfreezing=gradual, **options)
    ]


def test_stages_from_the_top_down() -> None:
    assert stages(gradual_unfreezing={"epochs_per_stage": 0.5}) == [
        ("stage 1 of 4: head", [], 0.5),
        ("stage 2 of 4: block 3", ["block.3"], 0.5),
        ("stage 3 of 4: blocks 2 and above", ["block.2", "block.3"], 0.5),
        ("stage 4 of 4: everything", ["block.1", "block.2", "block.3", "embeddings"], None),
    ]


def test_stages_of_several_blocks() -> None:
    assert stages(gradual_unfreezing={"blocks_per_stage": 2}) == [
        ("stage 1 of 3: head", [], 1.0),
        ("stage 2 of 3: blocks 2 and above", ["block.2", "block.3"], 1.0),
        ("stage 3 of 3: everything", ["block.1", "block.2", "block.3", "embeddings"], None),
    ]
    assert [blocks for _, blocks, _ in stages(gradual_unfreezing={"blocks_per_stage": 99})] == [
        [], ["block.1", "block.2", "block.3", "embeddings"],
    ]  # fmt: skip


def test_stages_stop_above_what_is_frozen() -> None:
    assert stages(freeze_layers=1) == [
        ("stage 1 of 3: head", [], 1.0),
        ("stage 2 of 3: block 3", ["block.3"], 1.0),
        ("stage 3 of 3: blocks 2 and above", ["block.2", "block.3"], None),
    ]
    assert stages(embeddings="freeze")[-1] == (
        "stage 4 of 4: blocks 1 and above",
        ["block.1", "block.2", "block.3"],
        None,
    )
    assert stages(freeze_layers=2, embeddings="train")[-1] == (
        "stage 2 of 2: blocks 3 and above, embeddings", ["block.3", "embeddings"], None,
    )  # fmt: skip
    assert stages(freeze_layers=3, embeddings="train")[-1] == ("stage 2 of 2: embeddings", ["embeddings"], None)


@pytest.mark.parametrize("family", ["bert", "resnet"])
def test_a_parameter_has_one_group_and_one_rate_in_all_stages(family: str) -> None:
    """One schedule runs over all stages, and the optimizer's state is carried from one to the next."""
    model = families.build(family)
    new = {*families.head_names(family, model), next(name for name, _ in model.named_parameters())}
    found = phases(list(list_parameters(model, newly_initialized=new)), gradual_unfreezing={})
    where: dict[str, set[tuple[str, float, float]]] = {}
    for phase in found:
        for group in phase.table.trainable:
            for name in group.parameters:
                where.setdefault(name, set()).add((group.name, group.lr, group.weight_decay))
    assert all(len(places) == 1 for places in where.values())
    assert set(where) == {name for name, _ in model.named_parameters()}
    assert new <= set(trains(found[0]))
    for earlier, later in pairwise(found):
        assert set(trains(earlier)) < set(trains(later))
        known = {group.name: group.parameters for group in later.table.trainable}
        assert all(known[group.name] == group.parameters for group in earlier.table.trainable)


def test_nothing_to_unfreeze() -> None:
    with pytest.raises(ModelError, match=r"gradual_unfreezing has no effect: all 3 blocks"):
        stages(freeze_layers=3)


@pytest.mark.parametrize(("epochs", "fits"), [(3, False), (3.5, True)])
def test_the_run_has_to_reach_the_last_stage(epochs: float, fits: bool) -> None:
    strategy = recipe({"num_train_epochs": epochs}, gradual_unfreezing={})
    if fits:
        assert len(Layerwise().phases(blocks(3), strategy)) == 4
    else:
        with pytest.raises(ModelError, match=r"needs 3 epochs before its last stage \(4 stages.*num_train_epochs is 3"):
            Layerwise().phases(blocks(3), strategy)


# --- options that a phase carries on ---------------------------------------------------------------------------------


def test_batch_norm_and_dropout_and_evaluation_mode_reach_every_phase() -> None:
    dropout = {"input": 0.0, "output": 0.2}
    found = phases(
        blocks(2, kind="BatchNorm1d"),
        batch_norm="frozen_statistics",
        dropout=dropout,
        frozen_eval=True,
        gradual_unfreezing={},
    )
    assert {(p.batch_norm, p.dropout, p.frozen_eval) for p in found} == {("frozen_statistics", (0.0, 0.2), True)}


def test_frozen_batch_norm_keeps_its_weights() -> None:
    model = families.build("resnet")
    norms = {
        f"{path}.{n}"
        for path, m in model.named_modules()
        if isinstance(m, torch.nn.BatchNorm2d)
        for n in ("weight", "bias")
    }
    (phase,) = phases(list(list_parameters(model)), batch_norm="frozen")
    assert set(trains(phase)) == {name for name, _ in model.named_parameters()} - norms and norms
    (phase,) = phases(list(list_parameters(model)), batch_norm="frozen_statistics")
    assert norms < set(trains(phase))


def test_options_without_effect_in_this_model() -> None:
    with pytest.raises(ModelError, match=r"batch_norm is frozen, but this model has no BatchNorm"):
        phases(blocks(2), batch_norm="frozen")
    with pytest.raises(ModelError, match=r"frozen_eval is true, but nothing is frozen"):
        phases(blocks(2), frozen_eval=True)
