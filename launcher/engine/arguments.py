"""Transformers' TrainingArguments from a recipe and a launch plan."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

from launcher.engine.stale_builds import remove_stale_marks
from launcher.launching.deepspeed import deepspeed_config, with_batch
from launcher.launching.render import fsdp_options
from launcher.plans import LaunchPlan
from launcher.recipe.optimizer_keys import DEFAULT_MOMENTUM, OURS as OUR_OPTIMIZERS
from launcher.recipe.schema import Recipe, TrainingSection

# A launcher that watches the ranks can say which one hangs; a rank that gives up only knows that it waited.
_SPEAKS_FIRST_SECONDS = 60.0
# Keys of ``training`` that are ours, or that the mixin carries out itself.
_OURS = {
    "global_batch_size",
    "tokens_per_batch",
    "per_device_train_tokens",
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
    "async_save",
}


def training_arguments(
    recipe: Recipe, plan: LaunchPlan, *, output_dir: str, deepspeed: Mapping[str, Any] | None = None
) -> Any:
    """Return TrainingArguments; creating them starts torch.distributed where there are several ranks.

    ``deepspeed``: the resolved configuration with which the attempt was started, whose batch may be another phase's; None: it
    is made from the recipe.
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
        **_precision(plan),
        # Also what makes torch.distributed use gloo under DeepSpeed on a machine without GPUs.
        "use_cpu": plan.device == "cpu",
        **_sharding(recipe, plan, deepspeed),
        "report_to": recipe.tracking.report_to or "none",
        "disable_tqdm": True,
        "remove_unused_columns": False,
        # A NaN must be seen, not replaced by the mean of earlier losses.
        "logging_nan_inf_filter": False,
    }
    patience = recipe.distributed.timeout + _SPEAKS_FIRST_SECONDS
    values["ddp_timeout"] = math.ceil(patience)
    if plan.world_size > 1 and plan.device == "cpu":
        _join_on_cpu(patience)
    optimizer = values.get("optim")
    if optimizer in OUR_OPTIMIZERS:
        del values["optim"]
    arguments = TrainingArguments(**values)
    if optimizer in OUR_OPTIMIZERS:
        # TrainingArguments takes transformers' names only; make_optimizer reads this one.
        arguments.optim = optimizer
    if plan.precision == "fp8":
        # No argument of transformers' names it; Trainer hands this on to accelerate.
        arguments.mixed_precision = "fp8"
    if plan.world_size == 1:
        # Several visible GPUs and one process would otherwise mean torch's DataParallel.
        arguments._n_gpu = min(arguments._n_gpu, 1)
    if plan.engine == "deepspeed":
        _start_deepspeed(plan)
    return arguments


def _precision(plan: LaunchPlan) -> dict[str, Any]:
    found: dict[str, Any] = {"bf16": plan.precision == "bf16", "fp16": plan.precision == "fp16"}
    if plan.device == "cuda" and plan.precision in ("fp32", "tf32"):
        # Left open, the default is torch's, which may be another in the next version.
        found["tf32"] = plan.precision == "tf32"
    return found


def _sharding(recipe: Recipe, plan: LaunchPlan, deepspeed: Mapping[str, Any] | None) -> dict[str, Any]:
    found: dict[str, Any] = {"deepspeed": None}
    if plan.engine == "deepspeed":
        if deepspeed is None:
            deepspeed = deepspeed_config(recipe, plan)
        # A probe clips gradients its own way.
        found["deepspeed"] = with_batch(deepspeed, plan.batch) | {"gradient_clipping": recipe.training.max_grad_norm}
    if plan.sequence_parallel_size > 1:
        # Transformers would hold it to the number of all ranks; accelerate fills it in from those with rows of their own.
        found["deepspeed"]["train_batch_size"] = "auto"
    if plan.engine == "fsdp":
        found |= {"fsdp": True, "fsdp_config": fsdp_options(plan)}
    if plan.sequence_parallel_size > 1:
        found["parallelism_config"] = _parallelism(recipe, plan)
    return found


def _parallelism(recipe: Recipe, plan: LaunchPlan) -> Any:
    """Return accelerate's ParallelismConfig: ranks that share rows (sp), and groups of them with rows of their own."""
    from accelerate.parallelism_config import ParallelismConfig
    from accelerate.utils.dataclasses import DeepSpeedSequenceParallelConfig

    attention = recipe.model.attn_implementation or "sdpa"
    handler = DeepSpeedSequenceParallelConfig(sp_seq_length_is_variable=True, sp_attn_implementation=attention)
    return ParallelismConfig(
        sp_size=plan.sequence_parallel_size,
        sp_backend="deepspeed",
        dp_shard_size=plan.batch.world_size,
        sp_handler=handler,
    )


def _optimizer_options(training: TrainingSection) -> str | None:
    """Return optim_args with momentum, which Trainer's SGD reads there."""
    given = training.passthrough.get("optim_args")
    if training.passthrough.get("optim") != "sgd":
        return given
    momentum = DEFAULT_MOMENTUM if training.momentum is None else training.momentum
    return ",".join([f"momentum={momentum}", *([given] if given else [])])


def _join_on_cpu(timeout: float) -> None:
    """Start torch.distributed with a time limit (seconds); under use_cpu, transformers passes its ddp_timeout to nobody."""
    import torch.distributed as dist

    if not dist.is_initialized():
        dist.init_process_group("gloo", timeout=timedelta(seconds=timeout))


def _start_deepspeed(plan: LaunchPlan) -> None:
    """Bring DeepSpeed's own communication up before a model is built under ZeRO-3, which needs it."""
    import deepspeed
    from torch.utils.cpp_extension import get_default_build_root

    # A run that was killed while it built an operation must not stop this one.
    remove_stale_marks(Path(os.environ.get("TORCH_EXTENSIONS_DIR") or get_default_build_root()))
    backend = "nccl" if plan.device == "cuda" else "gloo"
    deepspeed.init_distributed(dist_backend=backend, auto_mpi_discovery=False)
