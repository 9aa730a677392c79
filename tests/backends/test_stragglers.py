"""A rank that holds the others up is told by its own part of a step; equal ranks are not."""

from __future__ import annotations

import json
import time

from launcher.backends.stragglers import stragglers_of
from launcher.engine.own_time import OwnTime
from launcher.rundir import RunDir


def run_of(folder, *seconds: float | None) -> RunDir:
    run = RunDir(folder)
    run.attempt(1).mkdir(parents=True)
    for rank, own in enumerate(seconds):
        run.heartbeat(1, rank).write_text(json.dumps({"host": f"node{rank // 2}", "own_seconds": own}))
    return run


def test_the_slow_one_is_named_with_its_node(tmp_path):
    (found,) = stragglers_of(run_of(tmp_path, 0.50, 0.52, 0.49, 1.30), 1)
    assert found.startswith("rank 3 on node1 holds the others up: 1.30 s") and "0.50 s elsewhere" in found


def test_equal_ranks_and_trifles_are_not_named(tmp_path):
    assert stragglers_of(run_of(tmp_path / "a", 0.50, 0.60, 0.70), 1) == ()
    # Three times as long, and still nothing that anybody would notice.
    assert stragglers_of(run_of(tmp_path / "b", 0.01, 0.03), 1) == ()
    assert stragglers_of(run_of(tmp_path / "c", None, None), 1) == ()
    assert stragglers_of(run_of(tmp_path / "d", 9.0), 1) == ()


def test_own_time_is_the_mean_of_the_last_steps():
    own = OwnTime(device="cpu")
    assert own.end_step() is None
    for _ in range(3):
        own.add(0.02)
        with own:
            time.sleep(0.03)
        average = own.end_step()
    assert average is not None and 0.05 <= average < 0.2
