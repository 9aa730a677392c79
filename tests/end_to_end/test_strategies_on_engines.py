"""Every strategy on every engine: the same rates at every step and, without dropout, the same weights at the end."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny

from launcher.plans import Hardware
from launcher.recipe.examine import examine
from launcher.workflows.start import create_run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

WORKER = Path(__file__).with_name("warm_ranks.py")
CPU = Hardware((), 2, 2**33, cpu_has_fast_bf16=False)

# Optimizers, schedules and regularization go round the strategies, so that every engine meets each of them.
CELLS: dict[str, dict[str, Any]] = {
    "full": {"strategy": {"type": "full"}, "training": {"lr_scheduler_type": "cosine"}},
    "encoder": {
        "strategy": {"type": "encoder", "head_lr": 3e-3},
        "training": {"optim": "sgd", "learning_rate": 0.05, "lr_scheduler_type": "one_cycle", "l2_penalty": 0.01},
    },
    "head": {
        "strategy": {"type": "head", "train_pooler": True},
        "training": {"optim": "adam", "learning_rate": 0.01, "lr_scheduler_type": "exponential", "max_grad_value": 0.05,
                     "lr_scheduler_kwargs": {"final_scale": 0.1}},
    },
    "layerwise": {
        "strategy": {"type": "layerwise", "layer_decay": 0.5, "freeze_layers": 1, "head_lr_mult": 2.0, "frozen_eval": True},
        "training": {"lr_scheduler_type": "slanted_triangular", "l1_penalty": 1e-4},
    },
    "gradual": {
        "strategy": {"type": "layerwise", "gradual_unfreezing": {"epochs_per_stage": 0.5}},
        "training": {"num_train_epochs": 4, "lr_scheduler_type": "linear"},
    },
    "batch-sizes": {
        "strategy": {"type": "full"},
        "training": {"lr_scheduler_type": "step", "lr_scheduler_kwargs": {"step_size": 4, "gamma": 0.5},
                     "batch_size_schedule": [{"epoch": 0.5, "global_batch_size": 4}, {"epoch": 1, "global_batch_size": 12}]},
    },
    "lora": {
        "strategy": {"type": "lora", "r": 4, "layer_decay": 0.8, "loraplus_lr_ratio": 4},
        "training": {"lr_scheduler_type": "cyclic", "lr_scheduler_kwargs": {"cycle_steps": 5}},
    },
    "discriminative": {
        "strategy": {"type": "discriminative", "probe_rank": 4, "rank_max": 4, "probe_steps": 6, "mean_rank": 2,
                     "uniform_above": 1.0},
        "training": {"lr_scheduler_type": "constant_with_warmup"},
    },
}  # fmt: skip
ENGINES = {
    "ddp": {"processes_per_node": 2},
    "zero-1": {"processes_per_node": 2, "zero_stage": 1},
    "zero-2": {"processes_per_node": 2, "zero_stage": 2},
    "zero-3": {"processes_per_node": 2, "zero_stage": 3},
}


# MiniLM's shape: six blocks of width 384.
SHAPES = {
    "tiny": {"num_hidden_layers": 3},
    "minilm": {"num_hidden_layers": 6, "hidden_size": 384, "intermediate_size": 1536, "num_attention_heads": 12},
}


@pytest.fixture(scope="module", params=["tiny", pytest.param("minilm", marks=pytest.mark.soak)])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp(f"grid-{request.param}")
    tiny.save_bert(found / "bert", **SHAPES[request.param])
    tiny.write_data(found / "data", train=45)
    return found


def make_runs(folder: Path, engine: str, distributed: dict[str, Any]) -> dict[str, Path]:
    """Make the runs of all strategies on one engine, ready to start; importance is measured anew on each."""
    found = {}
    for cell, changes in CELLS.items():
        training = {"num_train_epochs": 2, **changes["training"]}
        if engine != "one":
            # A cap makes the ranks accumulate; the global batch stays what it is.
            training["per_device_train_batch_size"] = 2
        values = tiny.recipe_values(
            folder / "bert", folder / "data", name=f"{cell}-{engine}", strategy=changes["strategy"], training=training,
            distributed=distributed,
            evaluation={"bootstrap": 0, "baselines": [], "verify_saved": is_verified(cell, engine)},
            data={"source": str(folder / "data"), "cache_dir": str(folder / f"cache-{engine}")},
        )  # fmt: skip
        loaded, problems = examine(str(tiny.write_recipe(folder / f"{cell}-{engine}.yaml", values)), [])
        assert loaded is not None and not problems, problems
        run, _ = create_run(loaded, runs=folder / "runs", hardware=CPU)
        found[cell] = run.path
    return found


def is_verified(cell: str, engine: str) -> bool:
    """Whether a run compares its saved model with the live one; each such comparison starts a process."""
    return cell in ("full", "lora") and engine in ("ddp", "zero-3")


def start(command: list[str], runs: dict[str, Path], folder: Path) -> None:
    done = subprocess.run(
        [*command, str(WORKER), *map(str, runs.values())],
        cwd=folder, env=tiny.environment(), capture_output=True, text=True, timeout=1200,
    )  # fmt: skip
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]


@pytest.fixture(scope="module")
def reference(folder: Path) -> dict[str, Path]:
    runs = make_runs(folder, "one", {"processes_per_node": 1})
    start([sys.executable], runs, folder)
    return runs


# The grid of engines has every engine in every run of the tests; here the one that shards the most stands for the others.
_SOON = [name if name == "zero-3" else pytest.param(name, marks=pytest.mark.soak) for name in ENGINES]


@pytest.fixture(scope="module", params=_SOON)
def found(request: pytest.FixtureRequest, folder: Path, reference: dict[str, Path]) -> dict[str, Path]:
    runs = make_runs(folder, request.param, ENGINES[request.param])
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    # Ranks that launcher starts under DeepSpeed get this from accelerate.
    start(["env", *_deepspeed(ENGINES[request.param]), *torchrun], runs, folder)
    return runs


def _deepspeed(distributed: dict[str, Any]) -> list[str]:
    return ["ACCELERATE_USE_DEEPSPEED=true"] if "zero_stage" in distributed else []


def rates(run: Path) -> dict[int, dict[str, float]]:
    return {
        row["step"]: {key: value for key, value in row.items() if key.startswith("lr/")}
        for row in tiny.jsonl(run / "progress.jsonl")
        if "loss" in row
    }


@pytest.mark.parametrize("cell", CELLS)
def test_rates_losses_rows_and_weights_are_those_of_one_process(found, reference, cell):
    from safetensors.torch import load_file

    ours, wanted = found[cell], reference[cell]
    assert rates(ours) and rates(ours).keys() == rates(wanted).keys()
    for step, groups in rates(wanted).items():
        assert rates(ours)[step] == pytest.approx(groups, rel=1e-6), step
    assert tiny.ledger(ours) == tiny.ledger(wanted)
    assert tiny.losses(ours) == pytest.approx(tiny.losses(wanted), rel=2e-4)
    weights, expected = (load_file(path / "model/model.safetensors") for path in (ours, wanted))
    assert weights.keys() == expected.keys()
    for name, tensor in expected.items():
        assert (weights[name] - tensor).abs().max() < 2e-4, name


def test_the_saved_model_is_the_live_one(found):
    for cell, run in found.items():
        verification = json.loads((run / "model/MANIFEST.json").read_text())["verification"]
        assert verification["passed"] is (
            True if is_verified(cell, run.name.removeprefix(f"{cell}-")[:-4]) else None
        ), verification


def test_importance_is_that_of_one_process(found, reference):
    ours, wanted = (json.loads((runs["discriminative"] / "importance.json").read_text()) for runs in (found, reference))
    assert ours["allocation"]["ranks"] == wanted["allocation"]["ranks"]
    for name, module in wanted["modules"].items():
        assert ours["modules"][name]["scores"] == pytest.approx(module["scores"], rel=2e-2, abs=1e-9)
    assert len({*wanted["allocation"]["ranks"].values()}) > 1


def test_gradual_unfreezing_has_a_phase_for_each_stage(reference):
    plan = json.loads((reference["gradual"] / "plan.json").read_text())
    trains = [sum(g["numel"] for g in phase["phase"]["table"]["groups"] if g["trainable"]) for phase in plan["phases"]]
    assert len(trains) >= 4 and trains == sorted(trains) and len(set(trains)) == len(trains)
    found = rates(reference["gradual"])
    assert len(found[1]) < len(found[max(found)])
