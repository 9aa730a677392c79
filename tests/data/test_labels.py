"""What labels are, their names, and the errors of rows that do not fit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from launcher.data.labels import infer_problem_type, make_labels
from launcher.errors import DataError


def place(row: int) -> str:
    return f"rows.csv:{row + 2} (row {row + 1})"


def encode(labels, values):
    return labels.encode(values, split="validation", origin=place)


def fault(labels, values) -> str:
    with pytest.raises(DataError) as caught:
        encode(labels, values)
    return str(caught.value)


@pytest.mark.parametrize(
    ("labels", "kind"),
    [
        (["good", "bad"], "single_label_classification"),
        (["0", "1", "10"], "single_label_classification"),
        ([0, 1, 2], "single_label_classification"),
        (["1.0", "2.0"], "single_label_classification"),
        ([1.0, 0.0], "single_label_classification"),
        (["3.4", "5", "0"], "regression"),
        ([0.5, 1.0], "regression"),
        ([["a"], ["a", "b"]], "multi_label_classification"),
        (["a", "a,b", "b,c", "c"], "multi_label_classification"),
        (["27", "8,27", "8"], "multi_label_classification"),
        (["Food, drinks", "Cars", "Food, drinks"], "single_label_classification"),
        (["no", "on"], "single_label_classification"),
    ],
)
def test_the_problem_type_is_inferred(labels: list, kind: str) -> None:
    assert infer_problem_type(labels, "auto") == kind
    assert infer_problem_type(labels, "binary_classification") == "binary_classification"


def test_names_are_sorted_and_numbers_as_numbers() -> None:
    assert make_labels(["b", "a", "b"]).names == ("a", "b")
    assert make_labels(["10", "9", "1"]).names == ("1", "9", "10")
    assert make_labels([10, 9, 1]).names == ("1", "9", "10")
    assert make_labels([1.0, 0.0]).names == ("0", "1")


def test_words_that_yaml_or_pandas_would_change_survive() -> None:
    labels = make_labels(["no", "on", "null", "1", "NA"])
    assert labels.names == ("1", "NA", "no", "null", "on")
    assert encode(labels, ["null", " no ", "1"]).tolist() == [3, 2, 0]
    assert encode(labels, ["no"]).dtype == np.int64


def test_declared_order_is_kept(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("negative\nneutral\n\npositive\n", "utf-8")
    labels = make_labels(["positive", "negative"], declared="names.txt", base_folder=tmp_path)
    assert labels.names == ("negative", "neutral", "positive")
    assert encode(labels, ["positive", "neutral"]).tolist() == [2, 1]
    with pytest.raises(DataError, match="no file"):
        make_labels(["a"], declared="missing.txt", base_folder=tmp_path)
    with pytest.raises(DataError, match="'a' stands there twice"):
        make_labels(["a"], declared=["a", "b", "a"])


def test_numbers_with_names_count_from_zero_or_one() -> None:
    names = ["World", "Sports", "Business"]
    zero = make_labels(["0", "2", "1"], declared=names)
    assert (zero.first_number, zero.warnings) == (0, ()) and encode(zero, ["2", 0]).tolist() == [2, 0]
    one = make_labels([1, 2, 3], declared=names)
    assert one.first_number == 1 and "count from 1: 1 is 'World'" in one.warnings[0]
    assert encode(one, [3, 1]).tolist() == [2, 0]
    assert "not a number from 1 to 3" in fault(one, [1, 4])
    with pytest.raises(DataError, match="run from 0 to 3"):
        make_labels([0, 3], declared=names)


def test_unknown_labels_name_row_and_near_label() -> None:
    labels = make_labels(["positive", "negative"])
    message = fault(labels, ["negative", "postive", "postive"])
    assert message.startswith("rows.csv:3 (row 2)") and "'postive' of validation" in message
    assert "did you mean 'positive'?" in message and "1 more row" in message
    assert "is empty" in fault(labels, ["positive", " "])
    assert "multi_label" in fault(labels, [["positive", "negative"]])


def test_multi_label_from_lists_and_text() -> None:
    labels = make_labels([["b", "a"], ["c"], []])
    assert encode(labels, [["a", "c"], []]).tolist() == [[1, 0, 1], [0, 0, 0]]
    labels = make_labels(["27|8", "8"], problem_type="multi_label_classification", delimiter="|")
    assert labels.names == ("8", "27") and encode(labels, ["27", "8|27", ""]).tolist() == [[0, 1], [1, 1], [0, 0]]
    numbered = make_labels(["0,2", "2", "1"], declared=["joy", "anger", "fear"])
    assert numbered.problem_type == "multi_label_classification"
    assert encode(numbered, ["2,1"]).tolist() == [[0, 1, 1]]
    assert "row 1" in fault(numbered, ["2,7"])


def test_binary_needs_exactly_two_labels() -> None:
    labels = make_labels(["spam", "ham"], problem_type="binary_classification")
    assert labels.outputs == 1 and encode(labels, ["ham", "spam"]).tolist() == [0, 1]
    with pytest.raises(DataError, match="exactly two labels"):
        make_labels(["a", "b", "c"], problem_type="binary_classification")


def test_regression_takes_finite_numbers_only() -> None:
    labels = make_labels(["0.5", "3"])
    assert labels.outputs == 1 and labels.names == ()
    values = encode(labels, ["3.25", "1e-1", 2])
    assert values.dtype == np.float64 and values.tolist() == [3.25, 0.1, 2.0]
    for bad in ("nan", "inf", "", None, "3,4"):
        assert fault(labels, ["1", bad]).startswith("rows.csv:3 (row 2)")
    with pytest.raises(DataError, match="remove one"):
        make_labels([0.5, 1.0], problem_type="regression", declared=["a"])


def test_one_label_is_nothing_to_learn() -> None:
    with pytest.raises(DataError, match="only the label 'a'"):
        make_labels(["a", "a"], origin=place)


def test_real_label_files(shared: Path) -> None:
    folder = shared / "data" / "go_emotions"
    labels = make_labels(["27", "8,27"], declared="labels.txt", base_folder=folder)
    assert len(labels.names) == 28 and labels.outputs == 28
    assert encode(labels, ["0"])[0, labels.names.index("admiration")] == 1
