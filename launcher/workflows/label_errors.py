"""The list of rows whose label is likely wrong: of train by cross-validation, of the other splits by the trained model."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from launcher.atomic import read_jsonl, write_text
from launcher.contracts import Predictions
from launcher.errors import LauncherError
from launcher.evaluation.baselines import MOST_TRAIN_ROWS
from launcher.evaluation.cross_validation import FOLDS, text_probabilities
from launcher.evaluation.kinds.base import clean_text
from launcher.evaluation.label_errors import find_label_errors, likely_labels
from launcher.rundir import RunDir

if TYPE_CHECKING:
    from launcher.engine.context import RunContext

LABEL_ERRORS_FILE = "label_errors.jsonl"
MOST_SHOWN = 50
"""Rows that the report shows, of all splits together."""
_MOST_CHARACTERS = 600


@dataclass(frozen=True)
class _Judged:
    """Labelled rows of a split, and the probabilities of a model that has not learned from them."""

    probabilities: np.ndarray
    labels: np.ndarray
    texts: tuple[str, ...]
    row_ids: tuple[int, ...]
    positions: np.ndarray
    """int64 [rows], from 0, among the rows of the split."""
    by: str
    rows: int
    """Rows of the whole split; some of them cannot be judged."""


def splits_to_judge(context: RunContext) -> tuple[str, ...]:
    """Return the splits whose rows the trained model has to predict for the list; none where the recipe does not ask for it."""
    if not context.recipe.evaluation.label_errors:
        return ()
    splits = context.prepared.facts["splits"]
    found = (("validation", context.prepared.validation), ("test", context.prepared.test))
    return tuple(name for name, rows in found if rows is not None and splits[name]["labelled"])


def write_label_errors(context: RunContext, predictions: Mapping[str, Predictions]) -> dict[str, Any]:
    """Write evaluation/label_errors.jsonl, and return what metrics.json says of it.

    ``predictions``: the trained model's, of the splits of ``splits_to_judge``. A line for each row: split, row_id, place, text (shortened),
    label, likely_label, and the probabilities of both; in each split the least probable label first.
    """
    judged = {"train": _train(context)} | {name: _held_out(found) for name, found in predictions.items()}
    records, facts = [], {}
    for name, rows in judged.items():
        if rows is not None:
            found = find_label_errors(rows.probabilities, rows.labels)
            records += list(_records(rows, found, split=name, names=context.prepared.label_names))
            facts[name] = {"rows": rows.rows, "judged": len(rows.labels), "found": len(found), "by": rows.by}
    _add_places(records, context)
    lines = [json.dumps({k: v for k, v in row.items() if k != "position"}, ensure_ascii=False) for row in records]
    write_text(context.run.evaluation / LABEL_ERRORS_FILE, "".join(f"{line}\n" for line in lines))
    return facts


def label_error_facts(run: RunDir, splits: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the report shows: ``splits`` as ``write_label_errors`` gave them, each with the rows that are shown."""
    path = run.evaluation / LABEL_ERRORS_FILE
    if not splits or not path.is_file():
        return {}
    records = read_jsonl(path)
    of_split = {name: [row for row in records if row["split"] == name] for name in splits}
    room = _room([len(rows) for rows in of_split.values()], most=MOST_SHOWN)
    shown = {name: rows[:count] for (name, rows), count in zip(of_split.items(), room, strict=True)}
    return {"folds": FOLDS, "splits": {name: {**facts, "shown": shown[name]} for name, facts in splits.items()}}


def _room(sizes: list[int], *, most: int) -> list[int]:
    """Share ``most`` places out, one after the other, to those that still have rows."""
    room = [0] * len(sizes)
    while sum(room) < min(most, sum(sizes)):
        for place, size in enumerate(sizes):
            if room[place] < size and sum(room) < most:
                room[place] += 1
    return room


# --- rows and their probabilities ----------------------------------------------------------------------------------


def _train(context: RunContext) -> _Judged | None:
    """Judge the rows of train by cross-validation; a label's only row cannot be judged."""
    train, seed = context.prepared.train, context.recipe.training.seed
    labels = np.asarray(train["labels"], dtype=np.int64)
    counts = np.bincount(labels)
    kept = np.flatnonzero(counts[labels] > 1)
    if len(kept) > MOST_TRAIN_ROWS:
        kept = np.sort(np.random.default_rng(seed).choice(kept, size=MOST_TRAIN_ROWS, replace=False))
    texts = train["text"][:]
    texts = [texts[place] for place in kept]
    found = text_probabilities(texts, labels[kept], classes=len(context.prepared.label_names), seed=seed)
    if found is None:
        return None
    row_ids = tuple(np.asarray(train["row_id"])[kept].tolist())
    return _Judged(found, labels[kept], tuple(texts), row_ids, kept, "tfidf", len(labels))


def _held_out(predictions: Predictions) -> _Judged:
    labels = np.asarray(predictions.labels, dtype=np.int64)
    positions = np.arange(len(labels))
    return _Judged(predictions.scores, labels, predictions.texts, predictions.row_ids, positions, "model", len(labels))


def _records(rows: _Judged, found: np.ndarray, *, split: str, names: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    likely = likely_labels(rows.probabilities, rows.labels)
    for place in found.tolist():
        own, other = int(rows.labels[place]), int(likely[place])
        yield {
            "split": split,
            "row_id": int(rows.row_ids[place]),
            "position": int(rows.positions[place]),
            "place": None,
            "text": _short(clean_text(rows.texts[place])),
            "label": clean_text(names[own]),
            "likely_label": clean_text(names[other]),
            "label_probability": round(float(rows.probabilities[place, own]), 6),
            "likely_probability": round(float(rows.probabilities[place, other]), 6),
        }


def _short(text: str) -> str:
    return text if len(text) <= _MOST_CHARACTERS else text[:_MOST_CHARACTERS].rstrip() + " …"


def _add_places(records: list[dict[str, Any]], context: RunContext) -> None:
    """Say in which file and line each row stands, where the sources can be read again and are what was trained on."""
    if not records:
        return
    try:
        splits = context.task.load_splits()
    except LauncherError:
        return
    if splits.fingerprint == context.prepared.fingerprint:
        origins = {name: splits.origin(name) for name in {row["split"] for row in records}}
        for row in records:
            row["place"] = clean_text(origins[row["split"]](row["position"]))
