"""Nodes that are unfit, or lose their agent: named, avoided where there are others, and nothing left behind."""

from __future__ import annotations

import os
import signal

import psutil
import pytest
from slurm_jobs import SLOW, Site, outcomes

from launcher.atomic import read_jsonl
from tests.slurm.cluster import start_cluster

pytestmark = [pytest.mark.slow, pytest.mark.slurm, pytest.mark.timeout(600)]
TWO_NODES = {"nodes": 2, "processes_per_node": 1}


def test_an_unfit_node_is_named_and_left_out_where_another_is_free(cluster, tmp_path):
    with start_cluster(nodes=3) as larger:
        site = Site.make(larger, tmp_path / "project")
        site.faulty("unfit", cpus=2, node="n2")
        run = site.submit("unfit", slurm={"profile": "unfit", "preflight": True}, distributed=TWO_NODES)
        site.until_gone(run)
        assert outcomes(run) == ["preflight", "finished"]
        first, second = site.story(run)["attempts"]
        assert "node n2: 1 processor(s) can be used, and 2 were asked for" in first["ending"]
        assert first["to_step"] is None and first["followed"] == "requeued, away from n2"
        assert second["where"].startswith("job 1 on n1, n3")


def test_where_no_other_node_is_free_the_job_ends_with_the_fault(cluster, tmp_path):
    site = Site.make(cluster, tmp_path / "project")
    site.faulty("unfit", cpus=2, node="n2")
    slurm = {"profile": "unfit", "preflight": True, "max_crashes": 0}
    run = site.submit("unfit", slurm=slurm, distributed=TWO_NODES)
    site.until_gone(run)
    assert outcomes(run) == ["preflight"] and not run.progress.exists()
    ended = next(row for row in read_jsonl(run.events) if row["event"] == "attempt_ended")
    assert (ended["node"], ended["exit_code"]) == ("n2", 11)
    now = site.status(run)
    assert now["state"] == "failed" and "n2" in now["reason"]


@pytest.mark.soak
def test_an_agent_that_is_killed_takes_its_ranks_along_and_the_run_goes_on(cluster, tmp_path):
    site = Site.make(cluster, tmp_path / "project")
    run = site.submit("agent", distributed=TWO_NODES, **SLOW)
    site.until_step(run, 3)
    ranks = list(run.processes(1).values())
    agents = [
        process for process in psutil.process_iter()
        if process.cmdline()[1:4] == ["-m", "launcher.job", "node"] and process.environ()["SLURMD_NODENAME"] == "n2"
    ]  # fmt: skip
    assert len(agents) == 1
    os.kill(agents[0].pid, signal.SIGKILL)
    site.until_gone(run)
    # Its ranks are told that it is gone, and save.
    assert outcomes(run) in (["stopped", "finished"], ["crashed", "finished"])
    assert not any(psutil.pid_exists(pid) for pid in ranks)
