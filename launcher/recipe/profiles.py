"""Cluster profiles by name: the project's own first, then the user's, then the system's, then those that ship."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from launcher.errors import Problem, RecipeError
from launcher.recipe.cluster_profile import ClusterProfile, Container
from launcher.recipe.keys import Spot, shown
from launcher.recipe.tree import Tree, dotted, parse_tree, read_text
from launcher.recipe.values import value_fault
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


def list_profiles(project: Path) -> dict[str, Path]:
    """Return name -> file of every profile that can be named; of one name the first that is found."""
    found: dict[str, Path] = {}
    for folder in profile_folders(project):
        for path in sorted(folder.glob("*.yaml")) if folder.is_dir() else ():
            found.setdefault(path.stem, path)
    return found


def find_profile(name: str | None, project: Path) -> FoundProfile:
    """Return the profile that a name means; None: the one called ``default``, or one without any fact where there is none.

    Raises:
        RecipeError: there is no such profile, or it has faults; with the file, the key and the value of each.
    """
    wanted = name or DEFAULT
    known = list_profiles(project)
    if wanted in known:
        return FoundProfile(wanted, known[wanted], load_profile(known[wanted]))
    if name is None:
        return FoundProfile(DEFAULT, Path(), ClusterProfile())
    near = suggest(wanted, known)
    file = profile_folders(project)[0] / f"{wanted}.yaml"
    remedy = f"did you mean {near}?" if near else f"write {file}; known are {', '.join(known)}"
    raise RecipeError([Problem("slurm.profile", f"there is no cluster profile {wanted!r}", remedy)])


def load_profile(path: Path) -> ClusterProfile:
    """Read a profile. Raises RecipeError with every fault."""
    tree = parse_tree(read_text(path), str(path), what="cluster profile")
    try:
        return ClusterProfile.model_validate(tree.values)
    except ValidationError as error:
        raise RecipeError([_problem(found, tree) for found in error.errors(include_url=False)]) from None


def _problem(found: ErrorDetails, tree: Tree) -> Problem:
    path = tuple(part for part in found["loc"] if part != "[key]")
    key, section = dotted(path), Container if path[:1] == ("container",) else ClusterProfile
    if found["type"] == "extra_forbidden":
        near = suggest(str(path[-1]), section.model_fields)
        remedy = f"did you mean {near}?" if near else f"its keys are {', '.join(section.model_fields)}"
        return Problem(tree.place(path), f"a cluster profile has no key {key}", remedy, key)
    if found["type"] == "value_error":
        subject = f"{shown(key, found['input'])}; it" if path else "the profile"
        return Problem(tree.place(path), f"{subject} {found['ctx']['error']}", "", key)
    field = section.model_fields.get(str(path[-1] if section is Container else path[0])) if path else None
    message, remedy, fix = value_fault(
        found, key or "a cluster profile", Spot(field.annotation if field else dict, field)
    )
    return Problem(tree.place(path), message, remedy, key, fix)
