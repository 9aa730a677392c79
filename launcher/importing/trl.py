"""TRL: the YAML file of ``trl sft --config FILE``, and command lines as people keep them in scripts."""

from __future__ import annotations

import re

from launcher.importing.commands import OTHER_TRAINERS
from launcher.importing.conversion import Conversion, Dialect
from launcher.importing.distributed import accelerate_config, deepspeed_key, fsdp_keys
from launcher.importing.given import as_number, refuse
from launcher.importing.model import (
    attention,
    name_model,
    quantised,
    refuse_images,
    revision,
    template_file,
    trackers,
    weights_type,
)
from launcher.importing.rest import finish
from launcher.importing.trainer import DEFAULTS, checkpointing, moments, trainer_keys, whole
from launcher.importing.trl_data import data_keys
from launcher.importing.trl_keys import NOT_NEEDED, NOT_TRANSLATED, READ, TELLING, TELLING_OTHERS
from launcher.recipe.chat_options import PREFERENCE_LOSSES

# trl 1.16; the rate depends on the trainer.
_DEFAULTS = DEFAULTS | {
    "logging_steps": 10,
    "gradient_checkpointing": True,
    "max_length": 1024,
    "dtype": "float32",
    "lora_r": 16,
    "lora_alpha": 32,
    "lora_dropout": 0.05,
    "beta": 0.1,
    "dataset_train_split": "train",
    "dataset_test_split": "test",
}
_RATES = {"sft": 2e-5, "dpo": 1e-6, "reward": 1e-4}
_TASKS = {"sft": "sft", "dpo": "preference", "reward": "reward"}
DIALECT = Dialect(name="trl", shown="TRL", defaults=_DEFAULTS, known=READ)


def convert(c: Conversion, *, trainer: str | None) -> None:
    """Translate a configuration of TRL for a trainer: sft, dpo or reward; None: told by the keys.

    Raises:
        RecipeError: something that no recipe can mean.
    """
    for old, new in (("torch_dtype", "dtype"), ("max_seq_length", "max_length"), ("model_name", "model_name_or_path")):
        if old in c.values and new not in c.values:
            c.values = {new if key == old else key: value for key, value in c.values.items()}
            c.assume(f"{old} was read as {new}, its present name")
    refuse_images(c, ("model_name_or_path",))
    kind = trainer or _told(c)
    c.settled["learning_rate"] = _RATES[kind]
    name_model(c, "model_name_or_path")
    _task(c, kind)
    _model(c)
    data_keys(c)
    deepspeed_key(c)
    fsdp_keys(c)
    accelerate_config(c, "accelerate_config")
    _precision(c)
    _strategy(c)
    trainer_keys(c)
    moments(c)
    checkpointing(c, "gradient_checkpointing", on=c.flag("gradient_checkpointing"))
    trackers(c, given=c.names("report_to") if "report_to" in c.values else None, key="report_to", wandb=_project(c))
    finish(c, not_needed=NOT_NEEDED, not_translated=NOT_TRANSLATED)


def _told(c: Conversion) -> str:
    for other, keys in TELLING_OTHERS.items():
        if (sign := next((key for key in keys if c.value(key, False) is not False), None)) is not None:
            raise c.cannot(
                sign,
                f"trainers have it which launcher does not have ({other}); it has sft, dpo and reward of TRL's",
                "keep this run where it is, or write --task sft, dpo or reward where it is one of them",
            )
        for key in keys:
            c.unneeded(key, f"it is off, and of a trainer that this is not ({other})")
    by_name = _told_by_name(c)
    for kind, keys in TELLING.items():
        if any(c.has(key) for key in keys):
            return kind
    if {*c.names("loss_type")} & {*PREFERENCE_LOSSES}:
        return "dpo"
    if by_name is not None:
        c.assume(f"the trainer is {by_name}, as the file's name says; --task says otherwise")
        return by_name
    c.assume("the trainer is sft, as no key of the file tells it; --task dpo or --task reward says otherwise")
    return "sft"


def _told_by_name(c: Conversion) -> str | None:
    """Return the trainer in the name of the file or its folder. Raises RecipeError for one that launcher does not have."""
    known = {*_TASKS, *OTHER_TRAINERS}
    words = [*re.split(r"[^a-z0-9]+", c.path.stem.lower()), c.path.resolve().parent.name.lower()]
    found = next((word for word in words if word in known), None)
    if found in OTHER_TRAINERS:
        raise refuse(
            c.path,
            f"the name of the file or its folder says {found}; launcher has sft, dpo and reward of TRL's trainers",
            "keep this run where it is, or write --task sft, dpo or reward where it is one of them",
        )
    return found


def _task(c: Conversion, kind: str) -> None:
    if kind == "sft" and c.has("dataset_text_field"):
        c.put("task.type", "causal-lm", "dataset_text_field", note="texts, of which every token is learned")
        c.put("data.columns", {"text": str(c.value("dataset_text_field"))}, "dataset_text_field")
        c.put("task.packing", c.flag("packing"), "packing")
        _losses_of_sft(c)
        c.assume("texts longer than max_length are divided into rows; TRL cuts them")
        return
    c.put("task.type", _TASKS[kind])
    for key in ("chat_template", "chat_template_path"):
        if c.has(key):
            template_file(c, key, str(c.value(key)))
    if kind == "sft":
        _learned(c)
        _losses_of_sft(c)
        c.put("task.packing", c.flag("packing"), "packing")
        if c.value("packing_strategy", "bfd") != "bfd":
            c.missed("packing_strategy", "conversations are packed whole (bfd)", "nothing has to be done in most runs")
    elif kind == "dpo":
        _loss(c)
    elif (weight := c.number("center_rewards_coefficient")) is not None:
        c.put("task.center_rewards_coefficient", float(weight), "center_rewards_coefficient")


def _losses_of_sft(c: Conversion) -> None:
    if c.has("loss_type") and c.value("loss_type") not in ("nll", "chunked_nll"):
        c.missed("loss_type", "launcher's loss of sft is nll", "the recipe trains with it, which is another run")


def _learned(c: Conversion) -> None:
    answers = c.flag("assistant_only_loss")
    completions = c.flag("completion_only_loss") if c.has("completion_only_loss") else None
    c.put("task.assistant_only_loss", answers or bool(completions), "assistant_only_loss", "completion_only_loss")
    if not answers and completions is None:
        c.assume(
            "rows are conversations, of which TRL learns every token. Of rows with prompt and completion it learns the completion alone: "
            "then write task.assistant_only_loss: true, and chat_template: raw where they are plain texts. Of rows with a text it learns "
            "that: then write type: causal-lm alone under task, and data.columns: {text: NAME}"
        )


def _loss(c: Conversion) -> None:
    losses = c.names("loss_type") or ["sigmoid"]
    weights = c.value("loss_weights") if isinstance(c.value("loss_weights"), list) else [1.0] * len(losses)
    shares = dict(zip(losses, (as_number(one) or 0.0 for one in weights), strict=False))
    with_answers = shares.pop("sft", 0.0)
    if len(shares) != 1 or next(iter(shares)) not in PREFERENCE_LOSSES:
        known = ", ".join(PREFERENCE_LOSSES)
        raise c.cannot(
            "loss_type",
            f"launcher's task preference has one of {known}, to which sft can be added",
            "write one of them",
        )
    [(loss, weight)] = shares.items()
    c.put("task.loss_type", loss, "loss_type")
    if with_answers and weight:
        c.put(
            "task.rpo_alpha",
            with_answers / weight,
            "loss_type",
            "loss_weights",
            note="the weight of sft beside that of the loss",
        )
    if (added := c.number("rpo_alpha")) is not None:
        c.put("task.rpo_alpha", float(added), "rpo_alpha")
    c.unneeded("loss_weights", "one loss needs no weight")
    c.put("task.beta", float(c.number("beta")), "beta")
    if (smoothing := c.number("label_smoothing")) is not None:
        c.put("task.label_smoothing", float(smoothing), "label_smoothing")


def _model(c: Conversion) -> None:
    revision(c, "model_revision")
    if c.has("trust_remote_code"):
        c.put("model.trust_remote_code", c.flag("trust_remote_code"), "trust_remote_code")
    if c.has("attn_implementation"):
        attention(c, "attn_implementation", str(c.value("attn_implementation")))
    elif c.flag("use_flash_attention_2"):
        c.put("model.attn_implementation", "flash_attention_2", "use_flash_attention_2")


# --- how -----------------------------------------------------------------------------------------------------------------


def _precision(c: Conversion) -> None:
    half = c.flag("bf16", default=not c.flag("fp16"))
    if half:
        c.put("precision", "bf16", "bf16")
    elif c.flag("fp16"):
        c.put("precision", "fp16", "fp16")
    else:
        c.put("precision", "tf32" if c.flag("tf32") else "fp32", "bf16", "tf32")
    for name in ("bf16", "fp16", "tf32"):
        c.unneeded(name, "it is off, or goes after another number format")
    dtype = str(c.value("dtype"))
    if dtype not in ("auto", "float32", "bfloat16", "float16"):
        c.missed("dtype", "launcher has auto, float32, bfloat16 and float16", "float32 was taken")
        dtype = "float32"
    weights_type(c, dtype, "dtype")


def _strategy(c: Conversion) -> None:
    if not c.flag("use_peft"):
        c.put("strategy.type", "full", "use_peft")
        for name in (
            "lora_r",
            "lora_alpha",
            "lora_dropout",
            "lora_target_modules",
            "lora_modules_to_save",
            "use_rslora",
            "use_dora",
        ):
            c.unneeded(name, "use_peft is off, so that TRL does not read it")
        return
    c.put("strategy.type", "lora", "use_peft")
    c.put("strategy.r", whole(c.number("lora_r")), "lora_r")
    c.put("strategy.lora_alpha", whole(c.number("lora_alpha")), "lora_alpha")
    c.put("strategy.lora_dropout", float(c.number("lora_dropout")), "lora_dropout")
    targets = c.names("lora_target_modules")
    if targets:
        c.put("strategy.target_modules", "all-linear" if targets == ["all-linear"] else targets, "lora_target_modules")
    else:
        c.recipe["strategy.target_modules"] = ["q_proj", "v_proj"]
        c.assume(
            "target_modules: [q_proj, v_proj], which PEFT takes for Llama, Mistral, Qwen and Gemma where a file names none"
        )
    if c.has("lora_modules_to_save"):
        c.put("strategy.modules_to_save", c.names("lora_modules_to_save"), "lora_modules_to_save")
    for name in ("use_rslora", "use_dora"):
        if c.flag(name):
            c.put(f"strategy.{name}", True, name)
    _bits(c)


def _bits(c: Conversion) -> None:
    for bits in (4, 8):
        if c.flag(f"load_in_{bits}bit"):
            quantised(
                c, bits, f"load_in_{bits}bit", with_stage_3="deepspeed" if c.has("deepspeed") else "accelerate_config"
            )
    if c.value("bnb_4bit_quant_type", "nf4") == "nf4":
        c.unneeded("bnb_4bit_quant_type", "nf4 is what load_in_4bit is")
    if c.flag("load_in_4bit") and not c.flag("use_bnb_nested_quant"):
        c.assume(
            "the constants of quantisation are quantised too (use_bnb_nested_quant), as load_in_4bit always does here"
        )
    c.unneeded("use_bnb_nested_quant", "load_in_4bit always quantises the constants too")


def _project(c: Conversion) -> dict[str, str] | None:
    """Return the keys of W&B: TRL's own, and those that the Alignment Handbook's scripts add."""
    names = {"project": "project", "wandb_project": "project", "wandb_entity": "entity"}
    found = {ours: str(c.value(theirs)) for theirs, ours in names.items() if c.has(theirs)}
    c.mark("tracking.wandb", *(key for key in names if key != "project" and "project" in found))
    return found if "project" in found else None
