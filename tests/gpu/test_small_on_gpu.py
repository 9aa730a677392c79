"""Small runs on one GPU: engines, a probe, a prefix cache, a range test, a resumed run, and what is done with a finished model."""

from __future__ import annotations

import json
import math
from pathlib import Path

import cells
import pytest
import tiny

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def folder(gpus: int, tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("small")
    tiny.save_bert(found / "bert", hidden_dropout_prob=0.1)
    tiny.write_data(found / "data", train=96)
    return found


def recipe(folder: Path, name: str, **changes: object) -> Path:
    changes = {"evaluation": {"verify_saved": True}, **changes}
    return tiny.write_recipe(folder / f"{name}.yaml", tiny.recipe_values("./bert", "./data", name=name, **changes))


def finish(folder: Path, path: Path) -> Path:
    done = tiny.launcher("run", path, cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    run = max((folder / "runs").glob(f"{path.stem}-[0-9]*"))
    assert json.loads((run / "model/MANIFEST.json").read_text())["verification"]["passed"]
    return run


@pytest.mark.parametrize("distributed", [{}, {"zero_stage": 2}, {"zero_stage": 3}], ids=["plain", "zero-2", "zero-3"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_run(folder, distributed, precision):
    name = f"run-{precision}-{distributed.get('zero_stage', 0)}"
    path = recipe(folder, name, precision=precision, distributed={"processes_per_node": 1, **distributed})
    run = finish(folder, path)
    plan = json.loads((run / "plan.json").read_text())
    assert (plan["launch"]["device"], plan["launch"]["precision"]) == ("cuda", precision)
    assert len(tiny.losses(run)) == plan["total_steps"]


@pytest.mark.parametrize("place", ["memory", "disk"])
def test_a_prefix_cache_changes_no_loss(folder, place):
    frozen = {"type": "layerwise", "freeze_layers": 1, "frozen_eval": True}
    cached, plain = (
        tiny.losses(finish(folder, recipe(folder, f"cache-{kind}-{place}", strategy={**frozen, "prefix_cache": kind})))
        for kind in (place, "off")
    )
    assert cached == pytest.approx(plain, rel=1e-4)


def test_a_probe(folder):
    strategy = {"type": "discriminative", "probe_rank": 4, "rank_max": 4, "probe_steps": 6, "mean_rank": 2}
    run = finish(folder, recipe(folder, "probe", strategy=strategy))
    scores = [module["scores"] for module in json.loads((run / "importance.json").read_text())["modules"].values()]
    assert scores and all(math.isfinite(value) for values in scores for value in values.values())


def test_a_range_test(folder):
    done = tiny.launcher("lr-find", recipe(folder, "range"), "--json", cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_finished_model_predicts_what_the_run_predicted(folder):
    run = finish(folder, recipe(folder, "predict"))
    before = json.loads((run / "evaluation/metrics.json").read_text())["metrics"]
    done = tiny.launcher("evaluate", run, cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads((run / "evaluation/metrics.json").read_text())["metrics"] == pytest.approx(before)


@pytest.mark.parametrize("name", ["bf16", "lora"])
def test_the_tiny_form_of_a_cell(gpus, tmp_path_factory, name):
    place = cells.make_place(tmp_path_factory.mktemp("cells"), cells.TINY)
    cells.check_run(cells.run_cell(place, cells.TINY, name), cells.CELLS[name], device="cuda")
