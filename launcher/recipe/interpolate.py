"""``${training.seed}``: values taken from other keys of the same recipe, and from nowhere else."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from launcher.errors import Problem
from launcher.recipe.tree import KeyPath, Tree, dotted, value_at, walk
from launcher.registry import suggest

_LITERAL = "write \\${ for the characters themselves"


def interpolate(tree: Tree) -> tuple[Tree, list[Problem]]:
    """Return the tree with every ``${key}`` replaced by that key's value, and the faults of those that cannot be."""
    texts = {path: value for path, value in walk(tree.values) if isinstance(value, str) and "${" in value}
    if not texts:
        return tree, []
    problems = {path: problem for path, text in texts.items() if (problem := _refusal(tree, path, text))}
    values = _copied(tree.values, dict.fromkeys(problems, ""))
    found = _resolved(tree, values, [path for path in texts if path not in problems])
    resolved = {path: value for path, value in found.items() if not isinstance(value, Problem)}
    problems |= {path: value for path, value in found.items() if isinstance(value, Problem)}
    return Tree(_copied(tree.values, resolved), tree.places), list(problems.values())


def _copied(values: Any, replaced: dict[KeyPath, Any], path: KeyPath = ()) -> Any:
    if path in replaced:
        return replaced[path]
    if isinstance(values, dict):
        return {key: _copied(value, replaced, (*path, key)) for key, value in values.items()}
    if isinstance(values, list):
        return [_copied(value, replaced, (*path, index)) for index, value in enumerate(values)]
    return values


def _contexts(text: str) -> Iterator[tuple[str, str]]:
    """Yield (kind, text) of every interpolation inside ``text``. Raises omegaconf's GrammarParseError."""
    from omegaconf.grammar_parser import parse

    waiting: list[Any] = [parse(text)]
    while waiting:
        context = waiting.pop()
        yield type(context).__name__, context.getText()
        waiting.extend(getattr(context, "children", None) or [])


def _refusal(tree: Tree, path: KeyPath, text: str) -> Problem | None:
    from omegaconf.errors import GrammarParseError

    key, place = dotted(path), tree.place(path)
    try:
        resolvers = [inner for kind, inner in _contexts(text) if kind == "InterpolationResolverContext"]
    except GrammarParseError:
        return Problem(
            place,
            f"{key} has an interpolation that cannot be read: {text!r}",
            f"write ${{section.key}}, or {_LITERAL}",
            key,
        )
    if not resolvers:
        return None
    remedy = f"interpolation reaches keys of the recipe only; write the value, or {_LITERAL}"
    return Problem(place, f"{key} uses the resolver {resolvers[0]}", remedy, key)


def _resolved(tree: Tree, values: Any, paths: list[KeyPath]) -> dict[KeyPath, Any]:
    from omegaconf import OmegaConf
    from omegaconf.errors import InterpolationKeyError, OmegaConfBaseException

    config = OmegaConf.create(values)
    found: dict[KeyPath, Any] = {}
    for path in paths:
        try:
            found[path] = _value_at(config, path)
        except InterpolationKeyError:
            found[path] = _unknown_key(tree, path)
        except (OmegaConfBaseException, RecursionError):
            message = f"{dotted(path)} goes round in a circle"
            found[path] = Problem(tree.place(path), message, "give one of the keys in the circle a value", dotted(path))
    return found


def _value_at(config: Any, path: KeyPath) -> Any:
    from omegaconf import OmegaConf

    node = config
    for part in path:
        node = node[part]
    return OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node


def _unknown_key(tree: Tree, path: KeyPath) -> Problem:
    known = [dotted(other) for other in tree.places if other]
    text = value_at(tree.values, path)
    names = [inner[2:-1] for kind, inner in _contexts(text) if kind == "InterpolationNodeContext"]
    wrong = next((name for name in names if name not in known), text)
    near = suggest(wrong, known)
    remedy = f"did you mean ${{{near}}}?" if near else "name a key that the recipe sets, from the top: ${section.key}"
    return Problem(
        tree.place(path), f"{dotted(path)} names {wrong!r}, which the recipe does not set", remedy, dotted(path)
    )
