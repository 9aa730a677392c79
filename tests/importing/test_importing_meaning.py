"""What configurations in use say beyond the short examples: the recipe means the same, or the key is listed, or the file is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from importing.converting import converted, recipe_of

from launcher.errors import RecipeError, RunStateError
from launcher.importing.conversion import Conversion
from launcher.importing.tools import written

LLAMAFACTORY = "model_name_or_path: meta-llama/Meta-Llama-3-8B-Instruct\nstage: sft\nfinetuning_type: lora\ndataset: identity\ntemplate: llama3\n"
AXOLOTL = "base_model: NousResearch/Llama-3.2-1B\nmicro_batch_size: 2\nsequence_len: 1024\n"
ROWS = "datasets:\n  - path: us/rows\n    type: chat_template\n"
TRL = "model_name_or_path: Qwen/Qwen2.5-0.5B\ndataset_name: us/rows\n"


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


def refusal(text: str, tool: str, **options) -> str:
    with pytest.raises(RecipeError) as caught:
        converted(text, tool, **options)
    return str(caught.value)


def listed(made: Conversion, key: str) -> str:
    """Why a key is not translated."""
    assert made.fates[key].kind == "not translated", made.fates[key]
    return made.fates[key].text


# --- runs that no recipe can mean ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tool", "text", "said"),
    [
        ("llamafactory", LLAMAFACTORY + "image_max_pixels: 262144\n", "images"),
        ("llamafactory", LLAMAFACTORY.replace("identity", "mllm_demo"), "images"),
        ("llamafactory", LLAMAFACTORY.replace("meta-llama/Meta-Llama-3-8B-Instruct", "Qwen/Qwen3-VL-4B"), "images"),
        ("llamafactory", LLAMAFACTORY.replace("template: llama3", "template: qwen2_vl"), "images"),
        ("axolotl", AXOLOTL + ROWS + "processor_type: AutoProcessor\n", "images"),
        ("axolotl", AXOLOTL + ROWS + "model_type: AutoModelForImageTextToText\n", "images"),
        ("trl", TRL.replace("Qwen/Qwen2.5-0.5B", "llava-hf/llava-1.5-7b-hf"), "images"),
        ("axolotl", AXOLOTL + ROWS + "process_reward_model: true\n", "not of their steps"),
        ("axolotl", AXOLOTL + ROWS + "kd_trainer: true\n", "distil"),
        ("axolotl", AXOLOTL + ROWS + "plugins: [axolotl.integrations.diffusion.DiffusionPlugin]\n", "something else"),
        ("axolotl", AXOLOTL + ROWS + "rl: dpo\ndpo_loss_type: [sigmoid, bco_pair]\n", "has one of"),
        ("trl", TRL + "reward_funcs: [accuracy_reward]\n", "grpo"),
        ("trl", TRL + "desirable_weight: 1.0\n", "kto"),
    ],
)
def test_what_trains_for_something_else_is_refused(tool, text, said):
    assert said in refusal(text, tool)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("adapter_name_or_path: a\ninfer_backend: vllm\n", "chats with a model"),
        ("export_dir: out\n", "merges or exports"),
        ("stage: sft\ndo_predict: true\neval_dataset: identity\n", "writes answers"),
        ("task: mmlu_test\nlang: en\n", "runs a benchmark"),
    ],
)
def test_files_of_llamafactory_that_train_nothing_are_told_by_what_they_do(text, said):
    message = refusal("model_name_or_path: a/b\ntemplate: llama3\nfinetuning_type: lora\n" + text, "llamafactory")
    assert said in message and "trains nothing" in message


def test_the_dataset_info_tells_data_with_images():
    Path("dataset_info.json").write_text('{"identity": {"file_name": "a.json", "columns": {"images": "images"}}}')
    assert "gives it images" in refusal(LLAMAFACTORY, "llamafactory")


def test_the_dataset_info_says_more_than_the_columns():
    Path("dataset_info.json").write_text(
        '{"talk": {"hf_hub_url": "us/talk", "formatting": "openai", "num_samples": 50, "folder": "en"}, "identity": {"hf_hub_url": "us/rows"}}'
    )
    recipe, made = recipe_of(LLAMAFACTORY.replace("identity", "talk") + "max_samples: 80\n", "llamafactory")
    assert (recipe.task.format, recipe.data.train.source, recipe.data.train.limit) == ("messages", "us/talk", 50)
    assert any("folder en" in line for line in made.assumed)
    both = converted(LLAMAFACTORY.replace("identity", "talk,identity"), "llamafactory")
    assert "in one way" in listed(both, "dataset")


@pytest.mark.parametrize("name", ["kto_config.yaml", "orpo/config_full.yaml", "my-grpo.yaml"])
def test_the_name_of_a_file_tells_a_trainer_that_launcher_does_not_have(name):
    assert "write --task sft" in refusal(TRL + "beta: 0.1\n", "trl", name=name)
    assert converted(TRL, "trl", name=name, trainer="dpo").recipe["task.type"] == "preference"


def test_the_name_of_a_file_tells_the_trainer_where_no_key_does():
    made = converted(TRL, "trl", name="dpo_config.yaml")
    assert made.recipe["task.type"] == "preference" and any("file's name" in line for line in made.assumed)
    assert converted(TRL + "packing: true\n", "trl", name="dpo_config.yaml").recipe["task.type"] == "sft"


def test_a_loss_of_sft_that_launcher_does_not_have_is_listed():
    assert "another run" in listed(converted(TRL + "packing: true\nloss_type: dft\n", "trl"), "loss_type")


# --- command lines -------------------------------------------------------------------------------------------------------


def test_a_command_of_llamafactory():
    text = "MODEL=google/gemma-2-9b-it\nRATE='3e-5'\nllamafactory-cli train \\\n  --model_name_or_path ${MODEL} --stage dpo --do_train \\\n"
    text += "  --finetuning_type lora --lora_target q_proj,v_proj --dataset pairs --template gemma2 --learning_rate $RATE --bf16\n"
    recipe, made = recipe_of(text, "llamafactory")
    assert (recipe.model.name_or_path, recipe.training.learning_rate) == ("google/gemma-2-9b-it", 3e-5)
    assert (recipe.task.type, recipe.strategy.target_modules) == ("preference", ["q_proj", "v_proj"])
    assert made.fates["do_train"].kind == "not needed"
    assert "--from llamafactory" in refusal(text, "trl")


def test_a_command_of_llamafactory_with_a_file_and_processes():
    Path("run.yaml").write_text(LLAMAFACTORY + "per_device_train_batch_size: 2\n")
    recipe, _ = recipe_of("llamafactory-cli train run.yaml learning_rate=2e-5\n", "llamafactory", name="run.sh")
    assert (recipe.training.global_batch_size, recipe.training.learning_rate) == (2, 2e-5)
    assert "not here" in refusal("llamafactory-cli train other.yaml\n", "llamafactory", name="run.sh")
    text = "deepspeed --num_gpus 8 src/train_bash.py --stage sft --model_name_or_path a/b --dataset x --per_device_train_batch_size 2\n"
    assert recipe_of(text, "llamafactory")[0].training.global_batch_size == 16


def test_variables_that_a_script_computes_are_not_followed():
    text = "D=$(cat name)\ntrl sft --model_name_or_path a/b --dataset_name us/rows --learning_rate $D\n"
    assert "outside the file" in listed(converted(text, "trl"), "learning_rate")
    assert "outside the file" in refusal(text.replace("a/b", "$D"), "trl")


@pytest.mark.parametrize(
    ("script", "task"),
    [("examples/scripts/sft_gpt_oss.py", "sft"), ("my_dpo.py", "preference"), ("trl/scripts/reward.py", "reward")],
)
def test_scripts_are_told_by_their_names(script, task):
    made = converted(f"accelerate launch {script} --model_name_or_path a/b --dataset_name us/rows\n", "trl")
    assert made.recipe["task.type"] == task
    assert any("code of a file is not read" in line for line in made.assumed) == (script != "trl/scripts/reward.py")


@pytest.mark.parametrize(
    "script",
    ["examples/scripts/dpo_vlm.py", "examples/scripts/ppo/ppo_tldr.py", "nash_md.py", "dpo_online.py", "my.py"],
)
def test_other_scripts_are_refused_by_name(script):
    message = refusal(f"accelerate launch {script} --model_name_or_path a/b --dataset_name us/rows\n", "trl")
    assert f"`{Path(script).name}`" in message


def test_processes_count_wherever_they_are_said():
    each = "--per_device_train_batch_size 2"
    text = f"trl sft --model_name_or_path a/b --dataset_name us/rows {each} --num_processes 4\n"
    assert recipe_of(text, "trl")[0].training.global_batch_size == 8
    ray = LLAMAFACTORY + "per_device_train_batch_size: 2\nray_num_workers: 3\n"
    assert recipe_of(ray, "llamafactory")[0].training.global_batch_size == 6
    assert (
        recipe_of(AXOLOTL + ROWS + "use_ray: true\nray_num_workers: 4\n", "axolotl")[0].training.global_batch_size == 8
    )


# --- templates -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "name", "template"),
    [
        ("mistralai/Mistral-7B-Instruct-v0.2", "chatml", "chatml"),
        ("Qwen/Qwen2.5-7B-Instruct", "chatml", None),
        ("meta-llama/Meta-Llama-3-8B-Instruct", "llama3", None),
        ("microsoft/Phi-3.5-mini-instruct", "phi_3", None),
    ],
)
def test_a_template_of_another_family_goes_before_the_models_own(model, name, template):
    text = (AXOLOTL + ROWS + f"chat_template: {name}\n").replace("NousResearch/Llama-3.2-1B", model)
    assert recipe_of(text, "axolotl")[0].task.chat_template == template


def test_types_of_axolotl_that_write_the_words_of_a_template():
    pairs = AXOLOTL + "rl: dpo\nchat_template: gemma\ndatasets:\n  - path: us/pairs\n    type: llama3.intel\n"
    recipe, made = recipe_of(pairs, "axolotl")
    assert (recipe.task.chat_template, recipe.data.columns["instruction"]) == ("llama3", "question")
    assert made.fates["chat_template"].kind == "not needed"
    old = AXOLOTL + "datasets:\n  - path: us/talk\n    type: sharegpt\n    conversation: chatml\n"
    recipe, made = recipe_of(old, "axolotl")
    assert (recipe.task.format, recipe.task.chat_template) == ("sharegpt", "chatml")
    assert made.fates["datasets[0].conversation"].kind == "translated"


_JINJA = "{% for m in messages %}`{{ m['role'] }}`: ${{ m['content'] }}{% endfor %}"


def test_a_template_inside_the_file_is_written_beside_the_recipe():
    text = TRL + f'packing: true\nchat_template: "{_JINJA}"\n'
    recipe, made = recipe_of(text, "trl")
    assert recipe.task.chat_template == "recipe.jinja" and Path("recipe.jinja").read_text(encoding="utf-8") == _JINJA
    assert made.fates["chat_template"].kind == "translated"
    Path("recipe.yaml").unlink()
    with pytest.raises(RunStateError, match=r"recipe\.jinja exists"):
        written(made, Path("recipe.yaml"))
    assert not Path("recipe.yaml").exists()
    again = converted(AXOLOTL + ROWS + f'chat_template_jinja: "{_JINJA}"\n', "axolotl")
    assert again.template == _JINJA and again.fates["chat_template_jinja"].kind == "translated"


def test_a_file_of_a_template_is_taken_where_it_is_and_listed_where_it_is_not():
    text = TRL + "packing: true\nchat_template_path: own.jinja\n"
    assert "not here" in listed(converted(text, "trl"), "chat_template_path")
    Path("own.jinja").write_text(_JINJA)
    assert recipe_of(text, "trl")[0].task.chat_template == "own.jinja"


# --- Axolotl -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "precision", "dtype"),
    [
        ("bf16: auto\ntf32: true\n", "auto", "bfloat16"),
        ("tf32: true\n", "auto", "bfloat16"),
        ("bfloat16: auto\n", "auto", "bfloat16"),
        ("bf16: true\ntf32: true\n", "bf16", "bfloat16"),
        ("bf16: false\ntf32: true\n", "tf32", "float32"),
        ("bf16: false\nfp16: true\n", "fp16", "float32"),
        ("fp8: true\ndeepspeed: zero3.json\n", "auto", "bfloat16"),
    ],
)
def test_the_number_format_of_axolotl(said, precision, dtype):
    recipe, made = recipe_of(AXOLOTL + ROWS + said, "axolotl")
    assert (recipe.precision, recipe.model.dtype) == (precision, dtype)
    if "fp8" in said:
        assert "without DeepSpeed" in listed(made, "fp8")


@pytest.mark.parametrize(
    ("said", "split", "limit", "why"),
    [
        ("split: train\n", "train", None, ""),
        ("train_on_split: validation\n", "validation", None, ""),
        ("split: train[:500]\n", "train", 500, ""),
        ("split: train[:20%]\n", "train", None, "percent"),
        ("split: train[10:20]\n", "train", None, "one split"),
        ("split: train+test\n", "train", None, "one split"),
    ],
)
def test_splits_of_axolotl(said, split, limit, why):
    recipe, made = recipe_of(AXOLOTL + ROWS + f"    {said}", "axolotl")
    assert (recipe.data.train.split, recipe.data.train.limit) == (split, limit)
    key = f"datasets[0].{said.partition(':')[0]}"
    assert why in listed(made, key) if why else made.fates[key].kind == "translated"


def test_split_goes_before_its_earlier_name():
    recipe, made = recipe_of(AXOLOTL + ROWS + "    split: train\n    train_on_split: test\n", "axolotl")
    assert recipe.data.train.split == "train"
    assert made.fates["datasets[0].train_on_split"].kind == "not needed"


def test_data_that_are_read_otherwise_than_the_first_are_listed_one_by_one():
    text = AXOLOTL + "datasets:\n  - {path: a/b, type: completion}\n  - {path: c/d, type: completion, field: chapter}\n"
    recipe, made = recipe_of(text, "axolotl")
    assert recipe.data.columns == {"text": "text"}
    assert "datasets[0]" in listed(made, "datasets[1].field") and "datasets[0]" in listed(made, "datasets[1].type")


def test_the_schedule_of_axolotl_that_does_not_fall_to_zero():
    text = AXOLOTL + ROWS + "cosine_constant_lr_ratio: 0\ncosine_min_lr_ratio: {}\n"
    flat = recipe_of(text.format("1.0"), "axolotl")[0].training
    assert (flat.lr_scheduler_type, flat.lr_scheduler_kwargs) == ("constant_with_warmup", None)
    floor = recipe_of(text.format("0.1"), "axolotl")[0].training
    assert (floor.lr_scheduler_type, floor.lr_scheduler_kwargs) == ("cosine_with_min_lr", {"min_lr_rate": 0.1})


def test_what_axolotl_says_of_the_model_and_its_kernels():
    recipe, made = recipe_of(
        AXOLOTL
        + ROWS
        + "model_config: {output_router_logits: true}\nflash_attention: true\nattn_implementation: kernels/own\n",
        "axolotl",
    )
    assert recipe.model.config == {"output_router_logits": True} and recipe.model.attn_implementation is None
    assert made.fates["flash_attention"].kind == "not needed" and "no such attention" in listed(
        made, "attn_implementation"
    )
    wrapped = AXOLOTL + ROWS + "fsdp_config: {fsdp_activation_checkpointing: true}\n"
    recipe, made = recipe_of(wrapped, "axolotl")
    assert recipe.training.activation_checkpointing and recipe.distributed.engine == "fsdp"
    assert made.fates["fsdp_config.fsdp_activation_checkpointing"].kind == "translated"


def test_empty_roles_mean_the_last_answer_as_axolotls_guide_says():
    recipe, made = recipe_of(AXOLOTL + ROWS + "    roles_to_train:\n    train_on_eos:\n", "axolotl")
    assert recipe.task.learned_answers == "last" and any("last answer" in line for line in made.assumed)
    assert recipe_of(AXOLOTL + ROWS, "axolotl")[0].task.learned_answers == "all"


def test_a_loss_that_axolotl_names_by_itself():
    pairs = AXOLOTL + "rl: dpo\ndpo_loss_type: [ipo]\ndatasets:\n  - path: us/pairs\n    type: chat_template.default\n"
    assert recipe_of(pairs, "axolotl")[0].task.loss_type == "ipo"


# --- TRL -----------------------------------------------------------------------------------------------------------------

_MIXTURE = """\
model_name_or_path: gpt2
dataset_mixture:
  datasets:
    - {id: us/one, config: small, split: train_sft, columns: [messages], weight: 1.0}
    - {id: us/two, split: train_sft, weight: 0.5}
  test_split_size: 0.05
  seed: 0
packing: true
"""


def test_mixtures_of_the_alignment_handbook():
    recipe, made = recipe_of(_MIXTURE, "trl")
    assert [(one.source, one.name, one.split, one.weight) for one in recipe.data.train] == [
        ("us/one", "small", "train_sft", None),
        ("us/two", None, "train_sft", None),
    ]
    assert recipe.data.validation_share == 0.05
    assert "not a share" in listed(made, "dataset_mixture.datasets[1].weight")
    assert made.fates["dataset_mixture.datasets[0].weight"].kind == "not needed"
    assert set(made.keys) == set(made.fates)


def test_earlier_mixtures_of_the_alignment_handbook():
    text = "model_name_or_path: gpt2\ndataset_mixer: {us/one: 1.0, us/two: 0.5}\ndataset_splits: [train_prefs, test_prefs]\n"
    recipe, made = recipe_of(text + "evaluation_strategy: epoch\nbeta: 0.1\nuse_flash_attention_2: true\n", "trl")
    assert [one.split for one in recipe.data.train] == ["train_prefs"] * 2
    assert [(one.source, one.split) for one in recipe.data.validation] == [
        ("us/one", "test_prefs"),
        ("us/two", "test_prefs"),
    ]
    assert (recipe.training.eval_strategy, recipe.model.attn_implementation) == ("epoch", "flash_attention_2")
    assert "not a share" in listed(made, "dataset_mixer")
    silent = converted(text.replace("0.5", "1.0") + "beta: 0.1\n", "trl")
    assert "data.validation" not in silent.recipe and silent.fates["dataset_mixer"].kind == "translated"


# --- what the tools share ------------------------------------------------------------------------------------------------


def test_models_whose_files_hold_few_bits_are_said():
    made = converted(AXOLOTL.replace("NousResearch/Llama-3.2-1B", "TheBloke/Llama-2-7B-GPTQ") + ROWS, "axolotl")
    assert any("few bits already" in line for line in made.assumed)
    assert not any("few bits already" in line for line in converted(AXOLOTL + ROWS, "axolotl").assumed)


def test_tensor_parallelism_of_deepspeed_is_listed():
    recipe, made = recipe_of(LLAMAFACTORY + "deepspeed: ds_z2_autotp_config.json\n", "llamafactory")
    assert recipe.distributed.zero_stage == 2 and "tensor parallelism" in listed(made, "deepspeed")


def test_an_unknown_key_without_a_value_asks_for_nothing():
    made = converted(AXOLOTL + ROWS + "never_heard_of:\n", "axolotl")
    assert made.fates["never_heard_of"].kind == "not needed"


# --- preferences without a model before training -------------------------------------------------------------------------


def test_simpo_and_orpo_mean_the_same():
    pairs = LLAMAFACTORY.replace("stage: sft", "stage: dpo\npref_loss: simpo\npref_beta: 2.0\nsimpo_gamma: 0.3")
    task = recipe_of(pairs, "llamafactory")[0].task
    assert (task.loss_type, task.beta, task.simpo_gamma, task.rpo_alpha) == ("simpo", 2.0, 0.3, 0.0)
    rows = ROWS.replace("chat_template", "chat_template.argilla")
    task = recipe_of(AXOLOTL + rows + "rl: simpo\nrl_beta: 2.0\nsimpo_gamma: 0.4\n", "axolotl")[0].task
    # trl's CPOTrainer adds the chosen answer's own loss by itself.
    assert (task.loss_type, task.beta, task.simpo_gamma, task.rpo_alpha) == ("simpo", 2.0, 0.4, 1.0)
    recipe, made = recipe_of(AXOLOTL + rows + "rl: orpo\norpo_alpha: 0.3\n", "axolotl")
    assert (recipe.task.loss_type, recipe.task.beta) == ("orpo", 0.3)
    assert any("prompt's tokens" in text for text in made.assumed)


def test_a_switch_that_is_off_tells_of_no_other_trainer():
    recipe, made = recipe_of(TRL + "assistant_only_loss: true\nuse_vllm: false\n", "trl")
    assert recipe.task.type == "sft" and made.fates["use_vllm"].kind == "not needed"
    assert "use_vllm" in refusal(TRL + "use_vllm: true\n", "trl")
