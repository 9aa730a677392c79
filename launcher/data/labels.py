"""What a label is, the names of the labels, and labels to numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launcher.data.readers_text import read_text
from launcher.data.tables import Fault, Faults
from launcher.errors import DataError
from launcher.registry import suggest

if TYPE_CHECKING:
    import numpy as np

PROBLEM_TYPES = (
    "single_label_classification",
    "multi_label_classification",
    "binary_classification",
    "regression",
)
_SHOWN = 12
# A row has any number of labels: of its own, or one for each word.
_SEVERAL = ("multi_label_classification", "token_classification")


def infer_problem_type(
    train_labels: Sequence[Any], declared: str = "auto", *, delimiter: str = ",", names: Sequence[str] | None = None
) -> str:
    """Return one of PROBLEM_TYPES: ``declared``, or what the labels of train look like.

    Lists are multi-label, and so is text that ``delimiter`` cuts into parts that recur: in other combinations, or among
    ``names``. Numbers of which one has a fraction are regression. Anything else is single-label.
    """
    if declared != "auto":
        return declared
    labels = [label for label in train_labels if label is not None]
    if any(isinstance(label, list) for label in labels):
        return "multi_label_classification"
    if all(isinstance(label, int) for label in labels):
        return "single_label_classification"
    if _has_fraction(labels) and not names:
        return "regression"
    return "multi_label_classification" if _recombines(labels, delimiter, names) else "single_label_classification"


def _has_fraction(labels: Sequence[Any]) -> bool:
    """Whether all labels are numbers and one of them has a fraction, such as 3.5."""
    numbers = [_number(label) for label in labels]
    return all(n is not None for n in numbers) and any(n is not None and not n.is_integer() for n in numbers)


def _number(label: Any) -> float | None:
    try:
        return float(label)
    except (TypeError, ValueError):
        return None


def _recombines(labels: Sequence[Any], delimiter: str, names: Sequence[str] | None) -> bool:
    whole = {str(label).strip() for label in labels}
    cut = {label: tuple(_parts(label, delimiter)) for label in whole}
    several = [parts for parts in cut.values() if len(parts) > 1]
    if not several:
        return False
    if names:
        known = set(names) | {str(number) for number in range(len(names))}
        return not whole <= set(names) and all(part in known for parts in several for part in parts)
    uses: dict[str, int] = {}
    for parts in cut.values():
        for part in set(parts):
            uses[part] = uses.get(part, 0) + 1
    parts_of_several = {part for parts in several for part in parts}
    return 2 * sum(uses[part] > 1 for part in parts_of_several) >= len(parts_of_several)


def _parts(label: str, delimiter: str) -> list[str]:
    return [part.strip() for part in label.split(delimiter) if part.strip()]


@dataclass(frozen=True)
class LabelSet:
    """The labels of a task, in the order of their numbers."""

    names: tuple[str, ...]
    """Empty for regression."""
    problem_type: str
    delimiter: str = ","
    """What separates the labels of a row in a multi-label text column."""
    first_number: int | None = None
    """Labels are numbers of names, counted from this (0 or 1); None: labels are the names themselves."""
    warnings: tuple[str, ...] = ()

    @property
    def outputs(self) -> int:
        """Number of outputs of the model: one for regression and for one-logit binary classification."""
        return 1 if self.problem_type in ("regression", "binary_classification") else len(self.names)

    def encode(self, values: Sequence[Any], *, split: str, origin: Callable[[int], str]) -> np.ndarray:
        """Return the labels as numbers: int64 [rows], 0/1 int64 [rows, labels] for multi-label, float64 [rows] for regression.

        ``origin`` gives the place of a row by its position. Raises DataError naming the first row whose label is missing,
        unknown, or not a finite number, and how many rows are like it.
        """
        import numpy as np

        if self.problem_type == "regression":
            self._refuse(values, split=split, origin=origin)
            return np.array(values, np.float64)
        encoded = self.encode_lists(values, split=split, origin=origin)
        if self.problem_type != "multi_label_classification":
            return np.array([numbers[0] for numbers in encoded], np.int64)
        hot = np.zeros((len(values), len(self.names)), np.int64)
        for row, numbers in enumerate(encoded):
            hot[row, numbers] = 1
        return hot

    def encode_lists(self, values: Sequence[Any], *, split: str, origin: Callable[[int], str]) -> list[list[int]]:
        """Return the numbers of each row's labels, in their order. Raises DataError as ``encode`` does."""
        index = {name: number for number, name in enumerate(self.names)}
        encoded = [self._numbers(value, index) for value in values]
        is_single = self.problem_type not in _SEVERAL
        if any(-1 in numbers or (is_single and len(numbers) != 1) for numbers in encoded):
            self._refuse(values, split=split, origin=origin)
        return encoded

    def _numbers(self, value: Any, index: Mapping[str, int]) -> list[int]:
        """Return the numbers of a row's labels; -1 stands for an unknown one."""
        return [self._one(label, index) for label in self.split(value)]

    def _one(self, label: str, index: Mapping[str, int]) -> int:
        if self.first_number is None:
            return index.get(label, -1)
        number = int(label) - self.first_number if _is_whole(label) else -1
        return number if 0 <= number < len(self.names) else -1

    def split(self, value: Any) -> list[str]:
        """Return the labels of one row as text: one, or any number of them for multi-label."""
        return _labels_of(value, problem_type=self.problem_type, delimiter=self.delimiter)

    def faults(self, values: Sequence[Any], *, split: str) -> Faults:
        """Return the rows whose label is missing, unknown, or not a finite number, each with what is wrong."""
        if self.problem_type == "regression":
            return {row: Fault(_not_finite(v, split), v) for row, v in enumerate(values) if not _is_finite(v)}
        index = {name: number for number, name in enumerate(self.names)}
        found = ((row, self._fault(value, index, split)) for row, value in enumerate(values))
        return {row: Fault(reason, values[row]) for row, reason in found if reason}

    def _fault(self, value: Any, index: Mapping[str, int], split: str) -> str | None:
        labels = self.split(value)
        if self.problem_type not in _SEVERAL and len(labels) != 1:
            what = f"holds {len(labels)} labels {value!r}" if labels else "is empty"
            remedy = "set task.problem_type: multi_label_classification" if labels else "label the row or remove it"
            return f"the label {what}; {remedy}"
        unknown = next((label for label in labels if self._one(label, index) < 0), None)
        return None if unknown is None else self._unknown(unknown, split=split)

    def _refuse(self, values: Sequence[Any], *, split: str, origin: Callable[[int], str]) -> None:
        bad = self.faults(values, split=split)
        for row, fault in bad.items():
            more = f" (and {len(bad) - 1} more rows of {split} like it)" if len(bad) > 1 else ""
            raise DataError(f"{origin(row)}: {fault.reason}{more}")

    def _unknown(self, label: str, *, split: str) -> str:
        shown = ", ".join(self.names[:_SHOWN]) + (
            f", ... ({len(self.names)} in all)" if len(self.names) > _SHOWN else ""
        )
        if self.first_number is not None:
            last = self.first_number + len(self.names) - 1
            return f"label {label!r} of {split} is not a number from {self.first_number} to {last} of the names {shown}"
        near = suggest(label, self.names)
        hint = f"; did you mean {near!r}?" if near else ""
        return f"label {label!r} of {split} is not known{hint} The labels are {shown}; mend it, or add it under data.labels"


def make_labels(
    train_labels: Sequence[Any],
    *,
    problem_type: str = "auto",
    declared: Sequence[str] | str | None = None,
    base_folder: Path = Path(),
    delimiter: str = ",",
    origin: Callable[[int], str] | None = None,
) -> LabelSet:
    """Return the labels of a task, from ``declared`` (names, or a file with one a line) or found in train.

    Names that are found are sorted; whole numbers are sorted as numbers. Where train holds whole numbers and ``declared``
    holds other names, number n is the n-th name, counted from 0, or from 1 where the numbers run from 1 to as many as
    there are names; ``warnings`` says so.

    Raises:
        DataError: the file cannot be read, names are doubled or too few, or a number has no name.
    """
    names = declared_names(declared, base_folder=base_folder)
    kind = infer_problem_type(train_labels, problem_type, delimiter=delimiter, names=names)
    if kind == "regression":
        if names:
            raise DataError("data.labels names classes, and the problem type is regression; remove one of the two")
        return LabelSet((), kind, delimiter)
    found = _found(train_labels, problem_type=kind, delimiter=delimiter)
    if names is None:
        return _checked(LabelSet(_sorted(found), kind, delimiter), origin=origin)
    first, notes = _numbering(found, names=names)
    return _checked(LabelSet(names, kind, delimiter, first, notes), origin=origin)


def _labels_of(value: Any, *, problem_type: str, delimiter: str) -> list[str]:
    if value is None:
        return []
    if isinstance(value, list | tuple):
        return [_text(item) for item in value]
    text = _text(value)
    if problem_type == "multi_label_classification":
        return _parts(text, delimiter)
    return [text] if text else []


def _text(value: Any) -> str:
    """Write a label as text; 1.0 from a column of numbers is the label 1."""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).strip()


def _found(labels: Sequence[Any], *, problem_type: str, delimiter: str) -> set[str]:
    return {part for value in labels for part in _labels_of(value, problem_type=problem_type, delimiter=delimiter)}


def _is_whole(label: str) -> bool:
    return label.removeprefix("-").isascii() and label.removeprefix("-").isdigit()


def _sorted(found: set[str]) -> tuple[str, ...]:
    if found and all(_is_whole(label) for label in found):
        return tuple(sorted(found, key=lambda label: (int(label), label)))
    return tuple(sorted(found))


def declared_names(declared: Sequence[str] | str | None, *, base_folder: Path) -> tuple[str, ...] | None:
    """Return names as a recipe declares them, a list or a file with one a line; None where it does not. Raises DataError."""
    if declared is None:
        return None
    names = tuple(declared)
    place = "data.labels"
    if isinstance(declared, str):
        path = base_folder / Path(declared).expanduser()
        if not path.is_file():
            raise DataError(
                f"data.labels: there is no file {path}; give a file with one name a line, or a list of names"
            )
        lines = [line.strip() for line in read_text(path).text.split("\n")]
        names, place = tuple(line for line in lines if line), str(path)
    doubled = next((name for name in names if names.count(name) > 1), None)
    if doubled is not None:
        raise DataError(f"{place}: the label {doubled!r} stands there twice; every label needs its own name")
    return names


def _numbering(found: set[str], *, names: Sequence[str]) -> tuple[int | None, tuple[str, ...]]:
    """Return what numbers count from (None: labels are names), and a note where that was a finding.

    Raises DataError where numbers and names do not fit together.
    """
    if found <= set(names) or not found or not all(_is_whole(label) for label in found):
        return None, ()
    numbers = [int(label) for label in found]
    low, high = min(numbers), max(numbers)
    if low >= 0 and high < len(names):
        return 0, ()
    if low >= 1 and high == len(names):
        note = f"the label numbers run from {low} to {high} for {len(names)} names, so they count from 1: 1 is {names[0]!r}"
        return 1, (note,)
    raise DataError(
        f"labels of train run from {low} to {high}, and data.labels has {len(names)} names, which are numbered "
        f"0 to {len(names) - 1}; give one name for every number"
    )


def _checked(labels: LabelSet, *, origin: Callable[[int], str] | None) -> LabelSet:
    where = f"{origin(0).split(', row')[0]}: " if origin else ""
    if len(labels.names) < 2 and labels.problem_type != "multi_label_classification":
        held = f"only the label {labels.names[0]!r}" if labels.names else "no label"
        raise DataError(f"{where}train holds {held}; there is nothing to tell apart: add rows of another label")
    if not labels.names:
        raise DataError(f"{where}no row of train has a label; add labels, or name another column under data.columns")
    if labels.problem_type == "binary_classification" and len(labels.names) != 2:
        raise DataError(
            f"problem_type binary_classification has one output for exactly two labels, and there are "
            f"{len(labels.names)}: {', '.join(labels.names[:_SHOWN])}; use single_label_classification"
        )
    return labels


def _is_finite(value: Any) -> bool:
    number = _number(value)
    return number is not None and math.isfinite(number)


def _not_finite(value: Any, split: str) -> str:
    return (
        f"the target {value!r} of {split} is not a finite number; "
        "mend or remove the row, or set task.problem_type if the labels are classes"
    )
