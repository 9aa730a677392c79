"""Runs as jobs of a real cluster: two nodes with one rank each."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import tiny

from launcher.atomic import read_jsonl
from launcher.rundir import RunDir

pytestmark = [pytest.mark.slow, pytest.mark.slurm, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    found = tmp_path_factory.mktemp("jobs") / "it's a project"
    found.mkdir()
    tiny.save_bert(found / "bert")
    tiny.write_data(found / "data")
    return found


def submit(cluster, folder: Path, name: str, stage: int, **training) -> RunDir:
    distributed = {"nodes": 2, "processes_per_node": 1, "zero_stage": stage}
    values = tiny.recipe_values("./bert", "./data", name=name, distributed=distributed, training=training)
    recipe = tiny.write_recipe(folder / f"{name}.yaml", values)
    done = tiny.launcher("submit", recipe, cwd=folder, env=cluster.environment)
    assert done.returncode == 0, done.stderr
    return RunDir(folder / "runs" / f"{name}-001")


def wait_for(found, *, run: RunDir, timeout: float = 300) -> None:
    ends = time.monotonic() + timeout
    while not found():
        log = run.job_log.read_text()[-3000:] if run.job_log.is_file() else "no job.log"
        assert time.monotonic() < ends, log
        time.sleep(0.1)


def status(cluster, folder: Path, run: RunDir) -> dict:
    done = tiny.launcher("status", run.path, "--json", cwd=folder, env=cluster.environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)[0]


def events(run: RunDir) -> list[str]:
    return [row["event"] for row in read_jsonl(run.events)]


@pytest.mark.parametrize("stage", [2, 3])
def test_a_run_of_two_nodes_ends_with_a_report(cluster, folder, stage):
    run = submit(cluster, folder, f"zero-{stage}", stage)
    assert status(cluster, folder, run)["state"] in ("queued", "created", "running")
    wait_for(lambda: "finished" in events(run) and not cluster.run("squeue", "-h").stdout.strip(), run=run)
    assert run.report.is_file() and (run.model / "model.safetensors").is_file()
    found = status(cluster, folder, run)
    assert (found["state"], found["step"]) == ("finished", found["total_steps"])
    told = tiny.launcher("explain", run.path, cwd=folder, env=cluster.environment).stdout
    assert "on n1, n2" in told and "finished" in told
    assert sorted(run.verdicts(1)) == [0, 1]


def test_a_warned_job_saves_is_requeued_and_ends_as_the_uninterrupted_run(cluster, folder):
    whole = folder / "runs" / "zero-2-001"
    assert (whole / "model/model.safetensors").is_file(), "made by the test above"
    run = submit(cluster, folder, "warned", 2)
    wait_for(lambda: any("loss" in row for row in read_jsonl(run.progress)), run=run)
    job = str(read_jsonl(run.slurm / "jobs.jsonl")[-1]["job"])
    assert cluster.run("scancel", "--batch", "--signal=USR1", job).returncode == 0
    wait_for(lambda: "requeued" in events(run), run=run)
    # A requeued job is held for two minutes; root may let it go at once.
    wait_for(lambda: "PENDING" in cluster.run("squeue", "-h", "-o", "%T").stdout, run=run)
    cluster.run("scontrol", "update", f"JobId={job}", "StartTime=now")
    wait_for(lambda: "finished" in events(run), run=run)
    wait_for(lambda: not cluster.run("squeue", "-h").stdout.strip(), run=run)
    assert run.last_attempt == 2
    assert {v["verdict"] for v in run.verdicts(1).values()} == {"interrupted"}
    assert (run.model / "model.safetensors").read_bytes() == (whole / "model/model.safetensors").read_bytes()
    told = tiny.launcher("explain", run.path, cwd=folder, env=cluster.environment).stdout
    assert "attempt 1" in told and "attempt 2" in told and "restarted 1 times" in told


def test_a_dry_run_submits_nothing(cluster, folder):
    distributed = {"nodes": 2, "processes_per_node": 1}
    recipe = tiny.write_recipe(
        folder / "dry.yaml", tiny.recipe_values("./bert", "./data", name="dry", distributed=distributed)
    )
    done = tiny.launcher("submit", recipe, "--dry-run", cwd=folder, env=cluster.environment)
    assert done.returncode == 0 and done.stdout == (folder / "runs/dry-001/slurm/job.sh").read_text()
    assert not cluster.run("squeue", "-h").stdout.strip()
