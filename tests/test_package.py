"""The wheel carries what a user without the repository needs."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SHIPPED = ("recipes", "ds_configs", "slurm")

LIST = """
import json, sys
before = set(sys.modules)
from launcher.recipe.find import list_recipes
found = [[name, str(path), about] for name, path, about in list_recipes()]
new = {name.partition(".")[0] for name in set(sys.modules) - before}
print(json.dumps({"recipes": found, "modules": sorted(new - set(sys.stdlib_module_names))}))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory, require) -> Path:
    for name in ("build", "setuptools"):
        require(importlib.util.find_spec(name), f"needs the package {name}")
    # A copy: the build writes beside the sources.
    source = tmp_path_factory.mktemp("source")
    for name in ("launcher", *SHIPPED):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for path in ROOT.iterdir():
        if path.is_file() and not path.name.startswith("."):
            shutil.copy(path, source)
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    (path,) = out.glob("finetune_launcher-*.whl")
    return path


def test_the_wheel_has_all_that_ships(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    for folder in SHIPPED:
        for path in (ROOT / folder).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                assert f"launcher/_shipped/{path.relative_to(ROOT).as_posix()}" in names, path
    for path in (ROOT / "launcher").rglob("*"):
        if path.suffix == ".py" or "templates" in path.parts and path.is_file():
            assert path.relative_to(ROOT).as_posix() in names, path
    assert "launcher/py.typed" in names
    tops = {name.partition("/")[0] for name in names}
    assert tops == {"launcher", *(top for top in tops if top.endswith(".dist-info"))}


def test_an_empty_environment_lists_the_recipes(wheel, tmp_path):
    venv.create(tmp_path / "venv", with_pip=False)
    python = str(tmp_path / "venv/bin/python")
    install = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index", str(wheel)]
    subprocess.run(install, check=True, timeout=120)
    done = subprocess.run([python, "-I", "-c", LIST], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["modules"] == ["launcher"], "listing needs the standard library alone"
    here = sorted(path.relative_to(ROOT / "recipes").with_suffix("").as_posix() for path in (ROOT / "recipes").rglob("*.yaml"))
    assert sorted(name for name, _, _ in found["recipes"]) == here
    assert all(path.startswith(str(tmp_path / 'venv')) and about for _, path, about in found["recipes"])
    shipped = "from launcher.shipped import shipped_folder as s; print([s(n).is_dir() for n in ('recipes', 'ds_configs', 'slurm')])"
    done = subprocess.run([python, "-I", "-c", shipped], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[True, True, True]"
