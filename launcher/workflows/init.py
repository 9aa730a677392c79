"""A recipe to start from, written for a user's own data and model."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.atomic import write_text
from launcher.errors import RunStateError
from launcher.recipe.load import find_recipe, list_recipes

# What a shipped recipe says about itself: the comment lines at its top.
_HEAD = re.compile(r"\A(?:#.*\n)+")


@dataclass(frozen=True)
class _Starter:
    """A shipped recipe that a task starts from, and what of it suits its own data or its own model only."""

    recipe: str
    of_data: tuple[str, ...] = ()
    of_model: tuple[str, ...] = ()


_WRITES = ("data.max_length", "task.max_target_length")
_STARTERS = {
    "text-classification": _Starter("quickstart/api-topics"),
    "token-classification": _Starter("token-classification/code-roles"),
    "question-answering": _Starter("question-answering/default-values", ("data.max_length", "task.doc_stride")),
    "causal-lm": _Starter("causal-lm/api-docs-small"),
    "masked-lm": _Starter("masked-lm/domain-adaptation"),
    "sft": _Starter("sft/number-words", ("data.max_length",), ("task.chat_template", "task.max_new_tokens")),
    "preference": _Starter("preference/number-preferences", ("data.max_length",), ("task.chat_template",)),
    "reward": _Starter("reward/number-rewards", ("data.max_length",), ("task.chat_template",)),
    "translation": _Starter("translation/number-words", _WRITES),
    "summarization": _Starter("summarization/docstrings", _WRITES),
    "object-detection": _Starter("object-detection/shapes", of_model=("task.image_size",)),
    "semantic-segmentation": _Starter("semantic-segmentation/shapes", of_model=("task.image_size",)),
    "image-classification": _Starter("image-classification/digits", ("task.augmentation",), ("task.image_size",)),
}
# These were tuned for the model that is replaced; the defaults suit most pretrained ones.
_OF_ANY_MODEL = ("learning_rate", "num_train_epochs", "lr_scheduler_type", "warmup_steps", "weight_decay")


def starter_of(task: str) -> str:
    """Return the shipped recipe that a task starts from."""
    if task in _STARTERS:
        return _STARTERS[task].recipe
    return next(name for name, _, _ in list_recipes() if name.startswith(f"{task}/"))


def starter_recipe(
    path: Path, *, source: str, data: str | None, model: str | None, columns: Mapping[str, str] | None = None
) -> None:
    """Write a copy of the recipe ``source`` to ``path``, with its comments, for other data (with ``columns``) and another model.

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
        recipe["data"] = {"source": data, **({"columns": dict(columns)} if columns else {}), **kept}
    if model is not None:
        _replace_model(recipe, model)
    starter = next((one for one in _STARTERS.values() if one.recipe == source), _Starter(source))
    for key in (*(starter.of_data if data is not None else ()), *(starter.of_model if model is not None else ())):
        _drop(recipe, key)
    stream = io.StringIO()
    yaml.dump(recipe, stream)
    write_text(path, stream.getvalue())


def _replace_model(recipe: Any, model: str) -> None:
    section = recipe["model"]
    if section["name_or_path"] is None:
        # The parts of a model with random weights, which the new one brings along.
        recipe["model"] = {"name_or_path": model}
        recipe.pop("precision", None)
    else:
        section["name_or_path"] = model
    for key in _OF_ANY_MODEL:
        _drop(recipe, f"training.{key}")
    if not recipe["training"]:
        del recipe["training"]


def _drop(recipe: Any, key: str) -> None:
    section, _, name = key.partition(".")
    if isinstance(recipe[section], dict):
        recipe[section].pop(name, None)
