"""What tests do with runs on a cluster: submit, wait, let a requeued job go at once, look."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tiny

from launcher.atomic import read_jsonl
from launcher.backends.slurm import jobs_of
from launcher.rundir import RunDir
from tests.slurm.cluster import Cluster

SLOW: dict[str, Any] = {
    "bert": "./slow", "training": {"global_batch_size": 16, "num_train_epochs": 15, "eval_strategy": "no", "save_strategy": "no"},
}  # fmt: skip
"""A run of 60 steps, some twelve seconds, that saves only when it is asked to stop."""
FAULTS = Path(__file__).parent / "slurm" / "faults"


@dataclass
class Site:
    """A project folder (with a name that needs quoting) and the cluster that its runs are submitted to."""

    cluster: Cluster
    folder: Path
    _held_since: float = 0.0

    @classmethod
    def make(cls, cluster: Cluster, folder: Path) -> Site:
        """Write a tiny model and tiny data."""
        folder.mkdir()
        tiny.save_bert(folder / "bert")
        # Its steps take a fifth of a second, so that a run of some dozens is still training when something happens to it.
        size = {"hidden_size": 256, "num_hidden_layers": 4, "intermediate_size": 1024, "num_attention_heads": 4}
        tiny.save_bert(folder / "slow", **size)
        tiny.write_data(folder / "data")
        return cls(cluster, folder)

    # --- starting ----------------------------------------------------------------------------------------------------

    def recipe(self, name: str, **changes: Any) -> Path:
        """Write a recipe. Without a preflight, unless ``slurm`` says otherwise: it takes its time, and has tests of its own."""
        slurm = {"preflight": False, **changes.pop("slurm", {})}
        values = tiny.recipe_values(changes.pop("bert", "./bert"), "./data", name=name, slurm=slurm, **changes)
        return tiny.write_recipe(self.folder / f"{name}.yaml", values)

    def profile(self, name: str, **values: Any) -> None:
        """Write a cluster profile of the project."""
        (self.folder / "slurm").mkdir(exist_ok=True)
        (self.folder / "slurm" / f"{name}.yaml").write_text(
            json.dumps({"cpus_per_node": 1, "warn_seconds": 30, **values})
        )

    def faulty(self, name: str, *, cpus: int = 1, **faults: str) -> None:
        """Write a profile whose jobs ask for ``cpus`` and run into a fault; see faults/sitecustomize.py."""
        environment = {"PYTHONPATH": str(FAULTS), **{f"FAULT_{k.upper()}": v for k, v in faults.items()}}
        self.profile(name, cpus_per_node=cpus, environment=environment)

    def launcher(self, *arguments: Any, code: int | None = 0) -> Any:
        """Run a verb in the project's folder."""
        done = tiny.launcher(*arguments, cwd=self.folder, env=self.cluster.environment)
        assert code is None or done.returncode == code, done.stdout + done.stderr
        return done

    def submit(self, name: str, *arguments: str, **changes: Any) -> RunDir:
        """Submit a run of a recipe that is written for it."""
        self.launcher("submit", self.recipe(name, **changes), *arguments)
        return self.run(name)

    def run(self, name: str) -> RunDir:
        """Return the first run of a name."""
        return RunDir(self.folder / "runs" / f"{name}-001")

    # --- waiting -----------------------------------------------------------------------------------------------------

    def wait(self, found: Callable[[], object], run: RunDir, timeout: float = 240) -> None:
        """Wait until ``found`` is true; a requeued job, which Slurm holds for two minutes, is let go at once meanwhile."""
        ends = time.monotonic() + timeout
        while not found():
            log = run.job_log.read_text()[-3000:] if run.job_log.is_file() else "no job.log"
            assert time.monotonic() < ends, f"{log}\n{events(run)}\n{self.cluster.run('squeue').stdout}"
            self.let_go(run)
            time.sleep(0.1)

    def let_go(self, run: RunDir) -> None:
        """End the hold of a requeued job; root may do that. Not again and again: each time the scheduler begins anew.

        And not at once, which is what the hold is for: a job that starts again in the second in which it was ended is thrown away
        ("Job credential revoked").
        """
        last = [row for row in read_jsonl(run.events) if row["event"] in ("requeued", "job_started")][-1:]
        if not last or last[0]["event"] != "requeued" or "PENDING" not in self.queued(run):
            self._held_since = time.monotonic()
        elif time.monotonic() - self._held_since > 3:
            self._held_since = time.monotonic() + 17
            self.cluster.run("scontrol", "update", f"JobId={jobs_of(run)[0]}", "StartTime=now")

    def until_gone(self, run: RunDir, timeout: float = 240) -> None:
        """Wait until none of the run's jobs is left, and its end is written down."""
        self.wait(lambda: run.done.exists(), run, timeout)
        self.wait(lambda: not self.queued(run), run, timeout)

    def until_step(self, run: RunDir, step: int, *, attempt: int = 1) -> None:
        """Wait until an attempt has made a step."""
        self.wait(
            lambda: any(r.get("step", 0) >= step and r["attempt"] == attempt for r in read_jsonl(run.progress)), run
        )

    def queued(self, run: RunDir) -> list[str]:
        """Return the states of the run's jobs that are in the queue."""
        wanted = ",".join(jobs_of(run))
        return self.cluster.run("squeue", "-h", "-o", "%T", f"--jobs={wanted}").stdout.split() if wanted else []

    # --- looking -----------------------------------------------------------------------------------------------------

    def status(self, run: RunDir) -> dict[str, Any]:
        """Return what `launcher status` says of a run."""
        return json.loads(self.launcher("status", run.path, "--json").stdout)[0]

    def story(self, run: RunDir) -> dict[str, Any]:
        """Return what `launcher explain` says of a run."""
        return json.loads(self.launcher("explain", run.path, "--json").stdout)

    # --- disturbing --------------------------------------------------------------------------------------------------

    def warn(self, run: RunDir) -> None:
        """Send what Slurm sends before the time limit."""
        done = self.cluster.run("scancel", "--batch", "--signal=USR1", jobs_of(run)[-1])
        assert done.returncode == 0, done.stderr

    def signal_rank(self, run: RunDir, rank: int, number: signal.Signals) -> None:
        """Signal one rank of the newest attempt."""
        os.kill(run.processes(run.last_attempt)[rank], number)


def events(run: RunDir) -> list[str]:
    """Return the names of what has happened."""
    return [row["event"] for row in read_jsonl(run.events)]


def outcomes(run: RunDir) -> list[str]:
    """Return how the attempts ended, in order."""
    return [row["kind"] for row in read_jsonl(run.events) if row["event"] == "attempt_ended"]


def weights(run: RunDir) -> bytes:
    """Return the finished model's weights."""
    return (run.model / "model.safetensors").read_bytes()
