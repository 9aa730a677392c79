"""The look at nodes before training, without Slurm: nodes are processes of this machine, on its loopback address."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import tiny

from launcher.atomic import write_json
from launcher.backends.slurm import unstarted_nodes
from launcher.launching.render import Node
from launcher.plans import BatchPlan, LaunchPlan
from launcher.rundir import RunDir
from launcher.workflows import preflight
from launcher.workflows.preflight import look_at_node, unfit_node

# Changes the node's own patience, or makes it late, before its part begins as in a job.
_NODE = """
import sys, time
from launcher import job
from launcher.workflows import preflight
late = float(sys.argv.pop(1))
preflight._SEE_SECONDS = preflight._MEET_SECONDS = float(sys.argv.pop(1))
meet = preflight._meet
preflight._meet = lambda *arguments: (time.sleep(late), meet(*arguments))[1]
sys.exit(job.main())
"""


def plan_of(nodes: int) -> LaunchPlan:
    return LaunchPlan("ddp", None, "fp32", "cpu", nodes, 1, BatchPlan(8, nodes, 1, 8))


def make_run(folder: Path, nodes: int, **sections: Any) -> RunDir:
    (folder / "model").mkdir(parents=True)
    values = tiny.recipe_values(folder / "model", folder, **{"data": {"cache_dir": str(folder / "cache")}, **sections})
    run = RunDir.create(folder / "runs", "fit", recipe_text="", resolved_text=json.dumps(values))
    run.new_attempt()
    run.slurm.mkdir()
    write_json(run.job, {"checkpoint_bytes": 1000})
    write_json(run.launch_plan(1), {"plan": asdict(plan_of(nodes)), "base_folder": str(folder)})
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        head, port = probe.getsockname()
    write_json(run.place(1), {"nodes": [f"n{i + 1}" for i in range(nodes)], "head": head, "port": port})
    return run


def faults_of(run: RunDir) -> list[list[str | None]]:
    return [
        fault
        for path in run.attempt(1).glob("preflight.node-*.json")
        for fault in json.loads(path.read_text())["faults"]
    ]


# --- a node alone ----------------------------------------------------------------------------------------------------


def look_alone(run: RunDir, plan: LaunchPlan | None = None) -> tuple[str, ...]:
    return look_at_node(run, 1, Node(0, "127.0.0.1", 0), nodes=("n1",), plan=plan or plan_of(1))


@pytest.fixture
def alone(tmp_path) -> RunDir:
    return make_run(tmp_path, 1)


def test_a_fit_node_has_no_fault(alone):
    assert look_alone(alone) == ()
    assert unfit_node(alone, 1) is None
    found = json.loads(alone.preflight(1, 0).read_text())
    assert found["facts"]["versions"]["torch"] and not found["faults"]
    assert alone.preflight_over(1).exists()


def test_a_disk_without_room_for_two_checkpoints(alone):
    write_json(alone.job, {"checkpoint_bytes": 2**60})
    (fault,) = look_alone(alone)
    assert fault.startswith("n1: ") and "two checkpoints take 2147483648.0 GiB" in fault
    assert unfit_node(alone, 1) == ("n1", f"preflight: node {fault}")


def test_fewer_processors_than_were_asked_for(alone, monkeypatch):
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "4096")
    (fault,) = look_alone(alone)
    assert "processor(s) can be used, and 4096 were asked for" in fault


def test_a_model_of_the_hub_that_an_offline_node_lacks(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    run = make_run(tmp_path, 1, model={"name_or_path": "some/model"})
    (fault,) = look_alone(run)
    assert "some/model is not in this node's cache" in fault and "hf download some/model" in fault
    (tmp_path / "hf/hub/models--some--model/snapshots/1").mkdir(parents=True)
    assert look_alone(run) == ()


def test_a_model_folder_that_a_node_lacks(tmp_path):
    run = make_run(tmp_path, 1)
    (tmp_path / "model").rmdir()
    (fault,) = look_alone(run)
    assert "there is no such folder" in fault


def test_a_cache_that_cannot_be_made(tmp_path):
    run = make_run(tmp_path, 1)
    (tmp_path / "cache").write_text("a file")
    (fault,) = look_alone(run)
    assert fault.startswith("n1: cache: FileExistsError")


def test_gpus_that_a_node_lacks(alone, monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "1")
    (fault,) = look_alone(alone, replace(plan_of(1), device="cuda", processes_per_node=4))
    assert "1 GPU(s) can be used, and 4 ranks are to run here" in fault


def test_a_node_that_never_shows_itself_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(preflight, "_SEE_SECONDS", 0.5)
    run = make_run(tmp_path, 2)
    (fault,) = look_at_node(run, 1, Node(0, "127.0.0.1", 0), nodes=("n1", "n2"), plan=plan_of(2))
    assert fault.startswith("n2: n1 has not seen it within")
    node, reason = unfit_node(run, 1) or ("", "")
    assert node == "n2" and reason == f"preflight: node {fault}"


def test_what_a_node_says_of_itself_goes_before_what_others_say_of_it(alone):
    write_json(alone.preflight(1, 0), {"node": "n1", "faults": [["n3", "it has not reached n1"]]})
    assert unfit_node(alone, 1) == ("n3", "preflight: node n3: it has not reached n1")
    write_json(alone.preflight(1, 2), {"node": "n3", "faults": [[None, "the cache is not shared"]]})
    assert unfit_node(alone, 1) == (None, "preflight: the cache is not shared")
    write_json(
        alone.preflight(1, 1), {"node": "n2", "faults": [[None, "the sum is wrong"], ["n2", "its disk is full"]]}
    )
    assert unfit_node(alone, 1) == ("n2", "preflight: node n2: its disk is full")


def test_nodes_on_which_slurm_could_not_start_are_read_from_what_srun_says():
    said = (
        "preflight: n1: all is well\n"
        "srun: error: Task launch for StepId=1.0 failed on node n2: Communication connection failure\n"
        "srun: error: Application launch failed: Communication connection failure\n"
        "srun: error: Task launch for 17.0 failed on node n3: Invalid job credential\n"
    )
    assert unstarted_nodes(said) == {"n2": "Communication connection failure", "n3": "Invalid job credential"}


# --- several nodes ---------------------------------------------------------------------------------------------------


def look_together(
    runs: list[RunDir], *, late: float = 0, patience: float = 20, last: Mapping[str, str] | None = None
) -> tuple[list[int], str]:
    """Start a node for each run directory, all of the same run; return their exit codes, and what they have said.

    Args:
        late: seconds that the last node is late to meet the others.
        patience: seconds for which nodes wait for each other.
        last: environment of the last node.
    """
    started = []
    for number, run in enumerate(runs):
        is_last = number == len(runs) - 1
        command = [sys.executable, "-c", _NODE, str(late if is_last else 0), str(patience), "preflight"]
        environment = tiny.environment(SLURM_NODEID=str(number), **(last or {} if is_last else {}))
        command += ["--run", str(run.path), "--attempt", "1"]
        started.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True))
    said = "".join(process.communicate(timeout=120)[1] for process in started)
    return [process.returncode for process in started], said


@pytest.mark.slow
def test_three_nodes_meet_and_none_goes_ahead_while_one_is_late(tmp_path):
    """Torch, which uses the same port afterwards, would otherwise meet the ones that still wait for the late node."""
    run = make_run(tmp_path, 3)
    codes, said = look_together([run] * 3, late=2.0)
    assert codes == [0, 0, 0], said
    assert "TCPStore" not in said
    looks = [json.loads(run.preflight(1, number).read_text()) for number in range(3)]
    assert not faults_of(run) and all("sum_seconds" in look["facts"] for look in looks)
    assert looks[2]["facts"]["address"] == "127.0.0.1" and looks[2]["facts"]["interface"] == "lo"


@pytest.mark.slow
def test_a_node_with_another_version_is_named(tmp_path):
    run = make_run(tmp_path / "a", 2)
    info = tmp_path / "other" / "peft-9.9.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: peft\nVersion: 9.9\n")
    path = os.pathsep.join([str(info.parent), os.environ.get("PYTHONPATH", "")])
    codes, said = look_together([run] * 2, last={"PYTHONPATH": path})
    assert 11 in codes, said
    node, reason = unfit_node(run, 1) or ("", "")
    assert node == "n2" and "it has peft 9.9, and n1 has" in reason


@pytest.mark.slow
def test_a_run_folder_that_nodes_do_not_share_is_named(tmp_path):
    run = make_run(tmp_path / "a", 2)
    shutil.copytree(run.path, tmp_path / "b" / run.id)
    codes, said = look_together([run, RunDir(tmp_path / "b" / run.id)], patience=5)
    assert codes == [11, 11], said
    node, reason = unfit_node(run, 1) or ("", "")
    assert node == "n2" and f"{run.path} is not the same folder there" in reason


@pytest.mark.slow
def test_a_cache_that_nodes_do_not_share_is_named(tmp_path):
    run = make_run(tmp_path, 2, data={"cache_dir": None})
    codes, said = look_together([run] * 2, patience=5, last={"XDG_CACHE_HOME": str(tmp_path / "own")})
    assert codes[1] == 11, said
    node, reason = unfit_node(run, 1) or ("", "")
    assert node is None and "n2 does not see that folder; set data.cache_dir" in reason
