"""The schedules of the rate: their names, and what ``training.lr_scheduler_kwargs`` may say for each.

Transformers' schedules keep its names of options; a test holds them to the installed version.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from launcher.recipe.keys import did_you_mean, shown
from launcher.recipe.option import REQUIRED, Option, choice, flag, steps, whole
from launcher.recipe.schema import TrainingSection
from launcher.recipe.tree import show
from launcher.recipe.view import Finding, View

_SHARE = "[0, 1)"
_CYCLES = Option(0.5, "(0, inf)")
_FLOOR = {"num_cycles": _CYCLES, "min_lr": Option(None, "[0, inf)"), "min_lr_rate": Option(None, _SHARE)}
# How an evaluation counts as better, and how long to wait.
_THRESHOLD = {"threshold_mode": choice("rel", "abs"), "patience": whole(10), "cooldown": whole(0)}

# Schedules of our own; the others are transformers'.
OURS = ("step", "exponential", "cyclic", "one_cycle", "slanted_triangular")

KWARGS: dict[str, dict[str, Option]] = {
    "linear": {},
    "cosine": {"num_cycles": _CYCLES},
    "cosine_with_restarts": {"num_cycles": whole(1, "[1, inf)")},
    "polynomial": {"lr_end": Option(1e-7, "[0, inf)"), "power": Option(1.0, "(0, inf)")},
    "constant": {},
    "constant_with_warmup": {},
    "inverse_sqrt": {"timescale": whole(None, "[1, inf)")},
    "reduce_lr_on_plateau": {
        **_THRESHOLD,
        "factor": Option(0.1, "(0, 1)"),
        "threshold": Option(1e-4, "[0, inf)"),
        "min_scale": Option(0.0, _SHARE),
    },
    "cosine_with_min_lr": _FLOOR,
    "cosine_warmup_with_min_lr": {**_FLOOR, "warmup_lr_rate": Option(None, "[0, 1]")},
    "warmup_stable_decay": {
        "num_decay_steps": whole(REQUIRED, "[1, inf)"),
        "warmup_type": choice("linear", "cosine", "1-sqrt"),
        "decay_type": choice("cosine", "linear", "1-sqrt"),
        "min_lr_ratio": Option(0.0, _SHARE),
        "num_cycles": _CYCLES,
    },
    "greedy": {
        **_THRESHOLD,
        "threshold_mode": choice("abs", "rel"),
        "factor": Option(0.95, "(0, 1)"),
        "threshold": Option(1e-6, "[0, inf)"),
        "warmup": whole(0),
        "min_scale": Option(1e-3, _SHARE),
        "max_scale": Option(1.0, "(0, 1]"),
        "smooth": flag(),
        "window_size": whole(50, "[1, inf)"),
        "reset_start": whole(500, "[1, inf)"),
    },
    "step": {"step_size": steps(), "gamma": Option(0.1, "(0, 1)")},
    "exponential": {"gamma": Option(None, "(0, 1)"), "final_scale": Option(None, "(0, 1)")},
    "cyclic": {"cycle_steps": steps(), "min_scale": Option(0.25, _SHARE), "cycle_decay": Option(1.0, "(0, 1]")},
    "one_cycle": {
        "pct_start": Option(0.3, "(0, 1)"),
        "div_factor": Option(25.0, "[1, inf)"),
        "final_div_factor": Option(1e4, "[1, inf)"),
        "anneal_strategy": choice("cos", "linear"),
    },
    "slanted_triangular": {"cut_frac": Option(0.1, "(0, 1)"), "ratio": Option(32.0, "[1, inf)")},
}

# Schedules that follow a metric, after a linear warm-up.
FOLLOW_METRIC = ("reduce_lr_on_plateau", "greedy")

# Schedules without a warm-up: one has none, the others rise by themselves.
WITHOUT_WARMUP = {
    "constant": "which has no warm-up",
    "one_cycle": "which rises by itself (pct_start)",
    "slanted_triangular": "which rises by itself (cut_frac)",
}

# Exactly one of these options is given.
ONE_OF = {
    "exponential": ("gamma", "final_scale"),
    "cosine_with_min_lr": ("min_lr", "min_lr_rate"),
    "cosine_warmup_with_min_lr": ("min_lr", "min_lr_rate"),
}

# Rates, not shares of the rate: they lie below the peak.
_BELOW_PEAK = ("lr_end", "min_lr")

# Options that a library's schedule has and ours has not.
_ELSEWHERE = {
    "mode": "remove it; training.greater_is_better says which way is better",
    "eps": "remove it",
    "verbose": "remove it; the rates are logged",
    "num_stable_steps": "remove it; what warm-up and decay leave is stable",
    "num_warmup_steps": "write training.warmup_steps",
    "num_training_steps": "remove it; the plan counts the steps",
    "total_steps": "remove it; the plan counts the steps",
    "last_epoch": "remove it",
    "max_lr": "remove it; training.learning_rate is the peak rate, and each group keeps its own",
    "base_lr": "write min_scale, a share of the peak rate",
    "three_phase": "remove it",
    "cycle_momentum": "remove it; momentum stays as it is",
    "base_momentum": "remove it; momentum stays as it is",
    "max_momentum": "remove it; momentum stays as it is",
}


def schedule_options(training: TrainingSection) -> dict[str, Any]:
    """Return every option of the recipe's schedule with its value; None where it is off."""
    known = KWARGS[training.lr_scheduler_type]
    return {name: option.default for name, option in known.items()} | dict(training.lr_scheduler_kwargs or {})


def schedule_rules(v: View) -> Iterator[Finding]:
    """Yield what is wrong with training.lr_scheduler_kwargs: names, values, and what is missing."""
    schedule, given = v.t.lr_scheduler_type, v.t.lr_scheduler_kwargs or {}
    known = KWARGS.get(schedule, {})
    if known:
        for name, value in given.items():
            yield from _option_fits(name, value, v, known)
        yield from _all_are_given(schedule, given, known)


def _option_fits(name: str, value: Any, v: View, known: Mapping[str, Option]) -> Iterator[Finding]:
    key = f"training.lr_scheduler_kwargs.{name}"
    if name not in known:
        yield Finding(key, f"{key} is not an option of {v.t.lr_scheduler_type}", _remedy(name, known))
        return
    must, default = known[name].must(value), known[name].default
    if must:
        yield Finding(key, f"{shown(key, value)}; it must {must}", _default(name, default))
    elif name in _BELOW_PEAK and value >= v.t.learning_rate:
        message = f"{shown(key, value)}, not below training.learning_rate ({v.t.learning_rate:g})"
        yield Finding(key, message, "write a smaller rate")


def _remedy(name: str, known: Mapping[str, Option]) -> str:
    scale = {"min_lr": "min_scale", "max_lr": "max_scale"}.get(name)
    if scale in known:
        return f"write {scale}, a share of each group's peak rate"
    return _ELSEWHERE.get(name) or did_you_mean(name, known)


def _default(name: str, default: Any) -> str:
    if default is REQUIRED or default is None:
        return f"give {name} another value"
    return f"the default is {show(default)}"


def _all_are_given(schedule: str, given: Mapping[str, Any], known: Mapping[str, Option]) -> Iterator[Finding]:
    key = "training.lr_scheduler_type"
    for name, option in known.items():
        if option.default is REQUIRED and name not in given:
            yield Finding(
                key, f"{shown(key, schedule)}, which needs {name}", f"add lr_scheduler_kwargs: {{{name}: ...}}"
            )
    names = ONE_OF.get(schedule, ())
    found = [name for name in names if given.get(name) is not None]
    if names and not found:
        remedy = f"add lr_scheduler_kwargs: {{{names[1]}: 0.1}}"
        yield Finding(key, f"{shown(key, schedule)}, which needs {' or '.join(names)}", remedy)
    elif len(found) > 1:
        second = f"training.lr_scheduler_kwargs.{found[1]}"
        yield Finding(second, f"{second} and {found[0]} are both given", "keep one of the two")
