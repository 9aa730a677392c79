"""The files of a checkpoint: written beside its final name, sealed by a manifest, renamed; found whole, or set aside.

checkpoints/  partial-step-N/   being written: its name is the mark
              step-N/           complete: MANIFEST.json, written last, names every file with its size and hash
              quarantine/       what was found half-written or damaged; nothing is read from there
Nothing here imports torch.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.atomic import fsync_folder, fsync_tree, write_json
from launcher.errors import InstallationError

MANIFEST = "MANIFEST.json"
PARTIAL = "partial-"
QUARANTINE = "quarantine"
# Of a checkpoint that a new one of the same step takes the place of.
_REPLACED = "replaced-"
# Less free room than this, just after a write failed, is why it failed.
_FULL_DISK_BYTES = 2**20
# A manifest, events and verdicts have to be written too.
SPARE_BYTES = 16 * 2**20
# More threads than this only make a disk seek; hashing leaves the interpreter free.
_THREADS = 8
_RANK_IN_NAME = re.compile(r"(?:pp_rank_|rng_state_)(\d+)")


@dataclass(frozen=True)
class FileFact:
    """What a manifest says about a file."""

    size: int
    """Bytes."""
    sha256: str


# --- writing ---------------------------------------------------------------------------------------------------------


def partial_folder(target: Path) -> Path:
    """Return where ``target`` is written until it is complete."""
    return target.with_name(PARTIAL + target.name)


def seal(folder: Path, *, rank: int = 0, world: int = 1) -> dict[str, FileFact]:
    """Flush this rank's files in ``folder`` to disk and hash them, while they are still in memory.

    A file whose name has a rank's number is that rank's; all others are rank 0's.

    Returns:
        Name relative to ``folder`` -> size and hash.
    """
    own = [name for name in _names(folder) if _owner(name, world) == rank]
    with ThreadPoolExecutor(_THREADS) as pool:
        return dict(zip(own, pool.map(lambda name: _sealed(folder / name), own), strict=True))


def _owner(name: str, world: int) -> int:
    match = _RANK_IN_NAME.search(name)
    return int(match[1]) % world if match else 0


def _sealed(path: Path) -> FileFact:
    with path.open("rb") as file:
        os.fsync(file.fileno())
        return FileFact(os.fstat(file.fileno()).st_size, hashlib.file_digest(file, "sha256").hexdigest())


def write_manifest(checkpoint: Path, files: Mapping[str, FileFact] | None = None, **facts: Any) -> None:
    """Flush a checkpoint to disk and then write its manifest: size and hash of every file, ``facts``, and its own hash.

    Args:
        files: what ``seal`` found on all ranks; None: all files are sealed here.
    """
    files = seal(checkpoint) if files is None else files
    fsync_tree(checkpoint, files=False)
    manifest = {
        **facts,
        "files": {name: fact.size for name, fact in sorted(files.items())},
        "sha256": {name: fact.sha256 for name, fact in sorted(files.items())},
    }
    # As a reader will see it: numbers and keys may change on their way through JSON.
    manifest = json.loads(json.dumps(manifest, default=str))
    write_json(checkpoint / MANIFEST, {**manifest, "manifest_sha256": _own_hash(manifest)})


def _own_hash(manifest: Mapping[str, Any]) -> str:
    rest = {key: value for key, value in manifest.items() if key != "manifest_sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def commit(partial: Path, target: Path) -> None:
    """Give a sealed checkpoint its name. One of the same step stays until this one has taken its place."""
    old = target.with_name(_REPLACED + target.name)
    if target.exists():
        shutil.rmtree(old, ignore_errors=True)
        target.rename(old)
    partial.rename(target)
    fsync_folder(target.parent)
    shutil.rmtree(old, ignore_errors=True)


@contextmanager
def room_for(partial: Path) -> Iterator[None]:
    """Remove a half-written checkpoint whose writing fails, and say so where the disk is full.

    Libraries report a full disk in words of their own. The half-written files go first: their room is needed to write
    down how the run ended. Complete checkpoints are never touched.

    Raises:
        InstallationError: the disk is full.
    """
    try:
        yield
    except Exception as error:
        free = shutil.disk_usage(partial.parent).free
        shutil.rmtree(partial, ignore_errors=True)
        if free < _FULL_DISK_BYTES or "no space left" in str(error).lower():
            raise InstallationError(
                f"the disk of {partial.parent} is full: {_step(partial)} could not be written and was removed; complete "
                "checkpoints are untouched; free some space, then continue with `launcher resume`"
            ) from error
        raise


def check_room(folder: Path, needed: int, *, what: str) -> None:
    """Refuse to begin to write ``needed`` bytes where there is no room for them.

    Raises:
        InstallationError: the disk has less room.
    """
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if free < needed + SPARE_BYTES:
        raise InstallationError(
            f"{what} needs about {_size(needed)}, and the disk of {folder} has {_size(free)} left; nothing was written and "
            "nothing is lost; free some space or lower training.save_total_limit, then continue with `launcher resume`"
        )


def _size(number: int) -> str:
    return f"{number / 1e9:.1f} GB" if number >= 1e9 else f"{number / 1e6:.1f} MB"


def prune(folder: Path, *, keep_last: int, keep: Iterable[Path]) -> None:
    """Remove all checkpoints but the newest ``keep_last`` complete ones and those in ``keep``."""
    kept = {path.resolve() for path in keep}
    complete = [path for path in steps(folder) if (path / MANIFEST).is_file()]
    for path in complete[keep_last:]:
        if path.resolve() not in kept:
            # The manifest goes first: a crash in between leaves a folder that nobody takes for a checkpoint.
            (path / MANIFEST).unlink(missing_ok=True)
            shutil.rmtree(path, ignore_errors=True)


# --- reading ---------------------------------------------------------------------------------------------------------


def steps(folder: Path) -> list[Path]:
    """Return the folders step-N in ``folder``, the newest first, complete or not."""
    found = [path for path in folder.glob("step-*") if re.fullmatch(r"step-\d+", path.name)]
    return sorted(found, key=lambda path: int(path.name.split("-")[1]), reverse=True)


def read_manifest(checkpoint: Path) -> dict[str, Any]:
    """Return what ``write_manifest`` wrote: facts, and the size and hash of every file."""
    manifest: dict[str, Any] = json.loads((checkpoint / MANIFEST).read_text())
    return manifest


def size_of(checkpoint: Path) -> int:
    """Return the bytes of a complete checkpoint, as its manifest states them."""
    return sum(read_manifest(checkpoint)["files"].values())


def fault(checkpoint: Path, *, rank: int = 0, world: int = 1, only: str = "*") -> str | None:
    """Return the first thing that is wrong with a checkpoint, naming the file; None: it is as it was written.

    Sizes are compared for all files, contents for this rank's share of them. Checkpoints of earlier versions of this
    program have no hashes.

    Args:
        only: pattern of the names of files whose contents are compared.
    """
    try:
        manifest = read_manifest(checkpoint)
        files, hashes = dict(manifest["files"]), dict(manifest.get("sha256", {}))
    except FileNotFoundError:
        return f"{MANIFEST} is missing: it was never written to its end"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{MANIFEST} cannot be read ({type(error).__name__}: {error})"
    if hashes and manifest.get("manifest_sha256") != _own_hash(manifest):
        return f"{MANIFEST} has been changed: its own hash does not fit"
    wrong = next(filter(None, (_wrong_size(checkpoint / name, name, size) for name, size in files.items())), None)
    if wrong is not None:
        return wrong
    share = [name for name in sorted(hashes, key=lambda name: -files[name]) if Path(name).match(only)][rank::world]
    with ThreadPoolExecutor(_THREADS) as pool:
        found = pool.map(lambda name: _wrong_content(checkpoint / name, name, hashes[name]), share)
        return next(filter(None, found), None)


def _wrong_size(path: Path, name: str, size: int) -> str | None:
    try:
        found = path.stat().st_size
    except FileNotFoundError:
        return f"{name} is missing"
    except OSError as error:
        return f"{name} cannot be read ({error})"
    return None if found == size else f"{name} has {found} bytes instead of {size}"


def _wrong_content(path: Path, name: str, wanted: str) -> str | None:
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        return f"{name} cannot be read ({error})"
    return None if found == wanted else f"{name} has the right size, but not the content that was written (SHA-256)"


# --- what a crash leaves ---------------------------------------------------------------------------------------------


def finish_commits(folder: Path) -> list[str]:
    """Finish what a crash has interrupted after a manifest was written; return what was done, a sentence each.

    A sealed checkpoint that has not got its name gets it, and one whose successor never came gets it back.
    """
    done = []
    for partial in sorted(folder.glob(f"{PARTIAL}step-*")):
        if fault(partial) is None:
            commit(partial, folder / _step(partial))
            done.append(f"{_step(partial)} was complete but for its name, and has it now")
    for old in sorted(folder.glob(f"{_REPLACED}step-*")):
        if (folder / _step(old)).exists():
            shutil.rmtree(old, ignore_errors=True)
        else:
            old.rename(folder / _step(old))
    return done


def quarantine(checkpoint: Path, reason: str) -> Path:
    """Move a checkpoint out of the way, under a name that says why in short; return where it lies now."""
    folder = checkpoint.parent / QUARANTINE
    folder.mkdir(exist_ok=True)
    word = next((word for sign, word in _WORDS if sign in reason), "damaged")
    target = folder / f"{_step(checkpoint)}-{word}"
    for number in range(2, 10_000):
        if not target.exists():
            break
        target = folder / f"{_step(checkpoint)}-{word}-{number}"
    checkpoint.rename(target)
    (target / "REASON.txt").write_text(reason + "\n")
    return target


_WORDS = (
    ("never written to its end", "unfinished"),
    ("is missing", "missing-file"),
    ("bytes instead of", "truncated"),
    ("content", "changed"),
    ("been changed", "changed"),
)


def set_aside_partial(folder: Path) -> list[Path]:
    """Quarantine what was still being written when a run ended; of such leftovers only the newest is kept.

    They were never checkpoints, and a run that is killed often must not fill the disk with them.
    """
    found = [quarantine(path, f"{MANIFEST} is missing: it was never written to its end") for path in _partial(folder)]
    if found:
        for old in (folder / QUARANTINE).glob("step-*-unfinished*"):
            if old != found[-1]:
                shutil.rmtree(old, ignore_errors=True)
    return found[-1:]


def _partial(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"{PARTIAL}step-*"), key=lambda path: path.stat().st_mtime)


def _step(path: Path) -> str:
    return path.name.removeprefix(PARTIAL).removeprefix(_REPLACED)


def _names(folder: Path) -> list[str]:
    found = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != MANIFEST)
    return [str(path.relative_to(folder)) for path in found]
