"""``launcher plan`` on machines that are not at hand: what it shows, what it refuses, and what it must not need."""

from __future__ import annotations

import json
import resource
from pathlib import Path

import pytest
import tiny
from typer.testing import CliRunner

from launcher.cli import app
from launcher.errors import RecipeError

LLAMA = "llm/llama3-8b-full"


def invoke(*arguments: str):
    return CliRunner().invoke(app, ["plan", *arguments])


def offline(*arguments: str, cwd: Path):
    """The installed command, without a network: the hub's name does not resolve."""
    return tiny.launcher("plan", *arguments, cwd=cwd, env={"HF_ENDPOINT": "https://hub.invalid", "COLUMNS": "100"})


@pytest.fixture(scope="module")
def planned(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("planned")
    tiny.save_bert(folder / "bert")
    tiny.write_data(folder / "data", train=21, validation=9, test=6)
    return tiny.write_recipe(folder / "r.yaml", tiny.recipe_values(folder / "bert", folder / "data"))


# --- a small model ---------------------------------------------------------------------------------------------------


def test_a_plan_shows_memory_time_and_disk(planned):
    done = invoke(str(planned))
    assert done.exit_code == 0, done.exception
    for word in ("memory of each process, estimate", "fits        yes: ", "smallest    single", "micro-batch 8 rows",
                 "tokens      ", "process-hours", "checkpoint  ", "disk        "):  # fmt: skip
        assert word in done.stdout, word
    assert "head-room" in done.stdout and "estimate" in done.stdout


def test_flags_are_keys_of_the_recipe(planned):
    done = invoke(str(planned), "--gpu", "l4", "--gpus-per-node", "2", "--nodes", "3", "--json")
    assert done.exit_code == 0, done.exception
    found = json.loads(done.stdout)
    launch = found["launch"]
    assert (launch["nodes"], launch["processes_per_node"], launch["device"]) == (3, 2, "cuda")
    assert found["whole"]["gpu"] == "l4-24gb" and found["whole"]["fits"] is True
    assert {"training", "evaluation", "saving"} <= set(found["whole"]["forecast"]["memory"]["moments"])
    assert found["whole"]["forecast"]["memory"]["largest_micro_batch"] > 8


def test_a_stated_speed_decides_the_time(planned):
    found = json.loads(invoke(str(planned), "--throughput", "100", "--json").stdout)["whole"]["forecast"]
    assert found["speed"]["source"] == "stated"
    assert found["time"]["seconds"] == pytest.approx(found["time"]["tokens"] / 100)


def test_what_cannot_be_asked_for(planned):
    done = invoke(str(planned), "--gpu", "h10-80gb")
    assert isinstance(done.exception, RecipeError) and "did you mean 'h100-80gb'" in str(done.exception)
    assert invoke(str(planned), "--gpu", "h100", "--measure").exit_code == 2
    assert invoke(str(planned), "--nodes", "0").exit_code == 2


def test_a_gpu_without_bf16_has_another_precision(planned):
    found = json.loads(invoke(str(planned), "precision=auto", "--gpu", "v100-16gb", "--json").stdout)
    assert found["launch"]["precision"] == "fp32"


# --- eight billion parameters ----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_llama_is_planned_offline_and_quickly(tmp_path):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = offline(LLAMA, "--gpu", "h100-80gb", "--gpus-per-node", "8", cwd=tmp_path)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "8,030,261,248 of 8,030,261,248 train" in done.stdout and "fits        yes" in done.stdout
    assert "not read: they are not in the local cache" in done.stdout
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    # On an idle machine it takes 10 seconds at most; a busy one counts more seconds for the same work.
    assert spent < 25
    assert max(len(line) for line in done.stdout.splitlines() if not line.startswith("command")) < 160


@pytest.mark.slow
def test_llama_on_one_gpu_is_refused_with_a_change_that_fits(tmp_path):
    done = offline(LLAMA, "--gpu", "h100-80gb", "--gpus-per-node", "1", "--json", cwd=tmp_path)
    assert done.returncode == 2, done.stderr[-2000:]
    assert "the cheapest change that fits: " in done.stderr and "distributed.offload=" in done.stderr
    assert "Traceback" not in done.stderr
    found = json.loads(done.stdout)["whole"]
    assert found["fits"] is False
    keys = found["forecast"]["memory"]["remedy_keys"]
    again = offline(LLAMA, *keys, "--gpu", "h100-80gb", "--gpus-per-node", "1", cwd=tmp_path)
    assert again.returncode == 0, again.stderr[-2000:]
