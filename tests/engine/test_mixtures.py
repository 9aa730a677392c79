"""Sources that are drawn from by weight, trained: over phases, stops and resumes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import tiny

sys.path.insert(0, str(Path(__file__).resolve().parent))
from in_process import prepare

NEVER = {"eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": False}


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("mixture")
    tiny.save_bert(folder / "bert")
    for source, number in enumerate((12, 40)):
        tiny.write_csv(folder / f"source-{source}.csv", tiny.rows(number, seed=source))
    tiny.write_csv(folder / "validation.csv", tiny.rows(9, seed=99))
    return folder


def run(place: Path, runs: Path, *, found: Any = None, stop_at: int | None = None) -> Any:
    """Train a mixture of 12 and 24 rows an epoch, whose second phase begins inside the first epoch."""
    train = [{"source": str(place / f"source-{number}.csv"), "weight": number + 1} for number in (0, 1)]
    data = {"source": None, "train": train, "validation": str(place / "validation.csv"), "cache_dir": str(place)}
    training = {"num_train_epochs": 2, "batch_size_schedule": [{"epoch": 0.6, "global_batch_size": 4}], **NEVER}
    made = prepare(place / "bert", place, runs, run=found, data=data, training=training)
    if stop_at is not None:
        on_step = made.context.progress.on_step

        def stop(step: int, **facts: Any) -> None:
            on_step(step, **facts)
            if step == stop_at:
                made.run.stop_request(made.context.attempt).touch()

        made.context.progress.on_step = stop  # type: ignore[method-assign]
    made.train(resume=found is not None)
    return made


def test_an_epoch_of_a_mixture_ends_where_its_smallest_source_does(place, tmp_path):
    whole = run(place, tmp_path / "whole")
    assert len(whole.context.plan.phases) == 2
    run(place, tmp_path / "whole", found=whole.run)
    stopped = run(place, tmp_path / "stopped", stop_at=2)
    for _ in range(2):
        run(place, tmp_path / "stopped", found=stopped.run)
    steps = tiny.ledger(whole.run.path)
    assert tiny.ledger(stopped.run.path) == steps and tiny.losses(stopped.run.path) == tiny.losses(whole.run.path)
    used = [row for step in sorted(steps) for row in steps[step]]
    assert len(used) == 72, "two epochs of 12 rows and twice as many"
    for epoch in (used[:36], used[36:]):
        assert sorted(row for row in epoch if row < 12) == list(range(12))
        assert len({row for row in epoch if row >= 12}) == 24
