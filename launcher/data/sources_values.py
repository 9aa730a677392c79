"""A source's values to ours, each checked: texts, words and their tags, labels, answers, what is to be written, ids, groups.

Each function adds to ``faults`` the rows whose value cannot be used, and has None in their place.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from launcher.data.columns import Column
from launcher.data.tables import Fault, Faults, Table, column_of


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
