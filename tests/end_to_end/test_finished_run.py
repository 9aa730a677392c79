"""One command from a recipe to a finished, evaluated, usable model: everything that it leaves behind."""

from __future__ import annotations

import csv
import json
import os
import re
from pathlib import Path

import pytest
import tiny

FILES = (
    "recipe.yaml", "resolved.yaml", "plan.json", "events.jsonl", "progress.jsonl", "report.html",
    "attempts/1/launch.sh", "attempts/1/launch.json", "attempts/1/environment.json", "attempts/1/verdict.rank-0.json",
    "attempts/1/logs/rank-0.log", "attempts/1/ledger.rank-0.jsonl", "model/config.json", "model/model.safetensors",
    "model/tokenizer.json", "model/launcher.json", "evaluation/metrics.json", "evaluation/predictions.parquet",
)  # fmt: skip
STEPS = 102


def test_all_files_of_a_run_exist_and_can_be_read(finished):
    missing = [name for name in FILES if not (finished.path / name).is_file()]
    assert missing == []
    for path in finished.path.rglob("*.json"):
        json.loads(path.read_text())
    for path in finished.path.glob("*.jsonl"):
        assert tiny.jsonl(path)
    assert (finished.path / "recipe.yaml").read_text() == (finished.path.parents[1] / "whole.yaml").read_text()
    assert os.access(finished.path / "attempts/1/launch.sh", os.X_OK)
    assert list(finished.path.rglob(".*")) == [], "temporary files are left"
    assert list(finished.path.rglob("training_args.bin")) == [], "a pickle is left"


def test_the_terminal_tells_data_plan_progress_and_result(finished):
    text = finished.done.stdout
    assert "403 train, 18 validation, 30 test rows; 3 labels" in text
    assert re.search(r"step 102/102  loss \d", text)
    assert "validation: " in text and "macro_f1" in text
    assert "TF-IDF" in text and "report: " in text
    assert "wandb sync" in text
    assert "Traceback" not in text + finished.done.stderr


def test_events_tell_the_course_of_the_run(finished):
    events = [row["event"] for row in tiny.jsonl(finished.path / "events.jsonl")]
    assert events == ["created", "running", "checkpoint", "checkpoint", "trained", "finished"]
    from launcher.rundir import RunDir

    status = RunDir.open(finished.path).status()
    assert (status.state, status.step, status.total_steps) == ("finished", STEPS, STEPS)


def test_the_ledger_shows_each_row_once_an_epoch(finished):
    rows = tiny.ledger(finished.path)
    assert sorted(rows) == list(range(1, STEPS + 1))
    for epoch in range(2):
        seen = [row for step in range(epoch * 51 + 1, epoch * 51 + 52) for row in rows[step]]
        assert sorted(seen) == list(range(403))


def test_progress_has_every_step_with_rate_norm_and_throughput(finished):
    rows = [row for row in tiny.jsonl(finished.path / "progress.jsonl") if "loss" in row]
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    names = {
        "loss",
        "grad_norm",
        "learning_rate",
        "epoch",
        "samples_per_second",
        "tokens_per_second",
        "eta_seconds",
        "attempt",
    }
    assert all(names <= set(row) for row in rows)
    rates = [name for name in rows[0] if name.startswith("lr/")]
    assert len(rates) >= 2
    # Warm-up is 7 of 102 steps: the rate of step k (from 1) is (k - 1) / 7 of the peak.
    assert [row[rates[0]] for row in rows[:8]] == pytest.approx([1e-3 * k / 7 for k in range(8)], rel=1e-6)


def test_facts_of_the_run_are_written_down(finished):
    plan = json.loads((finished.path / "plan.json").read_text())
    assert (plan["train_rows"], plan["steps_per_epoch"], plan["total_steps"], plan["warmup_steps"]) == (403, 51, 102, 7)
    assert re.fullmatch(r"[0-9a-f]{64}", plan["facts"]["fingerprint"])
    assert re.fullmatch(r"sha256:[0-9a-f]{64}", plan["facts"]["model_revision"])
    found = json.loads((finished.path / "attempts/1/environment.json").read_text())
    assert found["packages"]["torch"] and found["packages"]["transformers"] and "git_revision" in found
    assert "seed: 1" in (finished.path / "resolved.yaml").read_text()


def test_the_resolved_recipe_is_accepted_as_it_stands(finished):
    done = tiny.launcher("check", finished.path / "resolved.yaml", "--json", cwd=finished.path.parents[1])
    assert json.loads(done.stdout)["problems"] == []


def test_weights_and_reports_are_as_readable_as_other_files(finished):
    """A group that may read the run's other files may read its model."""
    wanted = (finished.path / "plan.json").stat().st_mode & 0o777
    modes = {p.name: oct(p.stat().st_mode & 0o777) for p in (finished.path / "model").iterdir()}
    assert set(modes.values()) == {oct(wanted)}, modes


def test_no_value_of_an_environment_variable_lands_in_the_run(finished, place, secrets):
    found = []
    for path in [*finished.path.rglob("*"), *(place.folder / "runs").glob("*")]:
        if path.is_file():
            content = path.read_bytes()
            found += [f"{path.name}: {name}" for name, value in secrets.items() if value.encode() in content]
    assert found == []


def test_the_script_of_the_attempt_runs_by_hand(finished, tmp_path):
    """launch.sh is what really starts it: a shell must see the same command, whatever the path is called."""
    import shlex

    line = (finished.path / "attempts/1/launch.sh").read_text().splitlines()[-1]
    words = shlex.split(line)
    assert words[0] == "exec" and words[words.index("--run") + 1] == str(finished.path)


# --- the model -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def predicted(finished, place) -> list[dict]:
    """Rows that `launcher predict --file` writes for the test file."""
    output = place.folder / "predictions.jsonl"
    done = tiny.launcher(
        "predict", finished.path, "--file", place.folder / "data/test.csv", "--output", output, cwd=place.folder
    )
    assert done.returncode == 0, done.stderr
    return tiny.jsonl(output)


def test_the_model_loads_with_a_pipeline_and_agrees_with_predict(finished, predicted):
    from transformers import pipeline

    pipe = pipeline("text-classification", model=str(finished.path / "model"), top_k=None, device="cpu")
    texts = [row["text"] for row in predicted]
    for row, scores in zip(predicted, pipe(texts), strict=True):
        assert row["prediction"] == max(scores, key=lambda s: s["score"])["label"]
        assert row["scores"] == pytest.approx({s["label"]: s["score"] for s in scores}, abs=2e-6)


def test_predict_agrees_with_the_runs_own_predictions(finished, predicted):
    from launcher.evaluation.predictions_io import read_predictions

    own = read_predictions(finished.path / "evaluation/predictions.parquet")
    assert [row["text"] for row in predicted] == list(own.texts)
    assert [row["prediction"] for row in predicted] == [own.label_names[int(k)] for k in own.scores.argmax(axis=1)]


def test_predict_writes_csv_and_parquet_and_prints_json(finished, place, predicted, monkeypatch):
    from typer.testing import CliRunner

    from launcher.cli import app
    from launcher.evaluation.predictions_io import read_predictions

    monkeypatch.chdir(place.folder)
    runner, run = CliRunner(), str(finished.path)
    for ending in ("csv", "parquet"):
        result = runner.invoke(app, ["predict", run, "--file", "data/test.csv", "--output", f"out.{ending}"])
        assert result.exit_code == 0, result.output
    with (place.folder / "out.csv").open() as file:
        assert [row["prediction"] for row in csv.DictReader(file)] == [row["prediction"] for row in predicted]
    assert read_predictions(place.folder / "out.parquet").texts == tuple(row["text"] for row in predicted)
    shown = runner.invoke(app, ["predict", run, "apple and pear", "old iron", "--json"])
    assert [row["text"] for row in json.loads(shown.stdout)] == ["apple and pear", "old iron"]
    lines = runner.invoke(app, ["predict", run, "apple and pear"]).stdout
    assert re.fullmatch(r"(fruit|metal|river)\t[01]\.\d{3}\tapple and pear\n", lines)


def test_predict_refuses_a_pair_for_a_model_of_single_texts(finished, monkeypatch):
    from typer.testing import CliRunner

    from launcher.cli import app
    from launcher.errors import DataError

    result = CliRunner().invoke(app, ["predict", str(finished.path), "a text", "--pair", "another"])
    assert isinstance(result.exception, DataError) and "single texts" in str(result.exception)


# --- evaluate and report ---------------------------------------------------------------------------------------------


def test_evaluate_reproduces_the_metrics(finished, place, monkeypatch):
    from typer.testing import CliRunner

    from launcher.cli import app

    before = json.loads((finished.path / "evaluation/metrics.json").read_text())
    # From another folder: the run knows where its relative paths count from.
    monkeypatch.chdir(place.folder.parent)
    result = CliRunner().invoke(app, ["evaluate", str(finished.path), "--json"])
    assert result.exit_code == 0, result.exception
    after = json.loads((finished.path / "evaluation/metrics.json").read_text())
    assert after["rows"] == 30
    assert after["metrics"] == pytest.approx(before["metrics"], abs=1e-6)
    assert after["comparisons"] == before["comparisons"] and set(after) == set(before)


def test_report_is_regenerated_alike(finished):
    from typer.testing import CliRunner

    from launcher.cli import app

    before = (finished.path / "report.html").read_bytes()
    result = CliRunner().invoke(app, ["report", str(finished.path)])
    assert result.exit_code == 0, result.exception
    after = (finished.path / "report.html").read_bytes()
    # Equal but for the last digits of numbers that evaluate has written anew.
    assert abs(len(after) - len(before)) < 0.01 * len(before)
    assert not re.search(rb"(src|href)=.?http", after), "the report must stand alone"


# --- what a finished run refuses -------------------------------------------------------------------------------------


def test_running_an_existing_run_points_to_resume(finished, place):
    done = tiny.launcher("run", finished.path, cwd=place.folder)
    assert done.returncode == 6
    assert "launcher resume" in done.stderr and "Traceback" not in done.stderr


def test_resuming_a_finished_run_is_refused(finished, place):
    done = tiny.launcher("resume", finished.path, cwd=place.folder)
    assert done.returncode == 6
    assert "has finished" in done.stderr and "Traceback" not in done.stderr


def test_a_second_run_takes_the_next_number_and_the_cache(finished, place):
    """Also with one long step less: the data are not tokenized again."""
    recipe = place.recipe("short", name="whole", training={"max_steps": 2, "num_train_epochs": None, "eval_strategy": "no", "save_strategy": "no",
                                             "load_best_model_at_end": False})  # fmt: skip
    values = json.loads(recipe.read_text())
    values["training"].pop("num_train_epochs")
    values["evaluation"] = {"bootstrap": 0, "baselines": []}
    recipe.write_text(json.dumps(values))
    done = tiny.launcher("run", recipe, cwd=place.folder)
    assert done.returncode == 0, done.stderr
    run = place.newest()
    assert run.name != "whole-001" and re.fullmatch(r"whole-\d{3}", run.name)
    assert json.loads((run / "plan.json").read_text())["facts"]["was_cached"] is True
    notes = [json.loads((p / "attempts/1/prepared.json").read_text())["folder"] for p in (finished.path, run)]
    assert notes[0] == notes[1] and Path(notes[0]).is_dir()


# --- Weights & Biases ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def offline(finished) -> dict[str, list]:
    """Kind of record -> records of the run's offline file."""
    from wandb_file import records

    (path,) = finished.path.glob("wandb/offline-run-*/run-*.wandb")
    found: dict[str, list] = {}
    for record in records(path):
        kind = record.WhichOneof("record_type")
        found.setdefault(kind, []).append(getattr(record, kind))
    return found


def test_wandb_has_every_row_of_progress_under_its_own_names(finished, offline):
    from wandb_file import items

    from launcher.engine.tracking import wandb_row

    logged = [items(record.item) for record in offline["history"]]
    logged = [{name: value for name, value in row.items() if not name.startswith("_")} for row in logged]
    wanted = [wandb_row(row) for row in tiny.jsonl(finished.path / "progress.jsonl")]
    assert logged == wanted
    names = set(logged[0])
    assert {
        "train/global_step",
        "train/loss",
        "train/grad_norm",
        "train/tokens_per_second",
        "train/samples_per_second",
    } <= names
    groups = json.loads((finished.path / "plan.json").read_text())["phases"][0]["phase"]["table"]["groups"]
    assert {f"lr/{group['name']}" for group in groups if group["trainable"]} <= names
    assert any("eval/macro_f1" in row for row in logged)


def test_wandb_has_the_recipe_the_result_and_the_runs_own_id(finished, offline):
    from wandb_file import items

    run = offline["run"][0]
    assert (run.run_id, run.display_name, run.project, run.run_group, list(run.tags)) == (
        "whole-001",
        "whole-001",
        "tests",
        "g",
        ["t"],
    )
    config = items(run.config.update)
    assert config["training"]["seed"] == 1 and config["data"]["source"] == "./data"
    summary: dict = {}
    for record in offline["summary"]:
        summary |= items(record.update)
    metrics = json.loads((finished.path / "evaluation/metrics.json").read_text())["metrics"]
    assert summary["test/accuracy"] == pytest.approx(metrics["accuracy"]) and "TF-IDF" in summary["verdict"]
    assert [record.exit_code for record in offline["exit"]] == [0]


def test_wandb_gets_no_texts_unless_asked(finished, offline):
    """Neither in the run's file nor in what would be uploaded with it: the report beside it shows mistakes with texts."""
    texts = [text.encode() for text, _ in tiny.rows(30, seed=2)]
    for path in (finished.path / "wandb").rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert not any(text in content for text in texts), path.name
    sent = [
        entry.local_path
        for record in offline.get("request", [])
        for entry in record.log_artifact.artifact.manifest.contents
    ]
    sent += [entry.local_path for record in offline.get("artifact", []) for entry in record.manifest.contents]
    assert sent, "the report is not among the artifacts"
    for path in map(Path, sent):
        assert not any(text in path.read_bytes() for text in texts), f"{path.name} holds texts"
