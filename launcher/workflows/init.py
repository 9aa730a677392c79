"""A recipe to start from, written for a user's own data and model."""

from __future__ import annotations

import io
import re
from pathlib import Path

from launcher.atomic import write_text
from launcher.errors import RunStateError
from launcher.recipe.load import find_recipe

# What a shipped recipe says about itself: the comment lines at its top.
_HEAD = re.compile(r"\A(?:#.*\n)+")


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
    found = find_recipe(source)
    text = _HEAD.sub(
        f"# Started from {found.stem}; every key is explained by `launcher schema` and in the guide.\n",
        found.read_text(encoding="utf-8"),
    )
    recipe = yaml.load(text)
    recipe["name"] = re.sub(r"[^A-Za-z0-9._-]", "-", path.stem).lstrip("._-") or "my-run"
    if data is not None:
        kept = {key: recipe["data"][key] for key in ("max_length",) if key in recipe["data"]}
        recipe["data"] = {"source": data, **kept}
    if model is not None:
        recipe["model"]["name_or_path"] = model
        # These were tuned for the model that is replaced; the defaults suit most encoders.
        for key in ("learning_rate", "num_train_epochs"):
            recipe["training"].pop(key, None)
        if not recipe["training"]:
            del recipe["training"]
    stream = io.StringIO()
    yaml.dump(recipe, stream)
    write_text(path, stream.getvalue())
