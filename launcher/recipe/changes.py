"""What changed in a recipe since a run's first attempt, and which changes would make it another run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from launcher.recipe.schedule_keys import FOLLOW_METRIC
from launcher.recipe.schema import Recipe

Verdict = Literal["free", "flag", "never"]
"""``free``: the run stays the same run; ``flag``: only with --allow-changes; ``never``: the checkpoint does not fit."""


@dataclass(frozen=True)
class Rule:
    """What changing a key, or a key below it, means for a run that has begun."""

    key: str
    verdict: Verdict
    reason: str


@dataclass(frozen=True)
class Change:
    """A key whose value is not that of the first attempt."""

    key: str
    old: Any
    new: Any
    verdict: Verdict
    reason: str

    def __str__(self) -> str:
        return f"{self.key}: {_show(self.old)} -> {_show(self.new)}"


_ABSENT = object()
_WATCHES = "it decides what is watched, not what is trained"
_SAVES = "it decides what is kept, not what is trained"
_SPREADS = "the same rows and the same global batch on other processes"
_FEEDS = "the same rows, read in another way"

# The longest key that fits decides; a key that no row names is ``flag``.
RULES = (
    Rule("name", "free", "the run keeps its directory's name"),
    Rule("tracking", "free", _WATCHES),
    Rule("evaluation", "free", "it is about the report, after training"),
    Rule("slurm", "free", "it is about the cluster's job"),
    Rule("distributed", "free", _SPREADS),
    Rule("data.cache_dir", "free", _FEEDS),
    Rule("model.trust_remote_code", "free", "it allows code to run, and changes no weight"),
    *(Rule(f"training.logging_{name}", "free", _WATCHES) for name in ("steps", "strategy", "first_step")),
    *(Rule(f"training.eval_{name}", "free", _WATCHES) for name in ("strategy", "steps", "delay", "on_start")),
    Rule("training.per_device_eval_batch_size", "free", _WATCHES),
    *(Rule(f"training.save_{name}", "free", _SAVES) for name in ("strategy", "steps", "total_limit")),
    Rule("training.async_save", "free", _SAVES),
    Rule("training.load_best_model_at_end", "free", _SAVES),
    Rule("training.per_device_train_batch_size", "free", _SPREADS),
    Rule("training.activation_checkpointing", "free", "the same numbers, computed again instead of kept"),
    *(
        Rule(f"training.dataloader_{name}", "free", _FEEDS)
        for name in ("num_workers", "pin_memory", "persistent_workers", "prefetch_factor", "multiprocessing_context")
    ),
    Rule("training.disable_tqdm", "free", _WATCHES),
    Rule("training.log_level", "free", _WATCHES),
    Rule("model", "flag", "the weights would go on in another model, or be computed in another way"),
    Rule("data", "flag", "the steps so far have used other rows"),
    Rule("data.streaming", "never", "the checkpoint's place among the rows is of another kind"),
    Rule("data.shuffle_buffer_size", "never", "the checkpoint's place lies in a block of as many rows as before"),
    Rule("precision", "flag", "the steps so far were computed in another precision"),
    Rule("training.seed", "flag", "rows would come in another order: some twice in an epoch, some never"),
    Rule("training.data_seed", "flag", "rows would come in another order: some twice in an epoch, some never"),
    Rule("training.train_sampling_strategy", "flag", "rows would come in another order: some twice in an epoch"),
    Rule("training.learning_rate", "flag", "the steps so far had another rate"),
    Rule("training.max_steps", "flag", "it stretches the schedule: the steps so far had other rates"),
    Rule("training.num_train_epochs", "flag", "it stretches the schedule: the steps so far had other rates"),
    Rule("training.warmup_steps", "flag", "it stretches the schedule: the steps so far had other rates"),
    Rule("training.metric_for_best_model", "flag", "the best checkpoint so far was chosen by another metric"),
    Rule("task", "never", "the checkpoint's head was trained for another task"),
    Rule("model.name_or_path", "never", "the checkpoint is of another model"),
    Rule("task.focal_gamma", "flag", "the steps so far had another loss"),
    Rule("task.class_sampling", "flag", "rows would come in another order: some twice in an epoch, some never"),
    Rule("strategy", "never", "the checkpoint's optimizer has other parameter groups, or other adapters"),
    Rule("training.optim", "never", "the checkpoint's optimizer is another one"),
    Rule("training.global_batch_size", "never", "the checkpoint's steps stand for other numbers of rows"),
    Rule("training.tokens_per_batch", "never", "the checkpoint's steps stand for other rows"),
    Rule("training.per_device_train_tokens", "free", _SPREADS),
    Rule("training.batch_size_schedule", "never", "the checkpoint's steps stand for other numbers of rows"),
)
_DEFAULT = Rule("", "flag", "it may change what is trained")
# While a metric ends the run or sets the rate, evaluations are a part of training.
_EVALUATIONS = ("training.eval_strategy", "training.eval_steps", "training.eval_delay", "training.eval_on_start")


def list_changes(before: Recipe, now: Recipe) -> tuple[Change, ...]:
    """Return the keys whose values differ, in the order of the recipe, each with what the change means."""
    old, new = dict(_flat(before.model_dump(mode="json"))), dict(_flat(now.model_dump(mode="json")))
    changed = [key for key in {**old, **new} if old.get(key, _ABSENT) != new.get(key, _ABSENT)]
    return tuple(_change(key, old.get(key, _ABSENT), new.get(key, _ABSENT), now) for key in changed)


def _change(key: str, old: Any, new: Any, now: Recipe) -> Change:
    rule = _rule(key)
    training = now.training
    if key in _EVALUATIONS and (training.early_stopping_patience or training.lr_scheduler_type in FOLLOW_METRIC):
        rule = Rule(key, "flag", "evaluations decide here when the run ends, or its rate")
    return Change(key, old, new, rule.verdict, rule.reason)


def _rule(key: str) -> Rule:
    fitting = [rule for rule in RULES if key == rule.key or key.startswith((f"{rule.key}.", f"{rule.key}["))]
    return max(fitting, key=lambda rule: len(rule.key), default=_DEFAULT)


def _flat(values: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        key = f"{above}{name}"
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{key}.")
        else:
            yield key, value


def _show(value: Any) -> str:
    return "(not there)" if value is _ABSENT else "null" if value is None else str(value)
