"""What a model's own small files say against a recipe, before anything is loaded; the folders hold JSON and nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny

from launcher.recipe.examine import examine
from launcher.recipe.model_checks import check_models, model_notes
from launcher.recipe.model_files import known_architectures, local_files
from launcher.recipe.schema import Recipe

LLAMA = {"model_type": "llama"}
TOKENIZER = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": None}
SFT = {"type": "sft"}
TEMPLATE = "{{ messages[0]['content'] }}"


def write_model(folder: Path, *, config: Any = LLAMA, tokenizer: Any = TOKENIZER, **files: str) -> Path:
    """Write the small files of a model; ``files``: others, their dots written as underscores twice."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    for name, text in ({"tokenizer__json": "{}"} | files).items():
        (folder / name.replace("__", ".")).write_text(text)
    return folder


def recipe(model: Path | str, task: dict[str, Any] | None = None, **fields: Any) -> Recipe:
    values = tiny.recipe_values(str(model), "s", task=task or {"type": "causal-lm"})
    values["model"] = {"name_or_path": str(model), **fields}
    return Recipe.model_validate(values)


def faults(found: Recipe) -> list[tuple[str, str, str]]:
    return [(one.key, one.found, one.remedy) for one in check_models(found) if one.is_fault]


def test_nothing_is_wrong_with_a_whole_model(tmp_path: Path) -> None:
    model = write_model(tmp_path / "m")
    assert list(check_models(recipe(model))) == [] and model_notes(recipe(model)) == []


def test_the_architectures_are_those_of_transformers() -> None:
    from transformers import CONFIG_MAPPING

    assert known_architectures() == set(CONFIG_MAPPING)


def test_an_architecture_that_nobody_knows(tmp_path: Path) -> None:
    ((key, found, remedy),) = faults(recipe(write_model(tmp_path / "m", config={"model_type": "lama"})))
    assert key == "model.name_or_path" and "whose model_type is 'lama'" in found and "did you mean" in found
    assert "version of transformers" in remedy
    # As transformers does it, a model without a type is told by its name.
    assert faults(recipe(write_model(tmp_path / "my-bert", config={"hidden_size": 3}))) == []
    assert "model_type is None" in faults(recipe(write_model(tmp_path / "x", config={"hidden_size": 3})))[0][1]


def test_code_of_its_own_needs_trust(tmp_path: Path) -> None:
    own = {"model_type": "mine", "auto_map": {"AutoConfig": "configuration_mine.MineConfig"}}
    model = write_model(tmp_path / "m", config=own)
    ((key, found, remedy),) = faults(recipe(model))
    assert key == "model.trust_remote_code" and "runs code of its own" in found
    assert "model.trust_remote_code: true" in remedy
    assert faults(recipe(model, trust_remote_code=True)) == []
    # Of an architecture that transformers has, its code is taken.
    assert faults(recipe(write_model(tmp_path / "n", config={**own, "model_type": "llama"}))) == []


@pytest.mark.parametrize("task", ["sft", "preference", "reward"])
def test_conversations_need_a_chat_template(tmp_path: Path, task: str) -> None:
    model = write_model(tmp_path / "m")
    ((key, found, remedy),) = faults(recipe(model, {"type": task}))
    assert key == "task.chat_template" and "has no chat template" in found and "task.chat_template: chatml" in remedy
    assert faults(recipe(model, {"type": task, "chat_template": "chatml"})) == []


@pytest.mark.parametrize(
    "tokenizer", [{"chat_template": TEMPLATE}, {"chat_template": [{"name": "default", "template": TEMPLATE}]}]
)
def test_chat_templates_in_the_tokenizer_s_configuration(tmp_path: Path, tokenizer: dict[str, Any]) -> None:
    assert faults(recipe(write_model(tmp_path / "m", tokenizer=TOKENIZER | tokenizer), SFT)) == []


def test_chat_templates_in_files_of_their_own(tmp_path: Path) -> None:
    assert faults(recipe(write_model(tmp_path / "m", chat_template__jinja=TEMPLATE), SFT)) == []
    model = write_model(tmp_path / "n")
    (model / "additional_chat_templates").mkdir()
    (model / "additional_chat_templates/tool_use.jinja").write_text(TEMPLATE)
    assert len(faults(recipe(model, SFT))) == 1
    (model / "additional_chat_templates/default.jinja").write_text(TEMPLATE)
    assert faults(recipe(model, SFT)) == []


MARKED = "{% for m in messages %}{%- generation -%}{{ m.content }}{% endgeneration %}{% break %}{% endfor %}"


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (MARKED, None),
        ("{{ messages[0 }}", "it is no Jinja that can be read (line 1: unexpected '}', expected ']')"),
        ("one\n{{ x | nosuch }}", "(line 2: No filter named 'nosuch'.)"),
        (" \n", "it is empty"),
    ],
)
def test_a_chat_template_that_cannot_be_read(source: str, said: str | None, tmp_path: Path) -> None:
    own = recipe(write_model(tmp_path / "m", chat_template__jinja=source), SFT)
    (tmp_path / "named.jinja").write_text(source)
    task = {**SFT, "chat_template": str(tmp_path / "named.jinja")}
    named = tiny.write_recipe(tmp_path / "r.yaml", tiny.recipe_values(str(tmp_path / "m"), "s", task=task))
    problems = [one.message for one in examine(named)[1] if one.key == "task.chat_template"]
    if said is None:
        assert not problems and not faults(own)
    else:
        [(key, found, remedy)] = faults(own)
        assert key == "task.chat_template" and found.endswith(said) and "mend it, or write task.chat_template" in remedy
        assert problems[0].endswith(said) and "task.chat_template is " in problems[0]


def test_a_template_in_the_configuration_that_cannot_be_read(tmp_path: Path) -> None:
    for template in ("{{ x[ }}", [{"name": "default", "template": "{{ x[ }}"}]):
        model = write_model(tmp_path / "m", tokenizer=TOKENIZER | {"chat_template": template})
        assert "no Jinja" in faults(recipe(model, SFT))[0][1]


def test_a_run_says_it_in_the_same_words(tmp_path: Path) -> None:
    from launcher.errors import ModelError
    from launcher.tasks.chat_templates import with_chat_template

    ((_, found, remedy),) = faults(recipe(write_model(tmp_path / "m"), SFT))
    tokenizer = type("Tokenizer", (), {"chat_template": None})()
    with pytest.raises(ModelError) as told:
        with_chat_template(tokenizer, None, base_folder=tmp_path)
    assert found.startswith(str(told.value).split(";")[0]) and str(told.value).endswith(remedy)


def test_what_stands_for_a_pad_token(tmp_path: Path) -> None:
    none = {"tokenizer_class": "PreTrainedTokenizerFast"}
    with_end = write_model(tmp_path / "m", tokenizer={**none, "eos_token": {"content": "</s>", "lstrip": False}})
    (note,) = model_notes(recipe(with_end))
    assert "names no pad token: </s> stands for it" in note and faults(recipe(with_end)) == []
    without = recipe(write_model(tmp_path / "n", tokenizer=none))
    ((key, found, remedy),) = faults(without)
    assert key == "model.name_or_path" and "no pad token" in found and "pad_token" in remedy
    assert any("names no end token" in note for note in model_notes(without))
    # Other classes have tokens that their files need not name; and the map beside names some.
    assert faults(recipe(write_model(tmp_path / "o", tokenizer={"tokenizer_class": "BertTokenizer"}))) == []
    beside = write_model(
        tmp_path / "p", tokenizer=none, special_tokens_map__json='{"pad_token": "x", "eos_token": "y"}'
    )
    assert list(check_models(recipe(beside))) == []


def test_no_tokenizer_and_one_that_is_made_at_each_start(tmp_path: Path) -> None:
    model = write_model(tmp_path / "m")
    (model / "tokenizer.json").unlink()
    ((_, found, remedy),) = faults(recipe(model))
    assert "has no files of a tokenizer" in found and "model.tokenizer_name_or_path" in remedy
    other = write_model(tmp_path / "other")
    assert faults(recipe(model, tokenizer_name_or_path=str(other))) == []
    (model / "tokenizer.model").write_bytes(b"")
    assert faults(recipe(model)) == [] and "has no tokenizer.json" in model_notes(recipe(model))[0]


TIED = LLAMA | {"tie_word_embeddings": True, "vocab_size": 4}
VOCABULARY = {"model": {"vocab": {"a": 0, "b": 1}}, "added_tokens": [{"content": "</s>"}, {"content": "<|im_end|>"}]}


def adapted(model: Path, template: str, strategy: str = "lora", **fields: Any) -> Recipe:
    found = recipe(model, SFT | {"chat_template": template}, **fields)
    values = found.model_dump(by_alias=True)
    return Recipe.model_validate(values | {"strategy": {"type": strategy}})


def test_tokens_of_a_template_need_embeddings_that_can_train(tmp_path: Path) -> None:
    model = write_model(tmp_path / "m", config=TIED, tokenizer__json=json.dumps(VOCABULARY))
    ((key, found, remedy),) = faults(adapted(model, "chatml"))
    assert key == "task.chat_template" and "chatml, which adds <|im_start|>, but" in found and "plain" in remedy
    assert "strategy.type lora" in found and "strategy: full" in remedy
    for one in (adapted(model, "plain"), adapted(model, "chatml", "full"), adapted(model, "chatml", "discriminative")):
        assert bool(faults(one)) == (one.strategy.type == "discriminative")
    untied = {"tie_word_embeddings": False}
    with_room = write_model(tmp_path / "n", config=TIED | {"vocab_size": 5}, tokenizer__json=json.dumps(VOCABULARY))
    apart = write_model(tmp_path / "o", config=TIED | untied, tokenizer__json=json.dumps(VOCABULARY))
    unsaid = write_model(tmp_path / "p", config=LLAMA, tokenizer__json=json.dumps(VOCABULARY))
    for one in (with_room, apart, unsaid):
        assert faults(adapted(one, "chatml")) == []


def test_vocabularies_of_other_forms(tmp_path: Path) -> None:
    pairs = {"model": {"vocab": [["a", 0.5], ["b", 0.5], ["c", 0.1], ["d", 0.1]]}}
    model = write_model(tmp_path / "m", config=TIED, tokenizer__json=json.dumps(pairs))
    assert "adds <start_of_turn>, <end_of_turn>" in faults(adapted(model, "gemma"))[0][1]
    model = write_model(tmp_path / "n", config=TIED, tokenizer__json=json.dumps({"model": [1]}))
    assert "does not list tokens" in faults(adapted(model, "gemma"))[0][1]


def test_an_output_layer_that_is_the_embeddings_does_not_train_alone(tmp_path: Path) -> None:
    model = write_model(tmp_path / "m", config=TIED)
    ((key, found, remedy),) = faults(adapted(model, "plain", "head"))
    assert key == "strategy.type" and "would change the features" in found and "lora" in remedy
    # A reward model's head is its own.
    rewards = recipe(model, {"type": "reward", "chat_template": "plain"}).model_dump(by_alias=True)
    assert faults(Recipe.model_validate(rewards | {"strategy": {"type": "head"}})) == []


def test_files_that_are_no_json(tmp_path: Path) -> None:
    ((_, found, _),) = faults(recipe(write_model(tmp_path / "m", config='{"model_type": ')))
    assert "its config.json cannot be read" in found
    assert "holds no JSON object" in faults(recipe(write_model(tmp_path / "n", config="[]")))[0][1]


def test_images_need_no_tokenizer(tmp_path: Path) -> None:
    model = write_model(tmp_path / "m", config={"model_type": "vit"}, tokenizer={})
    (model / "tokenizer.json").unlink()
    assert list(check_models(recipe(model, {"type": "image-classification"}))) == []


# --- the hub's cache ---------------------------------------------------------------------------------------------------


def cached(home: Path, *, absent: tuple[str, ...] = ()) -> Path:
    """Lay out huggingface_hub's cache for NOBODY/MODEL at a commit that main means; ``absent``: looked for in vain."""
    place, commit = home / "hub/models--nobody--model", "c" * 40
    (place / "refs").mkdir(parents=True)
    (place / "refs/main").write_text(commit)
    for name in absent:
        (place / ".no_exist" / commit).mkdir(parents=True, exist_ok=True)
        (place / ".no_exist" / commit / name).touch()
    return write_model(place / "snapshots" / commit)


def test_the_cache_is_read_as_far_as_it_tells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    assert local_files("nobody/model") is None
    ((note),) = model_notes(recipe("nobody/model", SFT))
    assert "nobody/model is not on this machine" in note and "launcher doctor" in note
    cached(tmp_path)
    # Whether there is a template in a file of its own was never asked.
    assert list(check_models(recipe("nobody/model", SFT))) == []
    assert local_files("nobody/model", "other") is None and local_files("nobody/model", "c" * 40) is not None


def test_the_cache_knows_what_the_hub_does_not_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    cached(tmp_path, absent=("chat_template.jinja",))
    assert [key for key, _, _ in faults(recipe("nobody/model", SFT))] == ["task.chat_template"]


# --- the verbs ---------------------------------------------------------------------------------------------------------


def test_every_verb_refuses_it_at_its_place(tmp_path: Path) -> None:
    values = tiny.recipe_values(str(write_model(tmp_path / "m")), "s", task={"type": "sft"})
    path = tiny.write_recipe(tmp_path / "r.yaml", values)
    (problem,) = [one for one in examine(path)[1] if one.key == "task.chat_template"]
    assert problem.place.startswith(f"{path}:") and "chatml" in problem.remedy


def test_check_imports_neither_torch_nor_transformers_nor_the_hub_s_client(tmp_path: Path) -> None:
    import subprocess
    import sys

    values = tiny.recipe_values(str(write_model(tmp_path / "m")), "s", task={"type": "sft", "chat_template": "chatml"})
    path = tiny.write_recipe(tmp_path / "r.yaml", values)
    code = (
        "import sys; from launcher.recipe.examine import examine; from launcher.recipe.model_checks import model_notes; "
        f"model_notes(examine({str(path)!r})[0].recipe); "
        "print(sorted({'torch', 'transformers', 'huggingface_hub', 'datasets'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr
