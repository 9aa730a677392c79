"""The optimizers: which keys of ``training`` each obeys, and what ``training.optim_args`` may say for it.

The names are transformers', and ``adam``; a test holds them to the installed version.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from launcher.recipe.keys import did_you_mean, shown
from launcher.recipe.option import Option, choice, flag, whole
from launcher.recipe.tree import show
from launcher.recipe.view import Finding, View

DEFAULT_OPTIMIZER = "adamw_torch_fused"

# Optimizers that transformers' TrainingArguments does not know.
OURS = ("adam",)

DEFAULT_MOMENTUM = 0.9

_ADAM = ("adam_beta1", "adam_beta2", "adam_epsilon")
_DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class OptimizerKeys:
    """What an optimizer obeys beside the rate and the decay of its groups."""

    keys: tuple[str, ...] = ()
    """Keys of ``training`` that have an effect."""
    options: Mapping[str, Option] = field(default_factory=dict)
    """What optim_args may say."""
    package: str | None = None
    """Import name of the package that it comes from, where torch and transformers do not have it."""


def _bitsandbytes(*keys: str, **options: Option) -> OptimizerKeys:
    return OptimizerKeys(keys, options, "bitsandbytes")


_EIGHT_BIT_ADAMW = _bitsandbytes(*_ADAM)
_LION = _bitsandbytes("adam_beta1", "adam_beta2")
_ADEMAMIX = _bitsandbytes(
    *_ADAM,
    beta3=Option(0.9999, "[0, 1)"),
    alpha=Option(5.0, "[0, inf)"),
    t_alpha=whole(None, "[1, inf)"),
    t_beta3=whole(None, "[1, inf)"),
)
_TORCHAO = OptimizerKeys(_ADAM, {"bf16_stochastic_round": flag()}, "torchao")

OPTIMIZERS: dict[str, OptimizerKeys] = {
    "adamw_torch": OptimizerKeys(_ADAM),
    "adamw_torch_fused": OptimizerKeys(_ADAM),
    "adamw_torch_xla": OptimizerKeys(_ADAM, package="torch_xla"),
    "adamw_torch_npu_fused": OptimizerKeys(_ADAM, package="torch_npu"),
    "adam": OptimizerKeys(_ADAM),
    "adafactor": OptimizerKeys(),
    "adamw_anyprecision": OptimizerKeys(
        _ADAM,
        {
            "use_kahan_summation": flag(),
            "momentum_dtype": choice(*_DTYPES),
            "variance_dtype": choice(*_DTYPES),
            "compensation_buffer_dtype": choice("bfloat16", "float32", "float16"),
        },
        "torchdistx",
    ),
    "adamw_torch_4bit": _TORCHAO,
    "adamw_torch_8bit": _TORCHAO,
    "sgd": OptimizerKeys(("momentum",), {"dampening": Option(0.0, "[0, 1]"), "nesterov": flag()}),
    "adagrad": OptimizerKeys((), {"lr_decay": Option(0.0, "[0, inf)"), "eps": Option(1e-10, "[0, 1)")}),
    "rmsprop": OptimizerKeys(
        (),
        {
            "momentum": Option(0.0, "[0, 1)"),
            "alpha": Option(0.99, "[0, 1)"),
            "eps": Option(1e-8, "[0, 1)"),
            "centered": flag(),
        },
    ),
    "adamw_bnb_8bit": _EIGHT_BIT_ADAMW,
    "adamw_8bit": _EIGHT_BIT_ADAMW,
    "paged_adamw_32bit": _EIGHT_BIT_ADAMW,
    "paged_adamw_8bit": _EIGHT_BIT_ADAMW,
    "ademamix": _ADEMAMIX,
    "ademamix_8bit": _ADEMAMIX,
    "paged_ademamix_32bit": _ADEMAMIX,
    "paged_ademamix_8bit": _ADEMAMIX,
    "lion_32bit": _LION,
    "lion_8bit": _LION,
    "paged_lion_32bit": _LION,
    "paged_lion_8bit": _LION,
    # Transformers hands their options on as texts, which they cannot compute with.
    "rmsprop_bnb": _bitsandbytes(),
    "rmsprop_bnb_8bit": _bitsandbytes(),
    "rmsprop_bnb_32bit": _bitsandbytes(),
    # Transformers does not hand Adam's keys on to it.
    "grokadamw": OptimizerKeys(
        (),
        {
            "alpha_init": Option(0.98, "[0, 1)"),
            "lamb": Option(2.0, "[0, inf)"),
            "gamma": Option(0.1, "[0, inf)"),
            "grokking_signal_decay_rate": Option(0.1, "[0, inf)"),
            "gradient_clipping": Option(1.0, "[0, inf)"),
        },
        "grokadamw",
    ),
    "stable_adamw": OptimizerKeys(_ADAM, package="optimi"),
}

# Options that are keys of the recipe.
_OWNED = {
    ("sgd", "momentum"): "write training.momentum",
    "weight_decay": "write training.weight_decay",
    "lr": "write training.learning_rate",
    "eps": "write training.adam_epsilon",
    "beta1": "write training.adam_beta1",
    "beta2": "write training.adam_beta2",
}


def optimizer_name(v: View) -> str:
    """Return training.optim, or its default."""
    return str(v.extra("optim", DEFAULT_OPTIMIZER))


def obeys(v: View, key: str) -> bool:
    """Whether the recipe's optimizer obeys ``key`` of training; True of optimizers that are not known."""
    found = OPTIMIZERS.get(optimizer_name(v))
    return found is None or key in found.keys


def options_in(text: str) -> dict[str, str]:
    """Return the options of an optim_args text such as ``a=1, b=true``, values as texts.

    Raises:
        ValueError: a part, which the error names, is not NAME=VALUE.
    """
    found = {}
    for part in text.split(","):
        name, _, value = (word.strip() for word in part.partition("="))
        if not name or not value or "=" in value:
            raise ValueError(part.strip())
        found[name] = value
    return found


def optimizer_rules(v: View) -> Iterator[Finding]:
    """Yield what is wrong with training.optim_args, and with optimizers that an engine cannot carry out."""
    name, key = optimizer_name(v), "training.optim_args"
    known = OPTIMIZERS.get(name, OptimizerKeys()).options
    text = v.extra("optim_args")
    if text is not None and known:
        try:
            given = options_in(str(text))
        except ValueError as error:
            message = f"{shown(key, text)}; {str(error)!r} is not NAME=VALUE"
            yield Finding(key, message, f'write "NAME=VALUE, ..." with {", ".join(known)}')
        else:
            yield from _options_fit(name, given, known)
            yield from _nesterov_fits(v, given)
    yield from _engine_carries_it_out(v, name)


def _options_fit(optim: str, given: Mapping[str, str], known: Mapping[str, Option]) -> Iterator[Finding]:
    key = "training.optim_args"
    for name, text in given.items():
        if name not in known:
            remedy = _OWNED.get((optim, name)) or _OWNED.get(name) or did_you_mean(name, known)
            yield Finding(key, f"{key} names {name}, which is not an option of {optim}", remedy)
        elif must := known[name].must(plain_value(text)):
            default = known[name].default
            remedy = "give it another value" if default is None else f"the default is {show(default)}"
            yield Finding(key, f"{key}: {name} is {text}; it must {must}", remedy)


def plain_value(text: str) -> Any:
    """Return the number, flag or word that a text stands for."""
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for read in (int, float):
        try:
            return read(text)
        except ValueError:
            continue
    return text


def _nesterov_fits(v: View, given: Mapping[str, str]) -> Iterator[Finding]:
    if plain_value(given.get("nesterov", "false")) is True:
        momentum = DEFAULT_MOMENTUM if v.t.momentum is None else v.t.momentum
        if momentum == 0 or plain_value(given.get("dampening", "0")) != 0:
            message = "training.optim_args has nesterov, which needs momentum above 0 and no dampening"
            yield Finding("training.optim_args", message, "remove nesterov, or set training.momentum: 0.9")


# Why ZeRO, which hands flat pieces of many tensors to the optimizer, cannot carry an optimizer out.
# State in packed blocks, or stacked, instead of a number for each element.
_PACKED = frozenset(
    name for name in OPTIMIZERS if "8bit" in name or "4bit" in name or "fp8" in name or "ademamix" in name
)
_NOT_UNDER_ZERO = {
    "adagrad": "DeepSpeed builds Adagrad anew, with one rate for all groups",
    "adafactor": "Adafactor needs whole matrices, and ZeRO hands it flat pieces",
}


def _engine_carries_it_out(v: View, name: str) -> Iterator[Finding]:
    stage = v.recipe.distributed.zero_stage
    if stage and name in _NOT_UNDER_ZERO:
        message = f"{shown('training.optim', name)} while distributed.zero_stage is {stage}: {_NOT_UNDER_ZERO[name]}"
        yield Finding("training.optim", message, "choose another optimizer, or zero_stage: 0")
    elif stage and name in _PACKED and _has_phases(v):
        message = (
            f"{shown('training.optim', name)} while distributed.zero_stage is {stage} and the run has several phases"
        )
        yield Finding(
            "training.optim",
            f"{message}: its state belongs to no single weight, so that no next phase could take it over",
            "choose another optimizer, or zero_stage: 0",
        )


def _has_phases(v: View) -> bool:
    return bool(v.t.batch_size_schedule or getattr(v.recipe.strategy, "gradual_unfreezing", None))
