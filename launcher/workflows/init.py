"""A recipe to start from, written for a user's own data and model."""

from __future__ import annotations

import io
import re
from pathlib import Path

from launcher.errors import RunStateError
from launcher.recipe.load import find_recipe
from launcher.rundir import write_text

_SCHEMA_LINE = re.compile(r"^# yaml-language-server:.*\n", re.MULTILINE)


def starter_recipe(path: Path, *, source: str, data: str | None, model: str | None) -> None:
    """Write a copy of the recipe ``source`` to ``path``, with its comments, for other data and another model.

    Raises:
        RunStateError: ``path`` exists; it is never overwritten.
    """
    from ruamel.yaml import YAML

    if path.exists():
        raise RunStateError(f"{path} exists; name another file, or remove it first")
    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = 10**6  # type: ignore[assignment]
    text = _SCHEMA_LINE.sub("", find_recipe(source).read_text(encoding="utf-8"))
    recipe = yaml.load(text)
    recipe["name"] = re.sub(r"[^A-Za-z0-9._-]", "-", path.stem).lstrip("._-") or "my-run"
    if data is not None:
        kept = {key: recipe["data"][key] for key in ("max_length",) if key in recipe["data"]}
        recipe["data"] = {"source": data, **kept}
    if model is not None:
        recipe["model"]["name_or_path"] = model
    stream = io.StringIO()
    yaml.dump(recipe, stream)
    write_text(path, stream.getvalue())
