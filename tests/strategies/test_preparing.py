"""A model as a phase trains it: what requires gradients, what stays in evaluation mode, and dropout by depth."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import families
import pytest
import torch

from launcher.contracts import AdapterPlan, Phase, TuningTable
from launcher.errors import ModelError
from launcher.recipe.schema import Recipe
from launcher.registry import STRATEGIES, load
from launcher.strategies.layers import block_modules, list_parameters
from launcher.strategies.preparing import modules_kept_in_eval, prepare_model


def phases_of(family: str, model: Any, **options: Any) -> tuple[Phase, ...]:
    values = {"version": 1, "name": "a", "task": {"type": "text-classification"}, "model": {"name_or_path": "m"},
              "data": {"source": "d"}, "training": {"learning_rate": 1e-2, "num_train_epochs": 9},
              "strategy": {"type": "layerwise", **options}}  # fmt: skip
    parameters = list_parameters(model, newly_initialized=families.head_names(family, model))
    strategy = load(STRATEGIES, values["strategy"]["type"])()
    found: tuple[Phase, ...] = strategy.phases(parameters, Recipe.model_validate(values))
    return found


def ready(family: str, **options: Any) -> tuple[Any, Phase, dict[int, str]]:
    """Return a prepared model in training mode with its frozen part in evaluation mode, the phase, and names of modules."""
    model = families.build(family)
    phase = phases_of(family, model, **options)[0]
    model = prepare_model(model, phase)
    model.train()
    for module in modules_kept_in_eval(model, phase):
        module.eval()
    return model, phase, {id(module): path for path, module in model.named_modules()}


def kept(family: str, **options: Any) -> list[str]:
    model, phase, names = ready(family, **options)
    return [names[id(module)] for module in modules_kept_in_eval(model, phase)]


# --- what requires gradients -----------------------------------------------------------------------------------------


def test_a_model_can_be_prepared_for_one_phase_after_another() -> None:
    model = families.build("bert")
    for phase in phases_of("bert", model, gradual_unfreezing={}):
        assert prepare_model(model, phase) is model
        trains = {name for group in phase.table.trainable for name in group.parameters}
        assert {name for name, tensor in model.named_parameters() if tensor.requires_grad} == trains


@pytest.mark.parametrize("fault", ["missing", "unknown", "twice"])
def test_a_table_of_another_model_is_noticed(fault: str) -> None:
    model = families.build("bert")
    (phase,) = phases_of("bert", model)
    first, *rest = phase.table.groups
    names = {"missing": first.parameters[1:], "unknown": (*first.parameters, "no.such"),
             "twice": (*first.parameters, first.parameters[0])}[fault]  # fmt: skip
    wrong = replace(phase, table=TuningTable((replace(first, parameters=names), *rest)))
    with pytest.raises(AssertionError, match="tuning table"):
        prepare_model(model, wrong)


# --- evaluation mode -------------------------------------------------------------------------------------------------


def test_nothing_is_kept_unless_asked() -> None:
    assert kept("bert", freeze_layers=1) == []


@pytest.mark.parametrize(
    ("family", "options", "modules"),
    [
        ("bert", {"freeze_layers": 1}, ["bert.embeddings", "bert.encoder.layer.0"]),
        ("bert", {"trainable_layers": 0}, ["bert.embeddings", "bert.encoder"]),
        ("bert", {"freeze_layers": 1, "embeddings": "train"}, ["bert.encoder.layer.0"]),
        ("roberta", {"trainable_layers": 0}, ["roberta"]),
        # GPT-2's dropout of the embeddings is a module beside them.
        ("gpt2", {"freeze_layers": 1}, ["transformer.wte", "transformer.wpe", "transformer.drop", "transformer.h.0"]),
        ("vit", {"freeze_layers": 2}, ["vit.embeddings", "vit.layers.0", "vit.layers.1"]),
        ("resnet", {"freeze_layers": 2}, ["resnet.embedder", "resnet.encoder.stages.0"]),
    ],
)
def test_the_topmost_frozen_modules_are_kept(family: str, options: dict[str, Any], modules: list[str]) -> None:
    assert kept(family, frozen_eval=True, **options) == modules


@pytest.mark.parametrize("family", ["bert", "distilbert", "roberta", "gpt2", "vit"])
def test_a_frozen_prefix_gives_the_same_twice_while_the_rest_drops(family: str) -> None:
    model, _, _ = ready(family, freeze_layers=2, frozen_eval=True, dropout={"input": 0.5, "output": 0.5})
    outputs: list[list[torch.Tensor]] = []
    for block in block_modules(model):
        seen: list[torch.Tensor] = []
        outputs.append(seen)
        block.register_forward_hook(
            lambda _, __, out, seen=seen: seen.append(out[0] if isinstance(out, tuple) else out)
        )
    for _ in range(2):
        model(**families.inputs(model))
    assert [torch.equal(first, second) for first, second in outputs] == [True, True, False]
    assert model.training


def test_the_heads_dropout_stays_on() -> None:
    model, _, _ = ready("bert", trainable_layers=0, frozen_eval=True)
    assert model.dropout.training and model.bert.pooler.training and not model.bert.encoder.layer[2].training


def test_modes_of_a_tied_tensor_follow_both_of_its_uses() -> None:
    import transformers as tf

    model = tf.GPT2LMHeadModel(tf.GPT2Config(vocab_size=20, n_embd=16, n_head=2, n_layer=2, n_positions=16))
    (phase,) = phases_of("gpt2", model, freeze_layers=2, frozen_eval=True)
    names = {id(module): path for path, module in model.named_modules()}
    found = [names[id(module)] for module in modules_kept_in_eval(prepare_model(model, phase), phase)]
    assert found == ["transformer.wpe", "transformer.h"]


# --- BatchNorm -------------------------------------------------------------------------------------------------------


def one_step(model: Any) -> tuple[set[str], set[str]]:
    """Train one step; return the BatchNorm modules whose statistics moved, and the parameters that moved."""
    before = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model(**families.inputs(model)).loss.backward()
    optimizer.step()
    moved = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    means = {name.removesuffix(".running_mean") for name in moved if name.endswith(".running_mean")}
    return means, moved & {name for name, _ in model.named_parameters()}


def norms(model: Any) -> set[str]:
    return {path for path, module in model.named_modules() if isinstance(module, torch.nn.BatchNorm2d)}


def test_statistics_move_even_where_weights_are_frozen() -> None:
    model, _, _ = ready("resnet", freeze_layers=2)
    means, moved = one_step(model)
    assert means == norms(model) and not any(name.startswith("resnet.embedder") for name in moved)


def test_frozen_eval_holds_the_statistics_of_what_is_frozen() -> None:
    model, _, _ = ready("resnet", freeze_layers=2, frozen_eval=True)
    means, _ = one_step(model)
    assert means == {path for path in norms(model) if path.startswith("resnet.encoder.stages.1.")}


def test_frozen_statistics_stand_still_while_weights_train() -> None:
    model, _, _ = ready("resnet", batch_norm="frozen_statistics")
    means, moved = one_step(model)
    assert means == set()
    assert {f"{path}.weight" for path in norms(model)} < moved


def test_frozen_batch_norm_stands_still_altogether() -> None:
    model, _, _ = ready("resnet", batch_norm="frozen")
    means, moved = one_step(model)
    assert means == set() and not any(name.rpartition(".")[0] in norms(model) for name in moved)
    assert "resnet.embedder.embedder.convolution.weight" in moved


def test_statistics_stand_still_beside_adapters() -> None:
    """An adapter holds none: a model that was trained with others could not be put together again."""
    model = families.build("resnet")
    (phase,) = phases_of("resnet", model)
    with_adapters = replace(phase, adapters=AdapterPlan({}, {}))
    kept = {id(module) for module in modules_kept_in_eval(model, with_adapters)}
    assert kept == {id(module) for path, module in model.named_modules() if path in norms(model)}
    assert modules_kept_in_eval(model, phase) == ()


def test_batch_norm_modules_are_named_once() -> None:
    model, phase, _ = ready("resnet", batch_norm="frozen", freeze_layers=2, frozen_eval=True)
    found = modules_kept_in_eval(model, phase)
    everything = [id(module) for top in found for module in top.modules()]
    assert len(everything) == len(set(everything))


# --- dropout by depth ------------------------------------------------------------------------------------------------

WITH_DROPOUT = [name for name in families.FAMILIES if name != "resnet"]


def probabilities(block: Any) -> set[float]:
    """All dropout probabilities in a block, found by hand for the nine families."""
    found = {module.p for module in block.modules() if isinstance(module, torch.nn.Dropout)}
    for module in block.modules():
        if type(module).__name__ == "T5Attention":
            found.add(module.dropout)
        if type(module).__name__ in ("LlamaAttention", "ViTAttention"):
            found.add(module.attention_dropout)
    return found


@pytest.mark.parametrize("family", WITH_DROPOUT)
def test_dropout_is_linear_in_depth(family: str) -> None:
    model, _, _ = ready(family, dropout={"input": 0.0, "output": 0.6})
    blocks = block_modules(model)
    last = len(blocks) - 1
    found = [probabilities(block) for block in blocks]
    assert all(len(values) == 1 for values in found), "one probability in a block"
    assert [value for (value,) in found] == pytest.approx([0.6 * number / last for number in range(last + 1)])
    assert outside_blocks(model) == outside_blocks(families.build(family))


def outside_blocks(model: Any) -> list[tuple[str, float]]:
    inside = {module for block in block_modules(model) for module in block.modules()}
    found = [(path, m) for path, m in model.named_modules() if isinstance(m, torch.nn.Dropout) and m not in inside]
    return [(path, module.p) for path, module in found]


@pytest.mark.parametrize("family", WITH_DROPOUT)
def test_the_forward_pass_uses_it(family: str) -> None:
    model, _, _ = ready(family, dropout={"input": 0.0, "output": 0.9})
    first, *_, last = block_modules(model)
    assert repeats(model, first) and not repeats(model, last)


def repeats(model: Any, block: Any) -> bool:
    """Whether two passes with nothing but ``block`` in training mode give the same."""
    model.eval()
    block.train()
    with torch.no_grad():
        first, second = (model(**families.inputs(model)).logits for _ in range(2))
    return torch.equal(first, second)


def test_a_single_block_gets_the_output_probability() -> None:
    from transformers import BertConfig, BertForSequenceClassification

    sizes = {**families.SIZES, "num_hidden_layers": 1}
    model = BertForSequenceClassification(BertConfig(vocab_size=40, **sizes))
    (phase,) = phases_of("bert", model, dropout={"input": 0.1, "output": 0.4})
    (block,) = block_modules(prepare_model(model, phase))
    assert probabilities(block) == {0.4}


def test_a_model_without_dropout_in_its_blocks() -> None:
    model = families.build("resnet")
    (phase,) = phases_of("resnet", model, dropout={"input": 0.0, "output": 0.1})
    with pytest.raises(ModelError, match=r"strategy.dropout has no effect: the blocks of this model have no dropout"):
        prepare_model(model, phase)
