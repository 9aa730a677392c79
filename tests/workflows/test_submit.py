"""What is handed to Slurm, by commands that write down their words: chains, arrays, prepared data, and what is refused before."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import tiny

from launcher.backends.slurm import jobs_of
from launcher.rundir import RunDir

SBATCH = """#!/bin/bash
echo "sbatch $*" >>{log}
if [ "$(grep -c ^sbatch {log})" -gt "{at_most}" ]; then echo "sbatch: error: QOSMaxSubmitJobPerUserLimit" >&2; exit 1; fi
grep -c ^sbatch {log}
"""
OTHER = """#!/bin/bash
echo "$(basename "$0") $*" >>{log}
if [ "$(basename "$0")" = squeue ]; then cat {queue}; fi
"""


class Slurm:
    """A folder of Slurm's commands, and a project that uses them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.project = folder / "bin", folder / "project"
        self.log, self.queue = folder / "said", folder / "queue"
        self.queue.write_text("")
        self.folder.mkdir()
        (self.project / "slurm").mkdir(parents=True)
        self.accept(at_most=99)
        for name in ("scancel", "squeue", "scontrol", "sinfo"):
            self._write(name, OTHER.format(log=self.log, queue=self.queue))
        tiny.save_bert(self.project / "bert")
        tiny.write_data(self.project / "data")

    def accept(self, *, at_most: int) -> None:
        self._write("sbatch", SBATCH.format(log=self.log, at_most=at_most))

    def _write(self, name: str, script: str) -> None:
        (self.folder / name).write_text(script)
        (self.folder / name).chmod(0o755)

    def recipe(self, name: str, **changes: object) -> Path:
        return tiny.write_recipe(
            self.project / f"{name}.yaml", tiny.recipe_values("./bert", "./data", name=name, **changes)
        )

    def profile(self, **values: object) -> None:
        (self.project / "slurm/default.yaml").write_text(json.dumps(values))

    def launcher(self, *words: object, code: int = 0) -> str:
        path = f"{self.folder}{os.pathsep}{os.environ['PATH']}"
        done = tiny.launcher(*words, cwd=self.project, env={"PATH": path})
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    def run(self, name: str) -> RunDir:
        return RunDir(self.project / "runs" / name)

    def said(self) -> list[str]:
        lines = self.log.read_text().splitlines() if self.log.is_file() else []
        return [line.replace(str(self.project / "runs") + "/", "") for line in lines if not line.startswith("squeue")]


@pytest.fixture
def slurm(tmp_path) -> Slurm:
    return Slurm(tmp_path)


def test_a_run_is_one_job(slurm):
    said = slurm.launcher("submit", slurm.recipe("one"), "training.seed=3")
    assert slurm.said() == ["sbatch --parsable one-001/slurm/job.sh"]
    assert jobs_of(slurm.run("one-001")) == ("1",) and "profile default, which sets nothing" in said


def test_where_nothing_is_requeued_each_job_waits_for_the_one_before(slurm):
    slurm.profile(requeue=False)
    slurm.launcher("submit", slurm.recipe("one", slurm={"chain": 3}))
    assert slurm.said() == [
        "sbatch --parsable one-001/slurm/job.sh",
        "sbatch --parsable --dependency=afterany:1 one-001/slurm/job.sh",
        "sbatch --parsable --dependency=afterany:2 one-001/slurm/job.sh",
    ]
    assert "#SBATCH --no-requeue" in slurm.run("one-001").job_script.read_text()


def test_recipes_and_seeds_are_one_array(slurm):
    slurm.launcher("submit", slurm.recipe("a"), slurm.recipe("b"), "--seeds", "1,2", "--at-a-time", "3")
    assert slurm.said() == ["sbatch --parsable --array=0-3%3 a-001/slurm/array.sh"]
    assert [jobs_of(slurm.run(name)) for name in ("a-001", "a-002", "b-001", "b-002")] == [
        ("1_0",), ("1_1",), ("1_2",), ("1_3",),
    ]  # fmt: skip


def test_training_waits_for_the_job_that_prepares_its_data(slurm):
    slurm.profile(prepare_partition="cpu")
    slurm.launcher("submit", slurm.recipe("one"))
    assert slurm.said() == [
        "sbatch --parsable one-001/slurm/prepare.sh",
        "sbatch --parsable --dependency=afterok:1 --kill-on-invalid-dep=yes one-001/slurm/job.sh",
    ]


def test_of_a_chain_that_slurm_refuses_half_way_nothing_is_left(slurm):
    slurm.profile(requeue=False)
    slurm.accept(at_most=2)
    said = slurm.launcher("submit", slurm.recipe("one", slurm={"chain": 4}), code=5)
    assert "QOSMaxSubmitJobPerUserLimit" in said and "launcher resume" in said
    assert slurm.said()[-1] == "scancel 1 2" and jobs_of(slurm.run("one-001")) == ()
    slurm.accept(at_most=99)
    slurm.launcher("resume", slurm.run("one-001").path)
    assert len(jobs_of(slurm.run("one-001"))) == 4


@pytest.mark.parametrize(
    ("profile", "words", "said"),
    [
        ({}, ["slurm.time=2"], "slurm.time is 2, and default warns a job 180 s before its limit"),
        ({}, ["slurm.time=soon"], "it must be MINUTES"),
        ({}, ["slurm.chain=3"], "slurm.chain is 3 but has no effect: jobs of default are requeued"),
        ({"partition": "a b"}, [], "partition is 'a b'; it must be a name"),
        ({"gpus_per_node": 1, "gpu": "abacus"}, [], "abacus"),
        ({}, ["--profile", "nope"], "there is no cluster profile 'nope'"),
        ({}, ["--at-a-time", "2"], "has no effect"),
        ({}, ["--seeds", "1,1"], "must name each seed once"),
        ({}, ["other.yaml"], "submit them separately"),
    ],
)
def test_what_is_refused_leaves_no_directory(slurm, profile, words, said):
    slurm.profile(**profile)
    slurm.recipe("other", distributed={"nodes": 2, "processes_per_node": 1})
    shown = " ".join(slurm.launcher("submit", slurm.recipe("one"), *words, code=2).replace("│", " ").split())
    assert said in shown
    assert not (slurm.project / "runs").exists() and not slurm.said()


def test_what_does_not_fit_onto_the_sites_gpus_is_refused_with_the_cheapest_change(slurm):
    slurm.profile(gpus_per_node=1, gpu="h100-80gb")
    said = slurm.launcher("submit", "llm/llama3-8b-full", code=2)
    assert "the cheapest change that fits" in said and not slurm.said()


def test_cancelling_one_run_of_an_array_leaves_the_others_alone(slurm):
    slurm.launcher("submit", slurm.recipe("a"), "--seeds", "1-3")
    slurm.queue.write_text("".join(f"1_{n}|PENDING|Resources||0:00|1:00\n" for n in range(3)))
    slurm.launcher("cancel", slurm.run("a-002").path)
    assert slurm.said()[-1] == "scancel 1_1"
    slurm.launcher("resume", slurm.run("a-003").path, code=6)
    slurm.queue.write_text("1_0|RUNNING|None|n1|0:10|1:00\n1_2|PENDING|Resources||0:00|1:00\n")
    slurm.launcher("resume", slurm.run("a-002").path)
    assert jobs_of(slurm.run("a-002"))[-1] != "1_1"


def test_a_run_that_has_ended_is_not_cancelled(slurm):
    slurm.launcher("submit", slurm.recipe("a"))
    run = slurm.run("a-001")
    run.add_event("finished", attempt=1)
    said = slurm.launcher("cancel", run.path, code=6)
    assert "nothing to cancel" in said and run.status().state == "finished" and not run.cancelled.exists()
