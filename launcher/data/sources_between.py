"""What is compared between the splits of a recipe: columns, labels, rows and groups that stand in two of them; and the fingerprint of all."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

from launcher.data.bad_rows import OnBadRow, refuse_many
from launcher.data.sources_rows import RowSet
from launcher.data.tables import Fault
from launcher.errors import DataError


def without_hidden_labels(
    test: RowSet, *, train: RowSet | None = None, on_bad_row: OnBadRow = "error"
) -> tuple[RowSet, list[str]]:
    """Return test rows without labels where none has one, and a note that says so.

    Hidden labels are null, empty, or -1 where train has no such label. Where only some rows have one, the others cannot be used.
    Raises DataError for them, unless they are skipped.
    """
    if "label" not in test.columns:
        expected = train is not None and "label" in train.columns
        return test, ["the test rows have no labels: they are for prediction only"] if expected else []
    labels = test.columns["label"]
    known = set(map(str, train.columns.get("label", ()))) if train else set()
    hidden = [
        label is None or (str(label).strip() in ("", "-1", "-1.0") and str(label) not in known) for label in labels
    ]
    if all(hidden):
        return test.without_labels(), ["no test row has a label (null, empty or -1): they are for prediction only"]
    unlabelled = [row for row, label in enumerate(labels) if label is None]
    reason = (
        f"has no label, like {len(unlabelled)} of the {test.rows} test rows; "
        "label all test rows, or none (then they are for prediction only)"
    )
    faults = {row: Fault(reason, None) for row in unlabelled}
    return test.without(faults, split="test", on_bad_row=on_bad_row), []


def labelled(sets: Mapping[str, RowSet], *, on_bad_row: OnBadRow) -> dict[str, RowSet]:
    """Return the rows that have a label, where there are labels. Raises DataError for one that has none, unless they are skipped."""
    found = {}
    for split, rows in sets.items():
        missing = [row for row, label in enumerate(rows.columns.get("label", ())) if label is None]
        faults = {row: Fault("has no label (null); add it, or remove the row", None) for row in missing}
        found[split] = rows.without(faults, split=split, on_bad_row=on_bad_row)
        refuse_many(found[split].skipped, split=split, kept=found[split].rows)
    return found


def check_alike(sets: Mapping[str, RowSet]) -> None:
    """Raise DataError where validation or test lacks a column that train has; test may lack label."""
    train = set(sets["train"].columns) - {"id", "group"}
    for split, rows in sets.items():
        odd = (set(rows.columns) - {"id", "group"}) ^ train
        odd -= {"label", "mask"} if split == "test" else set()
        if odd:
            raise DataError(
                f"{rows.segments[0][1].shown}: {split} and train do not both have {', '.join(sorted(odd))}; "
                "name the columns under data.columns, or make the files alike"
            )


def recurring(sets: Mapping[str, RowSet]) -> list[str]:
    """Return a warning, with an example, for validation and for test rows whose text also stands in train."""
    wanted = {split: list(sets[split].text_keys()) for split in ("validation", "test") if split in sets}
    train = _first_rows(sets["train"], wanted={key for keys in wanted.values() for key in keys})
    notes = []
    for split, keys in wanted.items():
        again = [(row, train[key]) for row, key in enumerate(keys) if key in train]
        if again:
            row, first = again[0]
            text = " ".join(sets[split].columns["text"][row].split())
            notes.append(
                f"{len(again)} of the {sets[split].rows} {split} rows also stand in train (case and spacing aside), so "
                f"the scores on {split} flatter: {sets[split].place(row)} = {sets['train'].place(first)}: {text[:80]!r}"
            )
    return notes


def straddling(sets: Mapping[str, RowSet]) -> list[str]:
    """Return a warning for validation and for test rows of groups that also stand in train."""
    train = set(sets["train"].columns.get("group", ())) - {None}
    notes = []
    for split in ("validation", "test"):
        groups = sets[split].columns.get("group", ()) if split in sets else ()
        again = [group for group in groups if group in train]
        if again:
            notes.append(
                f"{len(again)} of the {len(groups)} {split} rows are of {len(set(again))} groups that also stand in train, such as {again[0]!r}, so "
                f"the scores on {split} flatter: put all rows of a group into one split"
            )
    return notes


def _first_rows(rows: RowSet, *, wanted: set[tuple[str, ...]]) -> dict[tuple[str, ...], int]:
    """Return each wanted key that stands in ``rows``, with its first row. The keys of all rows would take more than the texts."""
    found: dict[tuple[str, ...], int] = {}
    for row, key in enumerate(rows.text_keys()):
        if key in wanted:
            found.setdefault(key, row)
    return found


def fingerprint(sets: Mapping[str, RowSet]) -> str:
    """Return the sha256 (hex) over every row of every split, in order, by our column names."""
    digest = hashlib.sha256()
    write = json.JSONEncoder(ensure_ascii=False).encode
    for split, rows in sets.items():
        # Images and masks are known by the hashes of their bytes, wherever they lie.
        names = [name for name in rows.columns if name not in ("image", "mask")]
        digest.update(json.dumps([split, names, rows.rows]).encode())
        for row in zip(*(rows.columns[name] for name in names), strict=True):
            digest.update(write(row).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()
