"""Axolotl: one YAML file, with a list of data sets that each say how their rows are read."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from launcher.importing.axolotl_data import data_keys
from launcher.importing.axolotl_keys import NOT_NEEDED, NOT_TRANSLATED, READ
from launcher.importing.conversion import Conversion, Dialect
from launcher.importing.distributed import deepspeed_key, fsdp_keys
from launcher.importing.model import (
    attention,
    name_model,
    quantised,
    refuse_images,
    revision,
    takes_fp8,
    template_by_name,
    template_file,
    weights_type,
)
from launcher.importing.rest import finish
from launcher.importing.trainer import DEFAULTS, checkpointing, the_best, trainer_keys, whole
from launcher.recipe.chat_options import PREFERENCE_LOSSES, REFERENCE_FREE_LOSSES

DIALECT = Dialect(
    name="axolotl",
    shown="Axolotl",
    defaults=DEFAULTS
    | {
        "num_train_epochs": 1.0,
        "per_device_train_batch_size": 1,
        "lr_scheduler_type": "cosine",
        "warmup_steps": None,
        "warmup_ratio": 0.03,
        "save_total_limit": 4,
        "sequence_len": 512,
        "val_set_size": 0.0,
        "lora_dropout": 0.0,
        "eval_steps": None,
        "save_steps": None,
        "eval_strategy": None,
        "save_strategy": None,
    },
    aliases={
        "per_device_train_batch_size": "micro_batch_size",
        "per_device_eval_batch_size": "eval_batch_size",
        "num_train_epochs": "num_epochs",
        "optim": "optimizer",
        "lr_scheduler_type": "lr_scheduler",
    },
    known=READ,
)

# Plugins that train for another loss: diffusion, distillation.
_OTHER_LOSS = re.compile(r"(?i)diffusion|\.kd\.|distil")
_RL = {"dpo": "sigmoid", "ipo": "ipo", "simpo": "simpo", "orpo": "orpo"}
_KERNELS = {
    "flash_attention": "flash_attention_2",
    "sdp_attention": "sdpa",
    "eager_attention": "eager",
    "flex_attention": "flex_attention",
}
_LIGER = {
    "liger_rope": "rope",
    "liger_rms_norm": "rms_norm",
    "liger_glu_activation": "swiglu",
    "liger_swiglu": "swiglu",
}


def convert(c: Conversion) -> None:
    """Translate a configuration of Axolotl. Raises RecipeError for what no recipe can mean."""
    refuse_images(
        c, ("base_model", "model_type", "chat_template"), ("processor_type", "image_size", "image_resize_algorithm")
    )
    _model(c)
    _task(c)
    data_keys(c)
    _template(c)
    _packing(c)
    deepspeed_key(c)
    fsdp_keys(c, also=("fsdp_version",))
    _precision(c)
    _strategy(c)
    _batch(c)
    _schedule(c)
    trainer_keys(c)
    if (noise := c.number("noisy_embedding_alpha")) is not None:
        c.put("training.neftune_noise_alpha", float(noise), "noisy_embedding_alpha")
    _moments(c)
    recomputes = c.value("gradient_checkpointing")
    checkpointing(
        c,
        "gradient_checkpointing",
        on=recomputes in ("offload", "unsloth", "offload_disk") or c.flag("gradient_checkpointing"),
    )
    _trackers(c)
    _tokens(c)
    finish(c, not_needed=NOT_NEEDED, not_translated=NOT_TRANSLATED)


def _model(c: Conversion) -> None:
    name_model(c, "base_model")
    revision(c, "revision_of_model")
    if c.has("trust_remote_code"):
        c.put("model.trust_remote_code", c.flag("trust_remote_code"), "trust_remote_code")
    if c.has("tokenizer_config"):
        c.put("model.tokenizer_name_or_path", str(c.value("tokenizer_config")), "tokenizer_config")
    for key in ("attn_implementation", "attention"):
        if c.has(key):
            attention(c, key, {"flash": "flash_attention_2"}.get(str(c.value(key)), str(c.value(key))))
    for key, kernel in _KERNELS.items():
        if c.has("attn_implementation") or c.has("attention"):
            c.unneeded(key, "the key that names the kernel goes before it")
        elif c.flag(key):
            c.put("model.attn_implementation", kernel, key)
    for key in ("model_config", "overrides_of_model_config"):
        if isinstance(given := c.value(key), Mapping):
            c.put("model.config", {**c.recipe.get("model.config", {}), **given}, key)
    _liger(c)


def _liger(c: Conversion) -> None:
    plugins = c.names("plugins")
    if any("LigerPlugin" in one for one in plugins):
        c.put("training.use_liger_kernel", True, "plugins")
    chosen = {ours: c.flag(theirs) for theirs, ours in _LIGER.items() if c.has(theirs)}
    if chosen:
        c.put("training.use_liger_kernel", True, *_LIGER)
        c.put("training.liger_kernel_config", chosen, *_LIGER)
    others = [one for one in plugins if "LigerPlugin" not in one]
    if any(_OTHER_LOSS.search(one) for one in others):
        raise c.cannot(
            "plugins",
            "such a plugin trains for something else, which launcher does not have",
            "keep this run where it is",
        )
    if others:
        c.missed(
            "plugins", f"launcher has no {', '.join(others)}", "code of a file is never loaded; the run goes without it"
        )


def _task(c: Conversion) -> None:
    rl = c.value("rl")
    if rl:
        if str(rl) not in _RL:
            raise c.cannot(
                "rl", f"launcher has {', '.join(_RL)} of Axolotl's preference tunings", "keep this run where it is"
            )
        c.put("task.type", "preference", "rl")
        _preference(c, _RL[str(rl)])
    elif c.flag("kd_trainer"):
        raise c.cannot("kd_trainer", "launcher does not distil one model into another", "keep this run where it is")
    elif c.flag("process_reward_model"):
        raise c.cannot(
            "process_reward_model",
            "launcher's rewards are of whole answers, not of their steps",
            "keep this run where it is",
        )
    elif c.flag("reward_model"):
        c.put("task.type", "reward", "reward_model")
        if (weight := c.number("center_rewards_coefficient")) is not None:
            c.put("task.center_rewards_coefficient", float(weight), "center_rewards_coefficient")


def _preference(c: Conversion, loss: str) -> None:
    if loss in REFERENCE_FREE_LOSSES:
        c.put("task.loss_type", loss, "rl")
        c.unneeded("dpo_loss_type", f"rl is {loss}")
    else:
        given = c.names("dpo_loss_type") or [loss]
        if len(given) > 1 or given[0] not in PREFERENCE_LOSSES:
            raise c.cannot(
                "dpo_loss_type",
                f"launcher's task preference has one of {', '.join(PREFERENCE_LOSSES)}",
                "write one of them",
            )
        c.put("task.loss_type", given[0], "rl", "dpo_loss_type")
    if loss == "orpo":
        c.assume(
            "of the chosen answers' own loss, which Axolotl computes over the prompt's tokens too, answers alone are learned"
        )
    named = ("orpo_alpha", "rl_beta") if loss == "orpo" else ("rl_beta",)
    beta = next((key for key in named if c.has(key)), "dpo_beta")
    c.put("task.beta", float(c.number(beta, 0.1)), beta)
    if loss == "simpo":
        c.put("task.simpo_gamma", float(c.number("simpo_gamma", 0.5)), "simpo_gamma")
    # Axolotl trains SimPO with trl's CPOTrainer, which adds the chosen answer's own loss unless it is told not to.
    added, usual = ("cpo_alpha", 1.0) if loss == "simpo" else ("rpo_alpha", None)
    if (weight := c.number(added, usual)) is not None:
        c.put("task.rpo_alpha", float(weight), added)
    if (smoothing := c.number("dpo_label_smoothing")) is not None:
        c.put("task.label_smoothing", float(smoothing), "dpo_label_smoothing")


def _template(c: Conversion) -> None:
    if c.recipe["task.type"] == "causal-lm":
        for key in ("chat_template", "chat_template_jinja"):
            c.unneeded(key, "texts are read as they are")
        return
    name = str(c.value("chat_template", ""))
    if "task.chat_template" in c.recipe and any(
        key.endswith(".type") for key in c.origins.get("task.chat_template", ())
    ):
        for key in ("chat_template", "chat_template_jinja"):
            c.unneeded(key, "the type of the data says which words are written, also there")
    elif c.has("chat_template_jinja"):
        template_file(c, "chat_template_jinja", str(c.value("chat_template_jinja")))
        c.unneeded("chat_template", "chat_template_jinja is the template")
    elif name == "tokenizer_default" or name.startswith("tokenizer_default_fallback_"):
        c.put("task.chat_template", None, "chat_template", note="the tokenizer's own")
        if name != "tokenizer_default":
            c.assume(
                f"the tokenizer has a chat template; otherwise write task.chat_template: {name.rpartition('_')[2]}"
            )
    elif name:
        template_by_name(c, "chat_template", name)
    if c.has("default_system_message"):
        c.put("task.default_system_message", str(c.value("default_system_message")), "default_system_message")


def _packing(c: Conversion) -> None:
    if c.recipe["task.type"] not in ("sft", "causal-lm"):
        c.unneeded("sample_packing", "pairs are not packed, there and here")
        return
    c.put(
        "task.packing",
        c.flag("sample_packing") or c.flag("pretraining_sample_concatenation"),
        "sample_packing",
        "pretraining_sample_concatenation",
    )


def _precision(c: Conversion) -> None:
    if not takes_fp8(c):
        _without_fp8(c)
    for name in ("bf16", "fp16", "bfloat16", "float16", "float32", "fp8"):
        c.unneeded(name, "it is off in the file, or goes after another number format")
    c.unneeded("tf32", "half precision computes the products, or it is off")
    half = c.recipe["precision"] in ("auto", "bf16", "fp8")
    weights_type(c, "bfloat16" if half else "float32")
    c.comments["model.dtype"] = "as Axolotl loads it; float32 keeps weights that train in full precision"


def _without_fp8(c: Conversion) -> None:
    halves = {name: c.raw(name) for name in ("bf16", "bfloat16") if c.has(name)}
    by_itself = "auto" in halves.values() or not (halves or "bf16" in c.values or c.flag("fp16") or c.flag("float16"))
    if by_itself or c.flag("fp8"):
        c.put("precision", "auto", *(halves or ("bf16",)))
    elif any(map(c.flag, halves)):
        c.put("precision", "bf16", *(name for name in halves if c.flag(name)))
    elif c.flag("fp16") or c.flag("float16"):
        c.put("precision", "fp16", *(name for name in ("fp16", "float16") if c.flag(name)))
    else:
        c.put("precision", "tf32" if c.flag("tf32") else "fp32", "tf32", "float32")


def _strategy(c: Conversion) -> None:
    adapter = c.value("adapter")
    if not adapter:
        c.put("strategy.type", "full", "adapter")
        return
    if adapter not in ("lora", "qlora"):
        raise c.cannot(
            "adapter", "launcher has lora and qlora, or all parameters", "write one of them, or leave it empty"
        )
    c.put("strategy.type", "lora", "adapter")
    c.put("strategy.r", whole(c.number("lora_r", 8)), "lora_r")
    c.put("strategy.lora_alpha", whole(c.number("lora_alpha", 16)), "lora_alpha")
    c.put("strategy.lora_dropout", float(c.number("lora_dropout")), "lora_dropout")
    _targets(c)
    if c.has("lora_modules_to_save"):
        c.put("strategy.modules_to_save", c.names("lora_modules_to_save"), "lora_modules_to_save")
    for ours, theirs in (("use_dora", "peft_use_dora"), ("use_rslora", "peft_use_rslora")):
        if c.flag(theirs):
            c.put(f"strategy.{ours}", True, theirs)
    if c.has("peft_init_lora_weights"):
        c.put("strategy.init_lora_weights", c.value("peft_init_lora_weights"), "peft_init_lora_weights")
    if (ratio := c.number("loraplus_lr_ratio")) is not None:
        c.put("strategy.loraplus_lr_ratio", float(ratio), "loraplus_lr_ratio")
    if c.flag("load_in_4bit") or adapter == "qlora":
        quantised(c, 4, "load_in_4bit", "adapter")
    elif c.flag("load_in_8bit"):
        quantised(c, 8, "load_in_8bit")


def _targets(c: Conversion) -> None:
    targets = c.value("lora_target_modules")
    if c.flag("lora_target_linear") or targets == "all-linear":
        c.put(
            "strategy.target_modules",
            "all-linear",
            "lora_target_linear",
            *(("lora_target_modules",) if targets == "all-linear" else ()),
        )
        c.unneeded("lora_target_modules", "lora_target_linear takes all linear layers, those among them")
    elif targets:
        c.put(
            "strategy.target_modules",
            targets if isinstance(targets, str) else c.names("lora_target_modules"),
            "lora_target_modules",
        )
    else:
        c.recipe["strategy.target_modules"] = ["q_proj", "v_proj"]
        c.assume(
            "target_modules: [q_proj, v_proj], which PEFT takes for Llama, Mistral, Qwen and Gemma where a file names none"
        )


def _batch(c: Conversion) -> None:
    """batch_size is another way to say the accumulation; an evaluation takes as many rows as a training step."""
    each, total = c.number("per_device_train_batch_size"), c.number("batch_size")
    c.settled["per_device_eval_batch_size"] = each
    if total and each and not c.has("gradient_accumulation_steps"):
        c.settled["gradient_accumulation_steps"] = max(1, int(total // each))
        c.mark("training.global_batch_size", "batch_size")
    else:
        c.unneeded("batch_size", "gradient_accumulation_steps goes before it")


def _schedule(c: Conversion) -> None:
    floor = c.number("cosine_min_lr_ratio")
    if not floor or c.value("lr_scheduler_type") != "cosine" or c.number("cosine_constant_lr_ratio"):
        return
    if floor < 1:
        c.settled["lr_scheduler_type"] = "cosine_with_min_lr"
        c.put("training.lr_scheduler_kwargs", {"min_lr_rate": float(floor)}, "cosine_min_lr_ratio")
    else:
        c.settled["lr_scheduler_type"] = "constant_with_warmup"
        c.mark("training.lr_scheduler_type", "cosine_min_lr_ratio", note="a rate that never falls")


def _moments(c: Conversion) -> None:
    validates = bool(c.recipe.get("data.validation")) or (c.number("val_set_size") or 0) > 0
    if validates:
        _moment(c, "eval", per_epoch="evals_per_epoch")
    else:
        c.put("training.eval_strategy", "no")
        for name in ("evals_per_epoch", "eval_steps", "eval_strategy", "evaluation_strategy"):
            c.unneeded(name, "there are no validation rows in the file")
    _moment(c, "save", per_epoch="saves_per_epoch")
    early = c.number("early_stopping_patience") is not None
    if early and not c.has("load_best_model_at_end"):
        c.settled["load_best_model_at_end"] = True
    the_best(c, saves=c.recipe["training.save_strategy"] != "no")


def _moment(c: Conversion, what: str, *, per_epoch: str) -> None:
    """As Axolotl does it: a number for each epoch is a share of all steps; nothing said means once an epoch."""
    strategy = f"{what}_strategy"
    times, steps, epochs = c.number(per_epoch), c.number(f"{what}_steps"), float(c.number("num_train_epochs"))
    said = c.value(strategy, c.value("evaluation_strategy") if what == "eval" else None)
    said = "no" if said is False else said
    if steps:
        c.put(f"training.{strategy}", "steps", f"{what}_steps")
        c.put(f"training.{what}_steps", float(steps) if steps < 1 else whole(steps), f"{what}_steps")
    elif times and times > 0 and times != 1 and times * epochs > 1:
        share = 1 / (times * epochs)
        c.put(f"training.{strategy}", "steps", per_epoch)
        c.put(f"training.{what}_steps", float(f"{share:.6g}"), per_epoch, note="a share of all steps")
    else:
        c.put(f"training.{strategy}", str(said) if said and not times else "epoch", per_epoch, strategy)
    for name in (strategy, f"{what}_steps", per_epoch, *(("evaluation_strategy",) if what == "eval" else ())):
        c.unneeded(name, "another key says how often")


def _tokens(c: Conversion) -> None:
    tokens = c.value("special_tokens")
    if isinstance(tokens, Mapping):
        c.open("special_tokens", tokens)
        c.unneeded("special_tokens.pad_token", "padding is never learned")
        for name in tokens:
            remedy = "where it is not the tokenizer's own, save a tokenizer with it and name that under model.tokenizer_name_or_path"
            if name != "pad_token":
                c.missed(f"special_tokens.{name}", "launcher takes the tokenizer as it is", remedy)


def _trackers(c: Conversion) -> None:
    wandb: dict[str, Any] = {}
    for theirs, ours in (("wandb_project", "project"), ("wandb_entity", "entity"), ("wandb_mode", "mode")):
        if c.has(theirs):
            wandb[ours] = str(c.value(theirs))
    if "project" in wandb:
        c.put("tracking.wandb", wandb, "wandb_project", "wandb_entity", "wandb_mode")
    else:
        c.put("tracking.wandb", None)
    others = [
        name
        for key, name in (
            ("use_tensorboard", "tensorboard"),
            ("use_mlflow", "mlflow"),
            ("use_comet", "comet_ml"),
            ("use_trackio", "trackio"),
        )
        if c.flag(key)
    ]
    if others:
        c.put("tracking.report_to", others, "use_tensorboard", "use_mlflow", "use_comet", "use_trackio")
