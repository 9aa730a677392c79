"""Adapters: the planned names are the real ones, and what is merged or saved computes what was trained."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import families
import pytest
import torch
from peft import PeftModel
from transformers import Trainer, TrainingArguments

from launcher.contracts import AdapterPlan, Parameter
from launcher.errors import ModelError
from launcher.strategies.adapters import (
    adapted_parameters,
    attach,
    load_adapter_weights,
    merged,
    merged_from_state,
    part_of,
    save_adapter,
    target_of,
)
from launcher.strategies.layers import list_parameters
from launcher.strategies.targets import find_targets, module_of, modules_to_save_for, resolve_pattern

LINEAR_FAMILIES = [name for name in families.FAMILIES if name != "resnet"]
KINDS: dict[str, dict[str, Any]] = {
    "lora": {},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "pissa": {"init_lora_weights": "pissa"},
    "olora": {"init_lora_weights": "olora"},
}


def parameters_of(name: str) -> tuple[Parameter, ...]:
    model = families.build(name)
    return list_parameters(model, newly_initialized=families.head_names(name, model))


def plan_for(
    parameters: tuple[Parameter, ...], *, pattern: Mapping[str, int] | None = None, **options: Any
) -> AdapterPlan:
    """Adapters of rank 4, or as ``pattern`` says, on every linear layer of the blocks; the head trains whole."""
    saved = modules_to_save_for(parameters)
    targets = find_targets(parameters, modules_to_save=saved)
    ranks = resolve_pattern(pattern or {}, targets, default=4, key="strategy.rank_pattern")
    return AdapterPlan(ranks, {name: 6.0 + rank for name, rank in ranks.items()}, saved, **options)


def shapes(model: Any) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in model.named_parameters()}


def disturb(model: Any) -> None:
    """Move what trains, as a training would."""
    random = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for _, tensor in sorted((n, t) for n, t in model.named_parameters() if t.requires_grad):
            tensor.add_(0.05 * torch.randn(tensor.shape, generator=random))


def logits(model: Any) -> torch.Tensor:
    batch = families.inputs(model if not isinstance(model, PeftModel) else model.get_base_model())
    with torch.no_grad():
        return model.eval()(**{k: v for k, v in batch.items() if k != "labels"}).logits


# --- names and shapes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LINEAR_FAMILIES)
def test_planned_parameters_are_those_of_the_attached_model(name: str) -> None:
    plain = parameters_of(name)
    first = next(iter(plan_for(plain).ranks))
    for options in (*list(KINDS.values())[:3], {"pattern": {re.escape(first): 2}}):
        plan = plan_for(plain, **options)
        with warnings.catch_warnings():
            warnings.filterwarnings("error", category=UserWarning)
            model = attach(families.build(name), plan)
        planned = {p.name: p.shape for p in adapted_parameters(plain, plan)}
        assert planned == shapes(model)
        trains = {n for n, tensor in model.named_parameters() if tensor.requires_grad}
        assert trains == {n for n in planned if part_of(n)}
        assert {target_of(n) for n in trains if part_of(n) != "whole"} == set(plan.ranks)


def test_convolutions_and_embeddings_when_named() -> None:
    for name, targets, dora in (
        ("resnet", ["convolution"], False), ("resnet", ["convolution"], True),
        ("bert", ["word_embeddings", "query"], False), ("bert", ["word_embeddings", "query"], True),
    ):  # fmt: skip
        plain = parameters_of(name)
        saved = modules_to_save_for(plain)
        found = find_targets(plain, target_modules=targets, modules_to_save=saved)
        assert {p.module for p in found} == ({"Conv2d"} if name == "resnet" else {"Embedding", "Linear"})
        ranks = {module_of(p): 3 for p in found}
        plan = AdapterPlan(ranks, dict.fromkeys(ranks, 6.0), saved, use_dora=dora)
        model = attach(families.build(name), plan)
        assert {p.name: p.shape for p in adapted_parameters(plain, plan)} == shapes(model)
        disturb(model)
        before = logits(model)
        torch.testing.assert_close(logits(merged(model)), before, atol=1e-5, rtol=1e-5)


def test_depth_role_decay_and_newness_are_carried_over() -> None:
    plain = parameters_of("bert")
    found = {p.name: p for p in adapted_parameters(plain, plan_for(plain, use_dora=True))}
    stem = "base_model.model.bert.encoder.layer.1.attention.self.query"
    a, b = found[f"{stem}.lora_A.default.weight"], found[f"{stem}.lora_B.default.weight"]
    assert (a.depth, a.role, a.decays, a.component) == (2, "block", True, "attention")
    assert b.decays and not found[f"{stem}.lora_magnitude_vector.default.weight"].decays
    assert not found[f"{stem}.base_layer.bias"].decays
    copy, original = (
        found[f"base_model.model.classifier.{n}.weight"] for n in ("modules_to_save.default", "original_module")
    )
    assert (copy.newly_initialized, original.newly_initialized, copy.role) == (True, False, "head")


def test_a_rank_of_zero_is_no_adapter() -> None:
    plain = parameters_of("bert")
    plan = plan_for(plain)
    without = next(iter(plan.ranks))
    plan = replace(plan, ranks={**plan.ranks, without: 0})
    model = attach(families.build("bert"), plan)
    assert {p.name: p.shape for p in adapted_parameters(plain, plan)} == shapes(model)
    assert f"base_model.model.{without}.weight" in shapes(model)


# --- which modules -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LINEAR_FAMILIES)
def test_all_linear_is_every_linear_layer_of_the_blocks(name: str) -> None:
    model = families.build(name)
    plain = parameters_of(name)
    blocks = {module_of(p) for p in plain if p.role == "block"}
    linear = {n for n, m in model.named_modules() if type(m).__name__ in ("Linear", "Conv1D")}
    assert {module_of(p) for p in find_targets(plain)} == linear & blocks
    assert find_targets(plain) == find_targets(plain, target_modules="all-linear")


def test_all_linear_of_a_model_without_linear_layers_says_what_it_has() -> None:
    with pytest.raises(ModelError, match=r"no linear layers; name some of those.*convolution"):
        find_targets(parameters_of("resnet"), modules_to_save=("classifier.1",))


def names(found: tuple[Parameter, ...]) -> list[str]:
    return [module_of(p) for p in found]


def test_names_match_ends_at_dots_and_expressions_match_whole_names() -> None:
    plain = parameters_of("bert")
    queries = [f"bert.encoder.layer.{i}.attention.self.query" for i in range(3)]
    assert names(find_targets(plain, target_modules=["query"])) == queries
    assert names(find_targets(plain, target_modules=["self.query"])) == queries
    assert names(find_targets(plain, target_modules=r".*\.layer\.[12]\..*\.query")) == queries[1:]
    assert names(find_targets(plain, target_modules=["query", "key"], exclude_modules=["key"])) == queries
    with pytest.raises(ModelError, match="'uery' matches no layer that can have an adapter; did you mean query"):
        find_targets(plain, target_modules=["uery"])
    with pytest.raises(ModelError, match="'layer.1' matches no layer"):
        find_targets(plain, target_modules="layer.1")
    with pytest.raises(ModelError, match="no regular expression"):
        find_targets(plain, target_modules="layer(")
    with pytest.raises(ModelError, match="exclude_modules names 'quary', which excludes nothing; did you mean query"):
        find_targets(plain, exclude_modules=["quary"])
    with pytest.raises(ModelError, match="excludes every module"):
        find_targets(plain, target_modules=["query"], exclude_modules=["self.query"])
    with pytest.raises(ModelError, match="'classifier' is classifier, which trains whole"):
        find_targets(plain, target_modules=["classifier"], modules_to_save=("classifier",))


def test_patterns_by_the_first_key_that_matches() -> None:
    targets = find_targets(parameters_of("bert"), target_modules=["query", "key"])
    found = resolve_pattern({r"layer\.0\..*": 2, "query": 3}, targets, default=8, key="strategy.rank_pattern")
    assert sorted(found.values()) == [2, 2, 3, 3, 8, 8]
    with pytest.raises(ModelError, match=r"strategy.rank_pattern: 'quer' matches no layer.*did you mean query"):
        resolve_pattern({"quer": 2}, targets, default=8, key="strategy.rank_pattern")
    with pytest.raises(ModelError, match="'self.query' has no effect"):
        resolve_pattern({"query": 2, "self.query": 3}, targets, default=8, key="strategy.rank_pattern")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("bert", ["classifier"]),
        ("distilbert", ["pre_classifier", "classifier"]),
        ("roberta", ["classifier.dense", "classifier.out_proj"]),
        ("deberta-v2", ["pooler.dense", "classifier"]),
        ("t5", ["classification_head.dense", "classification_head.out_proj"]),
        ("gpt2", ["score"]),
        ("resnet", ["classifier.1"]),
    ],
)
def test_the_head_trains_whole(name: str, expected: list[str]) -> None:
    assert list(modules_to_save_for(parameters_of(name))) == expected


def test_what_trains_whole_by_name_and_by_newness() -> None:
    plain = parameters_of("bert")
    assert modules_to_save_for(plain, ["pooler"]) == ("classifier", "bert.pooler.dense")
    with pytest.raises(ModelError, match="names 'poolr', but no module's name ends so; did you mean pooler"):
        modules_to_save_for(plain, ["poolr"])
    new = tuple(replace(p, newly_initialized=p.name.startswith("bert.pooler")) for p in plain)
    assert modules_to_save_for(new) == ("bert.pooler.dense", "classifier")
    whole = modules_to_save_for(plain, ["encoder.layer.2"])
    assert not {n for n in names(find_targets(plain, modules_to_save=whole)) if ".layer.2." in n}


def test_a_module_inside_another_that_trains_whole_is_named_once() -> None:
    plain = (
        Parameter("net.token", (1, 8), 0, "embeddings", True, True),
        Parameter("net.dense.weight", (8, 8), 0, "embeddings", True, True, module="Linear"),
    )
    assert modules_to_save_for(plain) == ("net",)
    with pytest.raises(ModelError, match="token is newly initialised but lies in no module"):
        modules_to_save_for((replace(plain[0], name="token"),))


def language_model(*, tied: bool) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=40, tie_word_embeddings=tied, **special, **families.SIZES))


def test_an_output_layer_of_a_language_model_stays_as_it_is() -> None:
    for tied in (True, False):
        plain = list_parameters(language_model(tied=tied))
        assert modules_to_save_for(plain) == ()
        assert not any("lm_head" in n or "embed" in n for n in names(find_targets(plain)))


def test_a_weight_that_is_tied_to_the_output_layer_is_refused() -> None:
    plain = list_parameters(language_model(tied=True))
    with pytest.raises(ModelError, match="shares its weight with the output layer"):
        find_targets(plain, target_modules=["embed_tokens"])
    with pytest.raises(ModelError, match="is also the output layer's weight"):
        modules_to_save_for(plain, ["embed_tokens"])


@pytest.mark.parametrize("copies", [False, True])
def test_a_tied_language_model_is_merged_with_its_tie(copies: bool) -> None:
    """Also where an engine hands out tied weights as copies of each other, as DeepSpeed does."""
    model = language_model(tied=True)
    plan = plan_for(list_parameters(model))
    model = attach(model, plan)
    disturb(model)
    before = logits(model)
    with torch.device("meta"):
        skeleton = language_model(tied=True)
    state = {name: tensor.clone() if copies else tensor for name, tensor in model.state_dict().items()}
    plain = merged_from_state(skeleton, plan, state)
    assert plain.lm_head.weight is plain.model.embed_tokens.weight and plain.config.tie_word_embeddings
    torch.testing.assert_close(logits(merged(model)), before, atol=1e-6, rtol=0)


def test_a_module_that_peft_would_take_by_its_end_is_refused() -> None:
    class Two(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.query, self.score = torch.nn.Linear(4, 4), torch.nn.Linear(4, 2)
            self.inner = torch.nn.ModuleDict({"score": torch.nn.Linear(4, 2)})

    plan = AdapterPlan({"query": 2}, {"query": 2.0}, ("score",))
    with pytest.raises(ModelError, match="took inner.score otherwise than planned"):
        attach(Two(), plan)


def test_a_grouped_convolution_is_refused() -> None:
    model = torch.nn.Sequential(torch.nn.Conv2d(4, 4, 3, groups=2))
    with pytest.raises(ModelError, match="0 is a grouped convolution"):
        attach(model, AdapterPlan({"0": 2}, {"0": 2.0}))


# --- merging and saving --------------------------------------------------------------------------------------------


def skeleton(name: str) -> Any:
    with torch.device("meta"):
        return families.FAMILIES[name]()


@pytest.mark.parametrize(
    ("family", "kind"),
    [
        *(("bert", kind) for kind in KINDS),
        *(("gpt2", kind) for kind in ("lora", "dora", "pissa")),
        *(("llama", kind) for kind in ("lora", "dora")),
    ],
)
def test_the_merged_and_the_reloaded_model_compute_what_was_trained(family: str, kind: str, tmp_path: Path) -> None:
    base = families.build(family)
    base.save_pretrained(tmp_path / "base")
    start = logits(base)
    plan = plan_for(parameters_of(family), pattern={r".*\.0\..*": 2}, **KINDS[kind])
    model = attach(base, plan)
    torch.testing.assert_close(logits(model), start, atol=1e-5, rtol=0)
    disturb(model)
    trained = logits(model)
    assert (trained - start).abs().max() > 1e-2
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    merged_from_state(skeleton(family), plan, state).save_pretrained(tmp_path / "model")
    plain = type(base).from_pretrained(tmp_path / "model")
    assert shapes(plain) == shapes(families.build(family))
    torch.testing.assert_close(logits(plain), trained, atol=1e-6, rtol=0)

    on_meta = attach(skeleton(family), plan)
    on_meta.peft_config["default"].base_model_name_or_path = str(tmp_path / "base")
    save_adapter(on_meta, tmp_path / "adapter", state=state)
    loaded = PeftModel.from_pretrained(type(base).from_pretrained(tmp_path / "base"), str(tmp_path / "adapter"))
    torch.testing.assert_close(logits(loaded), trained, atol=1e-6, rtol=0)
    assert loaded.peft_config["default"].base_model_name_or_path == str(tmp_path / "base")
    again = attach(type(base).from_pretrained(tmp_path / "base"), plan)
    load_adapter_weights(again, tmp_path / "adapter")
    torch.testing.assert_close(logits(again), trained, atol=1e-6, rtol=0)


def trained_state(plan: AdapterPlan) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    model = attach(families.build("bert"), plan)
    disturb(model)
    return dict(model.state_dict()), logits(model)


def test_adapters_alone_are_merged_into_the_pretrained_weights() -> None:
    plan = plan_for(parameters_of("bert"), use_dora=True)
    state, trained = trained_state(plan)
    adapters = {name: tensor for name, tensor in state.items() if part_of(name)}
    torch.testing.assert_close(
        logits(merged_from_state(families.build("bert"), plan, adapters)), trained, atol=1e-6, rtol=0
    )


def test_weights_that_do_not_fit_are_named(tmp_path: Path) -> None:
    plain = parameters_of("bert")
    plan = plan_for(plain)
    state, _ = trained_state(plan)
    lost = "base_model.model.bert.encoder.layer.0.attention.self.query.lora_A.default.weight"
    with pytest.raises(ModelError, match=f"do not fit the model: {re.escape(lost)}"):
        merged_from_state(skeleton("bert"), plan, {k: v for k, v in state.items() if k != lost})
    with pytest.raises(ModelError, match="do not fit the model: extra"):
        merged_from_state(skeleton("bert"), plan, {**state, "extra": torch.zeros(1)})
    pissa = plan_for(plain, init_lora_weights="pissa")
    with pytest.raises(ModelError, match="began with pissa can only be merged into the weights they changed"):
        merged_from_state(families.build("bert"), pissa, {k: v for k, v in state.items() if part_of(k)})
    save_adapter(attach(families.build("bert"), plan), tmp_path)
    fewer = replace(plan, ranks={k: v for k, v in plan.ranks.items() if "query" in k})
    with pytest.raises(ModelError, match="does not fit the model"):
        load_adapter_weights(attach(families.build("bert"), fewer), tmp_path)


# --- training ------------------------------------------------------------------------------------------------------


def rows(model: Any, count: int = 8) -> list[dict[str, Any]]:
    batch = families.inputs(model, rows=count)
    return [{name: value[i] for name, value in batch.items()} for i in range(count)]


def train(model: Any, folder: Path, **options: Any) -> Trainer:
    arguments = TrainingArguments(
        output_dir=str(folder), use_cpu=True, max_steps=2, learning_rate=1e-2, report_to=[], save_strategy="no",
        per_device_train_batch_size=4, disable_tqdm=True, **options,
    )  # fmt: skip
    trainer = Trainer(model=model, args=arguments, train_dataset=rows(model.get_base_model()))
    trainer.train()
    return trainer


def test_trainer_trains_adapters_and_head_alone_with_and_without_checkpointing(tmp_path: Path) -> None:
    plan, after = plan_for(parameters_of("bert")), []
    for checkpointing in (False, True):
        base = families.build("bert")
        base.config.hidden_dropout_prob = 0.0
        for module in base.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        base.accepts_loss_kwargs = False
        torch.manual_seed(0)
        model = attach(base, plan)
        before = {name: tensor.detach().clone() for name, tensor in model.named_parameters()}
        trainer = train(
            model,
            tmp_path,
            activation_checkpointing=checkpointing,
            activation_checkpointing_kwargs={"use_reentrant": False} if checkpointing else None,
        )
        assert trainer.model_accepts_loss_kwargs is False
        moved = {name for name, tensor in model.named_parameters() if not torch.equal(tensor, before[name])}
        assert moved == {name for name in before if part_of(name)}
        after.append({name: tensor.detach().clone() for name, tensor in model.named_parameters()})
    for name, tensor in after[0].items():
        torch.testing.assert_close(after[1][name], tensor)
