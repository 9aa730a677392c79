"""The promises about accuracy, on the real encoder and real rows: minutes on a processor, so in the soak tier."""

from __future__ import annotations

import json
import statistics
import subprocess
from pathlib import Path

import pytest
import tiny

pytestmark = [pytest.mark.soak, pytest.mark.timeout(3600)]


def evaluation(folder: Path, *overrides: str) -> dict:
    """Run the quickstart's recipe with overrides and return what its metrics.json says."""
    command = [tiny.LAUNCHER, "run", "quickstart/api-topics", *overrides, "tracking.wandb=null"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=tiny.environment())
    assert done.returncode == 0, done.stdout + done.stderr
    newest = max((folder / "runs").iterdir(), key=lambda path: path.stat().st_ctime_ns)
    return json.loads((newest / "evaluation/metrics.json").read_text())


def test_the_quickstart_beats_tfidf(tmp_path):
    found = evaluation(tmp_path)
    against = next(row for row in found["comparisons"] if row["name"] == "tfidf")
    assert found["rows"] >= 2500
    assert against["differences"]["accuracy"]["estimate"] > 0
    assert against["test"]["p_value"] < 0.01


def test_the_same_recipe_on_banking77(tmp_path, shared):
    scores = [
        evaluation(tmp_path, f"data.source={shared / 'banking77'}", f"training.seed={seed}")["metrics"]["accuracy"]
        for seed in (1, 2, 3)
    ]
    assert statistics.mean(scores) >= 0.885, scores
