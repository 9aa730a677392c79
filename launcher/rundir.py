"""The run directory: its file names and its events. Both halves of the program meet only here.

runs/NAME-NNN/  recipe.yaml  resolved.yaml  plan.json  events.jsonl  progress.jsonl
                attempts/N/  accelerate.yaml deepspeed.json environment.json launch.sh verdict.rank-R.json
                           heartbeat.rank-R.json logs/rank-R.log
                slurm/     job.sh job.json job.log jobs.jsonl done.json (of submitted runs)
                locks/  checkpoints/step-N/  model/  adapter/  importance.json  reference/  skipped.jsonl  evaluation/  report.html  wandb/
"""

from __future__ import annotations

import json
import platform
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from launcher.atomic import append_json, read_jsonl, read_jsonl_end, write_text
from launcher.contracts import JobStatus
from launcher.errors import RunStateError


@dataclass(frozen=True)
class RunDir:
    """Paths and records of one run."""

    path: Path

    # --- making and finding ----------------------------------------------------------------------------------------

    @classmethod
    def create(cls, runs: Path, name: str, *, recipe_text: str, resolved_text: str) -> RunDir:
        """Make the next free ``NAME-NNN`` below ``runs``; two callers at the same time get two directories."""
        runs.mkdir(parents=True, exist_ok=True)
        number = max((_number(path.name, name) for path in runs.iterdir()), default=0)
        while True:
            number += 1
            path = runs / f"{name}-{number:03d}"
            try:
                path.mkdir()
                break
            except FileExistsError:
                continue
        run = cls(path)
        write_text(run.recipe, recipe_text)
        write_text(run.resolved, resolved_text)
        run.add_event("created")
        return run

    @classmethod
    def open(cls, path: Path) -> RunDir:
        """Return an existing run. Raises RunStateError where ``path`` is none."""
        if not (path / "resolved.yaml").is_file():
            known = sorted(p.parent.name for p in path.parent.glob("*/resolved.yaml")) if path.parent.is_dir() else []
            hint = f"; runs there: {', '.join(known[-5:])}" if known else ""
            raise RunStateError(f"{path} is not a run directory (it has no resolved.yaml){hint}")
        return cls(path)

    @property
    def id(self) -> str:
        """The run's name everywhere, also in W&B."""
        return self.path.name

    # --- names -----------------------------------------------------------------------------------------------------

    @property
    def recipe(self) -> Path:
        """The recipe as it was given."""
        return self.path / "recipe.yaml"

    @property
    def resolved(self) -> Path:
        """The recipe with every value."""
        return self.path / "resolved.yaml"

    @property
    def plan(self) -> Path:
        """The run's plan, as JSON."""
        return self.path / "plan.json"

    @property
    def events(self) -> Path:
        """What happened, a line each."""
        return self.path / "events.jsonl"

    @property
    def progress(self) -> Path:
        """Step, loss, rates, metrics, a line each, for machines."""
        return self.path / "progress.jsonl"

    @property
    def slurm(self) -> Path:
        """Folder of what a cluster's jobs need and say."""
        return self.path / "slurm"

    @property
    def job(self) -> Path:
        """What was decided at submission; ``job_facts`` reads it."""
        return self.slurm / "job.json"

    @property
    def job_script(self) -> Path:
        """The job script."""
        return self.slurm / "job.sh"

    @property
    def job_log(self) -> Path:
        """What the job script and the nodes' agents say."""
        return self.slurm / "job.log"

    @property
    def jobs(self) -> Path:
        """The jobs that the run was submitted as, a line each."""
        return self.slurm / "jobs.jsonl"

    @property
    def resume_request(self) -> Path:
        """What the next attempt begins with, where ``resume`` has changed it: recipe and flags."""
        return self.slurm / "resume.json"

    @property
    def cancelled(self) -> Path:
        """A file whose presence says that a person wants no job to go on with the run."""
        return self.slurm / "cancelled"

    @property
    def done(self) -> Path:
        """Why no further job has anything to do for the run; jobs that wait behind it find this, and end."""
        return self.slurm / "done.json"

    @property
    def checkpoints(self) -> Path:
        """Folder of checkpoints."""
        return self.path / "checkpoints"

    @property
    def model(self) -> Path:
        """The finished model, loadable by transformers."""
        return self.path / "model"

    @property
    def adapter(self) -> Path:
        """The finished adapters, loadable by PEFT onto the pretrained model."""
        return self.path / "adapter"

    @property
    def skipped(self) -> Path:
        """Rows of a stream that were left out because they cannot be used, a line each."""
        return self.path / "skipped.jsonl"

    @property
    def reference(self) -> Path:
        """Folder of what the model before training made of each row, for losses that want it."""
        return self.path / "reference"

    @property
    def importance(self) -> Path:
        """What the probe of discriminative fine-tuning found."""
        return self.path / "importance.json"

    @property
    def generations(self) -> Path:
        """What the model answered to the same few prompts at each evaluation: a JSON object a line."""
        return self.path / "generations.jsonl"

    @property
    def chat_template(self) -> Path:
        """The chat template that the run trains with."""
        return self.path / "chat_template.jinja"

    @property
    def evaluation(self) -> Path:
        """Folder of metrics and predictions."""
        return self.path / "evaluation"

    @property
    def report(self) -> Path:
        """The report."""
        return self.path / "report.html"

    def attempt(self, number: int) -> Path:
        """Folder of one attempt."""
        return self.path / "attempts" / str(number)

    def log(self, attempt: int, rank: int) -> Path:
        """A rank's log."""
        return self.attempt(attempt) / "logs" / f"rank-{rank}.log"

    def verdict(self, attempt: int, rank: int) -> Path:
        """How a rank ended."""
        return self.attempt(attempt) / f"verdict.rank-{rank}.json"

    def ledger(self, attempt: int, rank: int) -> Path:
        """Ids of the rows that a rank trained on, a line for each step."""
        return self.attempt(attempt) / f"ledger.rank-{rank}.jsonl"

    def memory(self, attempt: int, rank: int) -> Path:
        """What a rank has used of memory."""
        return self.attempt(attempt) / f"memory.rank-{rank}.json"

    def saved_model(self, attempt: int) -> Path:
        """Folder of the comparison of the saved model with the live one."""
        return self.attempt(attempt) / "saved_model"

    def deepspeed(self, attempt: int) -> Path:
        """The DeepSpeed configuration of an attempt, resolved; there is none for other engines."""
        return self.attempt(attempt) / "deepspeed.json"

    def place(self, attempt: int) -> Path:
        """Where an attempt runs on a cluster: job, nodes, address and port of the first one."""
        return self.attempt(attempt) / "slurm.json"

    def preflight(self, attempt: int, node: int) -> Path:
        """What a node's look at itself, before the ranks start, has found."""
        return self.attempt(attempt) / f"preflight.node-{node}.json"

    def preflight_over(self, attempt: int) -> Path:
        """A file whose presence says that a node has ended its look; the job script waits for the others only so long."""
        return self.attempt(attempt) / "preflight.over"

    def launch_plan(self, attempt: int) -> Path:
        """What the front half decided and every rank asserts."""
        return self.attempt(attempt) / "launch.json"

    def attempt_recipe(self, attempt: int) -> Path:
        """The recipe of an attempt with every value; the newest attempt's is also ``resolved``."""
        return self.attempt(attempt) / "resolved.yaml"

    def resume_note(self, attempt: int) -> Path:
        """What was said when the attempt was begun by ``resume``: which keys had changed, and the flags."""
        return self.attempt(attempt) / "resume.json"

    def prepared(self, attempt: int) -> Path:
        """Written by rank 0 when the data are ready: where the other ranks find them."""
        return self.attempt(attempt) / "prepared.json"

    def probe_note(self, attempt: int) -> Path:
        """Written by rank 0 when it is known whether a probe has to run."""
        return self.attempt(attempt) / "probe.json"

    def job_facts(self) -> dict[str, Any]:
        """Return what was decided at submission: ``base_folder``, ``profile`` (name, path, values), ``chain`` (jobs), ``prepare``
        (whether a job prepares the data), and ``checkpoint_bytes`` (of one checkpoint; None: not known).
        """
        facts: dict[str, Any] = json.loads(self.job.read_text())
        return facts

    def log_lines(self, rank: int) -> Iterator[str]:
        """Yield the lines of a rank's log, of the newest attempt."""
        with self.log(self.last_attempt, rank).open(errors="replace") as file:
            yield from file

    # --- attempts and events ---------------------------------------------------------------------------------------

    @property
    def last_attempt(self) -> int:
        """Number of the newest attempt; 0 before the first."""
        folder = self.path / "attempts"
        return max((int(p.name) for p in folder.iterdir() if p.name.isdigit()), default=0) if folder.is_dir() else 0

    def new_attempt(self) -> int:
        """Make the folder of the next attempt and return its number. Raises RunStateError where another launcher just did."""
        number = self.last_attempt + 1
        folder = self.attempt(number)
        folder.parent.mkdir(exist_ok=True)
        try:
            folder.mkdir()
        except FileExistsError:
            raise RunStateError(f"{self.path}: another launcher has just begun attempt {number}; wait for it") from None
        (folder / "logs").mkdir()
        return number

    @property
    def locks(self) -> Path:
        """Folder of the locks of the launcher and of each rank."""
        return self.path / "locks"

    def reserve(self, attempt: int, rank: int) -> Path:
        """Room on the disk for a rank's verdict, while it runs."""
        return self.attempt(attempt) / f"reserve.rank-{rank}"

    def heartbeat(self, attempt: int, rank: int) -> Path:
        """What a rank does, and since when."""
        return self.attempt(attempt) / f"heartbeat.rank-{rank}.json"

    def heartbeats(self, attempt: int) -> dict[int, dict[str, Any]]:
        """Return rank -> its newest heartbeat, for the ranks of an attempt that have begun."""
        return _by_rank(self.attempt(attempt), "heartbeat")

    def stop_request(self, attempt: int) -> Path:
        """A file whose presence asks the ranks of an attempt to save and stop at their next step."""
        return self.attempt(attempt) / "stop"

    def add_event(self, event: str, **facts: Any) -> None:
        """Append to events.jsonl."""
        append_json(self.events, {"time": time.time(), "event": event, **facts})

    def verdicts(self, attempt: int) -> dict[int, dict[str, Any]]:
        """Return rank -> how it ended, for the ranks of an attempt that wrote a verdict."""
        return _by_rank(self.attempt(attempt), "verdict")

    def live_ranks(self, attempt: int) -> list[int]:
        """Return the process ids of an attempt's ranks that still run on this machine."""
        running = [verdict for verdict in self.verdicts(attempt).values() if verdict["verdict"] == "running"]
        return [int(v["pid"]) for v in running if is_that_process(v)]

    def processes(self, attempt: int) -> dict[int, int]:
        """Return rank -> process id of an attempt's ranks that exist on this machine, also after their verdict."""
        return {rank: int(v["pid"]) for rank, v in self.verdicts(attempt).items() if "pid" in v and is_that_process(v)}

    def status(self) -> JobStatus:
        """Derive the run's state from its events."""
        state, reason, total = "created", "", None
        for row in read_jsonl(self.events):
            if row["event"] in ("running", "interrupted", "failed", "finished"):
                state, reason = row["event"], row.get("reason", "")
            total = row.get("total_steps", total)
        steps = [row["step"] for row in read_jsonl_end(self.progress, rows=10) if "step" in row]
        return JobStatus(state, self.last_attempt, steps[-1] if steps else None, total, reason)  # type: ignore[arg-type]

    def latest_checkpoint(self) -> Path | None:
        """Return the newest checkpoint whose manifest, written last, matches the sizes of its files."""
        found: Iterator[Path] = self.checkpoints.glob("step-*") if self.checkpoints.is_dir() else iter(())
        for path in sorted(found, key=lambda p: int(p.name.split("-")[1]), reverse=True):
            if is_complete(path):
                return path
        return None


def is_complete(checkpoint: Path) -> bool:
    """Whether the manifest of a checkpoint exists and every file that it names has the size that it states."""
    try:
        manifest = json.loads((checkpoint / "MANIFEST.json").read_text())
        return all((checkpoint / name).stat().st_size == size for name, size in manifest["files"].items())
    except (OSError, ValueError, KeyError):
        return False


def _number(folder: str, name: str) -> int:
    match = re.fullmatch(re.escape(name) + r"-(\d+)", folder)
    return int(match[1]) if match else 0


def is_that_process(record: Mapping[str, Any]) -> bool:
    """Whether the process that wrote ``record`` (pid, host, time) still runs here, and not a later one with its number."""
    if record.get("host", platform.node()) != platform.node():
        return False
    try:
        process = psutil.Process(int(record["pid"]))
        started_before = process.create_time() <= record.get("time", float("inf"))
        return bool(started_before and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _by_rank(folder: Path, name: str) -> dict[int, dict[str, Any]]:
    found = {}
    for path in folder.glob(f"{name}.rank-*.json"):
        found[int(path.stem.rsplit("-", 1)[1])] = json.loads(path.read_text())
    return dict(sorted(found.items()))
