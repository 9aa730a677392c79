"""Equal losses, gradient norms and order of rows on one process, DDP and ZeRO 0 to 3."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

# 45 rows in batches of 8: the last batch of 5 rows is smaller than ranks x rows.
EXACT = {
    "model": {"config": {"hidden_dropout_prob": 0.0}},
    "training": {"num_train_epochs": 2},
    "evaluation": {"bootstrap": 0, "baselines": []},
}


@pytest.fixture(scope="module")
def small(place) -> None:
    tiny.write_data(place.folder / "small", train=45)


def run(place, name: str, distributed: dict, **changes: object) -> Path:
    values = {**EXACT, "data": {"source": "./small"}, "distributed": distributed, **changes}
    done = tiny.launcher("run", place.recipe(name, **values), cwd=place.folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return place.newest()


def norms(path: Path) -> dict[int, float]:
    return {row["step"]: row["grad_norm"] for row in tiny.jsonl(path / "progress.jsonl") if "grad_norm" in row}


@pytest.fixture(scope="module")
def reference(place, small) -> Path:
    return run(place, "one", {"processes_per_node": 1})


ENGINES = {
    "ddp": {"processes_per_node": 2},
    "zero-0": {"processes_per_node": 2, "zero_stage": 0},
    "zero-1": {"processes_per_node": 2, "zero_stage": 1},
    "zero-2": {"processes_per_node": 2, "zero_stage": 2},
    "zero-3": {"processes_per_node": 2, "zero_stage": 3},
}


# The grid of engines has each of them in every run of the tests; here these stand for their neighbours.
_SOON = ("ddp", "zero-3")


@pytest.fixture(
    scope="module", params=[name if name in _SOON else pytest.param(name, marks=pytest.mark.soak) for name in ENGINES]
)
def found(request, place, reference) -> Path:
    """A finished run of each engine on two ranks; a cap of 2 rows also makes them accumulate twice."""
    engine = request.param
    return run(place, engine, ENGINES[engine], training={"num_train_epochs": 2, "per_device_train_batch_size": 2})


def test_two_ranks_have_the_losses_of_one(found, reference):
    assert len(tiny.losses(found)) == 12
    assert tiny.losses(found) == pytest.approx(tiny.losses(reference), rel=1e-4)
    assert tiny.ledger(found) == tiny.ledger(reference)
    for epoch in range(2):
        seen = [row for step in range(epoch * 6 + 1, epoch * 6 + 7) for row in tiny.ledger(found)[step]]
        assert sorted(seen) == list(range(45))
    ours, wanted = (
        json.loads((path / "evaluation/metrics.json").read_text())["metrics"] for path in (found, reference)
    )
    assert ours == pytest.approx(wanted, rel=1e-3, abs=1e-4)
    plan = json.loads((found / "plan.json").read_text())["launch"]
    assert plan["batch"] == {
        "global_batch_size": 8,
        "world_size": 2,
        "micro_batch_size": 2,
        "accumulation": 2,
        "budget": None,
    }
    logs = [(found / f"attempts/1/logs/rank-{rank}.log").exists() for rank in (0, 1)]
    assert logs == [True, True]


def test_two_ranks_have_the_gradient_norms_of_one(found, reference):
    if json.loads((found / "plan.json").read_text())["launch"]["zero_stage"] == 0:
        assert not norms(found), "DeepSpeed tells no norm in fp32 without a sharded optimizer, as the guide says"
        return
    assert norms(found) == pytest.approx(norms(reference), rel=1e-4)


def test_two_ranks_draw_the_rows_of_one_and_have_its_focal_loss(place, small):
    """Class weights by name stand beside the sampling: the mean is over the weights of what was drawn."""
    task = {
        "type": "text-classification", "focal_gamma": 2.0, "class_sampling": "balanced", "class_weights": {"metal": 3.0},
    }  # fmt: skip
    training = {"num_train_epochs": 2, "per_device_train_batch_size": 2}
    table = [row for row in tiny.rows(60, seed=4) if row[1] != "metal"] + tiny.rows(5, seed=5, topics=["metal"])
    rare = place.folder / "rare"
    tiny.write_data(rare)
    tiny.write_csv(rare / "train.csv", table)
    both = [
        run(
            place,
            f"drawn-{ranks}",
            {"processes_per_node": ranks},
            data={"source": "./rare"},
            task=task,
            training=training,
            evaluation={**EXACT["evaluation"], "label_errors": True},
        )
        for ranks in (1, 2)
    ]
    one, two = (tiny.ledger(path) for path in both)
    assert one == two and tiny.losses(both[1]) == pytest.approx(tiny.losses(both[0]), rel=1e-4)
    drawn = [row for step in range(1, 7) for row in one[step]]
    assert len(drawn) == 45 and sum(row >= 40 for row in drawn) == 15, "a third of an epoch is metal, from 5 rows"
    listed = [tiny.jsonl(path / "evaluation/label_errors.jsonl") for path in both]
    assert [(row["split"], row["row_id"]) for row in listed[0]] == [(row["split"], row["row_id"]) for row in listed[1]]
    assert {row["split"] for row in listed[0]} >= {"validation", "test"}, "of which every rank predicts a share"
    page = (both[1] / "report.html").read_text()
    assert "Likely label errors" in page and "balanced; metal is 33.33% of what is drawn" in page


def test_two_ranks_draw_from_the_sources_as_one(place, small):
    folder = place.folder / "small"
    tiny.write_csv(folder / "few.csv", tiny.rows(7, seed=8))
    train = [{"source": "./small/train.csv", "weight": 0.3}, {"source": "./small/few.csv", "weight": 0.7}]
    data = {"source": None, "train": train, "validation": "./small/validation.csv", "test": "./small/test.csv"}
    both = [
        run(
            place,
            f"mixed-{ranks}",
            {"processes_per_node": ranks},
            data={**data, "stopping_strategy": "all_exhausted"},
            training={"num_train_epochs": 1, "per_device_train_batch_size": 2},
        )
        for ranks in (1, 2)
    ]
    one, two = (tiny.ledger(path) for path in both)
    assert one == two and tiny.losses(both[1]) == pytest.approx(tiny.losses(both[0]), rel=1e-4)
    drawn = [row for rows in one.values() for row in rows]
    # 45 rows are three tenths of 150.
    assert len(drawn) == 150 and sorted(row for row in drawn if row < 45) == list(range(45))
    assert {drawn.count(row) for row in range(45, 52)} == {15}
    log = (both[1] / "attempts/1/logs/rank-0.log").read_text()
    assert "mixture: all_exhausted; an epoch has 150 rows: 45 of ./small/train.csv (30.0%)" in log
    assert "an epoch has 150 rows" in (both[1] / "report.html").read_text()


_ALL = [(engine, strategy) for engine in ("ddp", "zero-2", "zero-3") for strategy in ("encoder", "head")]
_CELLS_SOON = [("ddp", "head"), ("zero-3", "encoder")]


@pytest.mark.parametrize(
    ("engine", "strategy"),
    [*_CELLS_SOON, *(pytest.param(*cell, marks=pytest.mark.soak) for cell in _ALL if cell not in _CELLS_SOON)],
)
def test_frozen_parameters_stay_on_two_ranks(place, small, engine, strategy):
    from safetensors.torch import load_file

    found = run(
        place, f"{strategy}-{engine}", ENGINES[engine], strategy={"type": strategy}, training={"num_train_epochs": 1}
    )
    before, after = load_file(place.model / "model.safetensors"), load_file(found / "model/model.safetensors")
    groups = json.loads((found / "plan.json").read_text())["phases"][0]["phase"]["table"]["groups"]
    for group in groups:
        for name in group["parameters"]:
            old = before.get(name.removeprefix("bert."))
            if not group["trainable"]:
                assert old.equal(after[name]), name
            elif old is not None and "key.bias" not in name:
                assert not old.equal(after[name]), name


def accelerate(place, *arguments: str, config: dict, name: str) -> subprocess.CompletedProcess[str]:
    from launcher.backends.machine import free_port

    file = place.folder / f"{name}-accelerate.yaml"
    file.write_text(json.dumps({"compute_environment": "LOCAL_MACHINE", "machine_rank": 0, "num_machines": 1, "debug": False,
                                "rdzv_backend": "static", "same_network": True, "use_cpu": False, **config}))  # fmt: skip
    command = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--config_file", str(file),
               "--main_process_port", str(free_port()), "-m", "launcher.train", *arguments]  # fmt: skip
    return subprocess.run(
        command, cwd=place.folder, env=tiny.environment(), capture_output=True, text=True, timeout=300
    )


def test_accelerate_launch_trains_as_launcher_run_does(place, reference):
    values = {**EXACT, "data": {"source": "./small"}, "distributed": {"processes_per_node": None}}
    recipe = place.recipe("by-hand", **values)
    config = {"distributed_type": "MULTI_GPU", "num_processes": 2, "mixed_precision": "no"}
    known = set((place.folder / "runs").iterdir())
    done = accelerate(place, str(recipe), "name=byhand", "training.logging_steps=2", config=config, name="ddp")
    assert done.returncode == 0, done.stdout + done.stderr
    made = set((place.folder / "runs").iterdir()) - known
    assert [path.name for path in made] == ["byhand-001"], "rank 0 alone makes the run directory"
    found = place.folder / "runs/byhand-001"
    assert "run: " in done.stdout and "report: " in done.stdout
    assert (found / "report.html").is_file() and (found / "model/model.safetensors").is_file()
    assert tiny.ledger(found) == tiny.ledger(reference)
    both = tiny.losses(reference)
    pairs = {step: (both[step - 1] + both[step]) / 2 for step in range(2, 13, 2)}
    assert tiny.losses(found) == pytest.approx(pairs, rel=1e-4)


def test_accelerate_launch_uses_the_users_deepspeed_stage(place, reference):
    from launcher.shipped import shipped_folder

    values = {**EXACT, "data": {"source": "./small"}, "distributed": {"processes_per_node": None}}
    config = {"distributed_type": "DEEPSPEED", "num_processes": 2,
              "deepspeed_config": {"deepspeed_config_file": str(shipped_folder("ds_configs") / "zero2.json"),
                                   "zero3_init_flag": False}}  # fmt: skip
    done = accelerate(place, str(place.recipe("by-hand", **values)), "name=zero", config=config, name="zero2")
    assert done.returncode == 0, done.stdout + done.stderr
    found = place.folder / "runs/zero-001"
    launch = json.loads((found / "plan.json").read_text())["launch"]
    assert (launch["engine"], launch["zero_stage"], launch["processes_per_node"]) == ("deepspeed", 2, 2)
    assert tiny.losses(found) == pytest.approx(tiny.losses(reference), rel=1e-4)


def test_a_contradiction_with_accelerates_configuration_names_both(place, small):
    config = {"distributed_type": "MULTI_GPU", "num_processes": 2, "mixed_precision": "no"}
    recipe = place.recipe("refused", data={"source": "./small"}, distributed={"processes_per_node": 4})
    done = accelerate(place, str(recipe), config=config, name="refused")
    assert done.returncode != 0
    assert "distributed.processes_per_node is 4" in done.stderr and "num_processes" in done.stderr


def test_the_launch_script_starts_a_run_by_hand(place, reference):
    """launch.sh of a finished attempt starts the same thing again."""
    done = subprocess.run(
        ["sh", str(reference / "attempts/1/launch.sh")], cwd=place.folder, env={**tiny.environment(), "PATH": os.environ["PATH"]},
        capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
