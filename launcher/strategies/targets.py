"""Which modules get an adapter and which train whole beside the adapters, told from names alone, by PEFT's rules."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NoReturn, TypeVar

from launcher.contracts import Parameter
from launcher.errors import ModelError
from launcher.registry import suggest

ALL_LINEAR = "all-linear"
_LINEAR = ("Linear", "Conv1D", "Linear4bit", "Linear8bitLt")
_ONLY_BY_NAME = ("Embedding", "Conv2d")

Value = TypeVar("Value", int, float)


def module_of(parameter: Parameter | str) -> str:
    """Return the name of the module that owns a parameter."""
    return (parameter if isinstance(parameter, str) else parameter.name).rpartition(".")[0]


def find_targets(
    parameters: Sequence[Parameter],
    *,
    target_modules: str | Sequence[str] = ALL_LINEAR,
    exclude_modules: Sequence[str] | None = None,
    modules_to_save: Collection[str] = (),
) -> tuple[Parameter, ...]:
    """Return the weights that get an adapter, in the model's order.

    Args:
        parameters: those of the model without adapters.
        target_modules: ``all-linear`` (every linear layer of the blocks), the ends of module names, or one regular
            expression that matches whole module names. Embeddings and convolutions are adapted only when named.
        exclude_modules: ends of names of modules that get none.
        modules_to_save: modules that train whole and so get none.

    Raises:
        ModelError: a name matches nothing, or an exclusion excludes nothing.
    """
    supported = [p for p in parameters if p.name.endswith(".weight") and p.module in _LINEAR + _ONLY_BY_NAME]
    free = [p for p in supported if _is_free(p, modules_to_save)]
    if target_modules == ALL_LINEAR:
        chosen = _linear_layers(free, supported)
    elif isinstance(target_modules, str):
        chosen = [p for p in free if _full_match(target_modules, module_of(p))]
        if not chosen:
            _nothing_matches("strategy.target_modules", target_modules, supported, modules_to_save)
    else:
        for ending in target_modules:
            if not any(_ends(module_of(p), ending) for p in free):
                _nothing_matches("strategy.target_modules", ending, supported, modules_to_save)
        chosen = [p for p in free if any(_ends(module_of(p), ending) for ending in target_modules)]
    return _without(chosen, exclude_modules or ())


def resolve_pattern(
    pattern: Mapping[str, Value], targets: Sequence[Parameter], *, default: Value, key: str
) -> dict[str, Value]:
    """Return module name -> value for every target, by PEFT's rule: the first key that matches the end of a name decides.

    Args:
        pattern: end of a module's name, or a regular expression for it -> value.
        targets: what ``find_targets`` returned.
        default: value of a module that no key matches.
        key: the pattern's own key in the recipe, for the error.

    Raises:
        ModelError: a key decides the value of no target.
    """
    found: dict[str, Value] = {}
    for entry, value in pattern.items():
        matched = [module_of(p) for p in targets if _pattern_match(entry, module_of(p))]
        if not matched:
            _nothing_matches(key, entry, targets, ())
        taken = [name for name in matched if name not in found]
        if not taken:
            raise ModelError(f"{key}: {entry!r} has no effect, since earlier keys match its modules; put it first")
        found |= dict.fromkeys(taken, value)
    return {module_of(p): found.get(module_of(p), default) for p in targets}


def modules_to_save_for(parameters: Sequence[Parameter], wanted: Sequence[str] | None = None) -> tuple[str, ...]:
    """Return the modules that train whole beside the adapters: no more than needed, and none inside another.

    They are those with newly initialised parameters, the head, and those that are ``wanted``, by the end of their names. A
    pretrained output layer of a language model is no task's head: it stays as it is unless wanted.

    Raises:
        ModelError: a wanted name matches no module, a new parameter lies in no module, or its module holds a tied weight.
    """
    tables = {p.shape for p in parameters if p.role == "embeddings" and p.module == "Embedding"}
    biases = _biases_of_tied_layer(parameters)
    owners = dict.fromkeys(
        module_of(p)
        for p in parameters
        if p.newly_initialized or (p.role == "head" and p.shape not in tables and p.name not in biases)
    )
    if "" in owners:
        loose = [p.name for p in parameters if not module_of(p) and p.newly_initialized]
        if loose:
            raise ModelError(
                f"{loose[0]} is newly initialised but lies in no module, so adapters cannot be saved with it"
            )
        del owners[""]
    names = [module_of(p) for p in parameters]
    for ending in wanted or ():
        inside = [name for name in names if any(_ends(path, ending) for path in _paths(name))]
        if not inside:
            known = sorted({path.rpartition(".")[2] for name in names for path in _paths(name)})
            raise ModelError(
                f"strategy.modules_to_save names {ending!r}, but no module's name ends so; {_near(ending, known)}"
            )
        owners |= dict.fromkeys(inside)
    tied = next((p.name for p in parameters if "head" in p.also and lies_in(p.name, owners)), None)
    if tied is not None:
        raise ModelError(
            f"{tied} is also the output layer's weight, and the two would no longer be one if it trained beside adapters; take "
            "it out of strategy.modules_to_save, or use another strategy.type"
        )
    return tuple(name for name in owners if not lies_in(name, owners))


def _biases_of_tied_layer(parameters: Sequence[Parameter]) -> set[str]:
    """Return the biases of an output layer whose weight is the embeddings' too. Raises ModelError where one is new.

    Their module cannot train whole: the weight, which is in it or below it, would become one of its own.
    """
    tied = next((p for p in parameters if "head" in p.also), None)
    if tied is None:
        return set()
    found = [p for p in parameters if p.role == "head" and p.shape == tied.shape[:1]]
    new = next((p.name for p in found if p.newly_initialized), None)
    if new is not None:
        raise ModelError(
            f"{new} is new and belongs to an output layer whose weight is also {tied.name}, so it cannot train beside adapters; use "
            "strategy.type full, encoder or layerwise, or a model that has its output layer already"
        )
    return {p.name for p in found}


def lies_in(name: str, modules: Collection[str]) -> bool:
    """Whether a name is that of something inside one of ``modules``."""
    return any(name.startswith(f"{module}.") for module in modules)


def _is_free(parameter: Parameter, modules_to_save: Collection[str]) -> bool:
    is_tied = "head" in parameter.also
    return not (parameter.newly_initialized or is_tied or lies_in(parameter.name, modules_to_save))


def _linear_layers(free: Sequence[Parameter], supported: Sequence[Parameter]) -> list[Parameter]:
    chosen = [p for p in free if p.role == "block" and p.module in _LINEAR]
    if not chosen:
        names = ", ".join(_endings(supported)) or "none"
        raise ModelError(
            f"strategy.target_modules is {ALL_LINEAR}, but the model's blocks have no linear layers; name some of those that "
            f"can have an adapter ({names}), or use another strategy.type"
        )
    return chosen


def _without(chosen: Sequence[Parameter], exclude: Sequence[str]) -> tuple[Parameter, ...]:
    for ending in exclude:
        if not any(_ends(module_of(p), ending) for p in chosen):
            raise ModelError(
                f"strategy.exclude_modules names {ending!r}, which excludes nothing; {_near(ending, _endings(chosen))}"
            )
    left = tuple(p for p in chosen if not any(_ends(module_of(p), ending) for ending in exclude))
    if not left:
        raise ModelError("strategy.exclude_modules excludes every module that would get an adapter; shorten it")
    return left


def _nothing_matches(key: str, entry: str, known: Sequence[Parameter], saved: Collection[str]) -> NoReturn:
    named = next((p for p in known if _ends(module_of(p), entry)), None)
    if named is not None and lies_in(named.name, saved):
        raise ModelError(f"{key}: {entry!r} is {module_of(named)}, which trains whole; remove it")
    if named is not None and "head" in named.also:
        raise ModelError(
            f"{key}: {entry!r} is {module_of(named)}, which shares its weight with the output layer; remove it"
        )
    raise ModelError(
        f"{key}: {entry!r} matches no layer that can have an adapter; {_near(entry, _endings(known))} "
        "(names of modules, such as query; or a regular expression)"
    )


def _near(word: str, known: Sequence[str]) -> str:
    near = suggest(word, known)
    return f"did you mean {near}?" if near else f"the model has {', '.join(known)}"


def _endings(parameters: Iterable[Parameter]) -> list[str]:
    return sorted({module_of(p).rpartition(".")[2] for p in parameters})


def _ends(name: str, ending: str) -> bool:
    return name == ending or name.endswith(f".{ending}")


def _paths(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts) + 1)]


def _full_match(pattern: str, name: str) -> bool:
    try:
        return re.fullmatch(pattern, name) is not None
    except re.error as error:
        raise ModelError(f"{pattern!r} is no regular expression: {error}") from error


def _pattern_match(entry: str, name: str) -> bool:
    return _full_match(rf"(.*\.)?({entry})", name)
