"""What a node of a job can tell about itself before it trains: each look returns a fault in words, or None."""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

from launcher.data.prepare import cache_folder
from launcher.engine.session import package_version
from launcher.errors import LauncherError
from launcher.plans import LaunchPlan
from launcher.recipe.schema import Recipe
from launcher.rundir import RunDir

_VERSIONS = ("finetune-launcher", "torch", "transformers", "accelerate", "deepspeed", "datasets", "peft")
_LEAST_INODES = 10_000
_SLURM_FACTS = ("JobRequeue", "KillWait", "PreemptMode", "PreemptParameters", "SLURM_VERSION")


def looks(run: RunDir, recipe: Recipe, plan: LaunchPlan) -> tuple[tuple[str, Callable[[], str | None]], ...]:
    """Return the looks of a node at itself, by name, in the order in which they are taken."""
    return (
        ("processors", lambda: _processors(plan)),
        ("disk", lambda: _disk(run)),
        ("cache", lambda: _cache(recipe)),
        ("model", lambda: _model(recipe)),
        ("device", lambda: _device(recipe, plan)),
    )


def versions() -> dict[str, str | None]:
    """Return package -> version of what a run depends on; None: it is not installed."""
    return {"python": platform.python_version(), **{name: package_version(name) for name in _VERSIONS}}


def code_fingerprint() -> str:
    """Return what identifies launcher's own code: two nodes may see two checkouts under one path."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).resolve().parents[1].rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _processors(plan: LaunchPlan) -> str | None:
    asked = int(os.environ.get("SLURM_CPUS_PER_TASK") or plan.processes_per_node)
    given = len(os.sched_getaffinity(0))
    if given < asked:
        return f"{given} processor(s) can be used, and {asked} were asked for (is the step bound to fewer cores?)"
    return None


def _disk(run: RunDir) -> str | None:
    needed = int(run.job_facts()["checkpoint_bytes"] or 0)
    usage, inodes = shutil.disk_usage(run.path), os.statvfs(run.path)
    if usage.free < 2 * needed:
        return (
            f"{usage.free / 2**30:.1f} GiB are free at {run.path}, and two checkpoints take {2 * needed / 2**30:.1f} GiB; free some "
            "space, or keep fewer (training.save_total_limit)"
        )
    if inodes.f_files and inodes.f_favail < _LEAST_INODES:
        return f"only {inodes.f_favail} files can still be made at {run.path} (inodes); remove some"
    return None


def _cache(recipe: Recipe) -> str | None:
    folder = cache_folder(recipe.data.cache_dir)
    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK):
        return f"the folder of prepared data, {folder}, cannot be written; set data.cache_dir"
    return None


def _model(recipe: Recipe) -> str | None:
    """Look whether the model is on this node where it has no hub to fetch it from."""
    from launcher.tasks.models import folder_on_disk, is_offline, locate

    name = recipe.model.name_or_path
    if name is None:
        return None
    try:
        located = locate(name)
    except LauncherError as error:
        return str(error)
    if Path(located).is_dir() or not is_offline() or folder_on_disk(name) is not None:
        return None
    return f"HF_HUB_OFFLINE is set, and {name} is not in this node's cache (HF_HOME); on a node with internet: hf download {name}"


def _device(recipe: Recipe, plan: LaunchPlan) -> str | None:
    """Take one step through a block as long as the longest row on every device that ranks will use."""
    import torch

    if plan.device == "cuda":
        given = torch.cuda.device_count()
        if given < plan.processes_per_node:
            return f"{given} GPU(s) can be used, and {plan.processes_per_node} ranks are to run here; see nvidia-smi"
    places = [f"cuda:{i}" for i in range(plan.processes_per_node)] if plan.device == "cuda" else ["cpu"]
    size, length = 256, min(recipe.data.max_length or 512, 4096)
    for place in places:
        torch.manual_seed(0)
        block = torch.nn.TransformerEncoderLayer(size, 4, 2 * size, dropout=0.0, batch_first=True).to(place)
        rows = torch.randn(1, length, size).to(place)
        loss = block(rows).square().mean()
        loss.backward()
        gradients = [p.grad for p in block.parameters()]
        if not all(g is not None and bool(torch.isfinite(g).all()) for g in gradients) or not bool(loss > 0):
            return f"{place} has computed a step that is not finite: its hardware or driver is at fault"
    return None


def slurm_facts() -> dict[str, str]:
    """Return what bears on requeueing and warnings of Slurm's configuration."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        shown = subprocess.run(["scontrol", "show", "config"], capture_output=True, text=True, timeout=10).stdout
        pairs = (line.partition("=") for line in shown.splitlines())
        return {key.strip(): value.strip() for key, _, value in pairs if key.strip() in _SLURM_FACTS}
    return {}
