"""What is submitted, and how it looks from outside: arrays, prepared data, hostile names, processors, hangs, excluded nodes."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
import tiny
from slurm_jobs import SLOW, Site, events, outcomes

from launcher.atomic import read_jsonl
from launcher.backends.slurm import jobs_of
from launcher.recipe.load import load_recipe
from launcher.rundir import RunDir

pytestmark = [pytest.mark.slow, pytest.mark.slurm, pytest.mark.timeout(600)]
TWO_NODES = {"nodes": 2, "processes_per_node": 1}


@pytest.fixture(scope="module")
def site(cluster, tmp_path_factory) -> Site:
    # Quotes, a blank, a comma, a command and what looks like an option stand in the path of everything.
    return Site.make(cluster, tmp_path_factory.mktemp("submission") / 'it\'s, a $(touch gone) `x` --wrap="y";#SBATCH')


def test_seeds_are_an_array_with_a_directory_each(site):
    site.profile("plain")
    recipe = site.recipe("seeds", slurm={"profile": "plain"})
    said = site.launcher("submit", recipe, "--seeds", "1-3", "--at-a-time", "2").stdout
    runs = [RunDir(site.folder / "runs" / f"seeds-00{number}") for number in (1, 2, 3)]
    numbers = [jobs_of(run)[0] for run in runs]
    assert all(f"runs/seeds-00{n + 1}  job: {numbers[n]}" in said for n in range(3))
    assert [number.partition("_")[2] for number in numbers] == ["0", "1", "2"]
    site.wait(lambda: len(site.cluster.run("squeue", "-h", "-r", "-t", "RUNNING").stdout.splitlines()) == 2, runs[0])
    rows = json.loads(site.launcher("status", "--json", "--all").stdout)
    waiting = [row for row in rows if row["run"].endswith("seeds-003")]
    assert waiting[0]["state"] == "queued" and "JobArrayTaskLimit" in waiting[0]["queue"]
    for run in runs:
        site.until_gone(run)
        assert outcomes(run) == ["finished"]
    seeds = [load_recipe(run.resolved).recipe.training.seed for run in runs]
    assert seeds == [1, 2, 3]
    assert not list(site.folder.rglob("gone")) and not list(site.folder.parent.glob("gone"))


def test_data_are_prepared_once_in_a_job_of_their_own(site):
    """Two nodes with two ranks each; what was counted is the process that tokenized."""
    site.profile("prepared", cpus_per_node=2, prepare_partition="main")
    tiny.write_data(site.folder / "other", train=47)
    run = site.submit(
        "prepared", slurm={"profile": "prepared", "preflight": True}, data={"source": "./other"},
        distributed={"nodes": 2, "processes_per_node": 2},
    )  # fmt: skip
    site.until_gone(run)
    assert outcomes(run) == ["finished"] and sorted(run.verdicts(1)) == [0, 1, 2, 3]
    assert events(run).index("prepared") < events(run).index("job_started")
    folder = next(row["folder"] for row in read_jsonl(run.events) if row["event"] == "prepared")
    assert json.loads(run.prepared(1).read_text())["folder"] == folder
    # The other ranks, and the first one in its own job, have read what that one job wrote.
    started = next(row["time"] for row in read_jsonl(run.events) if row["event"] == "job_started")
    assert all(path.stat().st_mtime < started for path in Path(folder).rglob("*") if path.is_file())
    for number in (0, 1):
        look = json.loads(run.preflight(1, number).read_text())
        # Without -c in srun one of the two processors would be left.
        assert look["facts"]["processors"] == 2 and not look["faults"] and look["seconds"] < 55


def test_data_that_cannot_be_prepared_end_the_run_before_it_waits_for_nodes(site):
    site.profile("prepared", prepare_partition="main")
    tiny.write_data(site.folder / "unlabelled")
    tiny.write_csv(site.folder / "unlabelled" / "train.csv", tiny.rows(9, seed=0), head=("text", "colour"))
    run = site.submit("unprepared", slurm={"profile": "prepared"}, data={"source": "./unlabelled"})
    site.until_gone(run)
    assert "job_started" not in events(run)
    now = site.status(run)
    assert now["state"] == "failed" and "name the columns" in now["reason"]


def test_a_rank_that_hangs_is_named_on_another_node_and_the_run_goes_on(site):
    run = site.submit("hangs", distributed={**TWO_NODES, "timeout": 10}, **SLOW)
    site.until_step(run, 3)
    site.signal_rank(run, 1, signal.SIGSTOP)
    site.wait(lambda: "rank_stopped" in events(run), run)
    site.until_gone(run)
    assert outcomes(run) == ["crashed", "finished"]
    first = site.story(run)["attempts"][0]
    assert "rank 1" in first["ending"] and "stopped" in first["ending"]
    ended = next(row for row in read_jsonl(run.events) if row["event"] == "attempt_ended")
    assert (ended["rank"], ended["node"]) == (1, "n2")


def test_a_job_is_not_submitted_twice_and_a_script_can_be_submitted_by_hand(site):
    run = site.submit("twice", **SLOW)
    site.launcher("resume", run.path, code=6)
    site.launcher("cancel", run.path)
    # A job that has not begun leaves the queue without a word; one that has writes its end down.
    site.wait(lambda: not site.queued(run), run)
    run.done.unlink(missing_ok=True)
    run.cancelled.unlink()
    assert site.cluster.run("sbatch", str(run.job_script)).returncode == 0
    site.wait(lambda: run.done.exists(), run)
    assert outcomes(run)[-1] == "finished"
    site.wait(lambda: not site.cluster.run("squeue", "-h").stdout.strip(), run)
