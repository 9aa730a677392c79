"""The wheel carries what lies beside the code, and works where nothing else is installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

from launcher.recipe.find import list_recipes

ROOT = Path(__file__).resolve().parents[1]
PARTS = ("launcher", "recipes", "ds_configs", "slurm", "pyproject.toml", "setup.py", "README.md", "LICENSE")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel of this checkout, built from a copy, without the network."""
    source = tmp_path_factory.mktemp("source")
    for name in PARTS:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(ROOT / name, source / name)
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(source)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return next(out.glob("*.whl"))


def test_the_wheel_has_every_shipped_file(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for folder in ("recipes", "ds_configs", "slurm"):
        for path in (ROOT / folder).rglob("*"):
            if path.is_file():
                assert f"launcher/_shipped/{folder}/{path.relative_to(ROOT / folder).as_posix()}" in names
    assert "launcher/py.typed" in names and "launcher/evaluation/templates/report.html.j2" in names


def test_recipes_are_listed_from_the_wheel_alone(wheel: Path, tmp_path: Path) -> None:
    folder = tmp_path / "an empty environment"
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    command = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", "--no-index", str(wheel)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    code = "from launcher.recipe.find import list_recipes; print(*(name for name, _, _ in list_recipes()), sep='\\n')"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run([python, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [name for name, _, _ in list_recipes()]


def test_what_is_required_is_pinned() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {line.partition("==")[0] for line in lines if not line.startswith("#")}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [*project["dependencies"], *(row for rows in project["optional-dependencies"].values() for row in rows)]
    names = {
        "".join(c for c in row if c.isalnum() or c in "-_.<>=").split(">")[0].split("=")[0].split("<")[0]
        for row in wanted
    }
    assert {name.lower().replace("_", "-").replace(".", "-") for name in names} <= pinned
