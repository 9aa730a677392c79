"""Preference tuning and reward models on one process, DDP, ZeRO-2 and ZeRO-3: equal losses, one reference, and a resume that is exact."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny

sys.path.insert(0, str(Path(__file__).resolve().parent))
import test_engines_grid as grid

from launcher.engine.reference import read_values
from launcher.recipe.examine import examine
from launcher.workflows.start import create_run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

ENGINES: dict[str, dict[str, Any]] = {
    "ddp": {"processes_per_node": 2},
    "zero-2": {"processes_per_node": 2, "zero_stage": 2},
    "zero-3": {"processes_per_node": 2, "zero_stage": 3},
}
LORA = {"type": "lora", "r": 4, "target_modules": "all-linear"}
CELLS: dict[str, dict[str, Any]] = {
    "dpo-full": {"task": {"type": "preference", "rpo_alpha": 0.2}},
    "dpo-lora": {"task": {"type": "preference"}, "strategy": LORA, "training": {"learning_rate": 1e-2}},
    "reward-lora": {"task": {"type": "reward"}, "strategy": LORA, "training": {"learning_rate": 3e-3}},
}
MODEL = Path(__file__).resolve().parents[2].parent / "shared" / "models" / "stories260k-llama"
SPLITS = ("train", "validation", "test")


@pytest.fixture(scope="module")
def folder(require: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    require(MODEL.is_dir(), f"needs the model in {MODEL}")
    return tmp_path_factory.mktemp("pairs")


def make_run(folder: Path, engine: str, distributed: dict[str, Any], cell: str) -> Path:
    """Make a run of two epochs of 45 pairs that keeps a checkpoint of every fourth step; two ranks accumulate."""
    parts = {name: {"source": "builtin:number-preferences", "split": name, "limit": 45} for name in SPLITS}
    training = {
        "save_strategy": "steps", "save_steps": 4, "save_total_limit": 9, "load_best_model_at_end": False,
        **CELLS[cell].get("training", {}), **({} if engine == "one" else {"per_device_train_batch_size": 2}),
    }  # fmt: skip
    values = tiny.recipe_values(
        MODEL, "", name=f"{cell}-{engine}", training=training, distributed=distributed,
        task={**CELLS[cell]["task"], "chat_template": "plain"}, strategy=CELLS[cell].get("strategy", {"type": "full"}),
        data={"source": None, **parts, "max_length": 96, "cache_dir": str(folder / "cache")},
        evaluation={"bootstrap": 0, "verify_saved": True},
    )  # fmt: skip
    loaded, problems = examine(str(tiny.write_recipe(folder / f"{cell}-{engine}.yaml", values)), [])
    assert loaded is not None and not problems, problems
    return create_run(loaded, runs=folder / "runs", hardware=grid.CPU)[0].path


def run_cells(folder: Path, engine: str, distributed: dict[str, Any]) -> tuple[dict[str, Path], dict[str, Path]]:
    """Return the runs of an engine by cell: uninterrupted, and cut off after step 8 and resumed."""
    command = [sys.executable] if engine == "one" else grid._ranks(distributed)
    whole = {cell: make_run(folder, engine, distributed, cell) for cell in CELLS}
    grid.start(command, [*whole.values()], folder)
    resumed = {cell: grid.cut_off(path) for cell, path in whole.items()}
    grid.start(command, [*resumed.values()], folder)
    return whole, resumed


@pytest.fixture(scope="module")
def one(folder: Path) -> tuple[dict[str, Path], dict[str, Path]]:
    return run_cells(folder, "one", {"processes_per_node": 1})


# Sharded weights are the hardest of the three; other tests of language models have the others.
_PARAMS = [pytest.param(name, marks=[] if name == "zero-3" else [pytest.mark.soak]) for name in ENGINES]


@pytest.fixture(scope="module", params=_PARAMS)
def two(request: pytest.FixtureRequest, folder: Path, one: Any) -> tuple[dict[str, Path], dict[str, Path]]:
    return run_cells(folder, request.param, ENGINES[request.param])


def reference(run: Path, split: str) -> np.ndarray:
    return read_values(run / "reference" / f"{split}.parquet", ("chosen", "rejected"))[0]


def assert_resumed_exactly(whole: dict[str, Path], resumed: dict[str, Path]) -> None:
    for cell, run in whole.items():
        expected, ours = grid.weights(run), grid.weights(resumed[cell])
        assert [name for name, tensor in expected.items() if not tensor.equal(ours[name])] == [], cell
        assert tiny.ledger(resumed[cell]) == tiny.ledger(run), cell
        for split in SPLITS if cell.startswith("dpo") else ():
            kept, again = (path / "reference" / f"{split}.parquet" for path in (run, resumed[cell]))
            assert kept.stat().st_mtime_ns == again.stat().st_mtime_ns, "it was computed once more, by another model"


def test_one_process_learns_and_resumes_bit_for_bit(one: Any) -> None:
    whole, resumed = one
    assert_resumed_exactly(whole, resumed)
    for run in whole.values():
        losses = tiny.losses(run)
        assert len(losses) == 12 and losses[12] < losses[1]
    for cell in ("dpo-lora", "reward-lora"):
        # Before the first step all rewards are equal; -ln(1/2) is the loss. A new head is random.
        assert tiny.losses(whole[cell])[1] == pytest.approx(np.log(2), abs=1e-5 if cell == "dpo-lora" else 0.5)
    assert not (whole["reward-lora"] / "reference").exists()


def test_two_ranks_have_the_losses_and_the_reference_of_one(one: Any, two: Any) -> None:
    for cell, run in two[0].items():
        wanted = one[0][cell]
        assert tiny.ledger(run) == tiny.ledger(wanted), cell
        assert tiny.losses(run) == pytest.approx(tiny.losses(wanted), rel=1e-3, abs=1e-4), cell
        for split in SPLITS if cell.startswith("dpo") else ():
            np.testing.assert_allclose(reference(run, split), reference(wanted, split), rtol=1e-5)


def test_two_ranks_resume_bit_for_bit(two: Any) -> None:
    assert_resumed_exactly(*two)
