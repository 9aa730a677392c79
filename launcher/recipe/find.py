"""Recipes by name: files, and those that ship with launcher."""

from __future__ import annotations

from pathlib import Path

from launcher.errors import Problem, RecipeError
from launcher.registry import suggest
from launcher.shipped import shipped_folder

_ENDINGS = (".yaml", ".yml")


def list_recipes() -> list[tuple[str, Path, str]]:
    """Return (name, path, first comment line) of every shipped recipe, by name; files in folders such as ``_parts`` are parts of others."""
    folder = shipped_folder("recipes")
    paths = sorted(
        path for path in folder.rglob("*") if path.suffix in _ENDINGS and not path.parent.name.startswith("_")
    )
    return [(path.relative_to(folder).with_suffix("").as_posix(), path, _first_comment(path)) for path in paths]


def _first_comment(path: Path) -> str:
    for line in path.read_text(encoding="utf-8").splitlines():
        text = line.removeprefix("#").strip()
        # The line that names the schema is for editors.
        if line.startswith("#") and text and not text.startswith("yaml-language-server"):
            return text
    return ""


def find_recipe(name: str | Path) -> Path:
    """Return the file that a name means: a path, a shipped recipe, or a shipped folder or stem that means only one.

    Raises:
        RecipeError: there is no such recipe, or several.
    """
    path = Path(name)
    if path.is_file() or (path.exists() and path.suffix in _ENDINGS):
        return path
    shipped = {known: file for known, file, _ in list_recipes()}
    wanted = str(name).strip("/").removesuffix(".yaml").removesuffix(".yml")
    if wanted in shipped:
        return shipped[wanted]
    meant = [known for known in shipped if known.startswith(wanted + "/") or known.rpartition("/")[2] == wanted]
    if len(meant) == 1:
        return shipped[meant[0]]
    raise RecipeError([_miss(str(name), path, meant, list(shipped))])


def _miss(name: str, path: Path, meant: list[str], known: list[str]) -> Problem:
    if meant:
        return Problem(name, f"{name!r} could be {', '.join(meant)}", "name one of them")
    if path.is_dir():
        return Problem(name, f"{name!r} is a folder", "name the YAML file in it")
    near = suggest(name, [*known, *(full.rpartition("/")[2] for full in known)])
    remedy = f"did you mean {near}?" if near else "check the name; 'launcher recipes' lists the shipped ones"
    return Problem(name, f"there is no recipe {name!r}, neither as a file nor shipped", remedy)
