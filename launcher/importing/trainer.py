"""Keys that a tool hands on to transformers' Trainer: length, batch, optimizer, schedule, evaluations, checkpoints.

Names here are those of TrainingArguments; a dialect says what the tool calls them. Where the file is silent and the tool does something
else than launcher would, what the tool does is written out.
"""

from __future__ import annotations

from typing import Any

from launcher.importing.conversion import Conversion
from launcher.recipe import training_tables as tables
from launcher.recipe.optimizer_keys import DEFAULT_OPTIMIZER, OPTIMIZERS
from launcher.recipe.schedule_keys import KWARGS, WITHOUT_WARMUP

# What Trainer does by itself (transformers 5).
DEFAULTS = {
    "num_train_epochs": 3.0,
    "per_device_train_batch_size": 8,
    "per_device_eval_batch_size": 8,
    "gradient_accumulation_steps": 1,
    "learning_rate": 5e-5,
    "lr_scheduler_type": "linear",
    "warmup_steps": 0,
    "weight_decay": 0.0,
    "eval_strategy": "no",
    "save_strategy": "steps",
    "save_steps": 500,
    "logging_steps": 500,
}

_LATER_NAMES = {"adamw_hf": "adamw_torch"}


def trainer_keys(c: Conversion) -> None:
    """Translate what the Trainer of transformers takes."""
    _length(c)
    _batch(c)
    _optimizer(c)
    _schedule(c)
    _order(c)
    _handed_on(c)
    _trainers_own(c)


def whole(value: Any) -> Any:
    """Return a number without a fraction as a whole one, as the recipe wants it."""
    return int(value) if isinstance(value, float) and value == int(value) else value


def _length(c: Conversion) -> None:
    most = c.number("max_steps")
    if most is not None and most > 0:
        c.put("training.max_steps", whole(most), "max_steps")
        c.unneeded("num_train_epochs", "max_steps tells the length, there and here")
        return
    c.unneeded("max_steps", "it is off in the file; epochs tell the length")
    c.put("training.num_train_epochs", c.number("num_train_epochs"), "num_train_epochs")


def _batch(c: Conversion) -> None:
    each = _size(c, "per_device_train_batch_size")
    steps = _size(c, "gradient_accumulation_steps")
    gpus = c.gpus or 1
    names = ("per_device_train_batch_size", "gradient_accumulation_steps")
    note = f"{each} on a GPU * {steps} accumulated * {gpus} GPU{'s' if gpus > 1 else ''}"
    c.put("training.global_batch_size", each * steps * gpus, *names, note=note)
    c.comments["training.global_batch_size"] = note
    c.put("training.per_device_train_batch_size", each, "per_device_train_batch_size")
    c.comments["training.per_device_train_batch_size"] = "a cap; accumulation follows from the two"
    if c.gpus is None:
        c.assume(
            f"1 GPU, as the file does not say how many: global_batch_size is {note}. For N GPUs import with --gpus N; "
            "the recipe then means the same on any number of them"
        )
    c.put("training.per_device_eval_batch_size", _size(c, "per_device_eval_batch_size"), "per_device_eval_batch_size")


def _size(c: Conversion, name: str) -> int:
    found = whole(c.number(name, 1))
    if isinstance(found, int) and found >= 1:
        return found
    c.missed(name, f"it is {c.shown(c.key(name))}, which is no number of rows", "1 was taken; set it in the recipe")
    return 1


def _optimizer(c: Conversion) -> None:
    c.put("training.learning_rate", float(c.number("learning_rate")), "learning_rate")
    name = str(c.value("optim", DEFAULT_OPTIMIZER))
    name = _LATER_NAMES.get(name, name)
    if name in OPTIMIZERS:
        if c.has("optim"):
            c.put("training.optim", name, "optim")
    else:
        c.missed(
            "optim",
            f"launcher has no optimizer {name}",
            f"the recipe trains with {DEFAULT_OPTIMIZER}; `launcher schema` lists others",
        )
    c.put("training.weight_decay", float(c.number("weight_decay")), "weight_decay")
    options = c.value("optim_args")
    if options:
        text = (
            ", ".join(f"{key}={value}" for key, value in options.items()) if isinstance(options, dict) else str(options)
        )
        c.put("training.optim_args", text, "optim_args")
    for field in (
        "adam_beta1",
        "adam_beta2",
        "adam_epsilon",
        "max_grad_norm",
        "label_smoothing_factor",
        "neftune_noise_alpha",
    ):
        if c.has(field) and (number := c.number(field)) is not None:
            c.put(f"training.{field}", float(number), field)


def _schedule(c: Conversion) -> None:
    shape = str(c.settled.get("lr_scheduler_type") or c.value("lr_scheduler_type"))
    if shape not in KWARGS:
        instead = str(c.dialect.defaults["lr_scheduler_type"])
        c.missed(
            "lr_scheduler_type",
            f"launcher has no schedule {shape}",
            f"the recipe has {instead}; the guide to schedules lists others",
        )
        shape = instead
    c.put("training.lr_scheduler_type", shape, "lr_scheduler_type")
    if "lr_scheduler_type" in c.settled:
        c.comments.pop("training.lr_scheduler_type", None)
    options = c.value("lr_scheduler_kwargs")
    if isinstance(options, dict) and options:
        c.put("training.lr_scheduler_kwargs", options, "lr_scheduler_kwargs")
    warmup(c, shape)


def warmup(c: Conversion, shape: str) -> None:
    """Write the warm-up as steps, or below 1 as a share of them: ``warmup_ratio`` and ``warmup_steps`` are one key here."""
    if shape in WITHOUT_WARMUP:
        for name in ("warmup_steps", "warmup_ratio"):
            c.unneeded(name, f"the schedule is {shape}, {WITHOUT_WARMUP[shape]}")
        return
    steps = c.number("warmup_steps")
    share = c.number("warmup_ratio")
    by_share = (
        share is not None
        and not (c.has("warmup_steps") and steps)
        and (c.has("warmup_ratio") or not c.has("warmup_steps"))
    )
    name, value = ("warmup_ratio", share) if by_share else ("warmup_steps", steps or 0)
    if by_share and not 0 <= value < 1:
        c.missed(
            name,
            f"it is {c.shown(c.key(name))}, which is no share",
            "write training.warmup_steps, below 1 a share of all steps",
        )
        value = 0
    c.put("training.warmup_steps", float(value) if by_share else whole(value), name)
    for other in ("warmup_ratio", "warmup_steps"):
        if other != name and c.has(other):
            c.unneeded(other, f"{c.key(name)} goes before it")


def _order(c: Conversion) -> None:
    """Rows are shuffled; launcher alone would put texts of like length together."""
    said = c.value("train_sampling_strategy")
    if said in ("group_by_length", "random", "sequential"):
        c.put("training.train_sampling_strategy", said, "train_sampling_strategy")
    elif c.flag("group_by_length"):
        c.put("training.train_sampling_strategy", "group_by_length", "group_by_length")
    elif c.flag("disable_shuffling"):
        c.put("training.train_sampling_strategy", "sequential", "disable_shuffling")
    else:
        c.put(
            "training.train_sampling_strategy",
            "random",
            "train_sampling_strategy",
            "group_by_length",
            "disable_shuffling",
        )


_HANDLED = (
    "optim",
    "optim_args",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "neftune_noise_alpha",
    "activation_checkpointing_kwargs",
)


def _handed_on(c: Conversion) -> None:
    """Fields that keep name and meaning."""
    for name in ("seed", "logging_steps", *sorted(tables.PASSTHROUGH - {*_HANDLED})):
        if not c.has(name) or c.value(name) in (False, [], {}):
            continue
        value = c.value(name)
        if (
            isinstance(value, str)
            and (number := c.number(name) if name in ("seed", "logging_steps") else None) is not None
        ):
            value = number
        if name == "logging_steps" and c.value("logging_strategy", "steps") != "steps":
            c.unneeded(name, f"logging_strategy is {c.value('logging_strategy')}")
        elif not (name.startswith("dataloader_") and value == 0):
            c.put(f"training.{name}", value, name)


def _trainers_own(c: Conversion) -> None:
    """Fields that launcher answers for in another way, each with the reason."""
    said_elsewhere = {
        "deepspeed", "fsdp", "fsdp_config", "report_to", "bf16", "fp16", "tf32", "gradient_accumulation_steps", "auto_find_batch_size",
        "ddp_timeout", "run_name", "project",
    }  # fmt: skip
    for name in ("output_dir", *tables.OWNED, *tables.WITHOUT_EFFECT):
        if name not in said_elsewhere:
            reason = (tables.OWNED.get(name) or tables.WITHOUT_EFFECT[name]).reason
            c.unneeded(name, reason)
    c.unneeded("ddp_timeout", "distributed.timeout watches all ranks; its own value suits most runs")
    if c.flag("auto_find_batch_size"):
        c.missed(
            "auto_find_batch_size",
            tables.WITHOUT_EFFECT["auto_find_batch_size"].reason,
            "`launcher plan` tells the largest that fits",
        )
    for name, (present, _) in tables.RENAMED.items():
        if present is None:
            c.unneeded(name, tables.ADVICE.get(name, "it has no meaning any more").removeprefix("remove it; "))


# --- evaluations and checkpoints -----------------------------------------------------------------------------------------


def moments(c: Conversion) -> None:
    """Translate when the model is evaluated and saved, and which checkpoint is kept."""
    evaluation = _strategy(c, "eval_strategy", "evaluation_strategy")
    _moment(c, "eval", evaluation, steps=c.number("eval_steps", c.number("logging_steps")))
    saving = _strategy(c, "save_strategy")
    if saving == "best":
        c.missed(
            "save_strategy",
            "launcher saves at every evaluation and keeps the best beside the newest",
            "nothing is lost",
        )
        saving = evaluation
    _moment(c, "save", saving, steps=c.number("save_steps"))
    the_best(c, saves=saving != "no")


def _strategy(c: Conversion, *names: str) -> str:
    name = next((one for one in names if c.has(one)), names[0])
    found = c.value(name)
    # Readers of YAML 1.1 take `no` for false.
    return "no" if found is False else str(found)


def _moment(c: Conversion, what: str, strategy: str, *, steps: Any) -> None:
    names = ("eval_strategy", "evaluation_strategy", "do_eval") if what == "eval" else ("save_strategy",)
    c.put(f"training.{what}_strategy", strategy, *(name for name in names if name != "do_eval"))
    if strategy == "steps" and steps:
        c.put(f"training.{what}_steps", float(steps) if steps < 1 else whole(steps), f"{what}_steps")
    else:
        c.unneeded(f"{what}_steps", f"{what}_strategy is {strategy}")


def the_best(c: Conversion, *, saves: bool) -> None:
    """Translate which checkpoints are kept. Trainer keeps the last model, launcher alone the best one on validation."""
    best = c.flag("load_best_model_at_end")
    c.put("training.load_best_model_at_end", best, "load_best_model_at_end")
    kept = c.number("save_total_limit")
    if not saves:
        c.unneeded("save_total_limit", "nothing is saved on the way")
    elif kept is not None and kept >= 1:
        c.put("training.save_total_limit", whole(kept), "save_total_limit")
    else:
        c.assume(
            f"{c.dialect.shown} keeps every checkpoint, the recipe the newest; training.save_total_limit keeps more"
        )
    if c.has("metric_for_best_model"):
        c.put(
            "training.metric_for_best_model",
            str(c.value("metric_for_best_model")).removeprefix("eval_"),
            "metric_for_best_model",
        )
        if c.has("greater_is_better"):
            c.put("training.greater_is_better", c.flag("greater_is_better"), "greater_is_better")
    else:
        c.unneeded("greater_is_better", "metric_for_best_model is not given")
    if (patience := c.number("early_stopping_patience")) is not None:
        c.put("training.early_stopping_patience", whole(patience), "early_stopping_patience")


def checkpointing(c: Conversion, *names: str, on: bool) -> None:
    """Translate whether activations are recomputed, which the configuration of FSDP can say as well."""
    in_fsdp = [f"fsdp_config.{prefix}activation_checkpointing" for prefix in ("", "fsdp_")]
    c.put("training.activation_checkpointing", on or any(map(c.flag, in_fsdp)), *names, *in_fsdp)
    reason = "launcher recomputes without re-entry where it can; the numbers are the same"
    for name in ("gradient_checkpointing_kwargs", "activation_checkpointing_kwargs"):
        c.unneeded(name, reason)
