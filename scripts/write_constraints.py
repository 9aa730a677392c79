"""Print constraints.txt for the environment that runs this: its head, and every installed package with its version."""

from __future__ import annotations

import importlib.metadata
import re
from pathlib import Path

# pip comes with the virtual environment, and the project itself is installed from its folder.
_LEFT_OUT = {"pip", "finetune-launcher"}


def main() -> None:
    """Print the file."""
    old = (Path(__file__).resolve().parent.parent / "constraints.txt").read_text(encoding="utf-8")
    head = [line for line in old.splitlines() if line.startswith("#")]
    found = {}
    for package in importlib.metadata.distributions():
        name = re.sub(r"[-_.]+", "-", package.metadata["Name"]).lower()
        # A local version such as +cpu names a build; the constraint is to fit all builds.
        found[name] = package.version.partition("+")[0]
    print("\n".join([*head, *(f"{name}=={found[name]}" for name in sorted(found.keys() - _LEFT_OUT))]))


if __name__ == "__main__":
    main()
