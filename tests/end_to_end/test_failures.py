"""A rank that fails: its own error is the last thing a user sees, and its exit code is the launcher's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny

# Imported by every interpreter that has its folder on PYTHONPATH: makes one rank fail in the middle of training.
BOOM = """\
import os, sys
if os.environ.get("RANK") == {rank!r}:
    from importlib import abc, util
    class Finder(abc.MetaPathFinder):
        def find_spec(self, name, path, target=None):
            if name != "launcher.engine.progress":
                return None
            sys.meta_path.remove(self)
            spec = util.find_spec(name)
            load = spec.loader.exec_module
            def exec_module(module):
                load(module)
                def on_step(self, step, **facts):
                    if step == 3:
                        raise RuntimeError("the disk of rank {rank} is on fire")
                module.Progress.on_step = on_step
            spec.loader.exec_module = exec_module
            return spec
    sys.meta_path.insert(0, Finder())
"""


def last_lines(text: str) -> str:
    return "\n".join(text.strip().splitlines()[-3:])


def test_a_label_that_training_does_not_know_ends_with_exit_code_3(place):
    folder = place.folder / "bad"
    tiny.write_data(folder)
    tiny.write_csv(folder / "validation.csv", [["an apple", "vegetable"]])
    done = tiny.launcher("run", place.recipe("bad", data={"source": "./bad"}), cwd=place.folder)
    assert done.returncode == 3
    assert "vegetable" in last_lines(done.stderr) and "Traceback" not in done.stderr
    run = place.newest()
    verdict = json.loads((run / "attempts/1/verdict.rank-0.json").read_text())
    assert (verdict["verdict"], verdict["exit_code"]) == ("failed", 3) and "vegetable" in verdict["error"]
    events = tiny.jsonl(run / "events.jsonl")
    assert events[-1]["event"] == "failed" and "vegetable" in events[-1]["reason"]


@pytest.mark.slow
@pytest.mark.parametrize("failing", ["0", "1"])
def test_the_failing_one_of_two_ranks_is_shown(place, tmp_path: Path, failing: str):
    (tmp_path / "sitecustomize.py").write_text(BOOM.format(rank=failing))
    recipe = place.recipe("boom", distributed={"processes_per_node": 2})
    done = tiny.launcher("run", recipe, cwd=place.folder, env={"PYTHONPATH": str(tmp_path)})
    assert done.returncode == 1
    assert done.stderr.strip().endswith(f"RuntimeError: the disk of rank {failing} is on fire"), done.stderr[-3000:]
    assert f"rank {failing} failed" in done.stderr
    run = place.newest()
    verdicts = [json.loads((run / f"attempts/1/verdict.rank-{rank}.json").read_text()) for rank in (0, 1)]
    assert verdicts[int(failing)]["verdict"] == "failed" and "on fire" in verdicts[int(failing)]["traceback"]
    from launcher.rundir import RunDir

    status = RunDir.open(run).status()
    assert status.state == "failed" and "on fire" in status.reason


@pytest.mark.slow
def test_a_loss_that_is_not_finite_ends_the_run_with_a_verdict(place):
    recipe = place.recipe("diverges", training={"learning_rate": 1e30, "warmup_steps": 0, "max_grad_norm": 0})
    done = tiny.launcher("run", recipe, cwd=place.folder)
    assert done.returncode == 8
    assert "not finite" in last_lines(done.stderr) and "training.learning_rate" in done.stderr
    verdict = json.loads((place.newest() / "attempts/1/verdict.rank-0.json").read_text())
    assert verdict["verdict"] == "diverged"
