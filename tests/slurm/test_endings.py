"""How attempts end, what follows, and that each gets its true verdict: one node with one rank for each case."""

from __future__ import annotations

import signal

import pytest
import tiny
from slurm_jobs import SLOW, Site, events, outcomes

pytestmark = [pytest.mark.slow, pytest.mark.slurm, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def site(cluster, tmp_path_factory) -> Site:
    return Site.make(cluster, tmp_path_factory.mktemp("endings") / "a b;c")


@pytest.mark.parametrize(
    ("kind", "outcome", "code"),
    [
        ("exit", "crashed", 7),
        ("memory", "out_of_memory", 1),
        pytest.param("error", "crashed", 1, marks=pytest.mark.soak),
    ],
)
def test_a_crash_is_repeated_up_to_its_budget_and_a_lack_of_memory_is_not(site, kind, outcome, code):
    site.faulty(kind, kind=kind, attempts="all", step="2")
    budget = 1 if kind == "exit" else 0
    run = site.submit(kind, slurm={"profile": kind, "max_crashes": budget}, **SLOW)
    site.until_gone(run)
    assert outcomes(run) == [outcome] * (budget + 1)
    assert site.status(run)["state"] == "failed"
    told = site.launcher("explain", run.path).stdout
    assert f"attempt {budget + 1}" in told
    if kind == "memory":
        assert "per_device_train_batch_size=" in run.job_log.read_text()
    else:
        assert f"slurm.max_crashes is {budget}" in told
    assert run.verdicts(1)[0]["exit_code"] == code


def test_a_killed_rank_goes_on_from_its_checkpoint(site):
    run = site.submit("killed", bert="./slow", training={"num_train_epochs": 10, "save_strategy": "steps", "save_steps": 4,
                                                        "eval_strategy": "no"})  # fmt: skip
    site.until_step(run, 9)
    site.signal_rank(run, 0, signal.SIGKILL)
    site.until_gone(run)
    assert outcomes(run) == ["crashed", "finished"]
    first, second = site.story(run)["attempts"]
    assert "SIGKILL" in first["ending"] and first["followed"] == "requeued"
    assert second["from_step"] >= 8 and first["lost_steps"] == first["to_step"] - second["from_step"]


def test_a_loss_that_is_not_finite_ends_the_run(site):
    run = site.submit("nan", training={"learning_rate": 1e30, "max_grad_norm": 0.0})
    site.until_gone(run)
    assert outcomes(run) == ["diverged"]
    assert "not finite" in site.launcher("explain", run.path).stdout


def test_what_no_repetition_mends_is_not_repeated(site):
    tiny.write_data(site.folder / "unlabelled")
    tiny.write_csv(site.folder / "unlabelled" / "train.csv", tiny.rows(9, seed=0), head=("text", "colour"))
    run = site.submit("refused", data={"source": "./unlabelled"})
    site.until_gone(run)
    assert outcomes(run) == ["refused"] and run.verdicts(1)[0]["exit_code"] == 3
    assert "name the columns under data.columns" in site.launcher("explain", run.path).stdout


def test_a_rank_that_is_asked_to_end_saves_and_goes_on_under_one_id_of_wandb(site):
    run = site.submit("term", tracking={"wandb": {"mode": "offline"}}, **SLOW)
    site.until_step(run, 3)
    site.signal_rank(run, 0, signal.SIGTERM)
    site.until_gone(run)
    assert outcomes(run) == ["stopped", "finished"]
    assert site.story(run)["attempts"][0]["lost_steps"] == 0
    files = sorted(run.path.glob("wandb/offline-run-*/*.wandb"))
    assert [path.name for path in files] == [f"run-{run.id}.wandb"] * 2


def test_cancelled_while_it_trains_and_while_it_waits_and_resumed(site):
    run = site.submit("cancelled", **SLOW)
    site.until_step(run, 3)
    site.launcher("cancel", run.path)
    site.until_gone(run)
    assert outcomes(run) == ["cancelled"] and site.status(run)["state"] == "interrupted"
    site.launcher("resume", run.path, "training.num_train_epochs=16", code=6)
    site.launcher("resume", run.path)
    site.until_gone(run)
    assert outcomes(run) == ["cancelled", "finished"]
    assert site.story(run)["attempts"][1]["from_step"] >= 3
    site.launcher("resume", run.path, code=6)
    assert "requeued" not in events(run)
