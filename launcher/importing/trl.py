"""TRL: the YAML file of ``trl sft --config FILE``, and command lines as people keep them in scripts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from launcher.importing.conversion import Conversion, Dialect
from launcher.importing.distributed import accelerate_config, deepspeed_key, fsdp_keys
from launcher.importing.given import as_number
from launcher.importing.model import attention, name_model, quantised, revision, template_file, trackers, weights_type
from launcher.importing.rest import finish
from launcher.importing.trainer import DEFAULTS, checkpointing, moments, trainer_keys, whole
from launcher.importing.trl_keys import NOT_NEEDED, NOT_TRANSLATED, READ, TELLING
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
    kind = trainer or _told(c)
    c.settled["learning_rate"] = _RATES[kind]
    name_model(c, "model_name_or_path")
    _task(c, kind)
    _model(c)
    _data(c)
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
    for kind, keys in TELLING.items():
        if any(c.has(key) for key in keys):
            return kind
    c.assume("the trainer is sft, as no key of the file tells it; --task dpo or --task reward says otherwise")
    return "sft"


def _task(c: Conversion, kind: str) -> None:
    if kind == "sft" and c.has("dataset_text_field"):
        c.put("task.type", "causal-lm", "dataset_text_field", note="texts, of which every token is learned")
        c.put("data.columns", {"text": str(c.value("dataset_text_field"))}, "dataset_text_field")
        c.put("task.packing", c.flag("packing"), "packing")
        c.assume("texts longer than max_length are divided into rows; TRL cuts them")
        return
    c.put("task.type", _TASKS[kind])
    if c.has("chat_template_path"):
        template_file(c, "chat_template_path", str(c.value("chat_template_path")))
    if kind == "sft":
        _learned(c)
        c.put("task.packing", c.flag("packing"), "packing")
        if c.value("packing_strategy", "bfd") != "bfd":
            c.missed("packing_strategy", "conversations are packed whole (bfd)", "nothing has to be done in most runs")
    elif kind == "dpo":
        _loss(c)
    elif (weight := c.number("center_rewards_coefficient")) is not None:
        c.put("task.center_rewards_coefficient", float(weight), "center_rewards_coefficient")


def _learned(c: Conversion) -> None:
    answers = c.flag("assistant_only_loss")
    completions = c.flag("completion_only_loss") if c.has("completion_only_loss") else None
    c.put("task.assistant_only_loss", answers or bool(completions), "assistant_only_loss", "completion_only_loss")
    if not answers and completions is None:
        c.assume(
            "rows are conversations, of which TRL learns every token. Of rows with prompt and completion it learns the completion alone: "
            "then write task.assistant_only_loss: true, and chat_template: raw where they are plain texts"
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


# --- data ----------------------------------------------------------------------------------------------------------------


def _data(c: Conversion) -> None:
    if c.has("datasets"):
        _mixture(c)
    elif c.has("dataset_name"):
        _one(c)
    else:
        raise c.cannot("dataset_name", "it names the data", "write dataset_name, a hub id or folder")
    longest = c.number("max_length")
    if longest is not None and not (c.raw("max_length") is None and "max_length" in c.values):
        c.put("data.max_length", whole(longest), "max_length")
    if c.flag("dataset_streaming") or c.flag("streaming"):
        for name in ("dataset_streaming", "streaming"):
            c.missed(
                name,
                "rows of these tasks are read before training",
                "nothing has to be done where they fit on the disk",
            )


def _validates(c: Conversion) -> bool:
    said = c.value("eval_strategy")
    return said is not False and said != "no"


def _one(c: Conversion) -> None:
    source = {"source": str(c.value("dataset_name"))}
    if c.has("dataset_config"):
        source["name"] = str(c.value("dataset_config"))
    names = ("dataset_name", "dataset_config")
    c.put("data.train", source | {"split": str(c.value("dataset_train_split"))}, *names, "dataset_train_split")
    if _validates(c):
        c.put("data.validation", source | {"split": str(c.value("dataset_test_split"))}, *names, "dataset_test_split")
    else:
        c.unneeded("dataset_test_split", "eval_strategy is no, so that TRL does not read it")
        keep_some(c)


def keep_some(c: Conversion) -> None:
    """Set the least share aside for validation, which launcher always keeps."""
    c.recipe["data.validation_share"] = 0.01
    c.comments["data.validation_share"] = "launcher always keeps some rows of train to validate on"
    c.assume(
        "1 percent of train is kept for validation, which TRL would train on: data.validation_share, or name data.validation"
    )


def _mixture(c: Conversion) -> None:
    given = c.value("datasets")
    entries = given if isinstance(given, list) else []
    if not entries or not all(isinstance(entry, Mapping) and entry.get("path") for entry in entries):
        raise c.cannot("datasets", "each of it has a path", "write datasets, a list of path, name and split")
    sources = []
    for number, entry in enumerate(entries):
        name = f"datasets[{number}]"
        c.open(name, entry)
        sources.append(_source(c, name))
        c.mark("data.train", *(f"{name}.{key}" for key in ("path", "name", "split", "fraction")))
    c.put("data.train", sources[0] if len(sources) == 1 else sources)
    if len(sources) > 1 and any("weight" in one for one in sources):
        c.assume("each epoch draws from the mixture anew by the shares; TRL keeps the first rows of each data set")
    share = c.number("test_split_size")
    if share is not None and 0 < share < 1:
        c.put("data.validation_share", float(share), "test_split_size")
    else:
        c.missed(
            "test_split_size",
            "it is a number of rows, and validation_share a share of them",
            "write data.validation_share",
        )
        keep_some(c)
    for name in ("dataset_name", "dataset_config", "dataset_train_split", "dataset_test_split"):
        c.unneeded(name, "datasets goes before it")


def _source(c: Conversion, name: str) -> dict[str, Any]:
    source: dict[str, Any] = {"source": str(c.value(f"{name}.path"))}
    files = c.value(f"{name}.data_files")
    if source["source"] in ("json", "csv", "parquet", "text") and isinstance(files, str):
        source["source"] = files
        c.mark("data.train", f"{name}.data_files")
    elif c.has(f"{name}.name"):
        source["name"] = str(c.value(f"{name}.name"))
    if not isinstance(files, str) or "source" not in source:
        c.missed(
            f"{name}.data_files",
            "files inside a hub data set are not chosen",
            "name the file or its folder as the source",
        )
    if not c.has(f"{name}.data_files"):
        source["split"] = str(c.value(f"{name}.split", "train"))
    share = c.number(f"{name}.fraction")
    if share:
        source["weight"] = float(share)
    c.unneeded(f"{name}.columns", "the task takes the columns that it needs")
    return source


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
    return {"project": str(c.value("project"))} if c.has("project") else None
