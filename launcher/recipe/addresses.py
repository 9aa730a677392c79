"""Addresses of rows such as s3://bucket/rows.csv: told from paths, and judged by their form alone, without a network."""

from __future__ import annotations

import importlib.util
from urllib.parse import urlsplit

from launcher.registry import suggest

# Read by Python's own client; all others by fsspec.
WEB = ("http", "https")
_PATHS = ("file", "local")


def is_address(source: str) -> bool:
    """Whether a source is an address, not a path, a hub id or a built-in one."""
    return "://" in source


def scheme_of(address: str) -> str:
    """Return what stands before ``://``."""
    return address.partition("://")[0]


def address_fault(address: str) -> tuple[str, str] | None:
    """Return (what is wrong, remedy) of an address that no file system could read; None where one could."""
    scheme = scheme_of(address)
    if scheme in _PATHS:
        return f"{scheme}:// names a file of this machine", f"write its path: {address.partition('://')[2]}"
    if scheme not in WEB:
        from fsspec.registry import known_implementations, registry

        known = sorted({*WEB, *known_implementations, *registry} - {*_PATHS})
        if scheme not in known:
            near = suggest(scheme, known)
            return f"there is no kind of address {scheme}://", (f"did you mean {near}://? " if near else "") + (
                "there are s3, gs, az, hf, http, https and others of fsspec's"
            )
    if urlsplit(address).password is not None:
        return (
            "a password in an address would be written down with each run",
            "remove it; log in as the file system's client does",
        )
    return None


def lacking(address: str) -> tuple[str, str] | None:
    """Return (what this machine lacks to read the address, remedy); None where nothing is known to be missing."""
    scheme = scheme_of(address)
    if scheme in WEB or address_fault(address):
        return None
    from fsspec.registry import get_filesystem_class, known_implementations

    package = known_implementations.get(scheme, {"class": "fsspec"})["class"].partition(".")[0]
    if package != "fsspec" and importlib.util.find_spec(package) is None:
        return (
            f"{scheme}:// needs the package {package}, which is not installed",
            f"pip install {package.replace('_', '-')}",
        )
    if package == "fsspec":
        try:
            get_filesystem_class(scheme)
        except ImportError as error:
            return f"{scheme}:// needs a package that is not installed", str(error)
    return None
