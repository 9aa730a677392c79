"""The source's columns to ours: text, text_pair, tokens, label, target, id; by the recipe's ``columns`` or by names that leave no doubt."""

from __future__ import annotations

from collections.abc import Sequence

from launcher.data.tables import Table, has_column
from launcher.errors import DataError
from launcher.registry import suggest

_TEXT_NAMES = (
    "sentence",
    "sentence1",
    "content",
    "review",
    "text1",
    "text_a",
    "comment",
    "document",
    "utterance",
    "tweet",
)
_LABEL_NAMES = ("labels", "category", "class", "intent", "target")
_MASK_NAMES = ("masks", "mask_file_name", "annotation", "annotations", "segmentation", "label")
_TOKENS_NAMES = ("words",)
_IMAGE_NAMES = ("img", "file_name", "image_path", "filename", "path", "file")
# Of words: CoNLL-U has upos beside tags of other kinds; a file with two of these is asked about.
_TAGS_NAMES = ("tags", "ner_tags", "pos_tags", "labels", "upos", "ner", "pos")
_ID_NAMES = ("idx", "index", "guid")
# Columns that together are a pair, whatever else the file has.
_PAIRS = (
    ("sentence1", "sentence2"),
    ("text1", "text2"),
    ("text_a", "text_b"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("question", "sentence"),
)
# A text and what is to be written of it.
_TARGETS = (
    ("source", "target"),
    ("text", "target"),
    ("text", "summary"),
    ("document", "summary"),
    ("article", "summary"),
    ("dialogue", "summary"),
    ("article", "highlights"),
    ("input", "output"),
)
_SECOND_NAMES = tuple(second for _, second in _PAIRS if second != "sentence")
# Columns that often stand beside a text: with one of them, the text alone is a choice that the user should make.
_RIVALS = ("title", "question", "premise", "hypothesis", "context", "abstract", "body", "summary", "description")


def choose_columns(
    table: Table, *, columns: dict[str, str | list[str]], needs: Sequence[str], optional: Sequence[str]
) -> dict[str, list[str]]:
    """Return our column name -> the source's columns that make it.

    A column that ``columns`` does not name is found by common names, text_pair only where text was found so too.

    Raises:
        DataError: a column is missing, or cannot be told without doubt; the file's columns and the line to write are shown.
    """
    ours = (*needs, *optional)
    chosen = {
        name: [given] if isinstance(given, str) else list(given) for name, given in columns.items() if name in ours
    }
    for name, given in chosen.items():
        _check_given(name, given=given, table=table)
    for name, found in _find(table.names, taken=chosen, ours=ours).items():
        chosen.setdefault(name, [found])
    missing = [name for name in needs if name not in chosen]
    if missing:
        raise DataError(_ask(table, missing=missing, chosen=chosen))
    return chosen


def check_keys(columns: dict[str, str | list[str]], *, known: Sequence[str]) -> None:
    """Raise DataError where ``columns`` names a column that the task does not have, or joins one that is no text."""
    for name, given in columns.items():
        if name not in known:
            near = suggest(name, known)
            hint = f"; did you mean {near!r}?" if near else ""
            raise DataError(f"data.columns names {name!r}; this task has the columns {', '.join(known)}{hint}")
        if isinstance(given, list) and (not given or not name.startswith(("text", "question", "context"))):
            raise DataError(f"data.columns.{name} is the list {given}; only texts are joined: name one column")


def _check_given(name: str, *, given: list[str], table: Table) -> None:
    for column in given:
        if not has_column(table, column):
            near = suggest(column, table.names)
            hint = f"; did you mean {near!r}?" if near else ""
            raise DataError(
                f"{table.places.shown}: has no column {column!r}, which data.columns.{name} names; "
                f"its columns are {', '.join(map(repr, table.names))}{hint}"
            )


def _find(names: Sequence[str], *, taken: dict[str, list[str]], ours: Sequence[str]) -> dict[str, str]:
    """Return our name -> the source's, for what the names alone decide."""
    free = [name for name in names if not any(name in used for used in taken.values())]
    found = {}
    pairs = [pair for pair in _TARGETS if set(pair) <= set(free)]
    if "target" in ours and not {"text", "target"} & set(taken) and len(pairs) == 1:
        found = dict(zip(("text", "target"), pairs[0], strict=True))
    elif "text" not in taken:
        found.update(_find_texts(free))
    common = {
        "image": _IMAGE_NAMES,
        "tokens": _TOKENS_NAMES,
        "label": _TAGS_NAMES if "tokens" in ours else _LABEL_NAMES,
        "id": _ID_NAMES,
        "mask": _MASK_NAMES,
    }
    for name, likely in common.items():
        match = name if name in free else _only(free, likely)
        if name not in taken and match:
            found[name] = match
    for name in ("question", "context", "answers", "target", "objects"):
        if name not in taken and name in free:
            found.setdefault(name, name)
    return {name: match for name, match in found.items() if name in ours}


def _find_texts(names: Sequence[str]) -> dict[str, str]:
    """The text, and its pair where the names are a known pair; nothing where several readings are possible."""
    if "text" in names:
        return {"text": "text"} | ({"text_pair": "text_pair"} if "text_pair" in names else {})
    pairs = [pair for pair in _PAIRS if set(pair) <= set(names)]
    if len(pairs) == 1:
        return {"text": pairs[0][0], "text_pair": pairs[0][1]}
    single = _only(names, _TEXT_NAMES)
    if pairs or not single or any(rival in names for rival in (*_RIVALS, *_SECOND_NAMES)):
        return {}
    return {"text": single}


def _only(names: Sequence[str], common: Sequence[str]) -> str | None:
    matches = [name for name in names if name.lower() in common]
    return matches[0] if len(matches) == 1 else None


def _ask(table: Table, *, missing: list[str], chosen: dict[str, list[str]]) -> str:
    """Say which columns the file has, and write the line that is needed."""
    listed = ", ".join(map(repr, _names_shown(table))) or "none"
    if missing == ["tokens"] and not any(
        isinstance(value, list) for name in table.names for value in table.column(name)[:1]
    ):
        return (
            f"{table.places.shown}: no column is a list of words, of which each gets a tag; its columns are {listed}; write the words "
            "as CoNLL (a word and its tag on each line) or as lists in json or parquet, or choose another task"
        )
    if missing == ["label"] and _only(table.names, ("score", "rating", "stars", "similarity")):
        guess = {"label": _only(table.names, ("score", "rating", "stars", "similarity")) or ""}
    else:
        guess = {name: f"<the column with the {name.replace('_', ' ')}>" for name in missing}
    texts = [name for name in table.names if name.lower() in (*_RIVALS, *_TEXT_NAMES)]
    if "text" in missing and texts:
        guess["text"] = texts[0] if len(texts) == 1 else f"[{', '.join(texts)}]"
    line = ", ".join(f"{name}: {given}" for name, given in ({n: _flow(g) for n, g in chosen.items()} | guess).items())
    return (
        f"{table.places.shown}: which column is {' and which is '.join(missing)} cannot be told from its columns "
        f"{listed}; write into the recipe, under data:  columns: {{{line}}}"
    )


def _names_shown(table: Table) -> list[str]:
    """Return the names of the columns, and with a dot those inside of mappings, as a recipe names them."""
    first = {name: next(iter(table.column(name)[:1]), None) for name in table.names}
    inside = {
        name: [f"{name}.{key}" for key in value]
        for name, value in first.items()
        if isinstance(value, dict) and all(isinstance(text, str) for text in value.values())
    }
    return [shown for name in table.names for shown in inside.get(name) or [name]]


def _flow(given: list[str]) -> str:
    return given[0] if len(given) == 1 else f"[{', '.join(given)}]"
