from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from made_up import multi, numbers, single

from launcher.contracts import Predictions
from launcher.errors import DataError
from launcher.evaluation import predictions_io as io
from launcher.evaluation.kinds.labels import TOP_LABELS


def same(a: Predictions, b: Predictions) -> bool:
    labels = (a.labels is None and b.labels is None) or np.array_equal(a.labels, b.labels)
    plain = (a.problem_type, a.label_names, a.texts, a.row_ids) == (b.problem_type, b.label_names, b.texts, b.row_ids)
    return plain and labels and np.array_equal(a.scores, b.scores)


@pytest.mark.parametrize(
    "p",
    [single(), single(names=("否", "是"), kind="binary_classification"), multi(), numbers(), single(names=("one",))],
)
def test_round_trip(p: Predictions, tmp_path: Path) -> None:
    io.write_predictions(p, tmp_path / "predictions.parquet")
    assert same(io.read_predictions(tmp_path / "predictions.parquet"), p)
    unlabelled = dataclasses.replace(p, labels=None)
    io.write_predictions(unlabelled, tmp_path / "predictions.parquet")
    assert same(io.read_predictions(tmp_path / "predictions.parquet"), unlabelled)
    assert [path.name for path in tmp_path.iterdir()] == ["predictions.parquet"]


def test_columns(tmp_path: Path) -> None:
    p = single(names=("label", "text"), rows=20)
    io.write_predictions(p, tmp_path / "p.parquet")
    table = pyarrow.parquet.read_table(tmp_path / "p.parquet")
    expected = ["row_id", "text", "label", "predicted", "confidence", "correct", "score: label", "score: text"]
    assert table.column_names == expected
    row = table.to_pylist()[0]
    assert row["correct"] == (row["label"] == row["predicted"])
    assert row["confidence"] == max(row["score: label"], row["score: text"])


def test_many_labels_keep_the_best(tmp_path: Path) -> None:
    p = single(30, names=[f"c{k}" for k in range(150)], skill=6.0)
    io.write_predictions(p, tmp_path / "p.parquet")
    table = pyarrow.parquet.read_table(tmp_path / "p.parquet")
    assert table.column_names[-2:] == ["top_labels", "top_scores"]
    found = io.read_predictions(tmp_path / "p.parquet")
    assert np.array_equal(found.scores.argmax(axis=1), p.scores.argmax(axis=1))
    assert found.scores.sum(axis=1) == pytest.approx(1)
    best = np.argsort(-p.scores, axis=1)[:, :TOP_LABELS]
    assert np.array_equal(np.take_along_axis(found.scores, best, 1), np.take_along_axis(p.scores, best, 1))


def test_text_that_is_not_utf8(tmp_path: Path) -> None:
    p = dataclasses.replace(single(1), texts=("bad \ud800 text",))
    io.write_predictions(p, tmp_path / "p.parquet")
    assert io.read_predictions(tmp_path / "p.parquet").texts == ("bad ? text",)


def test_no_rows(tmp_path: Path) -> None:
    p = Predictions("single_label_classification", np.zeros((0, 2)), None, ("a", "b"), (), ())
    io.write_predictions(p, tmp_path / "p.parquet")
    assert io.read_predictions(tmp_path / "p.parquet").scores.shape == (0, 2)


def test_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        io.read_predictions(tmp_path / "none.parquet")
    (tmp_path / "text.parquet").write_text("hello")
    with pytest.raises(DataError, match="not a parquet file"):
        io.read_predictions(tmp_path / "text.parquet")
    pyarrow.parquet.write_table(pyarrow.table({"x": [1]}), tmp_path / "other.parquet")
    with pytest.raises(DataError, match="not written by launcher"):
        io.read_predictions(tmp_path / "other.parquet")
