"""A model of 0.5 billion parameters on one GPU: every precision, engine and kernel, and the memory that was planned."""

from __future__ import annotations

from pathlib import Path

import cells
import pytest
import tiny

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def runs(half_billion: Path) -> dict[str, Path]:
    """Runs that were made already, by cell."""
    return {}


def run_of(name: str, runs: dict[str, Path], folder: Path) -> Path:
    if name not in runs:
        runs[name] = cells.run_cell(folder, cells.HALF_BILLION, name)
    return runs[name]


@pytest.mark.parametrize("name", cells.CELLS)
def test_it_trains_and_what_is_saved_is_what_was_trained(half_billion, gpus, runs, require, name):
    cell = cells.CELLS[name]
    lacks = cells.missing(cell, gpus=gpus)
    require(not lacks, lacks)
    run = run_of(name, runs, half_billion)
    cells.check_run(run, cell, device="cuda")
    wanted = tiny.losses(run_of("bf16", runs, half_billion))[1]
    assert tiny.losses(run)[1] == pytest.approx(wanted, rel=cell.loss_tolerance)


@pytest.mark.parametrize("name", cells.MEASURED)
def test_memory_is_what_was_planned(half_billion, gpus, runs, name):
    run = run_of(name, runs, half_billion)
    planned = cells.predicted_bytes(half_billion, half_billion / f"{name}.yaml")
    assert planned == pytest.approx(cells.measured_bytes(run), rel=0.10)


def test_a_loss_scale_that_is_too_large_is_lowered_and_no_step_breaks_the_run(half_billion, gpus):
    # torch's scaler begins with 2^16; a rate that moves the weights far makes gradients overflow, whose steps are left out.
    run = cells.run_cell(half_billion, cells.HALF_BILLION, "fp16", training={"learning_rate": 1e-3})
    cells.check_run(run, cells.CELLS["fp16"], device="cuda")
