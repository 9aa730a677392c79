"""A run that goes on is the run that nothing interrupted: three interruptions in one epoch, and other processes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny
from cutting import CPU, copy_at

from launcher.engine.checkpoint_files import read_manifest
from launcher.recipe.examine import examine
from launcher.workflows.start import create_run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

WORKER = Path(__file__).parent.parent / "cutting.py"
LORA = {"type": "lora", "r": 4, "target_modules": "all-linear"}
# In one epoch of six steps: killed after the checkpoints of steps 1, 3 and 4.
CUTS = "2-1,4-3,5-4,6"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("going-on")
    tiny.save_bert(found / "bert")
    tiny.write_data(found / "data", train=45)
    return found


def make(folder: Path, name: str, distributed: dict[str, Any], *, dropout: float, **changes: Any) -> Path:
    """Make a run that keeps a checkpoint of every step."""
    training = {
        "num_train_epochs": 1, "eval_strategy": "no", "lr_scheduler_type": "cosine", "load_best_model_at_end": False,
        "save_strategy": "steps", "save_steps": 1, "save_total_limit": 99, **changes.pop("training", {}),
    }  # fmt: skip
    values = tiny.recipe_values(
        folder / "bert", folder / "data", name=name, distributed=distributed, training=training,
        model={"config": {"hidden_dropout_prob": dropout}}, evaluation={"bootstrap": 0, "baselines": []},
        data={"cache_dir": str(folder / "cache")}, **{"strategy": {"type": "full"}, **changes},
    )  # fmt: skip
    loaded, problems = examine(str(tiny.write_recipe(folder / f"{name}.yaml", values)), [])
    assert loaded is not None and not problems, problems
    return create_run(loaded, runs=folder / "runs", hardware=CPU)[0].path


def start(runs: dict[Path, str], *, ranks: int = 1, deepspeed: bool = False) -> None:
    """Train each run up to its stops."""
    command = [sys.executable]
    if ranks > 1 or deepspeed:
        command += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks)]
    done = subprocess.run(
        [*command, str(WORKER), *(f"{run}={stops}" for run, stops in runs.items())],
        env=tiny.environment(**({"ACCELERATE_USE_DEEPSPEED": "true"} if deepspeed else {})),
        capture_output=True, text=True, timeout=1700,
    )  # fmt: skip
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]


def written(run: Path) -> dict[str, str]:
    """What the last checkpoint holds of weights, optimizer and random numbers: file -> hash."""
    files = read_manifest(run / "checkpoints/step-6")["sha256"]
    kinds = [".safetensors", "optim_states.pt", "optimizer.pt", ".pth"]
    if "zero-3" in run.name:
        # DeepSpeed's file holds the same tensors, but after a resume one of them no longer shares its storage.
        kinds.remove("optim_states.pt")
    return {name: digest for name, digest in files.items() if name.endswith(tuple(kinds))}


# --- three interruptions in one epoch --------------------------------------------------------------------------------

CELLS: dict[str, tuple[int, dict[str, tuple[dict[str, Any], dict[str, Any]]]]] = {
    # start -> (ranks, cell -> (distributed, changes of the recipe))
    "one": (1, {
        "full": ({"processes_per_node": 1}, {}),
        "lora": ({"processes_per_node": 1}, {"strategy": LORA}),
        "in-background": ({"processes_per_node": 1}, {"training": {"async_save": True}}),
    }),
    "ddp": (2, {
        "full": ({"processes_per_node": 2}, {}),
        "in-background": ({"processes_per_node": 2}, {"training": {"async_save": True}}),
    }),
    "deepspeed": (2, {
        "zero-1": ({"processes_per_node": 2, "zero_stage": 1}, {}),
        "zero-2": ({"processes_per_node": 2, "zero_stage": 2}, {}),
        "zero-3": ({"processes_per_node": 2, "zero_stage": 3}, {}),
        "zero-2-lora": ({"processes_per_node": 2, "zero_stage": 2}, {"strategy": LORA}),
    }),
}  # fmt: skip


@pytest.mark.parametrize("engine", ["one", "deepspeed", pytest.param("ddp", marks=pytest.mark.soak)])
def test_three_interruptions_in_one_epoch_change_nothing(folder: Path, engine: str):
    ranks, cells = CELLS[engine]
    whole, cut = (
        {
            name: make(folder, f"{engine}-{name}-{kind}", distributed, dropout=0.2, **changes)
            for name, (distributed, changes) in cells.items()
        }
        for kind in ("whole", "cut")
    )
    stops = {**dict.fromkeys(whole.values(), "6"), **dict.fromkeys(cut.values(), CUTS)}
    start(stops, ranks=ranks, deepspeed=engine == "deepspeed")
    for name, run in cut.items():
        assert len(written(run)) >= 2 and written(run) == written(whole[name]), name
        assert tiny.ledger(run) == tiny.ledger(whole[name]), name
        assert tiny.losses(run) == tiny.losses(whole[name]), name
        assert sorted(path.name for path in (run / "checkpoints").iterdir()) == [f"step-{n}" for n in range(1, 7)]


# --- other processes -------------------------------------------------------------------------------------------------

TWO: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "zero-1": ({"processes_per_node": 2, "zero_stage": 1}, {}),
    "zero-2": ({"processes_per_node": 2, "zero_stage": 2}, {}),
    "zero-2-lora": ({"processes_per_node": 2, "zero_stage": 2}, {"strategy": LORA}),
    "zero-1-layerwise": ({"processes_per_node": 2, "zero_stage": 1}, {"strategy": {"type": "layerwise", "layer_decay": 0.5}}),
    "zero-2-bf16": ({"processes_per_node": 2, "zero_stage": 2}, {"precision": "bf16"}),
}  # fmt: skip
ONE_PROCESS, TWO_PROCESSES = "distributed.processes_per_node=1", "distributed.processes_per_node=2"
DDP = ("distributed.zero_stage=null", "distributed.engine=ddp")


def check(run: Path, whole: Path, *, tolerance: float = 1e-5) -> None:
    assert tiny.ledger(run) == tiny.ledger(whole), run.name
    wanted, ours = tiny.losses(whole), tiny.losses(run)
    assert ours.keys() == wanted.keys(), run.name
    assert max(abs(ours[step] - wanted[step]) for step in wanted) <= tolerance, (run.name, ours, wanted)


def test_other_processes_go_on_with_the_same_rows_and_losses(folder: Path):
    """Two ranks, then one, then two again, inside one epoch; and from one engine to another."""
    ddp = make(folder, "world-ddp", {"processes_per_node": 2}, dropout=0.0)
    start({ddp: "6"}, ranks=2)
    whole = {name: make(folder, f"world-{name}", d, dropout=0.0, **changes) for name, (d, changes) in TWO.items()}
    from_ddp = copy_at(ddp, 2, "ddp-to-zero-2", ["distributed.zero_stage=2"])
    start(dict.fromkeys([*whole.values(), from_ddp], "6"), ranks=2, deepspeed=True)

    on_one = {name: copy_at(run, 2, f"one-{name}", [ONE_PROCESS]) for name, run in whole.items()}
    start(dict.fromkeys(on_one.values(), "6"), ranks=1, deepspeed=True)
    ddp_on_one = copy_at(ddp, 2, "one-ddp", [ONE_PROCESS])
    start({ddp_on_one: "6"})

    on_two = {name: copy_at(run, 4, f"two-{name}", [TWO_PROCESSES]) for name, run in on_one.items()}
    start(dict.fromkeys(on_two.values(), "6"), ranks=2, deepspeed=True)
    ddp_on_two = copy_at(ddp_on_one, 4, "two-ddp", [TWO_PROCESSES])
    to_ddp = copy_at(whole["zero-2"], 2, "zero-2-to-ddp", DDP)
    start({ddp_on_two: "6", to_ddp: "6"}, ranks=2)

    for run in (from_ddp, ddp_on_one, ddp_on_two, to_ddp):
        check(run, ddp)
    for name, run in whole.items():
        tolerance = 2e-2 if name.endswith("bf16") else 1e-5
        check(on_one[name], run, tolerance=tolerance)
        check(on_two[name], run, tolerance=tolerance)
