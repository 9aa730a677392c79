"""What earlier runs have found out about files that have not changed since: their rows need not be read to find the prepared ones."""

from __future__ import annotations

import functools
import importlib.metadata
import json
import os
import stat
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.atomic import write_json
from launcher.data.builtin import PREFIX
from launcher.data.prepare import FACTS, code_fingerprint, fingerprint_of
from launcher.recipe.addresses import is_address
from launcher.recipe.data_section import DataSection, SourceSpec

_RACY_SECONDS = 3.0
"""A file may be written twice within a step of its clock, of up to two seconds on some file systems, and keep its size."""
_MOST_FILES = 10_000
_PACKAGES = ("transformers", "tokenizers", "datasets", "pyarrow", "numpy", "charset-normalizer")
_OPTIONAL_PACKAGES = ("openpyxl",)


@dataclass(frozen=True)
class Files:
    """Files as they stand, without what they hold."""

    stands: tuple[tuple[str, int, int, int, int], ...]
    """(path, inode, bytes, mtime_ns, ctime_ns) of each, links followed. Nobody can set a ctime back."""
    is_settled: bool
    """Whether each has been left alone for so long that a change from now on would show."""


def look_at(paths: Sequence[Path]) -> Files | None:
    """Return the files that ``paths`` are, or hold; None where something is missing, is no plain file, or there are too many."""
    try:
        found = [file for path in paths for file in _files(path)]
        looks = {str(file): file.stat() for file in found[: _MOST_FILES + 1]}
    except OSError:
        return None
    if len(found) > _MOST_FILES or not all(stat.S_ISREG(look.st_mode) for look in looks.values()):
        return None
    stands = [(name, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for name, s in sorted(looks.items())]
    last = max((max(mtime, ctime) for *_, mtime, ctime in stands), default=0) / 1e9
    return Files(tuple(stands), last < time.time() - _RACY_SECONDS)


def _files(path: Path) -> list[Path]:
    whole = path.resolve(strict=True)
    if not whole.is_dir():
        return [whole]
    found = []
    for root, folders, names in os.walk(whole, onerror=_raised):
        if any((Path(root) / name).is_symlink() for name in folders):
            # Where it leads may change without a sign here.
            raise OSError(f"{root} holds a link to a folder")
        found += [Path(root) / name for name in names]
    return found


def _raised(error: OSError) -> None:
    raise error


def sources_on_disk(data: DataSection, *, base_folder: Path) -> list[Path] | None:
    """Return the files and folders that ``data`` names; None where rows come from elsewhere: made on the spot, an address, a hub."""
    named = [data.source, *(one for split in (data.train, data.validation, data.test) for one in _listed(split))]
    sources = [one.source if isinstance(one, SourceSpec) else one for one in named if one is not None]
    if any(source.startswith(PREFIX) or is_address(source) for source in sources):
        return None
    paths = [base_folder / Path(source).expanduser() for source in sources]
    if not all(path.exists() for path in paths):
        return None
    labels = base_folder / Path(data.labels).expanduser() if isinstance(data.labels, str) else None
    return [*paths, *([labels] if labels is not None else [])]


def _listed(given: Any) -> list[Any]:
    return given if isinstance(given, list) else [given]


@functools.cache
def _versions() -> tuple[str, ...]:
    found = [importlib.metadata.version(name) for name in _PACKAGES]
    return (*found, *(_version_or_none(name) for name in _OPTIONAL_PACKAGES))


def _version_or_none(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "none"


class Known:
    """Which prepared folder belongs to files as they stand and to a recipe's parts, and what was told when it was made.

    It holds only what was found when every file had been left alone for some seconds, before and after the rows were read. Where
    anything is uncertain there is no entry, and rows are read.
    """

    def __init__(self, root: Path, paths: Sequence[Path] | None, parts: Mapping[str, Any]) -> None:
        """``paths``: what rows and tokens come from; None: that is not all on this machine's disks. ``parts``: all else."""
        self.root = root
        self.paths = paths
        self.parts = parts
        self.files = look_at(paths) if paths is not None else None
        self.key = None if self.files is None else self._key(self.files)

    def _key(self, files: Files) -> str:
        return fingerprint_of(
            {**self.parts, "files": files.stands, "code": code_fingerprint(), "versions": _versions()}
        )

    @property
    def _path(self) -> Path:
        assert self.key is not None
        return self.root / "known" / f"{self.key[:32]}.json"

    def find(self) -> tuple[Path, dict[str, Any]] | None:
        """Return the prepared folder and what was told with it; None where the rows have to be read."""
        if self.key is None:
            return None
        try:
            entry = json.loads(self._path.read_text())
            folder = self.root / "prepared" / entry["folder"]
            return (folder, entry["told"]) if entry["key"] == self.key and (folder / FACTS).is_file() else None
        except (OSError, ValueError, KeyError, TypeError):
            # It only saves time: what cannot be read is made anew.
            return None

    def keep(self, folder: Path, told: Mapping[str, Any]) -> None:
        """Remember a folder, unless the files are too young, or others than before their rows were read."""
        if self.files is None or not self.files.is_settled or look_at(self.paths or ()) != self.files:
            return
        try:
            write_json(self._path, {"key": self.key, "folder": folder.name, "told": dict(told)})
        except OSError:
            # A cache that may only be read still serves.
            return
