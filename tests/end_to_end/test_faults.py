"""Faults while a run trains and saves: nothing valid is lost, every verdict is right, and no process stays behind.

Most tests do several things to one run, because a start costs more than the training.
"""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny
from started import Started, processes_of, rank_pid, verdicts, wait_for

from launcher.atomic import read_jsonl
from launcher.rundir import RunDir

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3000)]

# With dropout: the state of the random numbers has to come back too. A save at every step.
TRAINING = {
    "num_train_epochs": 1, "global_batch_size": 8, "eval_strategy": "no", "load_best_model_at_end": False,
    "save_strategy": "steps", "save_steps": 1, "save_total_limit": 3, "lr_scheduler_type": "cosine",
}  # fmt: skip
STEPS = 51  # an epoch
SOAK_EPOCHS = 4
TWO = {"processes_per_node": 2, "zero_stage": 2}


@pytest.fixture(autouse=True)
def nothing_left(place) -> Iterator[None]:
    """Whatever a test does, its processes end with it."""
    yield
    for process in processes_of(place.folder / "runs"):
        process.kill()


def recipe(place, name: str, distributed: dict[str, Any] | None = None, **training: Any) -> Path:
    return place.recipe(
        name, name=name, distributed=distributed or {"processes_per_node": 1}, training={**TRAINING, **training},
        evaluation={"bootstrap": 0, "baselines": []},
    )  # fmt: skip


@pytest.fixture(scope="module")
def whole(place):
    """Return a function: distributed -> the finished run that nothing interrupted, made once."""
    runs: dict[str, Path] = {}

    def make(distributed: dict[str, Any], epochs: int = 1) -> Path:
        name = f"faults-whole-{epochs}-" + "-".join(
            f"{key}{value}" for key, value in sorted(distributed.items())
        ).replace("_", "-")
        if name not in runs:
            path = recipe(place, name, distributed, save_steps=50, num_train_epochs=epochs)
            done = tiny.launcher("run", path, cwd=place.folder, timeout=900)
            assert done.returncode == 0, done.stdout + done.stderr
            runs[name] = place.folder / "runs" / f"{name}-001"
        return runs[name]

    return make


def same_model(run: Path, wanted: Path) -> bool:
    file = "model/model.safetensors"
    return (run / file).read_bytes() == (wanted / file).read_bytes()


def saved_steps(run: Path) -> list[int]:
    """The steps of which the run has said that their checkpoint is there."""
    return [row["step"] for row in read_jsonl(run / "events.jsonl") if row["event"] == "checkpoint"]


def newest(run: Path) -> int:
    checkpoint = RunDir(run).latest_checkpoint()
    return 0 if checkpoint is None else int(checkpoint.name.split("-")[1])


def is_saving(run: Path) -> bool:
    return any((run / "checkpoints").glob("partial-*"))


def wait_for_checkpoint(started: Started, run: Path, step: int) -> None:
    wait_for(lambda: newest(run) >= step, process=started.process, timeout=900)


def hit(run: Path, *, attempt: int, rank: int = 0, number: int = signal.SIGKILL) -> None:
    os.kill(rank_pid(run, rank, attempt=attempt), number)


# --- killed while it saves, and two that resume at once --------------------------------------------------------------


def kill_and_check(started: Started, run: Path, *, attempt: int, rank: int = 0) -> None:
    """Kill a rank; the launcher has to say so, and what was complete before has to be there."""
    before = newest(run)
    hit(run, attempt=attempt, rank=rank)
    code, _, err = started.end(timeout=120)
    assert code == 137 and f"rank {rank} killed" in err and "SIGKILL" in err, err
    assert processes_of(run) == []
    assert newest(run) >= before, "a checkpoint that was complete is gone"
    assert newest(run) >= max(saved_steps(run), default=0)
    verdict = verdicts(run, attempt)[rank]
    assert (verdict["verdict"], verdict["signal"], verdict["exit_code"]) == ("killed", "SIGKILL", 137)
    assert RunDir.open(run).status().state == "failed"


def test_killed_in_a_save_and_resumed_twice_at_once_it_is_the_same_run(place, whole):
    started = Started("run", recipe(place, "kill-in-save"), cwd=place.folder)
    run = started.run
    wait_for_checkpoint(started, run, 3)
    wait_for(lambda: is_saving(run), process=started.process)
    kill_and_check(started, run, attempt=1)

    both = [Started("resume", run, cwd=place.folder) for _ in range(2)]
    ends = [one.end(timeout=900) for one in both]
    codes = sorted(code for code, _, _ in ends)
    assert codes == [0, 6], ends
    refused = next(err for code, _, err in ends if code == 6)
    holder = next(one.process.pid for one, (code, _, _) in zip(both, ends, strict=True) if code == 0)
    assert f"process {holder} on" in refused and "since" in refused, refused
    assert sorted(path.name for path in (run / "attempts").iterdir()) == ["1", "2"]
    assert same_model(run, whole({"processes_per_node": 1}))
    assert sorted(tiny.ledger(run)) == list(range(1, STEPS + 1))


# --- damaged checkpoints ---------------------------------------------------------------------------------------------


def largest(checkpoint: Path, pattern: str = "*") -> Path:
    return max((path for path in checkpoint.rglob(pattern) if path.is_file()), key=lambda path: path.stat().st_size)


def test_damaged_checkpoints_are_set_aside_and_the_newest_valid_one_is_resumed(place, whole):
    started = Started("run", recipe(place, "damaged", save_total_limit=6), cwd=place.folder)
    run = started.run
    wait_for_checkpoint(started, run, 6)
    hit(run, attempt=1)
    started.end()
    kept = sorted((int(path.name.split("-")[1]) for path in (run / "checkpoints").glob("step-*")), reverse=True)
    truncated, flipped, missing, good = (run / "checkpoints" / f"step-{step}" for step in kept[:4])
    weights = largest(truncated, "*.safetensors")
    os.truncate(weights, weights.stat().st_size // 2)
    state = largest(flipped)
    content = bytearray(state.read_bytes())
    content[len(content) // 2] ^= 1
    state.write_bytes(content)
    next(missing.glob("scheduler*")).unlink()
    intact = {path.relative_to(good): path.read_bytes() for path in good.rglob("*") if path.is_file()}
    saved_aside = shutil.copytree(good, place.folder / "copy-of-good")

    done = tiny.launcher("resume", run, cwd=place.folder, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    for bad in (truncated, flipped, missing):
        assert f"{bad.name} is not valid" in done.stdout, done.stdout
        assert list((run / "checkpoints/quarantine").glob(f"{bad.name}-*")), "it is kept for those who want to look"
    assert f"continuing from {good.name}" in done.stdout
    assert {
        path.relative_to(saved_aside): path.read_bytes() for path in saved_aside.rglob("*") if path.is_file()
    } == intact
    assert same_model(run, whole({"processes_per_node": 1}))


# --- a full disk -----------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path, require) -> Iterator[Path]:
    """A file system of 200 MB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=200m", "none", folder], capture_output=True, text=True
    )
    require(mounted.returncode == 0, f"needs to mount a tmpfs, which takes root: {mounted.stderr.strip()}")
    yield folder
    for process in processes_of(folder):
        process.kill()
    subprocess.run(["umount", "--lazy", folder], check=True)


def fill(disk: Path) -> None:
    """Take what is left, but for less than a checkpoint; the run writes meanwhile."""
    with (disk / "ballast").open("wb") as file:
        while True:
            try:
                os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(disk).free - 2**16)
                return
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise


def test_a_disk_that_fills_in_a_save_loses_no_checkpoint(place, whole, small_disk):
    path = recipe(place, "full-disk", save_total_limit=99)
    started = Started("run", path, "--runs-dir", small_disk / "runs", cwd=place.folder)
    run = small_disk / "runs" / "full-disk-001"
    wait_for(lambda: run.is_dir() and newest(run) >= 3, process=started.process, timeout=900)
    wait_for(lambda: is_saving(run), process=started.process)
    fill(small_disk)
    before = newest(run)
    code, _, err = started.end(timeout=120)
    assert code == 5, err
    assert "full" in err or "left" in err, err
    assert "Traceback" not in err.split("rank 0 failed")[-1], err
    assert processes_of(run) == []
    assert newest(run) >= before >= 3 and not is_saving(run)
    assert [(v["verdict"], v["exit_code"]) for v in verdicts(run, 1)] == [("failed", 5)]
    assert RunDir.open(run).status().state == "failed"

    (small_disk / "ballast").unlink()
    done = tiny.launcher("resume", run, cwd=place.folder, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    assert same_model(run, whole({"processes_per_node": 1}))


# --- two ranks: one killed, one stopped ------------------------------------------------------------------------------


def test_one_of_two_ranks_is_killed_then_stopped_then_continued(place, whole):
    """ZeRO-2, whose state lies on both. After it all, the run is the one that nothing interrupted."""
    started = Started("run", recipe(place, "two-faults", {**TWO, "timeout": 20}), cwd=place.folder)
    run = started.run
    wait_for_checkpoint(started, run, 3)
    kill_and_check(started, run, attempt=1, rank=1)
    assert "rank 1 killed" in RunDir.open(run).status().reason

    # Stopped for good: named at once, and ended within the deadline.
    started = Started("resume", run, cwd=place.folder)
    before = newest(run)
    wait_for_checkpoint(started, run, before + 3)
    hit(run, attempt=2, rank=1, number=signal.SIGSTOP)
    begin = time.monotonic()
    pid = rank_pid(run, 1, attempt=2)
    stopped = lambda: [row for row in read_jsonl(run / "events.jsonl") if row["event"] == "rank_stopped"]  # noqa: E731
    wait_for(stopped, process=started.process, timeout=15)
    assert (stopped()[0]["rank"], stopped()[0]["pid"]) == (1, pid)
    assert time.monotonic() - begin < 10, "a stopped process is seen at once, not only at the deadline"
    code, _, err = started.end(timeout=120)
    assert time.monotonic() - begin < 20 + 25
    assert code == 9, err
    assert f"rank 1 (pid {pid} on" in err and "stopped (SIGSTOP)" in err and "rank 1 stalled" in err, err
    assert processes_of(run) == []
    assert [verdict["verdict"] for verdict in verdicts(run, 2)] == ["ended", "stalled"]
    assert verdicts(run, 2)[1]["exit_code"] == 9
    assert "all_reduce" in (run / "attempts/2/logs/rank-0.log").read_text() + "all_reduce", "where the other one waits"
    assert RunDir.open(run).status().state == "failed" and "SIGSTOP" in RunDir.open(run).status().reason

    # Stopped for a while: it is waited for.
    started = Started("resume", run, cwd=place.folder)
    before = newest(run)
    wait_for_checkpoint(started, run, before + 2)
    hit(run, attempt=3, rank=0, number=signal.SIGSTOP)
    wait_for(lambda: len(stopped()) == 2, process=started.process, timeout=15)
    hit(run, attempt=3, rank=0, number=signal.SIGCONT)
    code, _, err = started.end(timeout=900)
    assert code == 0, err
    assert [verdict["verdict"] for verdict in verdicts(run, 3)] == ["finished", "finished"]
    assert same_model(run, whole(TWO))


# --- 20 random moments -----------------------------------------------------------------------------------------------


@pytest.mark.soak
@pytest.mark.timeout(7200)
@pytest.mark.parametrize(
    "distributed",
    [{"processes_per_node": 1}, {"processes_per_node": 2}, TWO, {"processes_per_node": 2, "zero_stage": 3}],
    ids=["single", "ddp", "zero-2", "zero-3"],
)
def test_killed_at_twenty_random_moments(place, whole, distributed):
    """A rank, or the launcher itself, is killed again and again: while it starts, trains, saves."""
    seed = int(os.environ.get("LAUNCHER_TEST_SEED") or time.time_ns() % 2**32)
    print(f"seed {seed}; LAUNCHER_TEST_SEED={seed} repeats it")
    dice = random.Random(seed)
    ranks = distributed["processes_per_node"]
    name = "soak-" + "-".join(f"{key}{value}" for key, value in sorted(distributed.items())).replace("_", "-")
    started = Started("run", recipe(place, name, distributed, num_train_epochs=SOAK_EPOCHS), cwd=place.folder)
    run = started.run
    for attempt in range(1, 21):
        moment = dice.choice(["start", "train", "save", "save"])
        victim = dice.choice([*range(ranks), "launcher"])
        before = newest(run)
        if moment == "start":
            time.sleep(dice.uniform(0, 15))
        else:
            wait_for(lambda before=before: newest(run) >= before + 1, process=started.process, timeout=900)
            if moment == "save":
                wait_for(lambda: is_saving(run), process=started.process)
            time.sleep(dice.uniform(0, 0.05))
        before = newest(run)
        try:
            pid = started.process.pid if victim == "launcher" else rank_pid(run, victim, attempt=attempt)
        except FileNotFoundError:
            # The rank has not yet begun.
            victim, pid = "launcher", started.process.pid
        print(f"attempt {attempt}: {victim} killed in {moment} after step {before}", flush=True)
        os.kill(pid, signal.SIGKILL)
        code, _, err = started.end(timeout=180)
        assert code != 0
        wait_for(lambda: processes_of(run) == [], timeout=90)
        assert newest(run) >= before and newest(run) >= max(saved_steps(run), default=0)
        if victim != "launcher":
            ended = verdicts(run, attempt)
            assert ended[victim]["verdict"] == "killed" and f"rank {victim} killed" in err, (ended, err)
            assert not [one for one in ended if one["verdict"] == "running"]
        assert newest(run) < SOAK_EPOCHS * STEPS, "it was killed too late to tell anything"
        started = Started("resume", run, cwd=place.folder)
    code, out, err = started.end(timeout=900)
    assert code == 0, out + err
    assert same_model(run, whole(distributed, SOAK_EPOCHS))
    assert sorted(tiny.ledger(run)) == list(range(1, SOAK_EPOCHS * STEPS + 1))
    assert json.loads((run / "attempts/21/verdict.rank-0.json").read_text())["verdict"] == "finished"
