"""The checkpoint that a run goes on from: the newest one that is as it was written, found by all ranks together."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from launcher.atomic import write_text
from launcher.engine.checkpoint_files import (
    QUARANTINE,
    fault,
    finish_commits,
    quarantine,
    read_manifest,
    set_aside_partial,
    steps,
)
from launcher.engine.ranks import barrier, everyone, rank_and_world, share
from launcher.errors import RunStateError
from launcher.rundir import RunDir

Say = Callable[[str], None]


def newest_valid(folder: Path, *, say: Say, from_start: bool = False) -> Path | None:
    """Return the newest valid checkpoint in ``folder``, all of its files verified; None: there never was one. Collective.

    Newer ones that are damaged, and what was still being written, are moved to ``quarantine``; nothing is deleted. Hashes
    are computed by all ranks, a share each.

    Args:
        say: tells people about what was set aside; called on rank 0.
        from_start: return None where there are checkpoints and none is valid.

    Raises:
        RunStateError: there are checkpoints, and none is valid; they stay where they are.
    """
    names = share(lambda: _tidy(folder, say))
    damaged: list[tuple[Path, str]] = []
    found = None
    for name in names:
        reason = first_fault(folder / name)
        if reason is None:
            found = folder / name
            break
        damaged.append((folder / name, reason))
    if found is None and damaged and not from_start:
        listed = "; ".join(f"{path.name}: {reason}" for path, reason in damaged)
        raise RunStateError(
            f"none of the checkpoints in {folder} is valid ({listed}); bring the files back, from a copy or when the disk "
            "answers again, and resume; or begin anew at step 0: launcher resume RUN --from-start"
        )
    if rank_and_world()[0] == 0:
        for path, reason in damaged:
            where = quarantine(path, reason)
            say(f"checkpoint {path.name} is not valid: {reason}; moved to {QUARANTINE}/{where.name}")
        if damaged and found is None:
            say("no checkpoint is valid: the run begins anew at step 0")
    barrier()
    return found


def first_fault(checkpoint: Path, *, only: str = "*") -> str | None:
    """Return what is wrong with a checkpoint, as all ranks together find it. Collective; ``only`` as in ``fault``."""
    rank, world = rank_and_world()
    return next(filter(None, everyone(fault(checkpoint, rank=rank, world=world, only=only))), None)


def _tidy(folder: Path, say: Say) -> list[str]:
    """Finish or set aside what a crash left half-done; return the names of the checkpoints, the newest first."""
    if not folder.is_dir():
        return []
    for sentence in finish_commits(folder):
        say(sentence)
    for path in set_aside_partial(folder):
        say(f"a checkpoint was still being written when the run ended; moved to {QUARANTINE}/{path.name}")
    return [path.name for path in steps(folder)]


def resume_flags(run: RunDir, attempt: int) -> dict[str, Any]:
    """Return the flags with which ``resume`` began an attempt: from_start, allow_changes."""
    note = run.resume_note(attempt)
    values: dict[str, Any] = json.loads(note.read_text()) if note.is_file() else {}
    return {"from_start": False, "allow_changes": False, **values}


def refuse_other_data(checkpoint: Path, fingerprint: str, *, allow: bool) -> None:
    """Raise RunStateError where the rows are no longer those that the checkpoint was trained on, unless allowed."""
    before = read_manifest(checkpoint).get("data_fingerprint", fingerprint)
    if before != fingerprint and not allow:
        raise RunStateError(
            f"the data have changed since {checkpoint.name} was written (fingerprint {before[:12]}, now {fingerprint[:12]}): it "
            "would be another run; bring the old rows back, or start a new run, or continue with --allow-changes"
        )


def refuse_other_base(checkpoint: Path, task: Any, model: Any, *, allow: bool) -> None:
    """Raise RunStateError where adapters would go on upon other pretrained weights than those they were trained on. Collective.

    Their checkpoints hold no pretrained weights; rank 0 identifies those that were loaded.
    """
    before = read_manifest(checkpoint).get("model_revision")
    now = share(lambda: task.model_revision(model)) if before is not None and not allow else before
    if now != before:
        raise RunStateError(
            f"the pretrained weights are no longer those that the adapters in {checkpoint.name} were trained on ({before}, now "
            f"{now}); bring them back (model.revision), or start a new run, or continue with --allow-changes"
        )


def keep_chat_template(run: RunDir, task: Any, *, allow: bool) -> None:
    """Write the chat template that conversations are rendered with into the run directory; rank 0 calls it, at each attempt.

    Raises:
        RunStateError: an earlier attempt had another one.
    """
    source = getattr(task.processor, "chat_template", None)
    if not isinstance(source, str):
        return
    before = run.chat_template.read_text(encoding="utf-8") if run.chat_template.is_file() else source
    if before != source and not allow:
        raise RunStateError(
            f"the chat template is no longer the one that this run was trained with ({run.chat_template}): it would be another run; bring it "
            "back, or start a new run, or continue with --allow-changes"
        )
    write_text(run.chat_template, source)
