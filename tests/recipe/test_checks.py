"""Rules between keys: each row of the tables speaks when it should, and sound recipes hear nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from launcher.recipe.checks import IDLE, check_recipe
from launcher.recipe.examine import examine
from launcher.recipe.files import check_files
from launcher.recipe.load import load_recipe, parse_recipe, resolved_text
from tests.recipe.conftest import SOUND, Write

# key of an IDLE row -> a recipe in which its value has no effect
WITHOUT_EFFECT = {
    "data.max_length": "IMAGES\nDATA max_length: 64",
    "data.join": "IMAGES\nDATA join: '. '",
    "task.learned_answers": "CHAT assistant_only_loss: false, learned_answers: last",
    "task.sample_generations": "CHAT assistant_only_loss: false, sample_generations: 2",
    "model.tokenizer_name_or_path": "IMAGES\nMODEL bert-base-uncased, tokenizer_name_or_path: t",
    "training.num_train_epochs": "training: {num_train_epochs: 3, max_steps: 5}",
    "training.eval_steps": "training: {eval_steps: 5}",
    "training.save_steps": "training: {save_steps: 5}",
    "training.save_total_limit": "training: {save_strategy: no, save_total_limit: 1}",
    "training.load_best_model_at_end": "training: {eval_strategy: no, load_best_model_at_end: true}",
    "training.global_batch_size": "training: {tokens_per_batch: 512, global_batch_size: 32}",
    "training.per_device_train_batch_size": "training: {tokens_per_batch: 512, per_device_train_batch_size: 4}",
    "training.per_device_train_tokens": "training: {per_device_train_tokens: 512}",
    "training.early_stopping_patience": "training: {eval_strategy: no, early_stopping_patience: 1}",
    "training.metric_for_best_model": "training: {load_best_model_at_end: false, metric_for_best_model: macro_f1}",
    "training.greater_is_better": "training: {greater_is_better: true}",
    "training.eval_delay": "training: {eval_strategy: no, eval_delay: 1}",
    "training.eval_on_start": "training: {eval_strategy: no, eval_on_start: true}",
    "training.warmup_steps": "training: {warmup_steps: 5, lr_scheduler_type: constant}",
    "training.lr_scheduler_kwargs": "training: {lr_scheduler_kwargs: {num_cycles: 1}}",
    "training.logging_steps": "training: {logging_steps: 5, logging_strategy: epoch}",
    "training.adam_beta1": "training: {optim: sgd, adam_beta1: 0.9}",
    "training.adam_beta2": "training: {optim: sgd, adam_beta2: 0.9}",
    "training.adam_epsilon": "training: {optim: sgd, adam_epsilon: 1e-6}",
    "training.momentum": "training: {momentum: 0.9}",
    "training.optim_args": "training: {optim: adafactor, optim_args: beta1=0.9}",
    "training.data_seed": "training: {data_seed: 1, train_sampling_strategy: sequential}",
    "training.dataloader_persistent_workers": "training: {dataloader_persistent_workers: true}",
    "training.dataloader_prefetch_factor": "training: {dataloader_prefetch_factor: 2}",
    "training.dataloader_multiprocessing_context": "training: {dataloader_multiprocessing_context: spawn}",
    "training.liger_kernel_config": "training: {liger_kernel_config: {rope: true}}",
    "training.activation_checkpointing_kwargs": "training: {activation_checkpointing_kwargs: {use_reentrant: false}}",
    "training.label_smoothing_factor": "TASK multi_label_classification\ntraining: {label_smoothing_factor: 0.1}",
    "task.class_weights": "TASK regression, class_weights: balanced",
    "task.focal_gamma": "TASK regression, focal_gamma: 2",
    "task.class_sampling": "TASK multi_label_classification, class_sampling: balanced",
    "task.label_delimiter": "TASK single_label_classification, label_delimiter: ';'",
    "task.augmentation": "TASK auto, augmentation: {token_dropout: 0}",
    "task.augmentation.synonyms": "TASK auto, augmentation: {synonyms: a.txt, synonym_probability: 0}",
    "task.augmentation.synonym_probability": "TASK auto, augmentation: {token_dropout: 0.1, synonym_probability: 0.2}",
    "data.labels": "TASK regression\nDATA labels: [a, b]",
    "data.validation_share": "DATA validation: dev, validation_share: 0.2",
    "data.shuffle_buffer_size": "DATA shuffle_buffer_size: 100",
    "training.train_sampling_strategy": (
        "TASK regression\nDATA streaming: true, validation: dev\n"
        "training: {max_steps: 5, eval_strategy: 'no', save_strategy: 'no', train_sampling_strategy: random}"
    ),
    "data.stopping_strategy": "DATA stopping_strategy: all_exhausted",
    "data.split_seed": "DATA validation: dev, split_seed: 1",
    "strategy.head_lr": "strategy: {type: encoder, train_head: false, head_lr: 1e-3}",
    "distributed.offload_device": "distributed: {zero_stage: 2, offload_device: nvme}",
    "distributed.nvme_path": "distributed: {zero_stage: 3, offload: all, nvme_path: /x}",
    "model.revision": "MODEL package:m/model, revision: main",
    "evaluation.label_errors": "TASK regression\nevaluation: {label_errors: true}",
    "evaluation.confidence": "evaluation: {bootstrap: 0, confidence: 0.9}",
    **{
        f"tracking.wandb.{name}": f"tracking: {{wandb: {{mode: disabled, {name}: {value}}}}}"
        for name, value in (
            ("project", "p"),
            ("entity", "e"),
            ("group", "g"),
            ("tags", "[t]"),
            ("log_predictions", "true"),
        )
    },
    **{
        f"strategy.{name}": f"strategy: {{type: discriminative, apply: freeze, {name}: {value}}}"
        for name, value in {
            "mean_rank": 4,
            "rank_min": 2,
            "rank_max": 16,
            "uniform_above": 0.9,
            "rate_power": 1,
        }.items()
    },
    **{
        f"strategy.{name}": f"strategy: {{type: discriminative, apply: freeze, score: gradient, {name}: {value}}}"
        for name, value in {
            "lora_alpha": 8,
            "lora_dropout": 0.1,
            "use_rslora": "true",
            "init_lora_weights": "gaussian",
            "probe_rank": 8,
        }.items()
    },
    "task.length_penalty": "TRANSLATE num_beams: 1, length_penalty: 2.0",
    "task.label_smoothing": "PAIRS loss_type: ipo, label_smoothing: 0.1",
    "task.simpo_gamma": "PAIRS loss_type: orpo, simpo_gamma: 0.5",
    "training.async_save": "training: {async_save: true, save_strategy: 'no'}",
    "strategy.trainable_share": "strategy: {type: discriminative, trainable_share: 0.5}",
    "strategy.probe_steps": "strategy: {type: discriminative, score: file, importance_file: a.json, probe_steps: 9}",
    "strategy.importance_file": "strategy: {type: discriminative, importance_file: a.json}",
}


def _recipe(lines: str) -> str:
    head = SOUND
    for line in lines.split("\n"):
        word, _, rest = line.partition(" ")
        if word == "TASK":
            head = head.replace(
                "task: text-classification", f"task: {{type: text-classification, problem_type: {rest}}}"
            )
        elif word == "TRANSLATE":
            head = head.replace("task: text-classification", f"task: {{type: translation, {rest}}}")
        elif word == "CHAT":
            head = head.replace("task: text-classification", f"task: {{type: sft, {rest}}}")
        elif word == "PAIRS":
            head = head.replace("task: text-classification", f"task: {{type: preference, {rest}}}")
        elif word == "IMAGES":
            head = head.replace("task: text-classification", "task: image-classification")
        elif word == "DATA":
            head = head.replace("data: {source: ag_news}", f"data: {{train: ag_news, {rest}}}")
        elif word == "MODEL":
            head = head.replace(
                "model: {name_or_path: bert-base-uncased}",
                f"model: {{name_or_path: '{rest.split(',')[0]}',{rest.partition(',')[2]}}}",
            )
        else:
            head += line + "\n"
    return head


def _keys(text: str) -> list[str]:
    return [problem.key for problem in check_recipe(parse_recipe(text, "r.yaml"))]


def test_every_row_has_its_example() -> None:
    assert {row.key for row in IDLE} == set(WITHOUT_EFFECT)


@pytest.mark.parametrize("name", ["cross_entropy", "fused_linear_cross_entropy"])
def test_kernels_of_losses_within_the_model_are_refused(name: str) -> None:
    lines = "training: {use_liger_kernel: true, liger_kernel_config: {rope: true, NAME: VALUE}}".replace("NAME", name)
    (problem,) = check_recipe(parse_recipe(_recipe(lines.replace("VALUE", "true")), "r.yaml"))
    assert problem.key == "training.liger_kernel_config" and f"{name} is for a loss that the model" in problem.message
    assert not _keys(_recipe(lines.replace("VALUE", "false")))


@pytest.mark.parametrize("key", sorted(WITHOUT_EFFECT))
def test_a_setting_without_effect_is_refused(key: str) -> None:
    (problem,) = check_recipe(parse_recipe(_recipe(WITHOUT_EFFECT[key]), "r.yaml"))
    assert problem.key == key and "has no effect" in problem.message and problem.remedy
    assert problem.place.startswith("r.yaml:")


@pytest.mark.parametrize(
    "lines",
    [
        "", "training: {eval_steps: 10, eval_strategy: steps, save_strategy: steps, save_steps: 20}",
        "training: {eval_steps: 0.1, eval_strategy: steps, save_strategy: steps, save_steps: 0.3}",
        "training: {eval_strategy: no}", "training: {save_strategy: no}", "training: {max_steps: 5}",
        "training: {eval_strategy: steps, eval_steps: 5, load_best_model_at_end: false}",
        "training: {optim: adamw_torch, adam_beta1: 0.8}", "training: {lr_scheduler_type: constant}",
        "training: {optim: adam, adam_epsilon: 1e-6}", "training: {optim: lion_8bit, adam_beta2: 0.98}",
        "training: {optim: sgd, momentum: 0.5, optim_args: 'nesterov=true'}",
        "training: {optim: rmsprop, optim_args: 'momentum=0.9, centered=true, alpha=0.9'}",
        "training: {lr_scheduler_type: one_cycle}", "training: {lr_scheduler_type: slanted_triangular}",
        "training: {lr_scheduler_type: one_cycle, warmup_steps: 0, lr_scheduler_kwargs: {anneal_strategy: linear}}",
        "training: {lr_scheduler_type: step, lr_scheduler_kwargs: {step_size: 0.3}, warmup_steps: 10}",
        "training: {lr_scheduler_type: cyclic, lr_scheduler_kwargs: {cycle_steps: 100, cycle_decay: 0.5}}",
        "training: {lr_scheduler_type: exponential, lr_scheduler_kwargs: {gamma: 0.999}}",
        "training: {lr_scheduler_type: cosine_with_min_lr, lr_scheduler_kwargs: {min_lr: 1e-6}}",
        "training: {lr_scheduler_type: warmup_stable_decay, lr_scheduler_kwargs: {num_decay_steps: 10}}",
        "training: {lr_scheduler_type: reduce_lr_on_plateau, warmup_steps: 10, lr_scheduler_kwargs: {patience: 2}}",
        "training: {lr_scheduler_type: greedy, lr_scheduler_kwargs: {smooth: true, max_scale: 1}}",
        "training: {optim: adagrad, optim_args: lr_decay=0.1}\ndistributed: {engine: deepspeed, zero_stage: 0}",
        "training: {dataloader_num_workers: 2, dataloader_prefetch_factor: 2}",
        "training: {tokens_per_batch: 512}", "training: {tokens_per_batch: 512, global_batch_size: null}",
        "training: {tokens_per_batch: 512, per_device_train_tokens: 64, train_sampling_strategy: group_by_length}",
        "distributed: {zero_stage: 2}", "distributed: {engine: deepspeed, zero_stage: 0}",
        "distributed: {nodes: 2, processes_per_node: 8}", "TASK multi_label_classification, label_delimiter: ';'",
        "DATA columns: {text: [a, b], text_pair: c, label: d, id: e}", "tracking: {wandb: {mode: disabled}}",
        "tracking: {wandb: null}", "precision: fp16",
        "DATA validation: {source: rows.csv, delimiter: ';', encoding: gbk}",
    ],
)  # fmt: skip
def test_sound_combinations_pass(lines: str) -> None:
    text = _recipe(lines)
    assert _keys(text) == []
    assert _keys(resolved_text(parse_recipe(text, "r.yaml").recipe)) == [], "what was resolved is sound too"


@pytest.mark.parametrize(
    ("schedule", "options", "message", "remedy"),
    [
        ("cosine", "{gamma: 0.5}", "gamma is not an option of cosine", "num_cycles"),
        ("cosine", "{num_cycles: 0}", "num_cycles is 0; it must lie in (0, infinity)", "the default is 0.5"),
        ("cosine", "{num_cycles: yes}", "it must be a number", "the default is 0.5"),
        ("cosine_with_restarts", "{num_cycles: 1.5}", "it must be a whole number", "the default is 1"),
        ("cosine_with_min_lr", "{min_lr: 1e-6, min_lr_rate: 0.1}", "min_lr are both given", "keep one"),
        ("cosine_with_min_lr", "{num_cycles: 1}", "which needs min_lr or min_lr_rate", "{min_lr_rate: 0.1}"),
        ("cosine_with_min_lr", "{min_lr: 1e-3}", "not below training.learning_rate (2e-05)", "a smaller rate"),
        ("polynomial", "{lr_end: 1e-3}", "not below training.learning_rate", "a smaller rate"),
        ("warmup_stable_decay", "{min_lr_ratio: 0.1}", "which needs num_decay_steps", "{num_decay_steps: ...}"),
        (
            "warmup_stable_decay", "{num_decay_steps: 5, decay_type: sqrt}", "be one of cosine, linear, 1-sqrt",
            "the default is 'cosine'",
        ),
        ("step", "{gamma: 0.5}", "which needs step_size", "{step_size: ...}"),
        ("cyclic", "{cycle_steps: 10, base_lr: 1e-5}", "base_lr is not an option of cyclic", "write min_scale"),
        ("cyclic", "{cycle_steps: -1}", "lie in (0, infinity)", "another value"),
        ("exponential", "{gamma: 0.9, final_scale: 0.1}", "are both given", "keep one"),
        ("one_cycle", "{max_lr: 1e-3}", "max_lr is not an option of one_cycle", "each group keeps its own"),
        ("one_cycle", "{pct_start: 1}", "lie in (0, 1)", "the default is 0.3"),
        ("slanted_triangular", "{ratio: .inf}", "lie in [1, infinity)", "the default is 32"),
        ("reduce_lr_on_plateau", "{min_lr: 1e-6}", "min_lr is not an option", "write min_scale"),
        ("reduce_lr_on_plateau", "{mode: max}", "mode is not an option", "training.greater_is_better"),
        ("greedy", "{smooth: 1}", "be true or false", "the default is false"),
    ],
)  # fmt: skip
def test_options_of_a_schedule(schedule: str, options: str, message: str, remedy: str) -> None:
    lines = f"training: {{lr_scheduler_type: {schedule}, lr_scheduler_kwargs: {options}}}"
    (problem,) = check_recipe(parse_recipe(_recipe(lines), "r.yaml"))
    assert message in problem.message and remedy in problem.remedy
    assert problem.place.startswith("r.yaml:7:")


@pytest.mark.parametrize(
    ("lines", "key", "message"),
    [
        ("training: {optim: sgd, optim_args: nesterov}", "training.optim_args", "'nesterov' is not NAME=VALUE"),
        ("training: {optim: sgd, optim_args: dampening=2}", "training.optim_args", "lie in [0, 1]"),
        ("training: {optim: adagrad, optim_args: weight_decay=0.1}", "training.optim_args", "not an option of adagrad"),
        ("training: {optim: rmsprop, optim_args: alpha=x}", "training.optim_args", "be a number"),
        ("training: {optim: ademamix, optim_args: beta1=0.8}", "training.optim_args", "not an option of ademamix"),
        ("training: {optim: sgd, momentum: 0, optim_args: nesterov=true}", "training.optim_args", "needs momentum"),
        ("training: {optim: sgd, optim_args: 'nesterov=true, dampening=0.1'}", "training.optim_args", "no dampening"),
        ("training: {optim: adagrad}\ndistributed: {zero_stage: 1}", "training.optim", "one rate for all groups"),
        ("training: {optim: adafactor}\ndistributed: {zero_stage: 3}", "training.optim", "needs whole matrices"),
    ],
)
def test_options_of_an_optimizer(lines: str, key: str, message: str) -> None:
    (problem,) = check_recipe(parse_recipe(_recipe(lines), "r.yaml"))
    assert problem.key == key and message in problem.message and problem.remedy


def test_a_default_is_not_a_setting_but_a_null_takes_one_back(write: Write) -> None:
    write("training: {eval_steps: 5, eval_strategy: steps}\n", name="base.yaml")
    path = write("base: base.yaml\ntraining: {eval_strategy: epoch, eval_steps: null}\n", head="")
    assert check_recipe(load_recipe(path)) == []


def test_files_that_exist_are_no_problem(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_text("{}")
    (tmp_path / "model/tokenizer.json").write_text("{}")
    (tmp_path / "train.csv").write_text("text,label\n")
    (tmp_path / "labels.txt").write_text("a\nb\n")
    text = _recipe(f"MODEL {tmp_path}/model\nDATA validation: {tmp_path}/train.csv, labels: {tmp_path}/labels.txt")
    assert check_files(parse_recipe(text, "r.yaml")) == []


@pytest.mark.parametrize(
    ("lines", "fragment"),
    [
        ("MODEL ./none", "there is no such folder"),
        ("MODEL {tmp}", "has no config.json"),
        ("MODEL package:launcher/none", "there is no such folder"),
        ("MODEL package:no_such_thing/model", "no installed package"),
        ("MODEL package:../x", "no installed package"),
        ("DATA validation: {tmp}/trian.csv", "did you mean train.csv"),
        ("DATA labels: none.txt", "there is no such file"),
        ("MODEL bert, tokenizer_name_or_path: ./none", "there is no such folder"),
    ],
)
def test_what_this_machine_lacks(tmp_path: Path, lines: str, fragment: str) -> None:
    (tmp_path / "train.csv").write_text("text,label\n")
    (problem,) = check_files(parse_recipe(_recipe(lines.replace("{tmp}", str(tmp_path))), "r.yaml"))
    assert fragment in str(problem)


def test_examine_reports_faults_and_contradictions_together(write: Write) -> None:
    path = write("precison: bf16\ntraining: {warmup_ratio: 0.1, eval_steps: 5}\n")
    loaded, problems = examine(path)
    assert loaded is None
    assert [problem.key for problem in problems] == ["precison", "training.warmup_ratio", "training.eval_steps"]


def test_a_key_that_is_left_out_causes_no_second_fault(write: Write) -> None:
    head = SOUND.replace("source: ag_news", "source: 5.5")
    _, problems = examine(write(head=head))
    assert [problem.key for problem in problems] == ["data.source"]


def test_examine_of_a_sound_recipe(write: Write) -> None:
    loaded, problems = examine(write())
    assert loaded is not None and problems == []


def test_examine_never_raises_for_a_missing_file() -> None:
    loaded, problems = examine("no/such/recipe.yaml")
    assert loaded is None and "there is no recipe" in problems[0].message
