"""Which task a user's data are for, told from their files where these leave no doubt."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from launcher.data.images import is_image_file
from launcher.data.sources_columns import choose_columns
from launcher.data.sources_find import open_source
from launcher.data.tables import Table
from launcher.errors import DataError
from launcher.recipe.addresses import is_address
from launcher.recipe.data_section import SourceSpec
from launcher.recipe.files import looks_like_path
from launcher.registry import TASKS

# What is written of a text, by the name of its column; the others may be either.
_SUMMARIES = ("summary", "highlights")
_WRITTEN = (("source", "target"), ("input", "output"))
# Columns that hold conversations, and pairs of what is asked and what is answered.
_CONVERSATIONS = ("messages", "conversations")
_ANSWERED = (
    ("instruction", "output"), ("instruction", "response"), ("prompt", "completion"), ("prompt", "response"), ("question", "answer"),
)  # fmt: skip
# Columns that say more of an image than its label.
_MORE_THAN_A_LABEL = ("objects", "bbox", "bboxes", "boxes", "annotation", "annotations", "mask", "masks")
_SHOWN = 12


@dataclass(frozen=True)
class Told:
    """A task, and the columns that a recipe has to name for it."""

    task: str
    columns: Mapping[str, str] = field(default_factory=dict)


def task_of_data(source: str, *, base_folder: Path) -> Told:
    """Return the task that ``source``, a file, a folder or a built-in set, is for.

    Raises:
        DataError: there is no such file or folder, it cannot be read, or it leaves more than one task; the text names them.
    """
    if is_address(source) or not (
        source.startswith("builtin:") or looks_like_path(source) or (base_folder / Path(source).expanduser()).exists()
    ):
        raise DataError(f"{source} is not looked at, as it is no file or folder here; add --task: {', '.join(TASKS)}")
    opened = open_source(SourceSpec(source=source), base_folder=base_folder)
    table = next(iter(opened.splits.values()))()[0]
    found = list(_likely(table))
    if len(found) == 1:
        return found[0]
    listed = ", ".join(map(repr, table.names[:_SHOWN])) + (", ..." if len(table.names) > _SHOWN else "")
    tasks = [told.task for told in found] or list(TASKS)
    raise DataError(
        f"{table.places.shown}: which task it is for cannot be told from its columns {listed}; add --task: {', '.join(tasks)}"
    )


def _likely(table: Table) -> Iterator[Told]:
    """Yield each task that the columns are fit for, by their names and by what they hold."""
    names = set(table.names)
    if _is_of_images(table):
        if not names & set(_MORE_THAN_A_LABEL) and _has(table, "image", "label"):
            yield Told("image-classification")
        if "objects" in names and isinstance(objects := _first(table, "objects"), Mapping) and "bbox" in objects:
            yield Told("object-detection")
        if "mask" in names:
            yield Told("semantic-segmentation")
        return
    if {"chosen", "rejected"} <= names:
        yield from (Told("preference"), Told("reward"))
        return
    if names & set(_CONVERSATIONS) or any(set(pair) <= names for pair in _ANSWERED):
        yield Told("sft")
        return
    if _is_tagged(table):
        yield Told("token-classification")
    if {"question", "context", "answers"} <= names:
        yield Told("question-answering")
    written = list(_written(table))
    yield from written
    has_label = _has(table, "text", "label") and not (written and {"text", "target"} <= names)
    if has_label:
        yield Told("text-classification")
    elif not written and _has(table, "text") and not _is_tagged(table) and names <= {"text", "id"}:
        yield from (Told("causal-lm"), Told("masked-lm"))


def _has(table: Table, *ours: str) -> bool:
    try:
        return bool(choose_columns(table, columns={}, needs=ours, optional=()))
    except DataError:
        return False


def _is_of_images(table: Table) -> bool:
    if table.facts.get("format") == "images":
        return True
    if not _has(table, "image"):
        return False
    (column,) = choose_columns(table, columns={}, needs=("image",), optional=())["image"]
    value = _first(table, column)
    if isinstance(value, Mapping):
        return value.get("bytes") is not None or value.get("path") is not None
    return isinstance(value, bytes) or (isinstance(value, str) and is_image_file(Path(value)))


def _is_tagged(table: Table) -> bool:
    """Whether there are lists of words, and lists of as many tags."""
    if not _has(table, "tokens", "label"):
        return False
    chosen = choose_columns(table, columns={}, needs=("tokens", "label"), optional=())
    words, tags = (_first(table, chosen[name][0]) for name in ("tokens", "label"))
    return isinstance(words, list) and isinstance(tags, list) and len(words) == len(tags)


def _written(table: Table) -> Iterator[Told]:
    """Yield tasks whose model writes a text, where there are a text and what is to be written of it."""
    names = set(table.names)
    languages = _first(table, "translation") if "translation" in names else None
    if isinstance(languages, Mapping) and len(languages) == 2:
        read, written = languages
        yield Told("translation", {"text": f"translation.{read}", "target": f"translation.{written}"})
    elif names & set(_SUMMARIES) and _has(table, "text", "target"):
        yield Told("summarization")
    elif any(set(pair) <= names for pair in _WRITTEN) or ({"text", "target"} <= names and _differ(table, "target")):
        yield from (Told("translation"), Told("summarization"))


def _differ(table: Table, column: str) -> bool:
    """Whether values are texts that seldom recur, which labels do."""
    values: Sequence[Any] = [value for value in table.column(column)[:1000] if value is not None]
    return any(isinstance(value, list) for value in values) or len(set(values)) > 0.5 * len(values)


def _first(table: Table, column: str) -> Any:
    return next((value for value in table.column(column) if value is not None), None)
