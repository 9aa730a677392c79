"""The source's columns to ours: text, text_pair, tokens, label, target, id; by the recipe's ``columns`` or by names that leave no doubt."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from launcher.data.columns import Column
from launcher.data.tables import Fault, Faults, Table, column_of, has_column
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


# --- values --------------------------------------------------------------------------------------------------------
# Each of these adds to ``faults`` the rows whose value cannot be used, and has None in their place.


def text_values(
    table: Table, *, columns: list[str], rows: Sequence[int], join: str, ours: str, faults: Faults, may_be_lists: bool
) -> Column:
    """Return the texts of ``rows``, several columns joined, and with ``may_be_lists`` lists of sentences too."""
    parts = []
    for column in columns:
        held = column_of(table, column).take(rows)
        picked = _lists_joined(held, join) if may_be_lists else held
        for row, value in () if picked.is_text else zip(rows, picked, strict=True):
            if row not in faults and (reason := _text_fault(value, column=column, ours=ours)):
                faults[row] = Fault(reason, value)
        parts.append(picked)
    if len(parts) == 1 and parts[0].is_text:
        return parts[0]
    values = zip(*parts, strict=True)
    return Column.of(None if row in faults else join.join(held) for row, held in zip(rows, values, strict=True))


def _lists_joined(values: Column, join: str) -> Column:
    """Return texts, lists of texts (sentences of one) joined."""
    if values.is_text:
        return values
    return Column.of(join.join(value) if _is_texts(value) else value for value in values)


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


def target_values(table: Table, *, column: str, rows: Sequence[int], faults: Faults) -> Column:
    """Return what is to be written of each of ``rows``, a list of one or more right texts; None where that is not known."""
    values = column_of(table, column).take(rows)
    for row, value in zip(rows, values, strict=True):
        texts = [value] if isinstance(value, str) else value
        if row in faults or texts is None:
            continue
        if not _is_texts(texts) or not texts or not all(map(str.strip, texts)):
            reason = (
                f"column {column!r} (target) holds {_cut(value)}, which is neither text nor a list of right texts, none of them "
                "empty; mend or remove the row, or name another column under data.columns"
            )
            faults[row] = Fault(reason, value)
        elif not all(map(_is_whole, texts)):
            faults[row] = Fault(f"column {column!r} (target) holds {_HALF}", value)
    return Column.of(
        None if row in faults else [value] if isinstance(value, str) else value
        for row, value in zip(rows, values, strict=True)
    )


def _text_fault(value: Any, *, column: str, ours: str) -> str | None:
    if isinstance(value, str):
        return None if _is_whole(value) else f"column {column!r} ({ours}) holds {_HALF}"
    kind = "null" if value is None or (isinstance(value, float) and math.isnan(value)) else type(value).__name__
    return (
        f"column {column!r} ({ours}) holds {_cut(value)} ({kind}), which is not text; "
        "mend or remove the row, or name another column under data.columns"
    )


_HALF = "half of a character (a lone surrogate, such as \\\\ud83d without its other half), which is no text; mend or remove the row"


def _is_whole(text: str) -> bool:
    """Whether text can be written; JSON's escapes can name halves of characters."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _cut(value: Any, *, width: int = 120) -> str:
    text = repr(value)
    return text if len(text) <= width else f"{text[: width - 3]}..."


def check_not_empty(texts: Mapping[str, Column], *, rows: Sequence[int], each: bool, faults: Faults) -> None:
    """Add rows without a word: all of their ``texts`` are empty, or with ``each`` one of them is."""
    for row, held in zip(rows, zip(*texts.values(), strict=True), strict=True):
        if row in faults or all(map(str.strip, held)):
            continue
        empty = {name: text for name, text in zip(texts, held, strict=True) if not text.strip()}
        if each or len(empty) == len(texts):
            name, text = next(iter(empty.items()))
            faults[row] = Fault(f"the {name} is empty; mend or remove the row", text)


def token_values(table: Table, *, column: str, rows: Sequence[int], faults: Faults) -> Column:
    """Return the words of ``rows``, at least one each."""
    values = column_of(table, column).take(rows)
    for row, value in zip(rows, values, strict=True):
        is_list = isinstance(value, list) and value and all(isinstance(word, str) for word in value)
        if not is_list:
            reason = f"column {column!r} (tokens) holds {_cut(value)}, which is no list of words; mend or remove the row, or name another column under data.columns"
            faults.setdefault(row, Fault(reason, value))
        elif not all(map(_is_whole, value)):
            faults.setdefault(row, Fault(f"column {column!r} (tokens) holds {_HALF}", value))
    return _usable(values, rows=rows, faults=faults)


def _usable(values: Column, *, rows: Sequence[int], faults: Faults) -> Column:
    """Return values with None in the place of rows that cannot be used."""
    if not faults:
        return values
    return Column.of(None if row in faults else value for row, value in zip(rows, values, strict=True))


def check_tags(*, tokens: Sequence[Any], tags: Sequence[Any], rows: Sequence[int], faults: Faults) -> None:
    """Add rows that do not have a tag for each word; a row without any may be one to predict."""
    for row, words, given in zip(rows, tokens, tags, strict=True):
        if row not in faults and given is not None and (not isinstance(given, list) or len(given) != len(words)):
            what = f"{len(given)} tags" if isinstance(given, list) else repr(given)
            reason = (
                f"has {len(words)} words and, as their label, {what}; give each word one tag "
                f"(words: {' '.join(words)[:80]!r})"
            )
            faults[row] = Fault(reason, given)


def answer_values(table: Table, *, column: str, rows: Sequence[int], contexts: Sequence[Any], faults: Faults) -> Column:
    """Return the answers of ``rows`` as {text: [...], answer_start: [...]}, empty lists where a question has none; None: unknown.

    An answer that does not stand in its context where it says so is a fault.
    """
    values = column_of(table, column).take(rows)
    for row, value, context in zip(rows, values, contexts, strict=True):
        if row not in faults and (reason := _answer_fault(value, context, column)):
            faults[row] = Fault(reason, value)
    return Column.of(None if row in faults else _answers(value) for row, value in zip(rows, values, strict=True))


def _answers(value: Any) -> dict[str, list[Any]] | None:
    if value is None:
        return None
    texts, starts = _lists_of(value)
    return {"text": list(texts), "answer_start": list(starts)}


def _answer_fault(value: Any, context: str, column: str) -> str | None:
    if value is None:
        return None
    texts, starts = _lists_of(value)
    if (
        len(texts) != len(starts)
        or not all(isinstance(text, str) and text for text in texts)
        or not all(map(_is_place, starts))
    ):
        return (
            f'column {column!r} (answers) holds {str(value)[:120]!r}; answers are {{"text": [...], "answer_start": [...]}} with the first '
            "character of each, from 0, and empty lists where there is none; mend or remove the row"
        )
    for text, at in zip(texts, starts, strict=True):
        there = context[at : at + len(text)]
        if there != text:
            return (
                f"the answer {text[:60]!r} does not stand at character {at} of its context, where {there[:60]!r} stands; mend "
                "answer_start, or remove the row"
            )
    return None


def _lists_of(value: Any) -> tuple[list[Any], list[Any]]:
    """Return text and answer_start; lists that do not fit together where they are no lists."""
    found = [value.get(name) for name in ("text", "answer_start")] if isinstance(value, dict) else [None, None]
    texts, starts = (list(one) if isinstance(one, list) else None for one in found)
    return (texts, starts) if texts is not None and starts is not None else ([], [None])


def _is_place(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def id_values(table: Table, *, column: str, rows: Sequence[int], faults: Faults) -> Column:
    """Return the ids of ``rows`` as text."""
    values = column_of(table, column).take(rows)
    for row, value in () if values.is_text else zip(rows, values, strict=True):
        if not _is_whole(str(value)):
            faults.setdefault(row, Fault(f"column {column!r} (id) holds {_HALF}", value))
    return Column.of(None if row in faults else str(value) for row, value in zip(rows, values, strict=True))


def group_values(table: Table, *, column: str, rows: Sequence[int], faults: Faults) -> Column:
    """Return the groups of ``rows`` as text; None for a row of no group."""
    values = column_of(table, column).take(rows)
    return Column.of(None if value is None or value == "" else str(value) for value in values)


def label_values(table: Table, *, column: str, rows: Sequence[int], faults: Faults) -> Column:
    """Return the labels of ``rows``: text, numbers, lists of text, or None where there is none (null, NaN)."""
    values = column_of(table, column).take(rows)
    if values.is_text:
        return values
    for row, value in zip(rows, values, strict=True):
        if row not in faults and not _is_label(value):
            reason = f"column {column!r} (label) holds {_cut(value)}; a label is text, a number, or a list of these"
            faults[row] = Fault(reason, value)
    return Column.of(None if row in faults else _plain_label(value) for row, value in zip(rows, values, strict=True))


def _is_label(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(item is not None and not isinstance(item, list | tuple) and _is_label(item) for item in value)
    if isinstance(value, str):
        return _is_whole(value)
    # Columns of whole numbers have 64 bits.
    return value is None or (isinstance(value, int) and -(2**63) <= value < 2**63) or isinstance(value, float)


def _plain_label(value: Any) -> Any:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list | tuple):
        return [str(_plain_label(item)) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def uniform_labels(values: Column) -> Column:
    """Give all labels of a split one type: lists, else whole numbers, else numbers, else text; None stays None."""
    kinds = set(map(type, values)) - {type(None)}
    if len(kinds) < 2:
        return values
    if list in kinds:
        return Column.of(value if value is None or isinstance(value, list) else [str(value)] for value in values)
    one_type = str if str in kinds else float
    return Column.of(value if value is None else one_type(value) for value in values)
