"""Checkpoints: written by all ranks, counted only when their manifest, written last, matches what lies beside it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from launcher.errors import InstallationError
from launcher.rundir import default_file_mode, fsync_tree, replace_folder, write_json

MANIFEST = "MANIFEST.json"
# Less free room than this, just after a write failed, is why it failed.
_FULL_DISK_BYTES = 2**20


def write_manifest(checkpoint: Path, **facts: Any) -> None:
    """Flush a checkpoint to disk and then write its manifest: the size of every file, and ``facts``."""
    fsync_tree(checkpoint)
    files = {
        str(path.relative_to(checkpoint)): path.stat().st_size
        for path in sorted(checkpoint.rglob("*"))
        if path.is_file() and path.name != MANIFEST
    }
    write_json(checkpoint / MANIFEST, {**facts, "files": files})


@contextmanager
def room_for(checkpoint: Path) -> Iterator[None]:
    """Remove a checkpoint whose writing fails, and say so where the disk is full.

    Libraries report a full disk in words of their own. The half-written files go first: their room is needed to write
    down how the run ended.

    Raises:
        InstallationError: the disk is full.
    """
    try:
        yield
    except Exception as error:
        free = shutil.disk_usage(checkpoint.parent).free
        shutil.rmtree(checkpoint, ignore_errors=True)
        if free < _FULL_DISK_BYTES or "no space left" in str(error).lower():
            raise InstallationError(
                f"the disk of {checkpoint.parent} is full: {checkpoint.name} could not be written and was removed; free some "
                "space, then continue with `launcher resume`"
            ) from error
        raise


def read_manifest(checkpoint: Path) -> dict[str, Any]:
    """Return what ``write_manifest`` wrote: facts, and the size of every file."""
    manifest: dict[str, Any] = json.loads((checkpoint / MANIFEST).read_text())
    return manifest


def prune(folder: Path, *, keep_last: int, keep: Iterable[Path]) -> None:
    """Remove all checkpoints but the newest ``keep_last`` complete ones and those in ``keep``."""
    kept = {path.resolve() for path in keep}
    complete = sorted(
        (path for path in folder.glob("step-*") if (path / MANIFEST).is_file()),
        key=lambda path: int(path.name.split("-")[1]),
    )
    for path in complete[:-keep_last]:
        if path.resolve() not in kept:
            # The manifest goes first: a crash in between leaves a folder that nobody takes for a checkpoint.
            (path / MANIFEST).unlink(missing_ok=True)
            shutil.rmtree(path, ignore_errors=True)


def save_weights(model: Any, folder: Path | str, *, state_dict: Any, zero_stage: int | None) -> None:
    """Write weights and configuration with the names that the model's parameters have.

    When it loads under ZeRO-3, transformers 5.23 notes renamings that it did not make (``LayerNorm.gamma`` to
    ``LayerNorm.weight``) and would undo them here: the file would then have names that only transformers understands.
    """
    model.save_pretrained(folder, state_dict=state_dict, save_original_format=zero_stage != 3)


def save_model_folder(
    model: Any, tokenizer: Any, target: Path, *, state_dict: Any, zero_stage: int | None, facts: dict[str, Any]
) -> None:
    """Write the finished model as a folder that transformers loads, in one piece."""

    def fill(folder: Path) -> None:
        save_weights(model, folder, state_dict=state_dict, zero_stage=zero_stage)
        tokenizer.save_pretrained(folder)
        write_json(folder / "launcher.json", facts)
        # safetensors makes its files private; a model is for the group to load.
        for path in folder.iterdir():
            path.chmod(default_file_mode())

    replace_folder(target, fill)
