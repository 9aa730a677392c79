"""Predictions as a parquet file that any table tool reads, and back."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from launcher.atomic import write_bytes
from launcher.contracts import Predictions
from launcher.errors import DataError
from launcher.evaluation.answers import ANSWERS, is_answering
from launcher.evaluation.language import text_losses, token_counts
from launcher.evaluation.metrics import decide, is_language, is_multilabel, is_regression
from launcher.evaluation.tagging import is_tagging, tags_by_row

MOST_SCORE_COLUMNS = 100
"""With more labels than this a single-label file keeps each row's TOP_LABELS best labels instead of a column per
label."""

TOP_LABELS = 20

_METADATA = b"launcher.predictions"


def write_predictions(predictions: Predictions, path: Path) -> None:
    """Write one row per prediction to ``path``, atomically.

    Columns: row_id, text, label (null where unknown), predicted, confidence (the predicted label's score; not for
    regression or multi-label), correct (null without labels; not for regression), and ``score: NAME`` for each label,
    or with more than MOST_SCORE_COLUMNS labels of which one applies, top_labels and top_scores. Multi-label rows have
    lists of names; regression has numbers. Language models have instead tokens (that were predicted), summed_loss and loss (its
    mean per token; null where none was predicted), in nats. Where words have tags, words, label, predicted and confidence are lists
    with an item for each word; where questions are answered, label is a list of right answers.
    """
    import pyarrow
    import pyarrow.parquet

    facts = {"problem_type": predictions.problem_type, "label_names": list(predictions.label_names)}
    table = pyarrow.table(_columns(predictions)).replace_schema_metadata({_METADATA: json.dumps(facts).encode()})
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(table, buffer, compression="zstd")
    write_bytes(path, buffer.getvalue())


def _columns(predictions: Predictions) -> dict[str, Any]:
    import pyarrow

    columns: dict[str, Any] = {
        "row_id": pyarrow.array(np.asarray(predictions.row_ids, dtype=np.int64)),
        "text": pyarrow.array([clean_text(text) for text in predictions.texts], pyarrow.string()),
    }
    if is_language(predictions.problem_type):
        return columns | _language(predictions)
    if is_tagging(predictions.problem_type):
        return columns | _tagged(predictions)
    if is_answering(predictions.problem_type):
        return columns | _answered(predictions)
    return columns | (_numbers(predictions) if is_regression(predictions.problem_type) else _classes(predictions))


def clean_text(text: str) -> str:
    """Return ``text`` with what cannot be written as UTF-8 (a lone surrogate) replaced by a question mark."""
    return text.encode("utf-8", "replace").decode()


def _language(predictions: Predictions) -> dict[str, Any]:
    import pyarrow

    losses = text_losses(predictions)
    return {
        "tokens": pyarrow.array(token_counts(predictions).astype(np.int64)),
        "summed_loss": pyarrow.array(np.asarray(predictions.scores, dtype=np.float64)[:, 0]),
        "loss": pyarrow.array(losses, mask=np.isnan(losses)),
    }


def _tagged(predictions: Predictions) -> dict[str, Any]:
    import pyarrow

    ends = np.cumsum([len(words) for words in predictions.words])[:-1]
    texts = pyarrow.list_(pyarrow.string())
    empty = [None] * len(predictions.words)
    labels = empty if predictions.labels is None else list(_clean(tags_by_row(predictions, predictions.labels)))
    return {
        "words": pyarrow.array(list(_clean(predictions.words)), texts),
        "label": pyarrow.array(labels, texts),
        "predicted": pyarrow.array(list(_clean(tags_by_row(predictions, decide(predictions)))), texts),
        "confidence": pyarrow.array([part.tolist() for part in np.split(predictions.scores, ends)]),
    }


def _answered(predictions: Predictions) -> dict[str, Any]:
    import pyarrow

    texts = pyarrow.list_(pyarrow.string())
    empty = [None] * len(predictions.answers)
    return {
        "label": pyarrow.array(empty if predictions.labels is None else list(_clean(predictions.references)), texts),
        "predicted": pyarrow.array([clean_text(answer) for answer in predictions.answers], pyarrow.string()),
        "confidence": pyarrow.array(predictions.scores),
    }


def _clean(rows: Iterable[Sequence[str]]) -> Iterator[list[str]]:
    return ([clean_text(word) for word in row] for row in rows)


def _numbers(predictions: Predictions) -> dict[str, Any]:
    import pyarrow

    labels = [None] * len(predictions.row_ids) if predictions.labels is None else predictions.labels.tolist()
    return {"label": pyarrow.array(labels, pyarrow.float64()), "predicted": pyarrow.array(decide(predictions))}


def _classes(predictions: Predictions) -> dict[str, Any]:
    import pyarrow

    scores, predicted, labels = (
        np.asarray(predictions.scores, dtype=np.float64),
        decide(predictions),
        predictions.labels,
    )
    multi = is_multilabel(predictions.problem_type)
    kind = pyarrow.list_(pyarrow.string()) if multi else pyarrow.string()
    names = [clean_text(name) for name in predictions.label_names]
    empty = [None] * len(scores)
    right = None if labels is None else ((predicted == labels).all(axis=1) if multi else predicted == labels)
    columns: dict[str, Any] = {
        "label": pyarrow.array(empty if labels is None else _named(labels, names), kind),
        "predicted": pyarrow.array(_named(predicted, names), kind),
    }
    if not multi:
        columns["confidence"] = pyarrow.array(scores.max(axis=1) if len(scores) else np.zeros(0))
    columns["correct"] = pyarrow.array(empty if right is None else right.tolist(), pyarrow.bool_())
    if len(names) <= MOST_SCORE_COLUMNS or multi:
        return columns | {f"score: {name}": pyarrow.array(scores[:, k]) for k, name in enumerate(names)}
    top = np.argsort(-scores, axis=1, kind="stable")[:, :TOP_LABELS]
    columns["top_labels"] = pyarrow.array([[names[k] for k in row] for row in top], pyarrow.list_(pyarrow.string()))
    columns["top_scores"] = pyarrow.array(
        np.take_along_axis(scores, top, axis=1).tolist(), pyarrow.list_(pyarrow.float64())
    )
    return columns


def _named(values: np.ndarray, names: Sequence[str]) -> list[Any]:
    if values.ndim == 2:
        return [[names[int(k)] for k in np.flatnonzero(row)] for row in values]
    return [names[int(k)] for k in values]


def read_predictions(path: Path) -> Predictions:
    """Return what ``write_predictions`` wrote.

    Exact, except where only the best labels' scores were kept: the other labels then share the rest evenly.

    Raises:
        DataError: the file is missing, or not one of launcher's predictions.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; launcher evaluate RUN writes it") from None
    except pyarrow.ArrowInvalid as error:
        raise DataError(f"{path} is not a parquet file: {error}") from None
    if _METADATA not in (table.schema.metadata or {}):
        raise DataError(f"{path} was not written by launcher; predictions of a run lie in its evaluation/ folder")
    facts = json.loads(table.schema.metadata[_METADATA])
    names, problem_type = tuple(facts["label_names"]), facts["problem_type"]
    if is_language(problem_type):
        scores = np.asarray(table.column("summed_loss").to_numpy(), dtype=np.float64).reshape(-1, 1)
        labels: np.ndarray | None = np.asarray(table.column("tokens").to_numpy(), dtype=np.int64)
    elif is_tagging(problem_type):
        return _read_tagged(table, names, problem_type)
    elif is_answering(problem_type):
        return _read_answered(table)
    else:
        scores = _read_scores(table, names, problem_type)
        labels = _read_labels(table.column("label").to_pylist(), names, problem_type)
    texts, row_ids = table.column("text").to_pylist(), table.column("row_id").to_pylist()
    return Predictions(problem_type, scores, labels, names, tuple(texts), tuple(row_ids))


def _read_tagged(table: Any, names: tuple[str, ...], problem_type: str) -> Predictions:
    place = {clean_text(name): number for number, name in enumerate(names)}
    columns = {name: table.column(name).to_pylist() for name in table.column_names}

    def numbers(rows: list[list[str]]) -> np.ndarray:
        return np.array([place[tag] for row in rows for tag in row], dtype=np.int64)

    is_labelled = bool(columns["label"]) and columns["label"][0] is not None
    return Predictions(
        problem_type=problem_type,
        scores=np.array([score for row in columns["confidence"] for score in row], dtype=np.float64),
        labels=numbers(columns["label"]) if is_labelled else None,
        label_names=names,
        texts=tuple(columns["text"]),
        row_ids=tuple(columns["row_id"]),
        words=tuple(tuple(row) for row in columns["words"]),
        predicted=numbers(columns["predicted"]),
    )


def _read_answered(table: Any) -> Predictions:
    columns = {name: table.column(name).to_pylist() for name in table.column_names}
    is_labelled = bool(columns["label"]) and columns["label"][0] is not None
    references = tuple(tuple(row or ()) for row in columns["label"])
    return Predictions(
        problem_type=ANSWERS,
        scores=np.array(columns["confidence"], dtype=np.float64),
        labels=np.array([len(row) for row in references]) if is_labelled else None,
        label_names=(),
        texts=tuple(columns["text"]),
        row_ids=tuple(columns["row_id"]),
        answers=tuple(columns["predicted"]),
        references=references,
    )


def _read_scores(table: Any, names: Sequence[str], problem_type: str) -> np.ndarray:
    if is_regression(problem_type):
        return np.asarray(table.column("predicted").to_numpy(), dtype=np.float64).reshape(-1, 1)
    if "top_labels" not in table.column_names:
        columns = [table.column(f"score: {clean_text(name)}").to_numpy() for name in names]
        return np.stack(columns, axis=1) if columns else np.zeros((table.num_rows, 0))
    place = {clean_text(name): k for k, name in enumerate(names)}
    kept = np.array(table.column("top_scores").to_pylist())
    rest = np.clip(1 - kept.sum(axis=1, keepdims=True), 0, None) / max(len(names) - kept.shape[1], 1)
    scores = np.repeat(np.minimum(rest, kept[:, -1:]), len(names), axis=1)
    np.put_along_axis(
        scores, np.array([[place[n] for n in row] for row in table.column("top_labels").to_pylist()]), kept, axis=1
    )
    return scores


def _read_labels(values: Sequence[Any], names: Sequence[str], problem_type: str) -> np.ndarray | None:
    if not values or values[0] is None:
        return None
    if is_regression(problem_type):
        return np.asarray(values, dtype=np.float64)
    place = {clean_text(name): k for k, name in enumerate(names)}
    if not is_multilabel(problem_type):
        return np.array([place[value] for value in values], dtype=np.int64)
    labels = np.zeros((len(values), len(names)), dtype=np.int64)
    for row, row_names in zip(labels, values, strict=True):
        row[[place[name] for name in row_names]] = 1
    return labels
