"""Who answers for each field of transformers' TrainingArguments; a test holds these tables to the installed version.

``training`` names some fields itself (schema.TrainingSection); the rest are here: passed through, owned by another part
of the recipe, without effect in our worker, or an earlier name of something else.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

PASSTHROUGH = frozenset({
    # optimizer and schedule
    "optim", "optim_args", "adam_beta1", "adam_beta2", "adam_epsilon", "neftune_noise_alpha",
    # the computation
    "activation_checkpointing_kwargs", "torch_compile", "torch_compile_backend", "torch_compile_mode",
    "use_liger_kernel", "liger_kernel_config", "use_cache", "torch_empty_cache_steps", "full_determinism", "debug",
    # data loading
    "data_seed", "dataloader_num_workers", "dataloader_pin_memory", "dataloader_persistent_workers",
    "dataloader_prefetch_factor", "dataloader_multiprocessing_context",
    # when to log and evaluate
    "eval_delay", "eval_on_start", "logging_strategy", "logging_first_step", "include_num_input_tokens_seen",
    "log_level", "log_level_replica",
})  # fmt: skip

# Least and greatest value of a number that is passed through; the type is in transformers, the bounds are not.
BOUNDS: dict[str, tuple[float, float]] = {
    "adam_beta1": (0, 1), "adam_beta2": (0, 1), "adam_epsilon": (0, 1), "dataloader_num_workers": (0, 1024),
    "dataloader_prefetch_factor": (1, 1024), "torch_empty_cache_steps": (1, 1e9), "data_seed": (0, 2**63 - 1),
    "eval_delay": (0, 1e12), "neftune_noise_alpha": (0, 1e6),
}  # fmt: skip

# A decay of 1 would never forget.
BELOW_UPPER_BOUND = frozenset({"adam_beta1", "adam_beta2"})

# Choices that transformers names only in a help text or a run-time value.
CHOICES = {
    "log_level": ("detail", "debug", "info", "warning", "error", "critical", "passive"),
    "log_level_replica": ("detail", "debug", "info", "warning", "error", "critical", "passive"),
    "debug": ("", "underflow_overflow", "tpu_metrics_debug"),
    "include_num_input_tokens_seen": ("all", "non_padding", "no", True, False),
}

# Optimizers that bring parameter groups, a backward pass or a schedule of their own, which contradicts the tuning table.
FOREIGN_OPTIMIZERS = ("galore_", "apollo_", "lomo", "adalomo", "schedule_free_")


@dataclass(frozen=True)
class Refused:
    """Why a field is not set in ``training``, and what to do instead."""

    reason: str
    remedy: str
    removable: bool = True
    """Whether leaving the key out is the whole cure, so that ``check --fix`` does it."""


def _all(names: str, reason: str, remedy: str, *, removable: bool = True) -> dict[str, Refused]:
    return dict.fromkeys(names.split(), Refused(reason, remedy, removable))


_BATCH = "write global_batch_size (rows of one optimizer step over all processes); accumulation follows from it"
_PRECISION = "write precision: bf16, fp16, fp32 or auto at the top of the recipe"
_DISTRIBUTED = "write distributed: {engine, zero_stage, nodes, processes_per_node}"

OWNED: dict[str, Refused] = {
    **_all("output_dir", "the run directory is the owner: runs/NAME-001, -002, ...", "remove it; 'name' names the run"),
    **_all("run_name", "the run directory is the owner", "remove it; 'name' names the run"),
    **_all("gradient_accumulation_steps", "it is derived from global_batch_size", _BATCH, removable=False),
    **_all("bf16 fp16 bf16_full_eval fp16_full_eval tf32", "'precision' is the owner", _PRECISION, removable=False),
    **_all(
        "deepspeed fsdp fsdp_config parallelism_config accelerator_config local_rank",
        "'distributed' is the owner",
        _DISTRIBUTED,
        removable=False,
    ),
    **_all(
        "ddp_find_unused_parameters ddp_bucket_cap_mb ddp_broadcast_buffers ddp_static_graph ddp_backend",
        "'distributed' is the owner and sets it as the engine needs",
        "remove it",
    ),
    **_all("ddp_timeout", "'distributed' is the owner", "write distributed: {timeout: seconds}", removable=False),
    **_all(
        "use_cpu",
        "'distributed' is the owner",
        "remove it; hide the GPUs (CUDA_VISIBLE_DEVICES='') to train on the CPU",
        removable=False,
    ),
    **_all(
        "report_to",
        "'tracking' is the owner",
        "write tracking: {report_to: [...]}, or tracking: {wandb: {...}}",
        removable=False,
    ),
    **_all(
        "project trackio_space_id trackio_bucket_id trackio_static_space_id",
        "'tracking' is the owner",
        "write tracking: {wandb: {project: ...}}",
        removable=False,
    ),
    **_all("resume_from_checkpoint", "the verb resume is the owner", "remove it; type 'launcher resume RUN'"),
    **_all(
        "push_to_hub hub_model_id hub_strategy hub_private_repo hub_always_push hub_revision hub_token",
        "a run uploads nothing; exporting a finished model is a step of its own",
        "remove it",
    ),
}

WITHOUT_EFFECT: dict[str, Refused] = {
    **_all("do_train do_eval do_predict", "the verbs decide: run, evaluate, predict", "remove it"),
    **_all("logging_nan_inf_filter", "it is off: a loss that is NaN ends the run instead of being hidden", "remove it"),
    **_all(
        "average_tokens_across_devices",
        "the loss is always divided by the weight of the whole global batch",
        "remove it",
    ),
    **_all(
        "auto_find_batch_size",
        "the batch is what the plan says",
        "set per_device_train_batch_size as a cap instead",
        removable=False,
    ),
    **_all(
        "optim_target_modules",
        "parameter groups come from the tuning table, which GaLore and APOLLO would replace",
        "remove it",
    ),
    **_all("log_on_each_node", "every process writes a log of its own", "remove it"),
    **_all("disable_tqdm", "progress is shown by launcher itself", "remove it"),
    **_all("prediction_loss_only", "evaluation always computes the task's metrics", "remove it"),
    **_all(
        "eval_do_concat_batches eval_use_gather_object eval_accumulation_steps include_for_metrics batch_eval_metrics",
        "evaluation runs in launcher's own loop",
        "remove it",
    ),
    **_all(
        "save_only_model save_on_each_node enable_jit_checkpoint ignore_data_skip"
        " restore_callback_states_from_checkpoint",
        "checkpoints are launcher's own: complete, and resumed at the exact row",
        "remove it",
    ),
    **_all(
        "dataloader_drop_last dataloader_in_order",
        "every row is used exactly once an epoch, in the planned order",
        "remove it",
    ),
    **_all(
        "remove_unused_columns label_names length_column_name",
        "the task prepares the columns that the model takes",
        "remove it",
    ),
    **_all("skip_memory_metrics", "memory is measured and logged by launcher itself", "remove it"),
}

# --- earlier names -------------------------------------------------------------------------------------------------

KEEP = object()
"""The value stays as it was."""

Rename = tuple[str | None, Callable[[Any], Any]]
"""Present dotted key (None: remove the key), and its value for the old value (KEEP: the same)."""


def _same(key: str) -> Rename:
    return key, lambda value: KEEP


def _when(key: str, values: dict[Any, Any]) -> Rename:
    """The present value for each old value; an old value that is not listed is left to the user."""
    return key, lambda value: values.get(value)


def _gone() -> Rename:
    return None, lambda value: KEEP


def _share(value: Any) -> Any:
    is_share = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1
    return KEEP if is_share else None


RENAMED: dict[str, Rename] = {
    "warmup_ratio": ("training.warmup_steps", _share),
    "group_by_length": _when("training.train_sampling_strategy", {True: "group_by_length", False: "random"}),
    "evaluation_strategy": _same("training.eval_strategy"),
    "gradient_checkpointing": _same("training.activation_checkpointing"),
    "gradient_checkpointing_kwargs": _same("training.activation_checkpointing_kwargs"),
    "max_seq_length": _same("data.max_length"),
    "max_seq_len": _same("data.max_length"),
    "max_length": _same("data.max_length"),
    "per_gpu_train_batch_size": _same("training.per_device_train_batch_size"),
    "per_gpu_eval_batch_size": _same("training.per_device_eval_batch_size"),
    "train_batch_size": _same("training.global_batch_size"),
    "batch_size": _same("training.global_batch_size"),
    "eval_batch_size": _same("training.per_device_eval_batch_size"),
    "adafactor": _when("training.optim", {True: "adafactor"}),
    "lr": _same("training.learning_rate"),
    "epochs": _same("training.num_train_epochs"),
    "num_epochs": _same("training.num_train_epochs"),
    "max_epochs": _same("training.num_train_epochs"),
    "optimizer": _same("training.optim"),
    "lr_scheduler": _same("training.lr_scheduler_type"),
    "scheduler": _same("training.lr_scheduler_type"),
    "label_smoothing": _same("training.label_smoothing_factor"),
    "early_stopping": (
        "training.early_stopping_patience",
        lambda value: KEEP if type(value) is int and value > 0 else None,
    ),
    "patience": _same("training.early_stopping_patience"),
    "torchdynamo": _same("training.torch_compile_backend"),
    "split_batches": _gone(),
    "dispatch_batches": _gone(),
    "no_cuda": (None, lambda value: None if value else KEEP),
    "use_mps_device": _gone(),
    "logging_dir": _gone(),
    "overwrite_output_dir": _gone(),
    "save_safetensors": _gone(),
    "include_tokens_per_second": _gone(),
    "include_inputs_for_metrics": _gone(),
    "fp16_backend": _gone(),
    "fp16_opt_level": _gone(),
    "half_precision_backend": _gone(),
    "jit_mode_eval": _gone(),
    "use_ipex": _gone(),
    "past_index": _gone(),
    "tpu_num_cores": _gone(),
    "tpu_metrics_debug": _gone(),
    "mp_parameters": _gone(),
    "ray_scope": _gone(),
    "sharded_ddp": _gone(),
    "xpu_backend": _gone(),
    "fsdp_min_num_params": _gone(),
    "fsdp_transformer_layer_cls_to_wrap": _gone(),
    "push_to_hub_model_id": _gone(),
    "push_to_hub_organization": _gone(),
    "push_to_hub_token": _gone(),
}

# What to say where an earlier name is gone without a present one, or its value needs a decision.
ADVICE = {
    "no_cuda": "remove it; hide the GPUs (CUDA_VISIBLE_DEVICES='') to train on the CPU",
    "warmup_ratio": "write warmup_steps: a share of all steps below 1, or a number of steps",
    "early_stopping": "write early_stopping_patience: evaluations without a better metric",
    "logging_dir": "remove it; logs lie in the run directory",
    "overwrite_output_dir": "remove it; every run has a new directory",
    "save_safetensors": "remove it; safetensors is the only format",
}
