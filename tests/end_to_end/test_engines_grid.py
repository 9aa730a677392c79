"""Engines x precision x activation checkpointing x what trains: one process's losses, exact resume, a saved model that is the trained one.

The pairwise covering runs with the slower tests, the full grid with the long ones.
"""

from __future__ import annotations

import itertools
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import tiny

from launcher.plans import Hardware
from launcher.recipe.examine import examine
from launcher.recipe.load import load_recipe
from launcher.workflows.start import create_run, resume_run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

WORKER = Path(__file__).with_name("warm_ranks.py")
CPU = Hardware((), 2, 2**33, cpu_has_fast_bf16=False)

ENGINES: dict[str, dict[str, Any]] = {
    "ddp": {"processes_per_node": 2},
    "zero-1": {"processes_per_node": 2, "zero_stage": 1},
    "zero-2": {"processes_per_node": 2, "zero_stage": 2},
    "zero-3": {"processes_per_node": 2, "zero_stage": 3},
}
STRATEGIES: dict[str, dict[str, Any]] = {
    "full": {"type": "full"},
    "layerwise": {"type": "layerwise", "layer_decay": 0.5, "freeze_layers": 1},
    "lora": {"type": "lora", "r": 4, "target_modules": "all-linear"},
}
PRECISIONS = ("fp32", "bf16")
# Ranks hold other micro-batches than one process: sums are rounded in another order, in bf16 at 8 bits.
LOSS_TOLERANCE = {"fp32": {"rel": 1e-4, "abs": 1e-5}, "bf16": {"rel": 3e-2, "abs": 3e-2}}


class Cell(NamedTuple):
    """One combination; ``engine`` is the fixture's."""

    strategy: str
    precision: str
    checkpointing: bool

    @property
    def name(self) -> str:
        return f"{self.strategy}-{self.precision}{'-recomputed' if self.checkpointing else ''}"


def pairwise(engine: str) -> set[Cell]:
    """Every pair of two settings' values occurs on some engine."""
    e = list(ENGINES).index(engine)
    return {Cell(strategy, PRECISIONS[(e + s) % 2], bool((e // 2 + s) % 2)) for s, strategy in enumerate(STRATEGIES)}


ALL = [Cell(*values) for values in itertools.product(STRATEGIES, PRECISIONS, (False, True))]


def test_the_covering_has_every_pair():
    rows = [(engine, *cell) for engine in ENGINES for cell in pairwise(engine)]
    for i, j in itertools.combinations(range(4), 2):
        values = (list(ENGINES), list(STRATEGIES), list(PRECISIONS), [False, True])
        assert {(row[i], row[j]) for row in rows} == set(itertools.product(values[i], values[j]))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("grid")
    tiny.save_bert(found / "bert", num_hidden_layers=3)
    tiny.write_data(found / "data", train=45)
    return found


def make_run(folder: Path, engine: str, distributed: dict[str, Any], cell: Cell) -> Path:
    """Make a run that keeps a checkpoint of every fourth step."""
    training: dict[str, Any] = {
        "num_train_epochs": 2, "lr_scheduler_type": "cosine", "activation_checkpointing": cell.checkpointing,
        "save_strategy": "steps", "save_steps": 4, "save_total_limit": 9, "load_best_model_at_end": False,
    }  # fmt: skip
    if engine != "one":
        # A cap makes the ranks accumulate; the global batch stays what it is.
        training["per_device_train_batch_size"] = 2
    values = tiny.recipe_values(
        folder / "bert", folder / "data", name=f"{cell.name}-{engine}", strategy=STRATEGIES[cell.strategy],
        training=training, precision=cell.precision, distributed=distributed,
        evaluation={"bootstrap": 0, "baselines": []},
        data={"source": str(folder / "data"), "cache_dir": str(folder / "cache")},
    )  # fmt: skip
    loaded, problems = examine(str(tiny.write_recipe(folder / f"{cell.name}-{engine}.yaml", values)), [])
    assert loaded is not None and not problems, problems
    return create_run(loaded, runs=folder / "runs", hardware=CPU)[0].path


def cut_off(run: Path) -> Path:
    """Return a copy of a finished run as a kill after its checkpoint of step 8 leaves it, with its next attempt prepared."""
    copy = run.with_name(f"{run.name}-cut")
    shutil.copytree(run, copy, symlinks=True)
    for name in ("model", "adapter", "evaluation"):
        shutil.rmtree(copy / name, ignore_errors=True)
    (copy / "report.html").unlink()
    for path in (copy / "checkpoints").glob("step-*"):
        if int(path.name.split("-")[1]) > 8:
            shutil.rmtree(path)
    for path in copy.glob("attempts/1/ledger.rank-*.jsonl"):
        rows = [row for row in tiny.jsonl(path) if row["step"] <= 8]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    events = [row for row in tiny.jsonl(copy / "events.jsonl") if row["event"] in ("created", "running")]
    (copy / "events.jsonl").write_text("".join(json.dumps(row) + "\n" for row in events))
    resume_run(copy, recipe=load_recipe(copy / "resolved.yaml").recipe, hardware=CPU)
    return copy


def start(command: list[str], runs: list[Path], folder: Path) -> None:
    done = subprocess.run(
        [*command, str(WORKER), *map(str, runs)],
        cwd=folder, env=tiny.environment(), capture_output=True, text=True, timeout=1400,
    )  # fmt: skip
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]


def _ranks(distributed: dict[str, Any]) -> list[str]:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    # Ranks that launcher starts under DeepSpeed get this from accelerate.
    return ["env", "ACCELERATE_USE_DEEPSPEED=true", *torchrun] if "zero_stage" in distributed else torchrun


class Results(NamedTuple):
    """Runs of one engine by cell: uninterrupted, and cut off and resumed."""

    engine: str
    whole: dict[Cell, Path]
    resumed: dict[Cell, Path]


def run_cells(folder: Path, engine: str, distributed: dict[str, Any], cells: list[Cell]) -> Results:
    command = [sys.executable] if engine == "one" else _ranks(distributed)
    whole = {cell: make_run(folder, engine, distributed, cell) for cell in cells}
    start(command, [*whole.values()], folder)
    resumed = {cell: cut_off(path) for cell, path in whole.items()}
    start(command, [*resumed.values()], folder)
    return Results(engine, whole, resumed)


@pytest.fixture(scope="module", params=["pairwise", pytest.param("full", marks=pytest.mark.soak)])
def reference(request: pytest.FixtureRequest, folder: Path) -> tuple[str, Results]:
    place = folder / request.param
    place.mkdir()
    for name in ("bert", "data"):
        (place / name).symlink_to(folder / name)
    return request.param, run_cells(place, "one", {"processes_per_node": 1}, ALL)


@pytest.fixture(scope="module", params=ENGINES)
def found(request: pytest.FixtureRequest, folder: Path, reference: tuple[str, Results]) -> Results:
    size, _ = reference
    chosen = pairwise(request.param)
    cells = ALL if size == "full" else [cell for cell in ALL if cell in chosen]
    return run_cells(folder / size, request.param, ENGINES[request.param], cells)


def weights(run: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(run / "model/model.safetensors")


def assert_resumed_exactly(results: Results) -> None:
    for cell, run in results.whole.items():
        expected, ours = weights(run), weights(results.resumed[cell])
        assert expected.keys() == ours.keys()
        different = [name for name, tensor in expected.items() if not tensor.equal(ours[name])]
        assert not different, (results.engine, cell.name, different)
        assert tiny.ledger(results.resumed[cell]) == tiny.ledger(run), (results.engine, cell.name)


def test_losses_and_rows_are_those_of_one_process(found: Results, reference: tuple[str, Results]):
    for cell, run in found.whole.items():
        wanted = reference[1].whole[cell]
        assert tiny.ledger(run) == tiny.ledger(wanted), cell.name
        tolerance = LOSS_TOLERANCE[cell.precision]
        assert tiny.losses(run) == pytest.approx(tiny.losses(wanted), **tolerance), (found.engine, cell.name)


def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(found: Results):
    assert_resumed_exactly(found)


def test_one_process_resumes_bit_for_bit(reference: tuple[str, Results]):
    assert_resumed_exactly(reference[1])


def test_recomputing_activations_changes_nothing(reference: tuple[str, Results]):
    for cell, run in reference[1].whole.items():
        if not cell.checkpointing:
            recomputed = reference[1].whole[cell._replace(checkpointing=True)]
            assert tiny.losses(recomputed) == pytest.approx(tiny.losses(run), rel=1e-6), cell.name
