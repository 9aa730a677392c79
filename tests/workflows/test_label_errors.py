"""The list of likely label errors: as a file with places, and in the report."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import tiny

from launcher.evaluation.report import ReportFacts, render_report
from launcher.rundir import RunDir
from launcher.workflows.label_errors import (
    LABEL_ERRORS_FILE,
    _room,
    label_error_facts,
    splits_to_judge,
    write_label_errors,
)

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "engine"))
import in_process

WRONG = {7: "river", 20: "fruit", 33: "metal"}


@pytest.fixture(scope="module")
def bert(tmp_path_factory) -> Path:
    return tiny.save_bert(tmp_path_factory.mktemp("bert"))


def test_wrong_labels_are_listed_with_their_places(bert, tmp_path):
    rows = tiny.rows(90, seed=0)
    changed = [(text, WRONG.get(number, label)) for number, (text, label) in enumerate(rows)]
    assert all(rows[number] != changed[number] for number in WRONG)
    data = tiny.write_data(tmp_path / "data")
    tiny.write_csv(data / "train.csv", [*changed, ("the only one of its kind", "star")])
    run = in_process.prepare(
        bert, data, tmp_path / "runs", evaluation={"label_errors": True}, training={"num_train_epochs": 1}
    )
    trainer, _ = run.train()
    prepared = run.context.prepared
    assert splits_to_judge(run.context) == ("validation", "test")
    predictions = {
        name: run.context.task.predictions(trainer.logits(rows, with_loss=False)[0], rows, prepared)
        for name, rows in (("validation", prepared.validation), ("test", prepared.test))
    }
    facts = write_label_errors(run.context, predictions)
    assert {name: (found["rows"], found["judged"], found["by"]) for name, found in facts.items()} == {
        "train": (91, 90, "tfidf"), "validation": (18, 18, "model"), "test": (30, 30, "model")
    }  # fmt: skip
    records = tiny.jsonl(run.run.evaluation / LABEL_ERRORS_FILE)
    first = [row for row in records if row["split"] == "train"][:3]
    assert {row["row_id"]: row["label"] for row in first} == WRONG
    for row in first:
        assert row["place"] == f"{data / 'train.csv'}:{row['row_id'] + 2} (row {row['row_id'] + 1})"
        assert row["text"] == rows[row["row_id"]][0] and row["likely_label"] == rows[row["row_id"]][1]
        assert row["label_probability"] < row["likely_probability"]
    assert len(records) == sum(found["found"] for found in facts.values())
    page = render_report(ReportFacts("r", "today", "x", label_errors=label_error_facts(run.run, facts)))
    assert 'id="label-errors"' in page and rows[7][0] in page and "A person must look" in page
    assert "1 rows were not judged" in page and "train.csv:9 (row 8)" in page and str(data) not in page


def test_a_run_without_the_list_shows_none(tmp_path):
    run = RunDir.create(tmp_path, "r", recipe_text="", resolved_text="x")
    assert label_error_facts(run, {}) == {}
    assert 'id="label-errors"' not in render_report(ReportFacts("r", "today", "x"))


def test_fifty_places_are_shared_out():
    assert _room([200, 200, 200], most=50) == [17, 17, 16] and _room([200, 3, 0], most=50) == [47, 3, 0]
    assert _room([2, 3], most=50) == [2, 3] and _room([], most=50) == []
