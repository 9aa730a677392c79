"""The job script is a pure function of plan and profile, and no value of either can carry a command or a line of its own."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from pydantic import ValidationError

from launcher.launching.job_script import JobPlan, job_script, prepare_script
from launcher.plans import BatchPlan, LaunchPlan
from launcher.recipe.cluster_profile import ClusterProfile, Container

GOLDEN = Path(__file__).parents[1] / "golden"
PLAN = JobPlan(
    runs=(Path("/data/runs/topics-001"),),
    base_folder=Path("/home/a/project"),
    python="/home/a/.venv/bin/python",
    launch=LaunchPlan("deepspeed", 3, "bf16", "cuda", 4, 8, BatchPlan(64, 32, 2, 1)),
    time="12:00:00",
)
PROFILE = ClusterProfile(
    partition="gpu", account="team", gpus_per_node=8, gpu="h100-80gb", cpus_per_node=96, memory_per_node="900G", modules=("cuda/12.8",),
    environment={"NCCL_IB_HCA": "mlx5"}, mail_user="a@b.org", exclusive=True,
)  # fmt: skip
HOSTILE = ("a b", "a;b", "a\n#SBATCH --account=x", "$(touch x)", "`touch x`", 'a"b', "a'b", "a#b", "a,b\\", "")


@pytest.mark.parametrize(
    ("name", "profile"),
    [
        ("plain", ClusterProfile()),
        ("gpus", PROFILE),
        ("array", ClusterProfile(requeue=False)),
        ("prepare", PROFILE.model_copy(update={"prepare_partition": "cpu"})),
        (
            "pyxis",
            PROFILE.model_copy(
                update={"container": Container(runtime="pyxis", image="nvcr.io#nvidia/pytorch:26.01-py3")}
            ),
        ),
        (
            "apptainer",
            PROFILE.model_copy(update={"container": Container(runtime="apptainer", image="/images/a b.sif")}),
        ),
    ],
)
def test_the_text_is_the_golden_one(name, profile):
    plan = replace(PLAN, runs=(*PLAN.runs, Path("/data/runs/it's 2"))) if name == "array" else PLAN
    text = prepare_script(plan, profile) if name == "prepare" else job_script(plan, profile)
    golden = GOLDEN / f"job-{name}.sh"
    assert subprocess.run(["bash", "-n"], input=text, text=True).returncode == 0
    assert text == golden.read_text(), f"if it is meant, write it to {golden}"


@pytest.mark.parametrize("value", HOSTILE)
@pytest.mark.parametrize(
    "field",
    [
        "partition",
        "account",
        "qos",
        "reservation",
        "gres",
        "memory_per_node",
        "constraint",
        "exclude",
        "mail_user",
        "mail_type",
    ],
)
def test_what_stands_in_a_directive_has_no_room_for_more(field, value):
    with pytest.raises(ValidationError):
        ClusterProfile.model_validate({field: value})


@pytest.mark.parametrize(
    "text",
    [
        "it's $(touch {x})",
        "`touch {x}`; touch {x}",
        '"; touch {x} #',
        "&& touch {x}",
        "a\\",
        "a\n#SBATCH --account=x\ntouch {x}",
    ],
)
def test_what_is_quoted_is_not_run(tmp_path, text):
    """Everything that a shell could take for a command, in paths and variables; what the script would start is only shown."""
    folder = tmp_path / "run"
    (folder / "slurm").mkdir(parents=True)
    hostile = text.replace("{x}", str(tmp_path / "touched"))
    profile = ClusterProfile(environment={"SITE": hostile.replace("\n", " ")})
    script = job_script(
        replace(PLAN, runs=(folder,), base_folder=tmp_path, python=str(tmp_path / "no python" / hostile)), profile
    )
    subprocess.run(["bash", "-c", script], timeout=20, capture_output=True, env={"PATH": "/usr/bin:/bin"})
    assert not (tmp_path / "touched").exists()


def test_a_line_break_in_a_variable_is_refused():
    with pytest.raises(ValidationError, match="line break"):
        ClusterProfile(environment={"SITE": "a\n#SBATCH --account=x"})


# Stands for the interpreter: its first call begins an attempt, and every call writes down its words.
PYTHON = """#!/bin/bash
printf '%s\\0' "$@" END >>{said}
if [ "$3" = begin ]; then echo 1; fi
"""
# Stands for srun: writes down its words.
SRUN = """#!/bin/bash
printf '%s\\0' "$@" END >>{said}
"""
SPOKEN = (
    "a b",
    "it's",
    '"',
    "$(touch {x})",
    "`touch {x}`",
    "; touch {x} #",
    "&& touch {x}",
    "\\",
    "#SBATCH --account=x",
    "--wrap=y",
    "*",
)


@pytest.mark.parametrize("text", SPOKEN)
@pytest.mark.parametrize("runtime", ["pyxis", "apptainer"])
def test_every_value_that_a_shell_sees_arrives_as_it_was_written(tmp_path, text, runtime):
    """The script is run, with srun and the interpreter replaced by what writes down its words."""
    hostile = text.replace("{x}", str(tmp_path / "touched"))
    folder = tmp_path / f"project {hostile}".replace("/", "_")
    run = folder / "runs" / "one-001"
    (run / "attempts/1").mkdir(parents=True)
    bin_folder, said = tmp_path / "bin", tmp_path / "said"
    bin_folder.mkdir()
    python = bin_folder / f"python {hostile}".replace("/", "_")
    for path, script in ((python, PYTHON), (bin_folder / "srun", SRUN)):
        path.write_text(script.format(said=said))
        path.chmod(0o755)
    profile = ClusterProfile(
        environment={"SITE": hostile},
        container=Container(runtime=runtime, image=hostile, mounts=(f"/mnt/{hostile}",), python=f"/opt/{hostile}"),
    )
    script = job_script(replace(PLAN, runs=(run,), base_folder=folder, python=str(python)), profile)
    environment = {"PATH": f"{bin_folder}:/usr/bin:/bin", "SLURM_JOB_ID": "7"}
    done = subprocess.run(["bash", "-c", script], timeout=20, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr + (run / "slurm/job.log").read_text()
    assert not (tmp_path / "touched").exists()
    calls = [call.split("\0")[:-1] for call in said.read_text().split("END\0")[:-1]]
    assert [call[2] for call in calls if call[:2] == ["-m", "launcher.job"]] == ["begin", "end"]
    assert all(call[call.index("--run") + 1] == str(run) for call in calls)
    preflight, node = (call for call in calls if call[:2] != ["-m", "launcher.job"])
    for words, what in ((preflight, "preflight"), (node, "node")):
        place = words.index("launcher.job")
        assert words[place - 2 : place + 2] == [f"/opt/{hostile}", "-m", "launcher.job", what]
        image = [f"--container-image={hostile}"] if runtime == "pyxis" else [hostile]
        assert image[0] in words
        assert any(f"/mnt/{hostile}" in word for word in words)


@pytest.mark.parametrize("mount", ["/a:/b", "/a,/b"])
def test_what_a_container_runtime_would_split_is_refused(mount):
    with pytest.raises(ValidationError, match="comma or a colon"):
        Container(runtime="pyxis", image="x", mounts=(mount,))
