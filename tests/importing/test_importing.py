"""Configurations of other tools: the recipe passes its own check and means the same, and no key disappears."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
from importing.converting import converted, recipe_of
from importing.examples import AXOLOTL, EXAMPLES, LLAMAFACTORY, TRL
from ruamel.yaml import YAML
from typer.testing import CliRunner

from launcher.cli import app
from launcher.errors import RecipeError
from launcher.importing.commands import tool_of_command
from launcher.importing.conversion import Conversion
from launcher.importing.model import OUR_TEMPLATES
from launcher.importing.tools import import_recipe, written
from launcher.importing.trainer import DEFAULTS
from launcher.recipe.examine import examine
from launcher.recipe.training_fields import training_fields

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def fate(made: Conversion, key: str) -> str:
    return made.fates[key].kind


def keys_in(text: str) -> set[str]:
    """Top-level keys of a YAML text, and options of a command line."""
    if tool_of_command(text):
        return {word.lstrip("-").split("=")[0].removeprefix("no_") for word in text.split() if word.startswith("--")}
    return set(YAML(typ="safe", pure=True).load(text))


# --- every example -------------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def files_that_examples_name(in_a_folder_of_its_own):
    Path("talk").mkdir()
    Path("texts.jsonl").write_text('{"body": "a"}\n', encoding="utf-8")


@pytest.mark.parametrize(("tool", "text"), [pytest.param(t, x, id=f"{t}-{n}") for t, n, x in EXAMPLES])
def test_an_example_becomes_a_recipe_that_passes_check_with_every_key_accounted_for(tool, text):
    _, made = recipe_of(text, tool)
    assert set(made.keys) == set(made.fates)
    accounted = {re.split(r"[.\[]", key)[0] for key in made.fates}
    renamed = {"config_file": "accelerate_config"}
    assert {renamed.get(key, key) for key in keys_in(text)} <= accounted
    head = Path("recipe.yaml").read_text(encoding="utf-8").partition("\nversion:")[0]
    assert all(f"{key}:" in head for key in made.fates)


@pytest.mark.parametrize(("tool", "text"), [pytest.param(t, x, id=f"{t}-{n}") for t, n, x in EXAMPLES])
def test_a_key_that_nobody_knows_is_listed(tool, text):
    if tool_of_command(text):
        text = text.rstrip() + " --never_heard_of 3\n"
    else:
        text += "never_heard_of: 3\n"
    made = converted(text, tool)
    assert fate(made, "never_heard_of") == "not translated"
    assert "does not know" in made.fates["never_heard_of"].text


@pytest.mark.parametrize(("tool", "text"), [pytest.param(t, x, id=f"{t}-{n}") for t, n, x in EXAMPLES])
def test_an_example_of_one_tool_is_told_from_those_of_the_others(tool, text):
    for other in {"llamafactory", "axolotl"} - {tool}:
        with pytest.raises(RecipeError) as caught:
            converted(text, other)
        assert f"--from {tool}" in str(caught.value)


# --- LLaMA-Factory -------------------------------------------------------------------------------------------------------


def test_llamafactory_lora():
    recipe, made = recipe_of(LLAMAFACTORY["lora-sft"], "llamafactory", gpus=4)
    t = recipe.training
    assert (t.global_batch_size, t.per_device_train_batch_size, t.per_device_eval_batch_size) == (32, 1, 1)
    assert (t.learning_rate, t.num_train_epochs, t.lr_scheduler_type, t.warmup_steps) == (1e-4, 3, "cosine", 0.1)
    assert (t.eval_strategy, t.eval_steps, t.save_strategy, t.save_steps) == ("steps", 500, "steps", 500)
    assert (t.weight_decay, t.load_best_model_at_end, t.activation_checkpointing) == (0, False, True)
    assert t.train_sampling_strategy == "random"
    s = recipe.strategy
    assert (s.type, s.r, s.lora_alpha, s.lora_dropout, s.target_modules) == ("lora", 8, 16, 0, "all-linear")
    assert (recipe.task.type, recipe.task.assistant_only_loss, recipe.task.chat_template) == ("sft", True, None)
    assert (recipe.data.max_length, recipe.data.validation_share) == (2048, 0.1)
    assert [(one.source, one.limit) for one in recipe.data.train] == [("identity", 1000), ("alpaca_en_demo", 1000)]
    assert (recipe.precision, recipe.model.dtype, recipe.tracking.wandb) == ("bf16", "bfloat16", None)
    assert fate(made, "dataset") == "not translated" and "dataset_info.json" in made.fates["dataset"].text
    assert fate(made, "output_dir") == fate(made, "overwrite_cache") == "not needed"
    assert not any("GPU" in line for line in made.assumed)


def test_llamafactory_full_with_deepspeed():
    recipe, _ = recipe_of(LLAMAFACTORY["full-sft"], "llamafactory")
    assert (recipe.name, recipe.strategy.type, recipe.distributed.zero_stage) == ("full-qwen", "full", 3)
    assert (recipe.task.packing, recipe.task.chat_template) == (True, "chatml")
    assert (recipe.model.attn_implementation, recipe.model.dtype) == ("flash_attention_2", "float32")
    assert recipe.training.passthrough["use_liger_kernel"] is True
    assert (recipe.training.warmup_steps, recipe.training.eval_strategy) == (20, "no")
    assert recipe.tracking.wandb.project == "launcher"


def test_llamafactory_preferences_rewards_texts_and_bits():
    dpo, _ = recipe_of(LLAMAFACTORY["dpo"], "llamafactory")
    assert (dpo.task.type, dpo.task.loss_type, dpo.task.beta, dpo.task.rpo_alpha) == ("preference", "hinge", 0.2, 0.5)
    assert (dpo.strategy.lora_alpha, dpo.strategy.target_modules) == (64, ["q_proj", "v_proj"])
    assert recipe_of(LLAMAFACTORY["reward"], "llamafactory")[0].task.type == "reward"
    texts, _ = recipe_of(LLAMAFACTORY["pretraining"], "llamafactory")
    assert (texts.task.type, texts.task.packing, texts.precision) == ("causal-lm", True, "fp16")
    bits, made = recipe_of(LLAMAFACTORY["qlora"], "llamafactory")
    assert bits.strategy.load_in_4bit and not bits.strategy.load_in_8bit
    assert fate(made, "use_dora") == "not needed"
    frozen, _ = recipe_of(LLAMAFACTORY["freeze"], "llamafactory")
    assert (frozen.strategy.type, frozen.strategy.trainable_layers, frozen.strategy.layer_decay) == ("layerwise", 4, 1)


def test_llamafactory_reads_its_dataset_info():
    Path("data").mkdir()
    entries = {
        "mine": {"file_name": "mine.json", "columns": {"prompt": "question", "response": "answer", "system": "who", "tools": "known"}},
        "talks": {"hf_hub_url": "us/talks", "subset": "en", "split": "train_sft", "formatting": "sharegpt",
                  "columns": {"messages": "chat", "system": "who"},
                  "tags": {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}},
        "pairs": {"hf_hub_url": "us/pairs", "formatting": "sharegpt", "ranking": True,
                  "columns": {"messages": "conversations", "chosen": "better", "rejected": "worse"}},
    }  # fmt: skip
    Path("data/dataset_info.json").write_text(json.dumps(entries), encoding="utf-8")
    Path("data/mine.json").write_text("[]", encoding="utf-8")
    text = LLAMAFACTORY["qlora"]
    recipe, made = recipe_of(text.replace("dataset: identity", "dataset: mine"), "llamafactory")
    assert recipe.data.train == "data/mine.json"
    assert recipe.data.columns == {"instruction": "question", "output": "answer", "system": "who", "tools": "known"}
    assert recipe.task.format == "alpaca" and fate(made, "dataset") == "translated"
    recipe, _ = recipe_of(text.replace("dataset: identity", "dataset: talks"), "llamafactory")
    assert (recipe.data.train.source, recipe.data.train.name, recipe.data.train.split) == (
        "us/talks",
        "en",
        "train_sft",
    )
    assert (recipe.task.format, recipe.data.columns) == ("messages", {"messages": "chat", "system": "who"})
    recipe, _ = recipe_of(LLAMAFACTORY["dpo"].replace("dpo_en_demo", "pairs"), "llamafactory")
    assert recipe.data.columns == {"conversations": "conversations", "chosen": "better", "rejected": "worse"}
    mixed = text.replace(
        "dataset: identity", "dataset: mine,talks\nmix_strategy: interleave_over\ninterleave_probs: 0.7,0.3"
    )
    recipe, made = recipe_of(mixed, "llamafactory")
    assert [one.weight for one in recipe.data.train] == [0.7, 0.3]
    assert recipe.data.stopping_strategy == "all_exhausted"
    assert "different columns" in made.fates["dataset"].text and fate(made, "dataset") == "not translated"


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("stage: sft", "stage: ppo", "stage is ppo; launcher has no such task"),
        ("stage: sft", "stage: dpo\npref_loss: kto_pair", "pref_loss is kto_pair"),
        ("finetuning_type: lora", "finetuning_type: oft", "finetuning_type is oft"),
    ],
)
def test_what_no_recipe_can_mean_is_an_error(old, new, said):
    with pytest.raises(RecipeError, match=re.escape(said)):
        converted(LLAMAFACTORY["lora-sft"].replace(old, new), "llamafactory")


def test_rows_of_validation_as_a_number_and_a_template_of_another_kind_are_listed():
    text = (
        LLAMAFACTORY["lora-sft"]
        .replace("val_size: 0.1", "val_size: 200")
        .replace("template: llama3", "template: alpaca")
    )
    recipe, made = recipe_of(text.replace("8B-Instruct", "8B"), "llamafactory")
    assert fate(made, "val_size") == fate(made, "template") == "not translated"
    assert "Jinja" in made.fates["template"].text and recipe.task.chat_template == "plain"


# --- Axolotl -------------------------------------------------------------------------------------------------------------


def test_axolotl_lora():
    recipe, made = recipe_of(AXOLOTL["lora"], "axolotl", gpus=2)
    t, s = recipe.training, recipe.strategy
    assert (t.global_batch_size, t.per_device_train_batch_size, t.per_device_eval_batch_size) == (16, 2, 2)
    assert (t.num_train_epochs, t.learning_rate, t.lr_scheduler_type, t.warmup_steps) == (4, 2e-4, "cosine", 0.1)
    assert (t.eval_strategy, t.eval_steps, t.save_strategy) == ("steps", 1 / 16, "epoch")
    assert (t.passthrough["optim"], t.weight_decay, t.load_best_model_at_end) == ("adamw_bnb_8bit", 0, False)
    assert (s.r, s.lora_alpha, s.lora_dropout, s.target_modules, s.load_in_8bit) == (32, 16, 0.05, "all-linear", True)
    assert (recipe.task.format, recipe.task.packing, recipe.task.chat_template) == ("alpaca", True, "plain")
    assert (recipe.model.attn_implementation, recipe.data.validation_share) == ("flash_attention_2", 0.05)
    assert recipe.tracking.wandb is None
    assert fate(made, "datasets[0].type") == "not translated"
    assert fate(made, "special_tokens.pad_token") == fate(made, "wandb_watch") == "not needed"


def test_axolotl_others():
    bits, made = recipe_of(AXOLOTL["qlora"], "axolotl")
    assert (
        bits.strategy.load_in_4bit and bits.distributed.zero_stage == 2 and fate(made, "deepspeed") == "not translated"
    )
    assert (bits.task.format, bits.task.chat_template, bits.task.assistant_only_loss) == ("messages", None, True)
    assert (bits.training.warmup_steps, bits.training.eval_strategy, bits.tracking.wandb.entity) == (0.03, "no", "us")
    full, made = recipe_of(AXOLOTL["full-fsdp"], "axolotl")
    assert (full.strategy.type, full.distributed.engine, full.distributed.offload) == ("full", "fsdp", "all")
    assert (full.task.format, full.data.train.split, full.task.chat_template) == ("sharegpt", "train", "llama3")
    assert fate(made, "datasets[0].split") == fate(made, "special_tokens.eos_token") == "not translated"
    assert fate(made, "liger_fused_linear_cross_entropy") == "not needed"
    assert full.training.passthrough["liger_kernel_config"] == {"rope": True, "rms_norm": True, "swiglu": True}
    fast, _ = recipe_of(AXOLOTL["full-deepspeed"], "axolotl")
    assert (fast.distributed.zero_stage, fast.task.assistant_only_loss, fast.training.max_steps) == (2, False, 100)
    assert (fast.training.save_strategy, fast.training.save_steps, fast.precision) == ("steps", 50, "bf16")
    dpo, _ = recipe_of(AXOLOTL["dpo"], "axolotl")
    assert (dpo.task.type, dpo.task.loss_type, dpo.task.beta) == ("preference", "sigmoid", 0.3)
    assert dpo.data.columns == {"messages": "conversation", "chosen": "chosen", "rejected": "rejected"}
    texts, _ = recipe_of(AXOLOTL["completion"], "axolotl")
    assert (texts.task.type, texts.data.columns, texts.data.train.source) == (
        "causal-lm",
        {"text": "body"},
        "texts.jsonl",
    )
    streamed, made = recipe_of(AXOLOTL["pretraining"], "axolotl")
    assert (streamed.task.type, streamed.data.train.name, streamed.training.max_steps) == ("causal-lm", "en", 1000)
    assert any("read before training" in line for line in made.assumed)


def test_axolotl_ways_to_say_the_batch_and_the_schedule():
    text = (
        AXOLOTL["completion"]
        .replace("gradient_accumulation_steps: 1", "batch_size: 12")
        .replace("micro_batch_size: 1", "micro_batch_size: 3")
    )
    recipe, _ = recipe_of(text + "cosine_min_lr_ratio: 0.1\nearly_stopping_patience: 2\nval_set_size: 0.1\n", "axolotl")
    assert (recipe.training.global_batch_size, recipe.training.per_device_eval_batch_size) == (12, 3)
    assert recipe.training.lr_scheduler_type == "cosine_with_min_lr"
    assert recipe.training.lr_scheduler_kwargs == {"min_lr_rate": 0.1}
    assert recipe.training.load_best_model_at_end and recipe.training.early_stopping_patience == 2


def test_a_method_that_axolotl_alone_has_is_an_error():
    with pytest.raises(RecipeError, match="rl is grpo"):
        converted(AXOLOTL["dpo"].replace("rl: dpo", "rl: grpo"), "axolotl")


# --- TRL -----------------------------------------------------------------------------------------------------------------


def test_trl_files():
    plain, made = recipe_of(TRL["sft"], "trl")
    t = plain.training
    assert (t.global_batch_size, t.learning_rate, t.num_train_epochs, t.lr_scheduler_type) == (8, 1e-4, 3, "cosine")
    assert (plain.data.max_length, plain.task.assistant_only_loss, plain.task.packing) == (1024, False, False)
    assert (plain.precision, plain.model.dtype, t.activation_checkpointing, plain.strategy.type) == (
        "bf16",
        "float32",
        True,
        "full",
    )
    assert any("--task dpo" in line for line in made.assumed)
    lora, made = recipe_of(TRL["sft-lora"], "trl")
    assert (lora.training.global_batch_size, lora.distributed.zero_stage) == (64, 2)
    assert (lora.strategy.r, lora.strategy.lora_alpha, lora.strategy.lora_dropout) == (32, 16, 0.05)
    assert (lora.strategy.target_modules, lora.strategy.load_in_4bit, lora.model.dtype) == (
        "all-linear",
        True,
        "bfloat16",
    )
    assert (lora.data.train.split, lora.data.validation.split, lora.data.train.name) == ("train", "test", "default")
    assert lora.task.packing and lora.task.assistant_only_loss
    assert fate(made, "eos_token") == "not translated" and fate(made, "push_to_hub") == "not needed"
    mixture, _ = recipe_of(TRL["mixture"], "trl")
    assert [one.weight for one in mixture.data.train] == [0.7, 0.3] and mixture.data.validation_share == 0.05


def test_trl_trainers_have_rates_and_losses_of_their_own():
    dpo, _ = recipe_of(TRL["dpo"], "trl")
    assert (dpo.task.type, dpo.task.loss_type, dpo.task.beta, dpo.task.rpo_alpha) == (
        "preference",
        "sigmoid",
        0.05,
        0.2,
    )
    reward, _ = recipe_of(TRL["reward"], "trl")
    assert (reward.task.type, reward.task.center_rewards_coefficient, reward.training.learning_rate) == (
        "reward",
        0.01,
        1e-4,
    )
    told, _ = recipe_of(TRL["sft"].replace("learning_rate: 0.0001\n", ""), "trl", trainer="dpo")
    assert (told.task.type, told.training.learning_rate) == ("preference", 1e-6)
    with pytest.raises(RecipeError, match="loss_type is aot_unpaired"):
        converted(TRL["dpo"].replace("[sigmoid, sft]", "aot_unpaired"), "trl")


def test_trl_command_lines():
    recipe, _ = recipe_of(TRL["command"], "trl")
    t = recipe.training
    assert (t.global_batch_size, t.learning_rate, t.eval_steps, t.activation_checkpointing) == (16, 2e-4, 100, False)
    assert (recipe.strategy.target_modules, recipe.strategy.lora_alpha, recipe.task.packing) == (
        ["q_proj", "v_proj"],
        16,
        True,
    )
    recipe, made = recipe_of(TRL["accelerate"], "trl")
    assert (recipe.task.type, recipe.distributed.zero_stage, recipe.training.global_batch_size) == ("preference", 3, 4)
    assert not any("GPU" in line for line in made.assumed)


def test_a_command_with_a_file_has_the_keys_of_both():
    Path("sft.yaml").write_text(TRL["sft-lora"], encoding="utf-8")
    recipe, _ = recipe_of("trl sft --config sft.yaml --lora_r 4\n", "trl")
    assert (recipe.strategy.r, recipe.data.max_length) == (4, 2048)
    with pytest.raises(RecipeError, match=r"reads other.yaml, which is not here"):
        converted("trl sft --config other.yaml\n", "trl")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (TRL["command"] + TRL["command"], "2 training commands"),
        ("trl grpo --model_name_or_path m --dataset_name d\n", "`trl grpo`"),
    ],
)
def test_commands_that_cannot_be_imported(text, said):
    with pytest.raises(RecipeError, match=re.escape(said)):
        converted(text, "trl")


def test_our_idea_of_the_trainers_defaults_is_the_installed_one():
    fields = training_fields()
    for name, value in DEFAULTS.items():
        assert fields[name].default == value, name


def test_our_idea_of_trls_defaults_is_the_installed_one():
    import ast
    import importlib.util

    from launcher.importing import trl

    folder = Path(importlib.util.find_spec("trl").submodule_search_locations[0]) / "trainer"
    found = {}
    for name in ("model_config", "base_config", "sft_config", "dpo_config", "reward_config"):
        for node in ast.walk(ast.parse((folder / f"{name}.py").read_text(encoding="utf-8"))):
            if isinstance(node, ast.AnnAssign) and isinstance(node.value, ast.Call):
                default = next((k.value for k in node.value.keywords if k.arg == "default"), None)
                if default is not None:
                    found[name, node.target.id] = ast.literal_eval(default)
    assert {kind: found[f"{kind}_config", "learning_rate"] for kind in trl._RATES} == trl._RATES
    for key in ("dtype", "lora_r", "lora_alpha", "lora_dropout"):
        assert found["model_config", key] == trl.DIALECT.defaults[key]
    for key in ("logging_steps", "gradient_checkpointing"):
        assert found["base_config", key] == trl.DIALECT.defaults[key]
    assert {found[f"{kind}_config", "max_length"] for kind in trl._RATES} == {trl.DIALECT.defaults["max_length"]}


def test_templates_that_are_written_are_there():
    folder = ROOT / "launcher/data/chat_templates"
    assert all((folder / f"{name}.jinja").is_file() for name in OUR_TEMPLATES)


# --- files that are not what they should be ------------------------------------------------------------------------------


def test_nothing_in_a_file_is_executed():
    text = LLAMAFACTORY["lora-sft"] + "callbacks: !!python/object/apply:os.system ['touch hacked']\n"
    with pytest.raises(RecipeError, match=r"given.yaml:\d+:\d+: the value has a tag"):
        converted(text, "llamafactory")
    recipe_of(
        TRL["command"].replace("--packing", "--packing --run_name $(touch hacked)").replace("# LoRA", "touch hacked"),
        "trl",
    )
    assert not Path("hacked").exists()


def test_what_lies_outside_the_file_is_not_read(monkeypatch):
    monkeypatch.setenv("RATE", "0.5")
    recipe, made = recipe_of(LLAMAFACTORY["lora-sft"].replace("1.0e-4", "${oc.env:RATE}"), "llamafactory")
    assert fate(made, "learning_rate") == "not translated" and recipe.training.learning_rate == 5e-5
    recipe, made = recipe_of(TRL["command"].replace("2.0e-4", "$RATE"), "trl")
    assert fate(made, "learning_rate") == "not translated" and recipe.training.learning_rate == 2e-5


def test_secrets_are_not_copied():
    _, made = recipe_of(LLAMAFACTORY["lora-sft"] + "hf_hub_token: hf_secret123\n", "llamafactory")
    assert "hf_secret123" not in Path("recipe.yaml").read_text(encoding="utf-8")
    assert fate(made, "hf_hub_token") == "not needed"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "the file is empty"),
        ("- a\n- b\n", "holds a list"),
        ("just words\n", "holds one text"),
        ("a: [1\n", "it is not YAML"),
        ("version: 1\nname: a\ntask: sft\nmodel: {name_or_path: a}\n", "a recipe of launcher already"),
        ("stage: sft\nfinetuning_type: full\ndataset: a\ndo_train: true\n", "model_name_or_path is not given"),
        ("stage: sft\nfinetuning_type: full\nmodel_name_or_path: a\ndo_train: true\n", "dataset is null"),
    ],
)
def test_bad_files_are_named(text, said):
    with pytest.raises(RecipeError, match=re.escape(said)):
        converted(text, "llamafactory")


def test_aliases_of_aliases_do_not_fill_the_memory():
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 9)]
    with pytest.raises(RecipeError, match="more than"):
        converted("\n".join(lines), "llamafactory")


def test_values_of_other_kinds_are_listed_and_the_default_is_taken():
    text = LLAMAFACTORY["lora-sft"].replace("learning_rate: 1.0e-4", "learning_rate: '2e-4'")
    text = text.replace("num_train_epochs: 3.0", "num_train_epochs: many").replace("bf16: true", "bf16: yes")
    text = text.replace("lr_scheduler_type: cosine", "lr_scheduler_type: rex") + "optim: galore_adamw\n"
    recipe, made = recipe_of(text, "llamafactory")
    assert (recipe.training.learning_rate, recipe.training.num_train_epochs, recipe.precision) == (2e-4, 3, "bf16")
    for key in ("num_train_epochs", "lr_scheduler_type", "optim"):
        assert fate(made, key) == "not translated"


def test_what_the_recipes_own_rules_refuse_is_taken_out_and_listed():
    text = (
        LLAMAFACTORY["lora-sft"]
        + "optim: adafactor\nadam_beta1: 0.8\nmetric_for_best_model: eval_bleu\nload_best_model_at_end: true\n"
    )
    recipe, made = recipe_of(text, "llamafactory")
    assert fate(made, "adam_beta1") == fate(made, "metric_for_best_model") == "not translated"
    assert "adafactor" in made.fates["adam_beta1"].text and recipe.training.metric_for_best_model is None


ODD = ([[1]], {"a": {"b": [1]}}, -1, "x", True, 0.5, float("nan"), 10**400, "a: b\n# c")


@pytest.mark.parametrize(
    ("tool", "text"), [("llamafactory", LLAMAFACTORY["dpo"]), ("axolotl", AXOLOTL["dpo"]), ("trl", TRL["sft-lora"])]
)
def test_whatever_a_key_holds_comes_to_a_recipe_that_passes_or_to_an_error_that_says_why(tool, text):
    base = YAML(typ="safe", pure=True).load(text)
    for number, key in enumerate(base):
        given = {**base, key: ODD[number % len(ODD)]}
        with open("odd.yaml", "w", encoding="utf-8") as file:
            YAML(typ="safe", pure=True).dump(given, file)
        try:
            made = import_recipe(Path("odd.yaml"), tool=tool)
        except RecipeError:
            continue
        assert set(made.keys) == set(made.fates)
        written(made, Path(f"{number}.yaml"))
        assert examine(f"{number}.yaml")[1] == [], key


def test_items_and_mappings_that_hold_nothing_of_use_are_accounted_for_too():
    text = AXOLOTL["qlora"].replace("sequence_len", "  - 7\nfsdp_config: {}\nspecial_tokens: {}\nsequence_len")
    made = converted(text, "axolotl")
    assert {"datasets[1].?", "fsdp_config", "special_tokens"} <= set(made.fates) == set(made.keys)
    assert fate(made, "datasets[1].?") == "not translated"


def test_importing_loads_nothing_heavy():
    heavy = "{'torch', 'transformers', 'datasets', 'deepspeed', 'trl', 'peft', 'numpy'}"
    code = f"import sys, launcher.importing.tools; sys.exit(bool({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], env=tiny.environment(), timeout=60).returncode == 0


# --- the verb ------------------------------------------------------------------------------------------------------------


def test_the_verb_writes_lists_and_does_not_overwrite():
    Path("given.yaml").write_text(LLAMAFACTORY["lora-sft"] + "odd: 1\n", encoding="utf-8")
    command = ["import", "given.yaml", "--from", "llamafactory", "--output", "mine.yaml", "--gpus", "8"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    assert "odd: launcher does not know" in done.output and "next: launcher check mine.yaml" in done.output
    assert examine("mine.yaml")[0].recipe.training.global_batch_size == 64
    before = Path("mine.yaml").read_bytes()
    again = CliRunner().invoke(app, command)
    assert again.exit_code != 0 and "exists" in str(again.exception)
    assert Path("mine.yaml").read_bytes() == before


def test_the_verb_speaks_json_and_refuses_a_task_that_the_file_tells():
    Path("given.yaml").write_text(TRL["sft"], encoding="utf-8")
    done = CliRunner().invoke(app, ["import", "given.yaml", "--from", "trl", "--task", "reward", "--json"])
    told = json.loads(done.output)
    assert told["path"] == "recipe.yaml" and {row["key"] for row in told["keys"]} == keys_in(TRL["sft"])
    done = CliRunner().invoke(app, ["import", "given.yaml", "--from", "axolotl", "--task", "sft"])
    assert done.exit_code == 2
