"""The same runs on a GPU."""

from __future__ import annotations

import json
import subprocess

import pytest
import tiny

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def gpu(require):
    from launcher.planning.hardware import detect_hardware

    require(detect_hardware().gpus, "no GPU is visible")


@pytest.mark.parametrize("distributed", [{}, {"zero_stage": 2}, {"zero_stage": 3}], ids=["plain", "zero-2", "zero-3"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_run_on_one_gpu(place, distributed, precision):
    values = {"precision": precision, "distributed": {"processes_per_node": 1, **distributed}}
    recipe = place.recipe(f"gpu-{precision}-{len(distributed)}", **values)
    done = subprocess.run(
        [tiny.LAUNCHER, "run", str(recipe)], cwd=place.folder, capture_output=True, text=True, env=tiny.environment()
    )
    assert done.returncode == 0, done.stdout + done.stderr
    plan = json.loads((place.newest() / "plan.json").read_text())["launch"]
    assert (plan["device"], plan["precision"]) == ("cuda", precision)
    assert len(tiny.losses(place.newest())) == plan_steps(place)


def plan_steps(place) -> int:
    return json.loads((place.newest() / "plan.json").read_text())["total_steps"]
