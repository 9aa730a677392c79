"""Weights & Biases without a key, a network or a prompt."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny
import wandb_file

from launcher.engine.tracking import NoTracker, WandbTracker, choose_mode, has_key, safe_id, start_tracker, wandb_row
from launcher.recipe.schema import WandbSection
from launcher.rundir import RunDir


@pytest.fixture
def refused() -> str:
    """An address at which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


@pytest.fixture(autouse=True)
def no_login(monkeypatch, tmp_path):
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))


def test_without_a_key_it_is_offline_at_once():
    started = time.monotonic()
    assert choose_mode(WandbSection()) == "offline"
    assert time.monotonic() - started < 0.5


def test_with_a_key_and_no_network_it_is_offline_within_three_seconds(monkeypatch, refused):
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", refused)
    started = time.monotonic()
    assert has_key() and choose_mode(WandbSection()) == "offline"
    assert time.monotonic() - started < 3


def test_a_network_that_swallows_everything_is_given_up_within_three_seconds(monkeypatch, tmp_path):
    """A firewall drops packets instead of refusing them; the whole start must stay short."""
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)

    def swallow(address, timeout=None, **_):
        time.sleep(timeout)
        raise TimeoutError

    monkeypatch.setattr(socket, "create_connection", swallow)
    run = RunDir.create(tmp_path / "runs", "a", recipe_text="", resolved_text="")
    started = time.monotonic()
    tracker = start_tracker(WandbSection(), run, rank=0, config={})
    assert tracker.mode == "offline"
    assert time.monotonic() - started < 3


def test_with_a_key_and_a_server_it_is_online(monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.getsockname()[1]}")
        assert choose_mode(WandbSection()) == "online"


def test_a_key_in_netrc_counts(monkeypatch, tmp_path):
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password secret\n")
    (tmp_path / "netrc").chmod(0o600)
    assert has_key()
    (tmp_path / "netrc").write_text("nonsense here\n")
    assert not has_key()


@pytest.mark.parametrize(
    "value, mode", [("offline", "offline"), ("disabled", "disabled"), ("", "offline"), ("odd", "offline")]
)
def test_auto_follows_wandb_mode(monkeypatch, value, mode):
    monkeypatch.setenv("WANDB_MODE", value)
    assert choose_mode(WandbSection()) == mode
    assert choose_mode(WandbSection(mode="online")) == "online"


def test_only_rank_0_tracks_and_only_if_asked(tmp_path):
    run = RunDir.create(tmp_path, "a", recipe_text="", resolved_text="")
    assert isinstance(start_tracker(None, run, rank=0, config={}), NoTracker)
    assert isinstance(start_tracker(WandbSection(), run, rank=1, config={}), NoTracker)
    assert isinstance(start_tracker(WandbSection(mode="disabled"), run, rank=0, config={}), NoTracker)


def test_names_of_a_row():
    row = {"step": 3, "loss": 1.5, "grad_norm": 2.0, "lr/head": 0.1, "eval_macro_f1": 0.5, "attempt": 1, "time": 9.0,
           "eta_seconds": 4.0, "epoch": 0.5, "nothing": None}  # fmt: skip
    assert wandb_row(row) == {
        "train/global_step": 3, "train/loss": 1.5, "train/grad_norm": 2.0, "lr/head": 0.1, "eval/macro_f1": 0.5, "train/epoch": 0.5,
    }  # fmt: skip


def test_an_id_has_no_character_that_is_refused():
    assert safe_id("a b:c;d,e#f/g?h'i-001") == "a-b-c-d-e-f-g-h-i-001"


# --- a real offline run ----------------------------------------------------------------------------------------------

SCRIPT = """
import sys
from pathlib import Path
from launcher.engine.tracking import WandbTracker
from launcher.evaluation.predictions_io import write_predictions
from launcher.contracts import Predictions
from launcher.recipe.schema import WandbSection
from launcher.rundir import RunDir
import numpy as np
run = RunDir.create(Path(sys.argv[1]), "job", recipe_text="", resolved_text="")
write_predictions(Predictions("single_label_classification", np.array([[.2, .8]]), np.array([1]), ("a", "b"), ("MarkerText",), (0,)),
                  run.path / "predictions.parquet")
section = WandbSection(mode="offline", log_predictions=sys.argv[2] == "yes")
tracker = WandbTracker(section, run, mode="offline", config={"a": {"b": 1}})
tracker.log({"step": 1, "loss": 2.0})
print(tracker.finish(summary={"test/accuracy": 0.5}, report=None, predictions=run.path / "predictions.parquet"))
"""


def run_script(tmp_path: Path, log_predictions: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path), log_predictions], env=tiny.environment(**env), capture_output=True, text=True,
        timeout=120,
    )  # fmt: skip


def test_an_exported_empty_wandb_mode_does_not_end_the_run(tmp_path):
    """wandb itself refuses to start with one."""
    done = run_script(tmp_path, "no", WANDB_MODE="")
    assert done.returncode == 0, done.stderr[-2000:]
    assert "wandb sync" in done.stdout


def test_predictions_are_logged_when_asked_for(tmp_path):
    done = run_script(tmp_path, "yes")
    assert done.returncode == 0, done.stderr[-2000:]
    tables = list(tmp_path.glob("job-001/wandb/**/*.table.json"))
    assert len(tables) == 1 and "MarkerText" in tables[0].read_text()


def test_a_table_reaches_the_offline_run(monkeypatch, tmp_path):
    import json

    from wandb_file import items, records

    monkeypatch.setenv("WANDB_MODE", "offline")
    run = RunDir.create(tmp_path / "runs", "a", recipe_text="", resolved_text="")
    tracker = start_tracker(WandbSection(), run, rank=0, config={})
    tracker.log_table("importance", [{"module": "0.query", "rank": 3}, {"module": "1.query", "rank": None}])
    tracker.finish(summary={}, report=None, predictions=None)
    (file,) = run.path.glob("wandb/offline-run-*/run-*.wandb")
    logged = [items(record.history.item) for record in records(file) if record.WhichOneof("record_type") == "history"]
    (told,) = [row for row in logged if any(key.startswith("importance") for key in row)]
    assert any("table-file" in json.dumps(value) for value in told.values())
    (table,) = file.parent.glob("files/media/table/importance_*.json")
    assert json.loads(table.read_text()) == {"columns": ["module", "rank"], "data": [["0.query", 3], ["1.query", None]]}


def test_alerts_are_sent_where_the_server_is_reached_and_nowhere_else(tmp_path):
    run = RunDir.create(tmp_path / "runs", "a", recipe_text="", resolved_text="")
    offline = WandbTracker(WandbSection(), run, mode="offline", config={}, alerts=True)
    offline.alert("was stopped", "at step 3")
    assert not (run.path / "wandb").exists()
    # What an online run would send, read from the file of an offline one.
    offline._alerts = True
    offline.alert("was stopped", "at step 3")
    offline.finish(summary={}, report=None, predictions=None)
    offline.alert("has failed", "after its end, when nothing can be sent")
    (file,) = run.path.glob("wandb/offline-run-*/*.wandb")
    alerts = [record.alert for record in wandb_file.records(file) if record.WhichOneof("record_type") == "alert"]
    assert [(alert.title, alert.text) for alert in alerts] == [(f"{run.id}: was stopped", "at step 3")]
