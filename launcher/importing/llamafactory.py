"""LLaMA-Factory: one YAML file of flat keys, data by the names of its dataset_info.json."""

from __future__ import annotations

from launcher.importing.conversion import Conversion, Dialect
from launcher.importing.distributed import deepspeed_key, fsdp_keys
from launcher.importing.llamafactory_data import data_keys
from launcher.importing.llamafactory_keys import NOT_NEEDED, NOT_TRANSLATED, READ
from launcher.importing.model import (
    attention,
    name_model,
    quantised,
    refuse_images,
    revision,
    takes_fp8,
    template_by_name,
    trackers,
    weights_type,
)
from launcher.importing.rest import finish
from launcher.importing.trainer import DEFAULTS, checkpointing, moments, trainer_keys, whole

DIALECT = Dialect(
    name="llamafactory",
    shown="LLaMA-Factory",
    defaults=DEFAULTS
    | {
        "stage": "sft",
        "finetuning_type": "lora",
        "lora_rank": 8,
        "lora_dropout": 0.0,
        "lora_target": "all",
        "freeze_trainable_layers": 2,
        "cutoff_len": 2048,
        "pref_beta": 0.1,
        "pref_loss": "sigmoid",
        "dataset_dir": "data",
    },
    known=READ,
)

_TASKS = {"sft": "sft", "dpo": "preference", "rm": "reward", "pt": "causal-lm"}
_ATTENTION = {"disabled": "eager", "sdpa": "sdpa", "fa2": "flash_attention_2", "fa3": "flash_attention_3"}
_LOSSES = ("sigmoid", "hinge", "ipo", "orpo", "simpo")
_IMAGES = (
    "image_max_pixels", "image_min_pixels", "video_max_pixels", "video_min_pixels", "video_fps", "video_maxlen", "audio_sampling_rate",
    "use_audio_in_video", "media_dir", "freeze_vision_tower", "freeze_multi_modal_projector",
)  # fmt: skip
_VERBS = {
    "export_dir": "merges or exports a model (launcher: its runs have model/ merged already)",
    "infer_backend": "chats with a model (launcher: `launcher predict`)",
    "task": "runs a benchmark (launcher: `launcher evaluate`)",
    "do_predict": "writes answers (launcher: `launcher predict`)",
    "do_eval": "evaluates (launcher: `launcher evaluate`)",
}


def convert(c: Conversion) -> None:
    """Translate a configuration of LLaMA-Factory. Raises RecipeError for what no recipe can mean."""
    _refuse_other_verbs(c)
    refuse_images(c, ("model_name_or_path", "template", "dataset"), _IMAGES)
    _task(c)
    _model(c)
    data_keys(c)
    deepspeed_key(c)
    fsdp_keys(c)
    _precision(c)
    _strategy(c)
    _renamed(c)
    trainer_keys(c)
    moments(c)
    checkpointing(c, "disable_gradient_checkpointing", "gradient_checkpointing", on=_recomputes(c))
    report = c.value("report_to")
    trackers(c, given=None if report is None else c.names("report_to"), key="report_to", wandb=_project(c))
    finish(c, not_needed=NOT_NEEDED, not_translated=NOT_TRANSLATED)


def _refuse_other_verbs(c: Conversion) -> None:
    verb = next((one for one in _VERBS if c.has(one) and c.value(one) is not False), None)
    if not c.has("dataset") and not c.flag("do_train") and verb is not None:
        raise c.cannot(verb, f"the file {_VERBS[verb]}, and trains nothing", "import the file of the training")


def _task(c: Conversion) -> None:
    stage = str(c.value("stage"))
    if stage not in _TASKS:
        raise c.cannot("stage", f"launcher has no such task; it has {', '.join(_TASKS)}", "keep this run where it is")
    c.put("task.type", _TASKS[stage], "stage")
    if stage == "dpo":
        loss = str(c.value("pref_loss"))
        if loss not in _LOSSES:
            raise c.cannot(
                "pref_loss",
                f"launcher's task preference has {', '.join(_LOSSES)} of LLaMA-Factory's losses",
                "write one of them",
            )
        c.put("task.loss_type", loss, "pref_loss")
        c.put("task.beta", float(c.number("pref_beta")), "pref_beta")
        if loss == "simpo":
            c.put("task.simpo_gamma", float(c.number("simpo_gamma", 0.5)), "simpo_gamma")
        if (smoothing := c.number("dpo_label_smoothing")) is not None:
            c.put("task.label_smoothing", float(smoothing), "dpo_label_smoothing")
        if (weight := c.number("pref_ftx")) is not None:
            c.put("task.rpo_alpha", float(weight), "pref_ftx")
    elif stage == "sft":
        c.put("task.assistant_only_loss", not c.flag("train_on_prompt"), "train_on_prompt")
        c.put("task.learned_answers", "last" if c.flag("mask_history") else "all", "mask_history")
    _packing(c, stage)
    c.unneeded("do_train", "the verbs decide: run, evaluate, predict")


def _packing(c: Conversion, stage: str) -> None:
    packs = c.flag("neat_packing") or c.flag("packing", default=stage == "pt")
    if stage not in ("sft", "pt"):
        for name in ("packing", "neat_packing"):
            c.unneeded(name, "pairs are not packed, there and here")
        return
    c.put("task.packing", packs, "packing", "neat_packing")
    if packs and not c.flag("neat_packing"):
        c.assume("texts in a packed row do not see each other; LLaMA-Factory's packing without neat_packing lets them")


def _model(c: Conversion) -> None:
    name_model(c, "model_name_or_path")
    revision(c, "model_revision")
    c.put("model.trust_remote_code", c.flag("trust_remote_code"), "trust_remote_code") if c.has(
        "trust_remote_code"
    ) else None
    kernel = str(c.value("flash_attn", "auto"))
    if kernel == "auto":
        c.unneeded("flash_attn", "transformers chooses, there and here")
    else:
        attention(c, "flash_attn", _ATTENTION.get(kernel, kernel))
    if c.flag("enable_liger_kernel"):
        c.put("training.use_liger_kernel", True, "enable_liger_kernel")
    if c.recipe["task.type"] == "causal-lm":
        c.unneeded("template", "texts are read as they are")
    elif c.has("template"):
        template_by_name(c, "template", str(c.value("template")))


def _precision(c: Conversion) -> None:
    halves = [name for name in ("bf16", "fp16", "pure_bf16") if c.flag(name)]
    if takes_fp8(c):
        for name in halves:
            c.unneeded(name, "fp8 computes the rest in bf16")
    elif halves:
        c.put("precision", "fp16" if halves == ["fp16"] else "bf16", *halves)
    else:
        c.put("precision", "auto")
        c.assume("precision: auto, as the file has neither bf16 nor fp16")
    for name in ("bf16", "fp16", "pure_bf16", "fp8"):
        c.unneeded(name, "it is off in the file")
    frozen_half = c.value("finetuning_type") == "lora" and bool({"bf16", "pure_bf16"} & {*halves})
    weights_type(c, "bfloat16" if frozen_half or c.flag("pure_bf16") else "float32")
    c.comments["model.dtype"] = "as LLaMA-Factory holds it: what trains has full precision, but for pure_bf16"


def _strategy(c: Conversion) -> None:
    kind = str(c.value("finetuning_type"))
    if kind == "full":
        c.put("strategy.type", "full", "finetuning_type")
    elif kind == "freeze":
        _freeze(c)
    elif kind == "lora":
        _lora(c)
    else:
        raise c.cannot("finetuning_type", "launcher has full, freeze (as layerwise) and lora", "write one of them")
    bits = c.number("quantization_bit")
    if bits is not None and kind == "lora":
        if whole(bits) in (4, 8) and c.value("quantization_method", "bitsandbytes") in ("bitsandbytes", "bnb"):
            quantised(c, whole(bits), "quantization_bit", "quantization_method")
        else:
            c.missed(
                "quantization_bit",
                "launcher holds frozen weights in 4 or 8 bits of bitsandbytes, or whole",
                "the recipe holds them whole",
            )
    if c.value("quantization_type", "nf4") == "nf4":
        c.unneeded("quantization_type", "nf4 is what load_in_4bit is")
    if c.flag("double_quantization", default=True):
        c.unneeded("double_quantization", "load_in_4bit always quantises the constants too")


def _lora(c: Conversion) -> None:
    rank = whole(c.number("lora_rank"))
    c.put("strategy.type", "lora", "finetuning_type")
    c.put("strategy.r", rank, "lora_rank")
    c.put("strategy.lora_alpha", whole(c.number("lora_alpha") or 2 * rank), "lora_alpha")
    c.put("strategy.lora_dropout", float(c.number("lora_dropout")), "lora_dropout")
    targets = c.names("lora_target") or ["all"]
    c.put("strategy.target_modules", "all-linear" if targets == ["all"] else targets, "lora_target")
    if c.has("additional_target"):
        c.put("strategy.modules_to_save", c.names("additional_target"), "additional_target")
    for name in ("use_rslora", "use_dora"):
        if c.flag(name):
            c.put(f"strategy.{name}", True, name)
    if (ratio := c.number("loraplus_lr_ratio")) is not None:
        c.put("strategy.loraplus_lr_ratio", float(ratio), "loraplus_lr_ratio")
    if c.flag("pissa_init"):
        c.put("strategy.init_lora_weights", "pissa", "pissa_init")


def _freeze(c: Conversion) -> None:
    layers = whole(c.number("freeze_trainable_layers"))
    if not isinstance(layers, int) or layers < 1:
        raise c.cannot(
            "freeze_trainable_layers", "launcher trains the last layers, not the first ones", "write a positive number"
        )
    c.put("strategy.type", "layerwise", "finetuning_type")
    c.put("strategy.trainable_layers", layers, "freeze_trainable_layers")
    c.put("strategy.layer_decay", 1.0)
    c.put("strategy.embeddings", "freeze")
    c.assume(
        "the output head trains too, which freeze of LLaMA-Factory keeps as it was: launcher's layerwise always trains it"
    )
    if c.names("freeze_trainable_modules") in ([], ["all"]):
        c.unneeded("freeze_trainable_modules", "all parts of a layer train")


def _renamed(c: Conversion) -> None:
    if (evaluations := c.number("early_stopping_steps")) is not None:
        c.put("training.early_stopping_patience", whole(evaluations), "early_stopping_steps")


def _recomputes(c: Conversion) -> bool:
    return not c.flag("disable_gradient_checkpointing")


def _project(c: Conversion) -> dict[str, str] | None:
    return {"project": str(c.value("project"))} if c.has("project") else None
