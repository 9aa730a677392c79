"""Preempted by a job of a better partition, in both of Slurm's ways; warned early; three times in a row; in a chain."""

from __future__ import annotations

import time

import pytest
from slurm_jobs import SLOW, Site, outcomes, weights

from launcher.atomic import read_jsonl
from launcher.backends.slurm import jobs_of
from launcher.rundir import RunDir
from tests.slurm.cluster import start_cluster

pytestmark = [pytest.mark.slow, pytest.mark.slurm, pytest.mark.timeout(1500)]
TWO_NODES = {"nodes": 2, "processes_per_node": 1, "zero_stage": 2}
_PARTITIONS = (
    "low Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP PriorityTier=1 PreemptMode=REQUEUE GraceTime=20",
    "high Nodes=n1,n2 MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF",
)


@pytest.mark.parametrize("sends_user_signal", [False, True])
def test_a_preempted_job_loses_no_step(cluster, tmp_path, sends_user_signal):
    """Without preempt_send_user_signal every process of the steps gets TERM at once, and the batch shell nothing."""
    options = {"PreemptType": "preempt/partition_prio", "PreemptMode": "REQUEUE"}
    if sends_user_signal:
        options["SlurmctldParameters"] = "preempt_send_user_signal"
    with start_cluster(partitions=_PARTITIONS, options=options) as preempting:
        site = Site.make(preempting, tmp_path / "project")
        # The harder way, which reaches every process of the steps, on two nodes.
        distributed = {"processes_per_node": 1} if sends_user_signal else TWO_NODES
        run = site.submit("low", distributed=distributed, **SLOW)
        site.until_step(run, 3)
        wrap = ("sbatch", "--partition=high", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=sleep 5")
        assert preempting.run(*wrap).returncode == 0
        site.wait(lambda: outcomes(run), run)
        first = site.story(run)["attempts"][0]
        assert (first["kind"], first["lost_steps"]) == ("stopped", 0) and first["to_step"] >= 3, first
        site.until_gone(run)
        assert outcomes(run) == ["stopped", "finished"]
        _every_step_once(run)


def test_three_preemptions_change_nothing_and_take_nothing_from_the_budget_of_crashes(cluster, tmp_path):
    site = Site.make(cluster, tmp_path / "project")
    whole = site.submit("whole", distributed=TWO_NODES, **SLOW)
    site.until_gone(whole)
    run = site.submit("stopped", distributed=TWO_NODES, **SLOW, slurm={"max_crashes": 0})
    for attempt, step in ((1, 3), (2, 15), (3, 30)):
        site.until_step(run, step, attempt=attempt)
        site.warn(run)
        site.wait(lambda attempt=attempt: len(outcomes(run)) >= attempt, run)
    site.until_gone(run)
    assert outcomes(run) == ["stopped"] * 3 + ["finished"]
    assert weights(run) == weights(whole)
    _every_step_once(run)
    assert "job_started" in {row["event"] for row in read_jsonl(run.events)}


@pytest.mark.parametrize("seconds", [0.5])
def test_a_warning_is_safe_from_the_start_on(cluster, tmp_path, seconds):
    site = Site.make(cluster, tmp_path / "project")
    run = site.submit("early", slurm={"preflight": True})
    site.wait(lambda: "RUNNING" in site.queued(run), run)
    time.sleep(seconds)
    site.warn(run)
    site.until_gone(run)
    assert outcomes(run)[-1] == "finished" and set(outcomes(run)[:-1]) <= {"stopped"}
    assert {v["verdict"] for v in run.verdicts(run.last_attempt).values()} == {"finished"}


def test_where_nothing_is_requeued_a_chain_goes_on_and_ends_with_the_run(cluster, tmp_path):
    site = Site.make(cluster, tmp_path / "project")
    site.profile("chained", requeue=False)
    run = site.submit("chain", slurm={"profile": "chained", "chain": 4}, **SLOW)
    assert len(jobs_of(run)) == 4
    assert site.status(run)["job"] == jobs_of(run)[0]
    site.until_step(run, 3)
    assert cluster.run("scancel", "--batch", "--signal=USR1", jobs_of(run)[0]).returncode == 0
    site.until_gone(run)
    assert outcomes(run) == ["stopped", "finished"]
    assert [row["job"] for row in read_jsonl(run.events) if row["event"] == "job_started"] == list(jobs_of(run)[:2])
    assert site.story(run)["attempts"][0]["followed"] == "left to the next job of the chain"


@pytest.mark.soak
@pytest.mark.parametrize("seconds", [number / 2 for number in range(21)])
def test_a_warning_at_any_half_second_is_safe(cluster, tmp_path, seconds):
    test_a_warning_is_safe_from_the_start_on(cluster, tmp_path, seconds)


@pytest.mark.soak
def test_a_chain_of_short_jobs_ends_by_time_limits_alone(cluster, tmp_path):
    """Two minutes for each job, of which Slurm may take one away: it sends warnings up to a minute early."""
    site = Site.make(cluster, tmp_path / "project")
    site.profile("short", requeue=False)
    training = {**SLOW["training"], "num_train_epochs": 260}
    run = site.submit("links", bert="./slow", training=training, slurm={"profile": "short", "time": "2", "chain": 8})
    site.until_gone(run, timeout=1200)
    assert outcomes(run)[-1] == "finished" and set(outcomes(run)[:-1]) == {"stopped"} and len(outcomes(run)) >= 3
    assert all(attempt["lost_steps"] == 0 for attempt in site.story(run)["attempts"])
    _every_step_once(run)


def _every_step_once(run: RunDir) -> None:
    """Hold the ledger to a run that was never interrupted: every step once, none twice."""
    steps = [row["step"] for attempt in range(1, run.last_attempt + 1) for row in read_jsonl(run.ledger(attempt, 0))]
    assert steps == list(range(1, steps[-1] + 1))
