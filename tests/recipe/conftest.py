"""A small sound recipe, and a way to write recipes into a temporary folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

SOUND = """\
# A sound recipe
version: 1
name: sound
task: text-classification
model: {name_or_path: bert-base-uncased}
data: {source: ag_news}  # four topics
"""

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Return a function: text below the sound recipe's, file name -> path."""

    def write_recipe(tail: str = "", *, head: str = SOUND, name: str = "recipe.yaml") -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(head + tail, encoding="utf-8")
        return path

    return write_recipe
