"""What this machine has of what launcher needs: each finding with a verdict and a remedy, without importing torch."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from launcher.data.prepare import cache_folder
from launcher.engine.session import package_version
from launcher.engine.tracking import can_reach, has_key, server
from launcher.errors import RecipeError
from launcher.planning.hardware import detect_hardware
from launcher.recipe.model_files import hub_home
from launcher.recipe.profiles import DEFAULT, find_profile, list_profiles, profile_folders
from launcher.recipe.schema import Recipe
from launcher.tasks.hub_words import token_state
from launcher.tasks.models import is_offline
from launcher.workflows.model_look import model_findings

# What the project was tested with; another version may work, and is reported.
TESTED = {
    "torch": "2.13.0",
    "transformers": "5.23.0",
    "accelerate": "1.15.0",
    "deepspeed": "0.19.8",
    "datasets": "5.2.0",
    "peft": "0.21.2",
    "wandb": "0.31.0",
}
_WANTED_DISK = 10 * 2**30


Verdict = Literal["ok", "warning", "missing", "fault"]
"""``fault``: a run of the recipe would end on it."""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    name: str
    verdict: Verdict
    found: str
    remedy: str = ""


def examine_machine() -> list[Finding]:
    """Return all findings on the machine, in the order in which a reader wants them."""
    checks: Iterable[Callable[[], list[Finding]]] = (
        _python, _packages, _devices, _compilers, _disk, _hub, _wandb, _slurm, _profiles,
    )  # fmt: skip
    return [finding for check in checks for finding in check()]


def examine_models(recipe: Recipe) -> list[Finding]:
    """Return what is known of a recipe's models; the hub is asked for those that lie there."""
    found = [] if recipe.model.name_or_path else [Finding("model.name_or_path", "ok", "null: random weights")]
    for finding in model_findings(recipe):
        verdict: Verdict = "fault" if finding.is_fault else "warning" if finding.remedy else "ok"
        found.append(Finding(finding.key, verdict, finding.found, finding.remedy))
    return found


def _python() -> list[Finding]:
    return [Finding("python", "ok", platform.python_version())]


def _packages() -> list[Finding]:
    findings = []
    for name, tested in TESTED.items():
        version = package_version(name)
        if version is None:
            findings.append(Finding(name, "missing", "not installed", f"pip install {name}=={tested}"))
            continue
        same = version.split("+")[0] == tested
        remedy = "" if same else f"tested with {tested}; in doubt: pip install -c constraints.txt {name}"
        findings.append(Finding(name, "ok" if same else "warning", version, remedy))
    return findings


def _devices() -> list[Finding]:
    hardware = detect_hardware()
    memory = f"{hardware.memory_bytes / 2**30:.0f} GiB memory"
    bf16 = "fast bf16" if hardware.cpu_has_fast_bf16 else "no fast bf16"
    findings = [Finding("processor", "ok", f"{hardware.cpu_count} cores, {memory}, {bf16}")]
    for number, gpu in enumerate(hardware.gpus):
        text = f"{gpu.name}, {gpu.memory_bytes / 2**30:.0f} GiB, compute capability {gpu.compute_capability}"
        findings.append(Finding(f"gpu {number}", "ok", text))
    if not hardware.gpus:
        findings.append(
            Finding(
                "gpu", "warning", "none visible", "runs go to the processor; check nvidia-smi and CUDA_VISIBLE_DEVICES"
            )
        )
    return findings


def _compilers() -> list[Finding]:
    findings = []
    for tool, remedy in (("c++", "apt-get install g++"), ("ninja", "pip install ninja")):
        path = shutil.which(tool) or _beside_python(tool)
        if path:
            findings.append(Finding(tool, "ok", path))
        else:
            findings.append(Finding(tool, "warning", "not found", f"DeepSpeed builds its operations with it: {remedy}"))
    return findings


def _beside_python(tool: str) -> str | None:
    path = Path(sys.executable).with_name(tool)
    return str(path) if path.exists() else None


def _disk() -> list[Finding]:
    findings = []
    for name, folder in (
        ("disk for runs", Path.cwd()),
        ("disk for prepared data", cache_folder()),
        ("disk for models", hub_home()),
    ):
        place = next(p for p in (folder, *folder.parents) if p.exists())
        free = shutil.disk_usage(place).free
        enough = free >= _WANTED_DISK and os.access(place, os.W_OK)
        remedy = "" if enough else "free some space, or work from a folder on another disk"
        findings.append(
            Finding(name, "ok" if enough else "warning", f"{free / 2**30:.0f} GiB free at {folder}", remedy)
        )
    return findings


def _hub() -> list[Finding]:
    token = token_state()
    login = Finding("hub login", "ok", token) if token else Finding(
        "hub login", "warning", "no token: HF_TOKEN is not set", "only needed for gated or private models: hf auth login"
    )  # fmt: skip
    endpoint = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    if is_offline():
        return [
            Finding("hub", "warning", "HF_HUB_OFFLINE is set", "only models and data on this machine can be used"),
            login,
        ]
    if can_reach(endpoint):
        return [Finding("hub", "ok", f"{endpoint} answers"), login]
    return [
        Finding(
            "hub", "warning", f"{endpoint} does not answer", "use folders and package: models, or mend the network"
        ),
        login,
    ]


def _wandb() -> list[Finding]:
    if not has_key():
        return [
            Finding("W&B", "warning", "no key", "runs are logged offline; to upload them: wandb login, then wandb sync")
        ]
    if not can_reach(server()):
        return [
            Finding(
                "W&B",
                "warning",
                f"{server()} does not answer",
                "runs are logged offline; upload them later with wandb sync",
            )
        ]
    return [Finding("W&B", "ok", f"a key is set and {server()} answers")]


def _slurm() -> list[Finding]:
    if shutil.which("sbatch") is None:
        return [
            Finding("Slurm", "warning", "sbatch not found", "only needed to submit jobs to a cluster: use a login node")
        ]
    try:
        done = subprocess.run(["sinfo", "--version"], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return [Finding("Slurm", "warning", "sinfo does not answer", "ask the cluster's administrators")]
    if done.returncode != 0 or not done.stdout.strip():
        # Installed without a cluster's configuration, not even its version is told.
        remedy = "only needed to submit jobs: on a machine of the cluster, or with SLURM_CONF naming its slurm.conf"
        return [Finding("Slurm", "warning", "installed, and no cluster is configured", remedy)]
    return [Finding("Slurm", "ok", done.stdout.strip())]


def _profiles() -> list[Finding]:
    """Which cluster profile a run is submitted with, where it lies, and which others there are."""
    if shutil.which("sbatch") is None:
        return []
    known = list_profiles(Path.cwd())
    others = ", ".join(sorted(name for name in known if name != DEFAULT))
    listed = f"; others: {others}" if others else ""
    try:
        found = find_profile(None, Path.cwd())
    except RecipeError as error:
        return [Finding("Slurm profile", "missing", f"{DEFAULT}: {known[DEFAULT]}", str(error))]
    if not found.path.name:
        where = profile_folders(Path.cwd())[0] / f"{DEFAULT}.yaml"
        return [
            Finding(
                "Slurm profile",
                "warning",
                f"none is called {DEFAULT}{listed}",
                f"write {where}, or name one: --profile",
            )
        ]
    return [Finding("Slurm profile", "ok", f"{DEFAULT}: {found.path}{listed}")]
