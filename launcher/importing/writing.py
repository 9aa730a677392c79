"""The recipe that comes out: keys in the order of the schema, what became of the file's keys above them."""

from __future__ import annotations

import io
import re
from typing import Any

from launcher.errors import RecipeError
from launcher.importing.conversion import Conversion
from launcher.recipe.checks import check_recipe
from launcher.recipe.load import assemble, judge, loaded
from launcher.recipe.resolved import AMBIGUOUS
from launcher.recipe.schema import Recipe, TrainingSection

# What a recipe is about: without one of these it would be another run, so that their faults are errors.
_ESSENTIAL = re.compile(
    r"version|name|task(\.type|\.loss_type)?|model(\.name_or_path)?|data(\.(source|train).*)?|strategy(\.type)?"
)

_HEADINGS = (
    ("not translated", "Not translated, and what to do:"),
    ("translated", "Translated:"),
    ("not needed", "Not needed:"),
)


def settle(c: Conversion) -> None:
    """Take out of the recipe what its own rules refuse; the file's keys are then noted as not translated, with the rule.

    Raises:
        RecipeError: what is refused is essential, such as the name of the model.
    """
    while True:
        draft = assemble(recipe_text(c, head=False), str(c.path))
        recipe, problems = judge(draft)
        if recipe is not None:
            problems = check_recipe(loaded(recipe, draft))
        if not problems:
            return
        targets = {_target(c, problem.key): problem for problem in problems}
        found = next(((target, problem) for target, problem in targets.items() if target is not None), None)
        if found is None:
            raise RecipeError(problems)
        c.drop(found[0], found[1].message, found[1].remedy)


def _target(c: Conversion, key: str) -> str | None:
    """Return the key that was written and that a fault of ``key`` is in; None where there is none that may go."""
    names = [target for target in c.recipe if key == target or key.startswith((f"{target}.", f"{target}["))]
    return next((name for name in names if not _ESSENTIAL.fullmatch(name)), None)


def listing(c: Conversion) -> list[tuple[str, list[str]]]:
    """Return (heading, lines) of what became of every key, those that need somebody's attention first."""
    found = []
    for kind, heading in _HEADINGS:
        lines = [str(c.fates[key]) for key in c.keys if key in c.fates and c.fates[key].kind == kind]
        found.append((heading, lines))
    found.insert(1, ("Assumed, as the file does not say it:", c.assumed))
    return [(heading, lines) for heading, lines in found if lines]


def recipe_text(c: Conversion, *, head: bool = True) -> str:
    """Return the recipe as YAML, with the listing in comments above it."""
    stream = io.StringIO()
    yaml = _yaml()
    yaml.dump(_document(c), stream)
    return (_head(c) if head else "") + stream.getvalue()


def _head(c: Conversion) -> str:
    lines = [f"Imported from {c.path.name}, a configuration of {c.dialect.shown}. What became of its keys:"]
    for heading, rows in listing(c):
        lines += [heading, *(f"  {row}" for row in rows)]
    return "".join(f"# {_printable(line)}\n" for line in lines)


def _printable(text: str) -> str:
    return "".join(one if one.isprintable() else " " for one in text)


def _yaml() -> Any:
    from ruamel.yaml import YAML
    from ruamel.yaml.representer import RoundTripRepresenter

    class Representer(RoundTripRepresenter):
        """Writes null as a word."""

    Representer.add_representer(type(None), lambda self, _: self.represent_scalar("tag:yaml.org,2002:null", "null"))
    yaml = YAML()
    yaml.Representer = Representer
    yaml.width = 10**6
    yaml.indent(mapping=2, sequence=4, offset=2)
    return yaml


def _document(c: Conversion) -> Any:
    from ruamel.yaml.comments import CommentedMap

    document = CommentedMap()
    for target in sorted(c.recipe, key=_place):
        section, parts = document, target.split(".")
        for part in parts[:-1]:
            section = section.setdefault(part, CommentedMap())
        section[parts[-1]] = _plain(c.recipe[target])
        if (comment := c.comments.get(target)) and not isinstance(c.recipe[target], dict | list):
            section.yaml_add_eol_comment(_printable(comment), parts[-1], column=0)
    return document


def _place(target: str) -> tuple[int, int, str]:
    """Return where the schema has a key: its section, then its place in there."""
    first, _, rest = target.partition(".")
    sections = list(Recipe.model_fields)
    annotation = Recipe.model_fields[first].annotation
    own = list(getattr(annotation, "model_fields", ())) if first not in ("task", "strategy") else ["type"]
    within = own.index(rest) if rest in own else len(own)
    return (
        sections.index(first),
        within,
        rest if first == "training" and rest not in TrainingSection.model_fields else "",
    )


def _plain(value: Any) -> Any:
    from ruamel.yaml.comments import CommentedMap, CommentedSeq
    from ruamel.yaml.scalarstring import SingleQuotedScalarString

    if isinstance(value, dict):
        inner = CommentedMap({key: _plain(one) for key, one in value.items()})
        if not any(isinstance(one, dict | list) for one in value.values()):
            inner.fa.set_flow_style()
        return inner
    if isinstance(value, list):
        items = CommentedSeq([_plain(one) for one in value])
        if not any(isinstance(one, dict | list) for one in value):
            items.fa.set_flow_style()
        return items
    return SingleQuotedScalarString(value) if isinstance(value, str) and AMBIGUOUS.fullmatch(value) else value
