"""Where the files that ship beside the code lie: recipes, DeepSpeed configurations, Slurm templates."""

from __future__ import annotations

from pathlib import Path

SHIPPED_DEEPSPEED = ("zero0", "zero1", "zero2", "zero3", "zero2_offload", "zero3_offload", "zero3_nvme", "zeropp")
"""Names of the files in ds_configs."""

_PACKAGE = Path(__file__).resolve().parent


def shipped_folder(name: str) -> Path:
    """Return the folder ``recipes``, ``ds_configs`` or ``slurm``: the checkout's own, or the wheel's copy of it."""
    checkout = _PACKAGE.parent
    if (checkout / "pyproject.toml").is_file() and (checkout / name).is_dir():
        return checkout / name
    return _PACKAGE / "_shipped" / name
