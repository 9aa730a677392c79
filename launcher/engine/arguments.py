"""Transformers' TrainingArguments from a recipe and a launch plan."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from launcher.launching.render import deepspeed_config
from launcher.plans import LaunchPlan
from launcher.recipe.optimizer_keys import DEFAULT_MOMENTUM, OURS as OUR_OPTIMIZERS
from launcher.recipe.schema import Recipe, TrainingSection

# Keys of ``training`` that are ours, or that the mixin carries out itself.
_OURS = {
    "global_batch_size",
    "per_device_train_batch_size",
    "early_stopping_patience",
    "train_sampling_strategy",
    "label_smoothing_factor",
    "max_steps",
    "metric_for_best_model",
    "batch_size_schedule",
    "lr_scheduler_kwargs",
    "warmup_steps",
    "momentum",
    "l1_penalty",
    "l2_penalty",
    "max_grad_value",
}


def training_arguments(
    recipe: Recipe, plan: LaunchPlan, *, output_dir: str, deepspeed: Mapping[str, Any] | None = None
) -> Any:
    """Return TrainingArguments; creating them starts torch.distributed where there are several ranks.

    ``deepspeed``: the user's own DeepSpeed configuration; None: the shipped one of the plan's stage.
    """
    from transformers import TrainingArguments
    from transformers.utils import logging

    # A bar of transformers' own fills a log with thousands of half lines.
    logging.disable_progress_bar()
    values = {k: v for k, v in recipe.training.model_dump().items() if k not in _OURS and v is not None}
    values |= {
        "output_dir": output_dir,
        "max_steps": recipe.training.max_steps or -1,
        # RunSchedule is the schedule; Trainer's own would know neither our names nor our phases.
        "lr_scheduler_type": "constant",
        "optim_args": _optimizer_options(recipe.training),
        "per_device_train_batch_size": plan.batch.micro_batch_size,
        "gradient_accumulation_steps": plan.batch.accumulation,
        # The task names its metric once its data are known; Trainer only wants some name here.
        "metric_for_best_model": recipe.training.metric_for_best_model or "loss",
        # Without checkpoints chosen by evaluations there is no best one.
        "load_best_model_at_end": recipe.training.chooses_best,
        "bf16": plan.precision == "bf16",
        "fp16": plan.precision == "fp16",
        # Also what makes torch.distributed use gloo under DeepSpeed on a machine without GPUs.
        "use_cpu": plan.device == "cpu",
        "deepspeed": deepspeed_config(recipe, plan, base=deepspeed) if plan.engine == "deepspeed" else None,
        "report_to": recipe.tracking.report_to or "none",
        "disable_tqdm": True,
        "remove_unused_columns": False,
        # A NaN must be seen, not replaced by the mean of earlier losses.
        "logging_nan_inf_filter": False,
    }
    optimizer = values.get("optim")
    if optimizer in OUR_OPTIMIZERS:
        del values["optim"]
    arguments = TrainingArguments(**values)
    if optimizer in OUR_OPTIMIZERS:
        # TrainingArguments takes transformers' names only; make_optimizer reads this one.
        arguments.optim = optimizer
    if plan.world_size == 1:
        # Several visible GPUs and one process would otherwise mean torch's DataParallel.
        arguments._n_gpu = min(arguments._n_gpu, 1)
    if plan.engine == "deepspeed":
        _start_deepspeed(plan)
    return arguments


def _optimizer_options(training: TrainingSection) -> str | None:
    """Return optim_args with momentum, which Trainer's SGD reads there."""
    given = training.passthrough.get("optim_args")
    if training.passthrough.get("optim") != "sgd":
        return given
    momentum = DEFAULT_MOMENTUM if training.momentum is None else training.momentum
    return ",".join([f"momentum={momentum}", *([given] if given else [])])


def _start_deepspeed(plan: LaunchPlan) -> None:
    """Bring DeepSpeed's own communication up before a model is built under ZeRO-3, which needs it."""
    import deepspeed

    backend = "nccl" if plan.device == "cuda" else "gloo"
    deepspeed.init_distributed(dist_backend=backend, auto_mpi_discovery=False)
