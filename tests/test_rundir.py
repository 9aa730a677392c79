from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from launcher.atomic import append_json, read_jsonl, replace_folder, write_json, write_text
from launcher.engine.checkpoint_files import MANIFEST, prune, write_manifest
from launcher.errors import RunStateError
from launcher.rundir import RunDir

CREATE = """
import sys
from pathlib import Path
from launcher.rundir import RunDir
for _ in range(5):
    print(RunDir.create(Path(sys.argv[1]), "job", recipe_text="a", resolved_text="b").id)
"""


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return RunDir.create(tmp_path / "runs", "job", recipe_text="recipe: 1\n", resolved_text="resolved: 1\n")


# --- making and finding ----------------------------------------------------------------------------------------------


def test_a_run_takes_the_next_number(tmp_path):
    runs = tmp_path / "runs"
    make = lambda name: RunDir.create(runs, name, recipe_text="", resolved_text="").id  # noqa: E731
    assert [make("a"), make("a"), make("b"), make("a-b")] == ["a-001", "a-002", "b-001", "a-b-001"]
    (runs / "a-041").mkdir()
    (runs / "a-x").mkdir()
    assert make("a") == "a-042"
    (runs / "a-999").mkdir()
    assert make("a") == "a-1000"


def test_concurrent_creators_get_directories_of_their_own(tmp_path):
    command = [sys.executable, "-c", CREATE, str(tmp_path / "runs")]
    creators = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(8)]
    made = [line for creator in creators for line in creator.communicate(timeout=60)[0].split()]
    assert sorted(made) == [f"job-{number:03d}" for number in range(1, 41)]


def test_what_is_no_run_is_refused_with_the_runs_beside_it(run, tmp_path):
    with pytest.raises(RunStateError, match="not a run directory.*job-001"):
        RunDir.open(run.path.parent / "job-002")
    with pytest.raises(RunStateError, match="not a run directory"):
        RunDir.open(tmp_path / "nowhere" / "at-all")
    assert RunDir.open(run.path).id == "job-001"


def test_attempts_count_upwards(run):
    assert run.last_attempt == 0
    assert [run.new_attempt(), run.new_attempt()] == [1, 2]
    assert run.last_attempt == 2 and run.log(2, 1).parent.is_dir()


# --- writes ----------------------------------------------------------------------------------------------------------


def test_a_crash_before_the_rename_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "file.json"
    write_json(path, {"is": "old"})

    def crash(*_: object) -> None:
        raise OSError("power cut")

    monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(OSError, match="power cut"):
        write_json(path, {"is": "new"})
    assert json.loads(path.read_text()) == {"is": "old"}
    assert list(tmp_path.iterdir()) == [path], "the temporary file is left"


def test_written_files_have_the_usual_permissions(tmp_path):
    plain = tmp_path / "plain"
    plain.touch()
    write_text(tmp_path / "ours", "text")
    assert (tmp_path / "ours").stat().st_mode == plain.stat().st_mode


def test_json_with_nan_is_refused_in_files_and_null_in_lines(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"loss": float("nan")})
    append_json(tmp_path / "a.jsonl", {"loss": float("nan"), "deep": [{"norm": float("inf")}]})
    assert read_jsonl(tmp_path / "a.jsonl") == [{"loss": None, "deep": [{"norm": None}]}]


# --- lines -----------------------------------------------------------------------------------------------------------


def test_a_half_written_last_line_is_left_out(tmp_path):
    path = tmp_path / "rows.jsonl"
    append_json(path, {"step": 1})
    with path.open("a") as file:
        file.write('{"step": 2, "lo')
    assert read_jsonl(path) == [{"step": 1}]
    assert read_jsonl(tmp_path / "missing.jsonl") == []


def test_a_row_after_a_half_written_line_is_kept(tmp_path):
    path = tmp_path / "rows.jsonl"
    append_json(path, {"step": 1})
    with path.open("a") as file:
        file.write('{"step": 2, "lo')
    append_json(path, {"step": 3})
    assert read_jsonl(path) == [{"step": 1}, {"step": 3}]


def test_a_line_cut_inside_a_character_is_left_out(tmp_path):
    path = tmp_path / "rows.jsonl"
    append_json(path, {"step": 1})
    with path.open("ab") as file:
        file.write('{"reason": "ü'.encode()[:-1])
    assert read_jsonl(path) == [{"step": 1}]


@pytest.mark.parametrize("separator", ["\u2028", "\u0085", "\x0c", "\x1c"])
def test_a_text_with_an_uncommon_line_separator_is_one_row(tmp_path, separator):
    append_json(tmp_path / "rows.jsonl", {"reason": f"a{separator}b"})
    assert read_jsonl(tmp_path / "rows.jsonl") == [{"reason": f"a{separator}b"}]


# --- folders ---------------------------------------------------------------------------------------------------------


def fill_with(text: str):
    return lambda folder: (folder / "weights").write_text(text)


def test_replacing_a_folder_leaves_nothing_beside_it(tmp_path):
    target = tmp_path / "model"
    replace_folder(target, fill_with("old"))
    replace_folder(target, fill_with("new"))
    assert (target / "weights").read_text() == "new" and list(tmp_path.iterdir()) == [target]


def test_a_failing_fill_leaves_the_old_folder(tmp_path):
    target = tmp_path / "model"
    replace_folder(target, fill_with("old"))

    def fill(folder: Path) -> None:
        (folder / "weights").write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        replace_folder(target, fill)
    assert (target / "weights").read_text() == "old" and list(tmp_path.iterdir()) == [target]


def test_a_failing_rename_leaves_the_old_folder(tmp_path, monkeypatch):
    target = tmp_path / "model"
    replace_folder(target, fill_with("old"))
    rename = Path.rename

    def fail_for_the_new(self: Path, goal: Path) -> Path:
        if Path(goal) == target and (self / "weights").read_text() == "new":
            raise OSError("no")
        return rename(self, goal)

    monkeypatch.setattr(Path, "rename", fail_for_the_new)
    with pytest.raises(OSError, match="no"):
        replace_folder(target, fill_with("new"))
    assert (target / "weights").read_text() == "old"


# --- status ----------------------------------------------------------------------------------------------------------


def test_status_follows_the_events(run):
    assert run.status().state == "created"
    run.new_attempt()
    run.add_event("running", attempt=1, total_steps=20)
    append_json(run.progress, {"step": 7, "loss": 1.0})
    status = run.status()
    assert (status.state, status.attempt, status.step, status.total_steps) == ("running", 1, 7, 20)
    run.add_event("checkpoint", step=7)
    run.add_event("interrupted", attempt=1, reason="SIGTERM")
    assert (run.status().state, run.status().reason) == ("interrupted", "SIGTERM")
    run.add_event("running", attempt=2, total_steps=20)
    assert (run.status().state, run.status().reason) == ("running", "")
    run.add_event("failed", attempt=2, reason="a bad label")
    assert (run.status().state, run.status().reason) == ("failed", "a bad label")
    run.add_event("finished", attempt=3)
    assert run.status().state == "finished"


def test_verdicts_are_read_by_rank(run):
    run.new_attempt()
    for rank in (10, 2, 0):
        write_json(run.verdict(1, rank), {"verdict": "finished", "rank": rank})
    assert list(run.verdicts(1)) == [0, 2, 10]


# --- checkpoints -----------------------------------------------------------------------------------------------------


def checkpoint(run: RunDir, step: int, *, complete: bool = True) -> Path:
    folder = run.checkpoints / f"step-{step}"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"x" * 100)
    (folder / "deep").mkdir()
    (folder / "deep" / "state").write_bytes(b"y" * 10)
    if complete:
        write_manifest(folder, step=step)
    return folder


def test_the_latest_checkpoint_is_the_newest_complete_one(run):
    assert run.latest_checkpoint() is None
    old, new = checkpoint(run, 9), checkpoint(run, 10)
    unfinished = checkpoint(run, 200, complete=False)
    assert run.latest_checkpoint() == new
    write_manifest(unfinished, step=200)
    assert run.latest_checkpoint() == unfinished
    (unfinished / "model.safetensors").write_bytes(b"x" * 99)
    assert run.latest_checkpoint() == new
    (new / "deep" / "state").unlink()
    assert run.latest_checkpoint() == old
    (old / MANIFEST).write_text('{"files": ')
    assert run.latest_checkpoint() is None


def test_pruning_keeps_the_newest_the_best_and_the_unfinished(run):
    folders = {step: checkpoint(run, step) for step in (5, 10, 15, 20)}
    unfinished = checkpoint(run, 25, complete=False)
    prune(run.checkpoints, keep_last=1, keep=[folders[10]])
    assert sorted(run.checkpoints.iterdir()) == sorted([folders[10], folders[20], unfinished])
