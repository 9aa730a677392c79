"""Rules between a task, its model and its evaluation: what one task has and another has not, and models without weights."""

from __future__ import annotations

from collections.abc import Iterator

from launcher.recipe.keys import shown
from launcher.recipe.task_options import BASELINES, IMAGE_TASKS
from launcher.recipe.view import Finding, View

# Metrics of tasks that do not have those of classified texts; a test holds them to what is computed.
METRICS = {
    "causal-lm": ("loss", "perplexity"),
    "sft": ("loss", "perplexity"),
    "preference": ("loss", "accuracy", "margin"),
    "reward": ("loss", "accuracy", "margin"),
    "masked-lm": ("loss", "perplexity", "accuracy"),
    "translation": ("bleu", "chrf", "loss"),
    "summarization": ("rougeL", "rouge1", "rouge2", "rougeLsum", "loss"),
    "question-answering": ("f1", "exact_match", "loss"),
    "semantic-segmentation": ("mean_iou", "pixel_accuracy", "mean_accuracy", "loss"),
    "object-detection": ("map", "map_50", "map_75", "mar_100", "loss"),
    "token-classification": ("f1", "precision", "recall", "accuracy", "macro_f1", "loss"),
}
# They keep what is pretrained, and there is nothing.
_NEED_PRETRAINED = ("head", "lora", "discriminative")


def baselines_fit(v: View) -> Iterator[Finding]:
    """Yield the baselines that the task cannot have."""
    task = v.recipe.task.type
    for index, name in enumerate(v.recipe.evaluation.baselines or ()):
        if name not in BASELINES[task]:
            key = f"evaluation.baselines[{index}]"
            yield Finding(key, f"{shown(key, name)}, which {task} cannot have", f"write {', '.join(BASELINES[task])}")


def metric_fits(v: View) -> Iterator[Finding]:
    """Yield a metric for the best model that the task does not compute."""
    key, metric = "training.metric_for_best_model", v.t.metric_for_best_model
    if metric is None:
        return
    plain, task = metric.removeprefix("eval_"), v.recipe.task.type
    if task in METRICS and plain not in METRICS[task] and not plain.startswith("test"):
        yield Finding(key, f"{shown(key, metric)}, which {task} does not have", f"write {' or '.join(METRICS[task])}")
    if v.value("task.predict_with_generate") is False and plain != "loss":
        message = f"{shown(key, metric)}, but task.predict_with_generate is false: validation has the loss alone"
        yield Finding(key, message, "write loss, or predict_with_generate: true")
    if task not in METRICS and plain == "perplexity":
        yield Finding(key, f"{shown(key, metric)}, which {task} does not have", "write loss, or remove it")


def loss_fits(v: View) -> Iterator[Finding]:
    """Yield a focal loss of smoothed labels: which probability its factor would follow is not defined."""
    gamma, smoothing = v.value("task.focal_gamma"), v.t.label_smoothing_factor
    if gamma and smoothing:
        key = "task.focal_gamma"
        message = (
            f"{shown(key, gamma)} and training.label_smoothing_factor is {smoothing:g}, but the focal loss knows one right label, "
            "and smoothing spreads it"
        )
        yield Finding(key, message, "keep one of the two")


def pair_loss_fits(v: View) -> Iterator[Finding]:
    """Yield a loss of pairs that is infinite where no pair may be labelled the wrong way round."""
    if v.value("task.loss_type") == "exo_pair" and not v.value("task.label_smoothing"):
        key = "task.loss_type"
        message = f"{shown(key, 'exo_pair')}, which needs task.label_smoothing above 0"
        yield Finding(key, message, "write label_smoothing: 0.001, as its paper does, or another loss_type")


def sampling_fits(v: View) -> Iterator[Finding]:
    """Yield rows that are drawn by their labels where something else contradicts it."""
    key = "task.class_sampling"
    chosen = v.value(key)
    if chosen in (None, "natural"):
        return
    if v.value("task.class_weights") == "balanced":
        message = f"{shown(key, chosen)} and class_weights is balanced: rare labels would count twice over"
        yield Finding(key, message, "keep one of the two, or give class_weights by name")
    if v.t.train_sampling_strategy == "sequential":
        message = (
            f"{shown(key, chosen)}, but training.train_sampling_strategy is sequential, which takes rows as they are"
        )
        yield Finding(
            key, message, "write train_sampling_strategy: random or group_by_length, or class_sampling: natural"
        )


def windows_advance(v: View) -> Iterator[Finding]:
    """Yield windows of a text that share so much that the next one would not go on."""
    stride, most = v.value("task.doc_stride"), v.recipe.data.max_length
    if v.recipe.task.type == "question-answering" and most is not None and stride >= most:
        key = "task.doc_stride"
        message = f"{shown(key, stride)}, but data.max_length is {most}: a window is shorter than what it shares with the next"
        yield Finding(key, message, f"write doc_stride: {most // 4}, or a larger max_length")


def masks_fit(v: View) -> Iterator[Finding]:
    """Yield shares of masked tokens that are more than all of them together."""
    if v.recipe.task.type != "masked-lm":
        return
    mask, other = v.value("task.mask_replace_prob"), v.value("task.random_replace_prob")
    if mask + other > 1 + 1e-9:
        key = "task.mask_replace_prob"
        message = f"{shown(key, mask)} and random_replace_prob is {other:g}: together they are above 1"
        yield Finding(key, message, f"write random_replace_prob: {1 - mask:.3g}, or less")


def random_model_fits(v: View) -> Iterator[Finding]:
    """Yield what a model without pretrained weights lacks, or cannot have."""
    model, key = v.recipe.model, "model.name_or_path"
    if model.name_or_path is not None:
        return
    if not (model.config or {}).get("model_type"):
        remedy = "name a model, or give an architecture's numbers: config: {model_type: llama, hidden_size: ...}"
        yield Finding(key, f"{key} is null but model.config has no model_type", remedy)
    if model.tokenizer_name_or_path is None and v.recipe.task.type not in IMAGE_TASKS:
        yield Finding(key, f"{key} is null but tokenizer_name_or_path is not given", "add model.tokenizer_name_or_path")
    if v.recipe.strategy.type in _NEED_PRETRAINED:
        message = f"strategy.type is {v.recipe.strategy.type}, which keeps pretrained weights, but {key} is null"
        yield Finding("strategy.type", message, "write strategy.type: full, or name a model")


def model_type_is_a_name(v: View) -> Iterator[Finding]:
    """Yield a model_type that cannot be one."""
    kind = (v.recipe.model.config or {}).get("model_type", "")
    if not isinstance(kind, str):
        key = "model.config.model_type"
        yield Finding(key, f"{shown(key, kind)}; it must be text", "write the model_type of its config.json")
