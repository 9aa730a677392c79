"""Cluster profiles by name: the project's own first, then the user's, then the system's, then those that ship."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from launcher.errors import Problem, RecipeError
from launcher.recipe.cluster_profile import ClusterProfile
from launcher.recipe.tree import parse_tree, read_text
from launcher.registry import suggest
from launcher.shipped import shipped_folder

DEFAULT = "default"


@dataclass(frozen=True)
class FoundProfile:
    """A profile and the file that it stands in."""

    name: str
    path: Path
    profile: ClusterProfile


def profile_folders(project: Path, environment: Mapping[str, str] = os.environ) -> tuple[Path, ...]:
    """Return the folders that are looked through, in this order."""
    home = Path(environment.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    return (project / "slurm", home / "launcher" / "slurm", Path("/etc/launcher/slurm"), shipped_folder("slurm"))


def find_profile(name: str | None, project: Path) -> FoundProfile:
    """Return the profile that a name means; None: the one called ``default``, or one without any fact where there is none.

    Raises:
        RecipeError: there is no such profile, or it has faults; with the file, the key and the value of each.
    """
    wanted = name or DEFAULT
    folders = profile_folders(project)
    for folder in folders:
        path = folder / f"{wanted}.yaml"
        if path.is_file():
            return FoundProfile(wanted, path, load_profile(path))
    if name is None:
        return FoundProfile(DEFAULT, Path(), ClusterProfile())
    known = sorted({path.stem for folder in folders if folder.is_dir() for path in folder.glob("*.yaml")})
    near = suggest(wanted, known)
    remedy = (
        f"did you mean {near}?" if near else f"write {folders[0] / (wanted + '.yaml')}; known are {', '.join(known)}"
    )
    raise RecipeError([Problem("slurm.profile", f"there is no cluster profile {wanted!r}", remedy)])


def load_profile(path: Path) -> ClusterProfile:
    """Read a profile. Raises RecipeError with every fault."""
    tree = parse_tree(read_text(path), str(path))
    try:
        return ClusterProfile.model_validate(tree.values, strict=False)
    except ValidationError as error:
        problems = []
        for found in error.errors(include_url=False):
            place = next(
                (
                    tree.places[found["loc"][:size]]
                    for size in range(len(found["loc"]), -1, -1)
                    if found["loc"][:size] in tree.places
                ),
                str(path),
            )
            key = ".".join(str(part) for part in found["loc"])
            known = suggest(key, ClusterProfile.model_fields) if found["type"] == "extra_forbidden" else None
            remedy = f"did you mean {known}?" if known else ""
            problems.append(Problem(place, f"{key}: {found['msg']} (it is {found['input']!r})", remedy, key))
        raise RecipeError(problems) from None
