"""Modules of Python's standard library that built-in sources are made from: the same in every installation, and never imported."""

from __future__ import annotations

import platform
from importlib.util import find_spec
from pathlib import Path

# A module's rows all go to one split.
MODULES = {
    "train": ["argparse", "ast", "base64", "calendar", "cmd", "codecs", "configparser", "contextlib", "copy", "csv", "dataclasses", "difflib", "dis", "doctest", "enum", "filecmp", "fileinput", "fractions", "ftplib", "functools", "getopt", "gettext", "gzip", "imaplib", "inspect", "ipaddress", "json.decoder", "linecache", "locale", "logging", "mailbox", "mimetypes", "optparse", "os", "pdb", "pickle", "platform", "plistlib", "poplib", "pprint", "pstats", "pydoc", "random", "shutil", "smtplib"],
    "validation": ["heapq", "queue", "sched", "selectors", "shelve", "shlex", "socket", "statistics", "string"],
    "test": ["socketserver", "subprocess", "tarfile", "tempfile", "textwrap", "threading", "timeit", "tokenize", "trace", "traceback", "unittest.case", "urllib.parse", "urllib.request", "uuid", "warnings", "wave", "weakref", "webbrowser", "xmlrpc.client", "zipapp"],
}  # fmt: skip

VERSIONS = {"python": platform.python_version()}
"""What rows from these modules depend on."""


def source_of(module: str) -> str:
    """Return a module's source; "" where this installation has none, or it is not plain ASCII (columns are bytes to Python's parser)."""
    spec = find_spec(module)
    path = Path(spec.origin) if spec is not None and spec.origin and spec.origin.endswith(".py") else None
    text = path.read_text(encoding="utf-8") if path is not None and path.is_file() else ""
    return text if text.isascii() else ""
