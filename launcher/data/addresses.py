"""Files at an address (s3://, gs://, https://, ...): fetched whole, kept, and fetched again only when they have changed."""

from __future__ import annotations

import hashlib
import http.client
import json
import shutil
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

from launcher.atomic import make_file, write_json
from launcher.data.prepare import cache_folder
from launcher.errors import DataError, DataUnreachable, InstallationError
from launcher.recipe.addresses import WEB, address_fault, lacking, scheme_of
from launcher.registry import suggest

_TIMEOUT_SECONDS = 60
# What servers and file systems say of a file's version, by names of their own.
_VERSION_KEYS = (
    "etag",
    "last-modified",
    "lastmodified",
    "md5hash",
    "mtime",
    "modified",
    "updated",
    "created",
    "generation",
)


@dataclass(frozen=True)
class Fetched:
    """A whole copy of a file at an address."""

    path: Path
    facts: dict[str, Any]
    """bytes, and what the server says of the version."""
    warnings: tuple[str, ...] = ()


def refuse_faulty(address: str) -> None:
    """Raise DataError for an address that nothing could read, and InstallationError where a package is missing; no network is asked."""
    fault = address_fault(address)
    if fault:
        raise DataError(f"data source {address!r}: {fault[0]}; {fault[1]}")
    missing = lacking(address)
    if missing:
        raise InstallationError(f"data source {address!r}: {missing[0]}; {missing[1]}")


def file_name(address: str) -> str:
    """Return the last part of an address, without what a web address asks for behind ``?``."""
    path = urlsplit(address).path if scheme_of(address) in WEB else address
    return unquote(PurePosixPath(path).name)


def list_folder(address: str) -> list[str]:
    """Return the addresses of the files in a folder, sorted; none where there is no such folder, or a server lists none.

    Raises:
        DataError: the file system refuses, or cannot be reached.
    """
    if scheme_of(address) in WEB:
        return []
    try:
        system, path = _file_system(address)
        if not system.isdir(path):
            return []
        found = [entry["name"] for entry in system.ls(path, detail=True) if entry["type"] == "file"]
    except Exception as error:
        raise _fault(address, error) from None
    return sorted(system.unstrip_protocol(name) for name in found)


def fetch(address: str, *, cache_dir: Path | None = None) -> Fetched:
    """Return a whole copy of a file, kept below ``cache_dir``: the one of before where the server says that nothing has changed.

    Where the address cannot be reached the copy of before is used, and a warning says so.

    Raises:
        DataError: there is no such file, it may not be read, or the transfer broke off.
    """
    kept = _Kept.of(address, root=cache_dir or cache_folder())
    try:
        version = (_fetch_web if scheme_of(address) in WEB else _fetch_by_fsspec)(address, kept)
    except DataUnreachable as error:
        if kept.version() is None:
            raise
        when = datetime.fromtimestamp(kept.file.stat().st_mtime).strftime("%Y-%m-%d %H:%M")
        return Fetched(kept.file, kept.version() or {}, (f"{error}; the copy that was fetched on {when} is used",))
    return Fetched(kept.file, version)


@dataclass(frozen=True)
class _Kept:
    """Where the copy of a file lies, and a note of which version it is."""

    file: Path
    note: Path = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "note", self.file.parent / ".version.json")

    @classmethod
    def of(cls, address: str, *, root: Path) -> _Kept:
        key = hashlib.sha256(address.encode()).hexdigest()[:32]
        return cls(root / "fetched" / key / (file_name(address) or "file"))

    def version(self) -> dict[str, Any] | None:
        """Return the note on the whole copy; None where there is none."""
        try:
            noted: dict[str, Any] = json.loads(self.note.read_text())
            return noted if self.file.stat().st_size == noted["bytes"] else None
        except (OSError, ValueError, KeyError):
            return None

    def is_version(self, version: Mapping[str, Any]) -> bool:
        """Whether the copy is surely the version that a server describes; a size alone does not make it sure."""
        return len(version) > 1 and self.version() == dict(version)

    def replace(self, version: dict[str, Any], fill: Callable[[Path], object]) -> dict[str, Any]:
        """Put what ``fill`` writes in place of the copy. Raises DataError where it is not as long as the version says."""

        def whole(target: Path) -> None:
            fill(target)
            size, wanted = target.stat().st_size, version.get("bytes")
            if wanted is not None and size != wanted:
                raise DataError(f"the transfer broke off after {size:,} of {wanted:,} bytes; try again")

        self.note.unlink(missing_ok=True)
        make_file(self.file, whole)
        noted = {**version, "bytes": self.file.stat().st_size}
        write_json(self.note, noted)
        return noted


def _version(said: Mapping[str, Any], *, size: Any) -> dict[str, Any]:
    told = {key.lower(): str(value) for key, value in said.items() if key.lower() in _VERSION_KEYS and value}
    return {**({} if size is None else {"bytes": int(size)}), **told}


# --- the web -------------------------------------------------------------------------------------------------------


def _fetch_web(address: str, kept: _Kept) -> dict[str, Any]:
    asked = urllib.request.Request(address, headers={"User-Agent": "launcher", "Accept-Encoding": "identity"})
    try:
        with urllib.request.urlopen(asked, timeout=_TIMEOUT_SECONDS) as answer:
            _refuse_page(address, answer.headers)
            version = _version(answer.headers, size=answer.headers.get("Content-Length"))
            if kept.is_version(version):
                return version
            return kept.replace(version, lambda target: _copy(answer, target))
    except DataError as error:
        raise DataError(f"data source {address!r}: {error}") from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise _web_fault(address, error) from None


def _copy(answer: Any, target: Path) -> None:
    with target.open("wb") as file:
        shutil.copyfileobj(answer, file, 1 << 20)


def _refuse_page(address: str, headers: Any) -> None:
    if headers.get_content_type() == "text/html":
        raise DataError(
            "the server sends a web page, not the file; use the address of the file itself (on code hosts and hubs often raw or resolve "
            "in place of blob), or fetch it by hand where a login is needed"
        )
    packing = headers.get("Content-Encoding", "identity")
    if packing != "identity" and not file_name(address).endswith(".gz"):
        raise DataError(f"the server sends the file packed ({packing}), which it was asked not to do; fetch it by hand")


def _web_fault(address: str, error: Exception) -> DataError:
    start = f"data source {address!r}:"
    if isinstance(error, urllib.error.HTTPError):
        said = f"HTTP {error.code} {error.reason}"
        if error.code in (404, 410):
            return DataError(f"{start} there is no such file ({said}); check the address")
        if error.code in (401, 403, 407):
            return DataError(f"{start} the server refuses it ({said}); fetch it by hand and name the file")
        if error.code >= 500 or error.code == 429:
            return DataUnreachable(f"{start} the server cannot give it now ({said}); try again later")
        return DataError(f"{start} the server does not give it ({said}); check the address")
    if isinstance(error, http.client.IncompleteRead):
        return DataError(f"{start} the transfer broke off after {len(error.partial):,} bytes of a part; try again")
    if isinstance(error, ValueError | http.client.InvalidURL):
        return DataError(f"{start} is no web address ({error}); check it")
    return _unreachable(address, getattr(error, "reason", None) or error)


def _unreachable(address: str, reason: object) -> DataUnreachable:
    return DataUnreachable(
        f"data source {address!r}: cannot be reached ({str(reason) or type(reason).__name__}); fetch it on a machine with a network "
        "(`launcher prepare` there keeps it in data.cache_dir), or name a copy"
    )


# --- all others ----------------------------------------------------------------------------------------------------


def _file_system(address: str) -> tuple[Any, str]:
    from fsspec.core import url_to_fs

    system, path = url_to_fs(address)
    return system, path


def _fetch_by_fsspec(address: str, kept: _Kept) -> dict[str, Any]:
    try:
        system, path = _file_system(address)
        # A list from earlier in this process would hide what has changed.
        system.invalidate_cache()
        said = system.info(path)
        version = _version(said, size=said.get("size"))
        if kept.is_version(version):
            return version
        return kept.replace(version, lambda target: system.get_file(path, str(target)))
    except DataError as error:
        raise DataError(f"data source {address!r}: {error}") from None
    except Exception as error:
        # Every file system has errors of its own.
        raise _fault(address, error) from None


def _fault(address: str, error: Exception) -> DataError:
    start, said = f"data source {address!r}:", " ".join(str(error).split())[:300]
    if isinstance(error, FileNotFoundError):
        return DataError(f"{start} there is no such file or folder{_near(address)}; check the address")
    if isinstance(error, PermissionError) or "credential" in f"{type(error).__name__} {said}".lower():
        return DataError(
            f"{start} may not be read ({type(error).__name__}: {said}); log in as its client does, or name a copy"
        )
    if isinstance(error, OSError):
        return _unreachable(address, f"{type(error).__name__}: {said}")
    return DataError(f"{start} cannot be read ({type(error).__name__}: {said}); check the address and your login")


def _near(address: str) -> str:
    """Say which file beside it has nearly that name, where the file system can list."""
    try:
        system, path = _file_system(address)
        names = [PurePosixPath(name).name for name in system.ls(str(PurePosixPath(path).parent), detail=False)]
    except Exception:
        return ""
    near = suggest(file_name(address), names)
    return f" (did you mean {near!r}?)" if near else ""
