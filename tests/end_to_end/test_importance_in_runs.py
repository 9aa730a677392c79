"""Every way to measure importance and to apply it, in real runs; and that a measurement is made once."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny

from launcher.plans import Hardware
from launcher.recipe.examine import examine
from launcher.workflows.start import create_run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

WORKER = Path(__file__).with_name("warm_ranks.py")
CPU = Hardware((), 2, 2**33, cpu_has_fast_bf16=False)
SMALL = {"rank_max": 4, "probe_steps": 6, "mean_rank": 2, "uniform_above": 1.0}
CELLS: dict[str, dict[str, Any]] = {
    "sensitivity": {**SMALL, "probe_rank": 4},
    "again": {**SMALL, "probe_rank": 4},
    "other-bounds": {**SMALL, "probe_rank": 4, "rank_max": 3},
    "other-seed": {**SMALL, "probe_rank": 4},
    "gradient": {**SMALL, "score": "gradient"},
    "eva": {**SMALL, "score": "eva"},
    "freeze": {"apply": "freeze", "probe_rank": 4, "probe_steps": 6, "trainable_share": 0.3},
    "lr": {"apply": "lr", "probe_rank": 4, "probe_steps": 6},
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """All cells, one after the other in one process, with one cache."""
    folder = tmp_path_factory.mktemp("importance")
    tiny.save_bert(folder / "bert", num_hidden_layers=3)
    tiny.write_data(folder / "data", train=45)
    found = {}
    for cell, options in CELLS.items():
        values = tiny.recipe_values(
            folder / "bert", folder / "data", name=cell, strategy={"type": "discriminative", **options},
            training={"seed": 2 if cell == "other-seed" else 1}, evaluation={"bootstrap": 0, "baselines": []},
            data={"source": str(folder / "data"), "cache_dir": str(folder / "cache")},
        )  # fmt: skip
        loaded, problems = examine(str(tiny.write_recipe(folder / f"{cell}.yaml", values)), [])
        assert loaded is not None and not problems, problems
        found[cell] = create_run(loaded, runs=folder / "runs", hardware=CPU)[0].path
    done = subprocess.run(
        [sys.executable, str(WORKER), *map(str, found.values())],
        cwd=folder, env=tiny.environment(), capture_output=True, text=True, timeout=500,
    )  # fmt: skip
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    return found


def importance(run: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((run / "importance.json").read_text())
    return values


def groups(run: Path) -> list[dict[str, Any]]:
    (phase,) = json.loads((run / "plan.json").read_text())["phases"]
    table: list[dict[str, Any]] = phase["phase"]["table"]["groups"]
    return table


def was_probed(run: Path) -> bool:
    return (run / "probe/progress.jsonl").exists()


def test_a_measurement_is_made_once_and_its_key_has_all_that_it_depends_on(runs):
    assert [cell for cell in CELLS if was_probed(runs[cell])] == [
        "sensitivity",
        "other-seed",
        "gradient",
        "eva",
        "freeze",
    ]
    assert importance(runs["again"]) == importance(runs["sensitivity"])
    assert (runs["again"] / "importance.json").read_bytes() == (runs["sensitivity"] / "importance.json").read_bytes()
    # What is made of the scores does not belong to the key.
    assert importance(runs["other-bounds"])["key"] == importance(runs["sensitivity"])["key"]
    most = [max(importance(runs[cell])["allocation"]["ranks"].values()) for cell in ("sensitivity", "other-bounds")]
    assert most == [4, 3]
    assert importance(runs["other-seed"])["key"] != importance(runs["sensitivity"])["key"]


@pytest.mark.parametrize("cell", ["sensitivity", "gradient", "eva"])
def test_the_adapters_have_the_measured_ranks(runs, cell):
    ranks = importance(runs[cell])["allocation"]["ranks"]
    used = {group["rank"]: group["parameters"] for group in groups(runs[cell]) if group["rank"]}
    for rank, names in used.items():
        assert {ranks[n.removeprefix("base_model.model.").split(".lora_")[0]] for n in names if ".lora_" in n} == {rank}
    config = json.loads((runs[cell] / "adapter/adapter_config.json").read_text())
    assert {config["r"], *config["rank_pattern"].values()} == set(ranks.values())


def test_the_three_scores_differ(runs):
    found = [importance(runs[cell])["allocation"]["ranks"] for cell in ("sensitivity", "gradient", "eva")]
    assert found[0] != found[1] != found[2] != found[0]


def test_freezing_trains_the_chosen_modules_and_the_head(runs):
    chosen = set(importance(runs["freeze"])["allocation"]["trainable"])
    trained = {name for group in groups(runs["freeze"]) if group["trainable"] for name in group["parameters"]}
    assert {name.rpartition(".")[0] for name in trained if ".layer." in name} == chosen
    assert any(name.startswith("classifier") for name in trained)


def test_rates_follow_importance(runs):
    scales = importance(runs["lr"])["allocation"]["scales"]
    rates = {name.rpartition(".")[0]: group["lr"] for group in groups(runs["lr"]) for name in group["parameters"]}
    for module, scale in scales.items():
        assert rates[module] == pytest.approx(1e-3 * scale)
    assert len({round(scale, 6) for scale in scales.values()}) > 5


def test_an_importance_file_from_elsewhere_gives_the_same_ranks(runs, tmp_path):
    values = {
        "modules": {name: {"scores": m["scores"]} for name, m in importance(runs["sensitivity"])["modules"].items()}
    }
    (tmp_path / "importance.json").write_text(json.dumps(values))
    folder = runs["sensitivity"].parents[1]
    shutil.copytree(folder / "bert", tmp_path / "bert")
    strategy = {"type": "discriminative", "score": "file", "importance_file": str(tmp_path / "importance.json"),
                "mean_rank": 2, "rank_max": 4, "uniform_above": 1.0}  # fmt: skip
    recipe = tiny.write_recipe(
        tmp_path / "r.yaml", tiny.recipe_values(tmp_path / "bert", folder / "data", strategy=strategy)
    )
    done = tiny.launcher("plan", recipe, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    ranks = json.loads(done.stdout)["phases"][0]["phase"]["adapters"]["ranks"]
    assert ranks == importance(runs["sensitivity"])["allocation"]["ranks"]
