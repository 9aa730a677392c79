"""Models by name and by numbers: planning that reads nothing, training that refuses other numbers, random weights by request."""

from __future__ import annotations

import json
import socket
import time
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

from launcher.errors import ModelError, ModelUnreachable
from launcher.recipe.load import load_recipe
from launcher.recipe.schema import ModelSection, Recipe
from launcher.tasks.causal_lm import CausalLM
from launcher.tasks.models import config_from_numbers, load_config, load_model, load_tokenizer
from launcher.tasks.text_classification import TextClassification

BERT = {
    "model_type": "bert", "vocab_size": 128, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 64, "max_position_embeddings": 64,
}  # fmt: skip
NOWHERE = "nobody/no-such-model"


def section(name: str | None = NOWHERE, **fields: Any) -> ModelSection:
    return ModelSection(name_or_path=name, **fields)


def recipe(task: str, **sections: Any) -> Recipe:
    return Recipe.model_validate(tiny.recipe_values("m", "s", task={"type": task}, **sections))


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_bert(tmp_path_factory.mktemp("model") / "bert")


# --- numbers ---------------------------------------------------------------------------------------------------------


def test_numbers_are_a_configuration() -> None:
    config = config_from_numbers(section(config=BERT))
    assert (config.model_type, config.hidden_size, config.num_hidden_layers) == ("bert", 32, 2)
    assert config_from_numbers(section(config={"hidden_size": 32})) is None and config_from_numbers(section()) is None


def test_rope_by_its_earlier_names() -> None:
    rope = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    rope["original_max_position_embeddings"] = 8192  # type: ignore[assignment]
    new = config_from_numbers(section(config={"model_type": "llama", "rope_parameters": {**rope, "rope_theta": 5e5}}))
    old = config_from_numbers(section(config={"model_type": "llama", "rope_theta": 5e5, "rope_scaling": rope}))
    assert new.rope_parameters == old.rope_parameters


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        ({"model_type": "lama"}, "did you mean llama"),
        ({**BERT, "hiden_size": 3}, "model.config.hiden_size is not a field of BertConfig; did you mean hidden_size"),
        ({**BERT, "hidden_size": "x"}, "expected int"),
        ({"model_type": "llama", "num_attention_heads": 7}, "not a multiple"),
    ],
)
def test_numbers_that_are_none(numbers: dict[str, Any], words: str) -> None:
    with pytest.raises(ModelError, match=words):
        config_from_numbers(section(config=numbers))


def test_single_fields_are_set_on_the_model_s_own(bert: Path) -> None:
    config = load_config(section(str(bert), config={"hidden_dropout_prob": 0.3}), num_labels=5)
    assert (config.hidden_dropout_prob, config.num_labels, config.hidden_size) == (0.3, 5, 32)
    with pytest.raises(ModelError, match="rope_theta is not a field"):
        load_config(section(str(bert), config={"rope_theta": 3.0}))


def test_other_numbers_than_the_model_s_are_refused(bert: Path) -> None:
    assert load_config(section(str(bert), config={**BERT, "hidden_dropout_prob": 0.0})).hidden_size == 32
    for skeleton in (True, False):
        with pytest.raises(ModelError, match=r"model.config.hidden_size makes hidden_size 64.* has 32"):
            load_config(section(str(bert), config={**BERT, "hidden_size": 64}), skeleton=skeleton)


# --- without a network -----------------------------------------------------------------------------------------------


def test_numbers_and_a_name_need_no_hub() -> None:
    found = section(config=BERT)
    assert load_config(found, skeleton=True).hidden_size == 32
    for get in (load_config, load_tokenizer):
        with pytest.raises(ModelUnreachable):
            get(found)  # type: ignore[operator]


def test_a_hub_without_an_address_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)

    def no_address(*given: object, **named: object) -> None:
        raise socket.gaierror("no address")

    monkeypatch.setattr(socket, "getaddrinfo", no_address)
    started = time.time()
    with pytest.raises(ModelUnreachable, match="check the name and the network"):
        load_config(section())
    assert time.time() - started < 5


def test_a_language_model_s_skeleton_needs_neither_hub_nor_data() -> None:
    numbers = {
        "model_type": "llama",
        "vocab_size": 99,
        "hidden_size": 32,
        "num_attention_heads": 2,
        "num_hidden_layers": 2,
    }
    task = CausalLM(recipe("causal-lm", model={"name_or_path": NOWHERE, "config": numbers}))
    loaded = task.build_model(None, skeleton=True)
    assert loaded.newly_initialized == frozenset()
    assert {str(tensor.device) for tensor in loaded.model.parameters()} == {"meta"}
    assert loaded.model.get_output_embeddings().weight.shape == (99, 32)


def test_a_classifier_s_skeleton_needs_neither_hub_nor_data() -> None:
    model = {"name_or_path": NOWHERE, "config": BERT}
    for data, labels in ({}, 2), ({"labels": ["a", "b", "c"]}, 3):
        loaded = TextClassification(recipe("text-classification", model=model, data=data)).build_model(
            None, skeleton=True
        )
        assert loaded.newly_initialized == {"classifier.weight", "classifier.bias"}
        assert loaded.model.num_labels == labels


@pytest.mark.parametrize("name", ["llm/llama3-8b-full", "llm/llama3-8b-lora"])
def test_the_shipped_llama_has_its_published_size(name: str) -> None:
    found = load_recipe(name).recipe
    loaded = CausalLM(found).build_model(None, skeleton=True)
    # Llama Team 2024, "The Llama 3 Herd of Models", table 3; the count is of the weights on the hub.
    assert sum(tensor.numel() for tensor in loaded.model.parameters()) == 8_030_261_248
    assert loaded.newly_initialized == frozenset()
    assert loaded.model.config.rope_parameters["rope_type"] == "llama3"


# --- random weights --------------------------------------------------------------------------------------------------


def test_random_weights_are_all_new_and_the_seed_s(bert: Path) -> None:
    from transformers import AutoModelForCausalLM

    found = section(None, config=BERT, tokenizer_name_or_path=str(bert))
    states = []
    for _ in range(2):
        torch.manual_seed(3)
        loaded = load_model(AutoModelForCausalLM, found, load_config(found))
        states.append(loaded.model.state_dict())
        assert loaded.newly_initialized == {name for name, _ in loaded.model.named_parameters()}
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert len(load_tokenizer(found)) > 60


def test_a_checkpoint_of_another_size_is_refused_where_no_head_is_the_task_s(bert: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, BertLMHeadModel

    BertLMHeadModel(tiny.bert_config(is_decoder=True)).save_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**values, "vocab_size": 200}))
    found = section(str(tmp_path))
    with pytest.raises(ModelError, match=r"\[128, 32\] in its weights and \[200, 32\]"):
        load_model(AutoModelForCausalLM, found, load_config(found), new_head=False)
