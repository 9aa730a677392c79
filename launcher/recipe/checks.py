"""Rules that bind keys of different sections: the table of settings without effect; contradictions.py has the others.

A setting counts as given when the recipe, a base file or the command line sets it, and not to null.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from launcher.errors import Problem
from launcher.recipe.batch_checks import by_tokens, not_by_tokens
from launcher.recipe.chat_checks import no_prompts, nothing_else_learned
from launcher.recipe.chat_options import SMOOTHED_LOSSES
from launcher.recipe.contradictions import CONTRADICTIONS
from launcher.recipe.keys import shown
from launcher.recipe.optimizer_keys import OPTIMIZERS, obeys, optimizer_name
from launcher.recipe.schedule_keys import FOLLOW_METRIC, KWARGS, WITHOUT_WARMUP
from launcher.recipe.schema import Recipe
from launcher.recipe.strategy_checks import DISCRIMINATIVE_IDLE
from launcher.recipe.task_options import CONVERSATION_TASKS, IMAGE_TASKS, PAIR_TASKS, TASKS_WITHOUT_LABELS
from launcher.recipe.view import Finding, View, is_local

if TYPE_CHECKING:
    from launcher.recipe.loaded import LoadedRecipe


# Kernels of Liger that replace the loss within a model; its others replace layers.
LIGER_LOSSES = ("cross_entropy", "fused_linear_cross_entropy")


@dataclass(frozen=True)
class Idle:
    """A key that has no effect while ``because`` returns a reason."""

    key: str
    because: Callable[[View], object]
    remedy: str


def _unless_eval(name: str) -> Callable[[View], str | bool]:
    return lambda v: v.t.eval_strategy != name and f"eval_strategy is {v.t.eval_strategy}"


def _no_eval(v: View) -> str | bool:
    return v.t.eval_strategy == "no" and "training.eval_strategy is no"


def _nothing_chosen(v: View) -> str | bool:
    chosen = v.t.load_best_model_at_end or v.t.early_stopping_patience or v.t.lr_scheduler_type in FOLLOW_METRIC
    return _no_eval(v) or (not chosen and "no checkpoint is chosen and no run stopped by a metric")


def _no_save(v: View) -> str | bool:
    return _no_eval(v) or (v.t.save_strategy == "no" and "training.save_strategy is no")


def _no_workers(v: View) -> str | bool:
    return not v.extra("dataloader_num_workers") and "training.dataloader_num_workers is 0"


def _unless_obeyed(name: str) -> Callable[[View], str | bool]:
    return lambda v: not obeys(v, name) and f"training.optim is {optimizer_name(v)}"


def _no_optim_args(v: View) -> str | bool:
    found = OPTIMIZERS.get(optimizer_name(v))
    return found is not None and not found.options and f"training.optim is {optimizer_name(v)}, which takes none"


def _no_liger(v: View) -> str | bool:
    if not v.extra("use_liger_kernel"):
        return "training.use_liger_kernel is off"
    chosen = v.extra("liger_kernel_config") or {}
    idle = [name for name in LIGER_LOSSES if chosen.get(name)]
    return bool(idle) and f"{idle[0]} is for a loss that the model computes, and launcher computes losses itself"


def _no_warmup(v: View) -> str | bool:
    schedule = v.t.lr_scheduler_type
    reason = WITHOUT_WARMUP.get(schedule)
    return reason is not None and f"training.lr_scheduler_type is {schedule}, {reason}"


def _plain_schedule(v: View) -> str | bool:
    schedule = v.t.lr_scheduler_type
    return KWARGS.get(schedule) == {} and f"training.lr_scheduler_type is {schedule}, which takes none"


def _regression(v: View) -> str | bool:
    return v.value("task.problem_type") == "regression" and "task.problem_type is regression"


def _images(v: View) -> str | bool:
    return v.recipe.task.type in IMAGE_TASKS and f"the task is {v.recipe.task.type}, whose rows are images"


def _conversations(v: View) -> str | bool:
    return v.recipe.task.type in CONVERSATION_TASKS and f"the task is {v.recipe.task.type}"


def _boxes(v: View) -> str | bool:
    return v.recipe.task.type == "object-detection" and "the task is object-detection, whose losses have no smoothing"


def _no_labels(v: View) -> str | bool:
    return _regression(v) or (
        v.recipe.task.type in TASKS_WITHOUT_LABELS and f"the task is {v.recipe.task.type}, which has no labels"
    )


def _pairs(v: View) -> str | bool:
    return v.recipe.task.type in PAIR_TASKS and f"the task is {v.recipe.task.type}, whose loss is of pairs of answers"


def _sure_of_pairs(v: View) -> str | bool:
    loss = v.value("task.loss_type")
    heeds = v.recipe.task.type != "preference" or loss in SMOOTHED_LOSSES
    return not heeds and f"task.loss_type is {loss}, which takes every pair as it is labelled"


def _no_simpo(v: View) -> str | bool:
    loss = v.value("task.loss_type")
    return loss != "simpo" and f"task.loss_type is {loss}"


def _changes_nothing(v: View) -> str | bool:
    wanted = v.value("task.augmentation")
    changes = wanted.model_dump(exclude={"synonym_probability"})
    return not any(changes.values()) and "it names no change"


def _no_synonyms(v: View) -> str | bool:
    return v.value("task.augmentation.synonyms") is None and "task.augmentation.synonyms names no list"


def _not_one_label(v: View) -> str | bool:
    kind = v.value("task.problem_type")
    return kind in ("regression", "multi_label_classification") and f"task.problem_type is {kind}"


def _not_multi_label(v: View) -> str | bool:
    kind = v.value("task.problem_type")
    return kind not in ("auto", "multi_label_classification") and f"task.problem_type is {kind}"


def _has_validation(v: View) -> str | bool:
    return v.recipe.data.validation is not None and "data.validation gives the rows"


def _no_label_errors(v: View) -> str | bool:
    task = v.recipe.task.type
    elsewhere = task != "text-classification" and f"the task is {task}, and they are looked for in text-classification"
    return v.recipe.evaluation.label_errors and (elsewhere or _not_one_label(v))


def _no_intervals(v: View) -> str | bool:
    return v.recipe.evaluation.bootstrap == 0 and "evaluation.bootstrap is 0"


def _no_wandb(v: View) -> str | bool:
    wandb = v.recipe.tracking.wandb
    return wandb is not None and wandb.mode == "disabled" and "tracking.wandb.mode is disabled"


def _nothing_offloaded(v: View) -> str | bool:
    d = v.recipe.distributed
    return d.offload == "none" and d.deepspeed_config is None and "distributed.offload is none"


def _not_to_nvme(v: View) -> str | bool:
    d = v.recipe.distributed
    is_open = d.deepspeed_config is not None or d.offload_device == "nvme"
    return _nothing_offloaded(v) or (not is_open and "distributed.offload_device is cpu")


def _not_on_hub(v: View) -> str | bool:
    name = v.recipe.model.name_or_path
    return (name is None and "model.name_or_path is null") or (
        name is not None and is_local(name) and "the model is a folder or in a package"
    )


def _frozen_head(v: View) -> str | bool:
    return getattr(v.recipe.strategy, "train_head", True) is False and "strategy.train_head is false"


IDLE = (
    Idle(
        "training.num_train_epochs",
        lambda v: v.t.max_steps and "training.max_steps sets the length of the run",
        "keep one of the two",
    ),
    Idle("training.eval_steps", _unless_eval("steps"), "write eval_strategy: steps, or remove it"),
    Idle(
        "training.save_steps",
        lambda v: v.t.save_strategy != "steps" and f"save_strategy is {v.t.save_strategy}",
        "write save_strategy: steps, or remove it",
    ),
    Idle(
        "training.save_total_limit",
        lambda v: v.t.save_strategy == "no" and "training.save_strategy is no",
        "save at steps or epoch, or remove it",
    ),
    Idle(
        "training.async_save",
        lambda v: v.t.async_save and v.t.save_strategy == "no" and "training.save_strategy is no",
        "save at steps or epoch, or remove it",
    ),
    Idle(
        "training.load_best_model_at_end",
        lambda v: v.t.load_best_model_at_end and _no_save(v),
        "evaluate and save at the same times, or write false",
    ),
    Idle(
        "training.global_batch_size",
        by_tokens,
        "keep one of the two; over a base file's, write global_batch_size: null",
    ),
    Idle("training.per_device_train_batch_size", by_tokens, "write per_device_train_tokens, or remove it"),
    Idle("training.per_device_train_tokens", not_by_tokens, "add tokens_per_batch, or remove it"),
    Idle("training.early_stopping_patience", _no_eval, "write eval_strategy: epoch, or remove it"),
    Idle(
        "training.metric_for_best_model",
        _nothing_chosen,
        "evaluate, and choose the best checkpoint by it; or remove it",
    ),
    Idle(
        "training.greater_is_better",
        lambda v: not v.given("training.metric_for_best_model") and "metric_for_best_model is not given",
        "name the metric, or remove it",
    ),
    Idle("training.eval_delay", _no_eval, "write eval_strategy: epoch, or remove it"),
    Idle(
        "training.eval_on_start",
        lambda v: v.extra("eval_on_start") and _no_eval(v),
        "write eval_strategy: epoch, or remove it",
    ),
    Idle(
        "training.warmup_steps",
        lambda v: v.t.warmup_steps and _no_warmup(v),
        "choose another schedule, such as constant_with_warmup, or remove it",
    ),
    Idle("training.lr_scheduler_kwargs", _plain_schedule, "choose a schedule that takes them, or remove it"),
    Idle(
        "training.logging_steps",
        lambda v: (
            v.extra("logging_strategy", "steps") != "steps" and f"logging_strategy is {v.extra('logging_strategy')}"
        ),
        "remove one of the two",
    ),
    Idle("training.adam_beta1", _unless_obeyed("adam_beta1"), "remove it, or choose an Adam optimizer"),
    Idle("training.adam_beta2", _unless_obeyed("adam_beta2"), "remove it, or choose an Adam optimizer"),
    Idle("training.adam_epsilon", _unless_obeyed("adam_epsilon"), "remove it, or choose an Adam optimizer"),
    Idle("training.momentum", _unless_obeyed("momentum"), "write optim: sgd, or remove it"),
    Idle("training.optim_args", _no_optim_args, "remove it"),
    Idle(
        "training.data_seed",
        lambda v: v.t.train_sampling_strategy == "sequential" and "rows keep their order",
        "remove one of the two",
    ),
    Idle("training.dataloader_persistent_workers", _no_workers, "set dataloader_num_workers, or remove it"),
    Idle("training.dataloader_prefetch_factor", _no_workers, "set dataloader_num_workers, or remove it"),
    Idle("training.dataloader_multiprocessing_context", _no_workers, "set dataloader_num_workers, or remove it"),
    Idle(
        "training.liger_kernel_config",
        _no_liger,
        "write use_liger_kernel: true and name kernels of layers, such as rope, or remove it",
    ),
    Idle(
        "training.activation_checkpointing_kwargs",
        lambda v: not v.t.activation_checkpointing and "activation_checkpointing is false",
        "write activation_checkpointing: true, or remove it",
    ),
    Idle(
        "training.label_smoothing_factor",
        lambda v: v.t.label_smoothing_factor and (_not_one_label(v) or _boxes(v)),
        "remove it; it spreads one label over the others",
    ),
    Idle(
        "training.label_smoothing_factor",
        lambda v: v.t.label_smoothing_factor and _pairs(v),
        "remove it; preference has task.label_smoothing",
    ),
    Idle(
        "task.label_smoothing",
        lambda v: v.value("task.label_smoothing") and _sure_of_pairs(v),
        "write loss_type: robust, or remove it",
    ),
    Idle("task.simpo_gamma", _no_simpo, "write loss_type: simpo, or remove it"),
    Idle(
        "task.class_weights",
        lambda v: v.value("task.class_weights") != "none" and _regression(v),
        "remove it; a number has no classes",
    ),
    Idle(
        "task.focal_gamma",
        lambda v: v.value("task.focal_gamma") and _regression(v),
        "remove it; a number has no classes",
    ),
    Idle(
        "task.class_sampling",
        lambda v: v.value("task.class_sampling") != "natural" and _not_one_label(v),
        "remove it; rows are drawn by the one label that they have",
    ),
    Idle("task.augmentation", _changes_nothing, "name a change that is not 0, or remove it"),
    Idle("task.augmentation.synonym_probability", _no_synonyms, "name a list of synonyms, or remove it"),
    Idle(
        "task.augmentation.synonyms",
        lambda v: v.value("task.augmentation.synonym_probability") == 0 and "synonym_probability is 0",
        "write synonym_probability: 0.1, or remove it",
    ),
    Idle("task.label_delimiter", _not_multi_label, "write problem_type: multi_label_classification, or remove it"),
    *(Idle(key, _images, "remove it; there are no texts") for key in ("data.max_length", "data.join")),
    Idle("model.tokenizer_name_or_path", _images, "remove it; images have a processor of their own"),
    Idle(
        "task.length_penalty",
        lambda v: v.value("task.num_beams") == 1 and "task.num_beams is 1, which compares no texts",
        "write num_beams: 4, or remove it",
    ),
    Idle("task.learned_answers", nothing_else_learned, "remove one of the two"),
    Idle("task.sample_generations", no_prompts, "remove one of the two"),
    Idle("data.join", _conversations, "remove it; conversations are not joined of columns"),
    Idle("data.labels", _no_labels, "remove it; there are no classes"),
    Idle(
        "data.shuffle_buffer_size",
        lambda v: not v.recipe.data.streaming and "data.streaming is false",
        "write streaming: true, or remove it",
    ),
    Idle(
        "training.train_sampling_strategy",
        lambda v: (
            v.recipe.data.streaming and "with data.streaming rows are shuffled in blocks of data.shuffle_buffer_size"
        ),
        "remove it",
    ),
    Idle("data.validation_share", _has_validation, "keep one of the two"),
    Idle(
        "data.stopping_strategy",
        lambda v: not v.recipe.data.weighted and "no source of data.train has a weight",
        "give each source of train a weight, or remove it",
    ),
    Idle("data.split_seed", _has_validation, "keep one of the two"),
    Idle("strategy.head_lr", _frozen_head, "write train_head: true, or remove it"),
    *(Idle(*row) for row in DISCRIMINATIVE_IDLE),
    Idle("distributed.offload_device", _nothing_offloaded, "write offload: optimizer, or remove it"),
    Idle("distributed.nvme_path", _not_to_nvme, "write offload_device: nvme, or remove it"),
    Idle("model.revision", _not_on_hub, "remove it; revisions are of models on the hub"),
    Idle("evaluation.label_errors", _no_label_errors, "remove it"),
    Idle("evaluation.confidence", _no_intervals, "give bootstrap a number, or remove it"),
    *(
        Idle(f"tracking.wandb.{name}", _no_wandb, "remove it, or write mode: auto")
        for name in ("project", "entity", "group", "tags", "log_predictions")
    ),
)


def _idle(view: View) -> Iterator[Finding]:
    for row in IDLE:
        reason = view.given(row.key) and row.because(view)
        if reason:
            yield Finding(row.key, f"{shown(row.key, view.value(row.key))} but has no effect: {reason}", row.remedy)


def values_without_effect(recipe: Recipe) -> frozenset[str]:
    """Return the keys whose values are defaults that have no effect in this recipe."""
    view = View(recipe, assume_given=True)
    return frozenset(finding.key for finding in _idle(view) if _is_default(view, finding.key))


def _is_default(view: View, key: str) -> bool:
    above, _, name = key.rpartition(".")
    declared = type(view.value(above)).model_fields.get(name)
    return declared is not None and declared.get_default(call_default_factory=True, validated_data={}) == view.value(
        key
    )


def check_recipe(loaded: LoadedRecipe) -> list[Problem]:
    """Return what is wrong between the keys of a recipe; needs neither files nor packages."""
    view = View(loaded.recipe)
    found = [*_idle(view), *(finding for rule in CONTRADICTIONS for finding in rule(view))]
    return [Problem(loaded.place(item.key), item.message, item.remedy, item.key, item.fix) for item in found]
