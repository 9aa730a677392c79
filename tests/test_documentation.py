"""The documentation is current: generated parts, links, and the commands and recipes that it names."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

from launcher.recipe.examine import examine
from launcher.recipe.load import list_recipes

ROOT = Path(__file__).resolve().parents[1]
# A checkout has other Markdown files too: runs, tools' folders.
PAGES = sorted(
    [
        *ROOT.glob("*.md"),
        *(ROOT / "docs").rglob("*.md"),
        ROOT / "benchmarks" / "README.md",
        ROOT / "slurm" / "README.md",
    ]
)


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_generate", ROOT / "docs" / "generate.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_generated_parts_are_current(generate: ModuleType) -> None:
    assert [str(path.relative_to(ROOT)) for path in generate.stale()] == [], "run `make docs`"


def anchors(path: Path) -> set[str]:
    heads = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if target.startswith("http"):
            continue
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        assert path.exists(), f"{page.name}: {target}"
        assert not anchor or anchor in anchors(path), f"{page.name}: {target}"


def test_every_page_is_on_the_map() -> None:
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    for path in (ROOT / "docs" / "guide").glob("*.md"):
        assert f"(guide/{path.name})" in index, path.name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_verbs_and_recipes_that_are_named_exist(page: Path) -> None:
    import typer

    from launcher.cli import app

    verbs = set(typer.main.get_command(app).commands)  # type: ignore[attr-defined]
    recipes = {name for name, _, _ in list_recipes()}
    # Code blocks are indented; a sentence may also say what people type instead of a verb.
    for line in re.findall(r"^    (launcher .*)$", page.read_text(encoding="utf-8"), re.MULTILINE):
        words = line.split("#")[0].split()
        assert words[1].startswith("-") or words[1] in verbs, line
        named = [word for word in words if re.fullmatch(r"(quickstart|text-classification)/[\w-]+", word)]
        assert set(named) <= recipes, line


def test_the_recipe_of_the_readme_is_sound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_folder").mkdir()
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    block = next(part for part in re.findall(r"(?:^    .*\n)+", text, re.MULTILINE) if "version: 1" in part)
    (tmp_path / "my.yaml").write_text(re.sub(r"^    ", "", block, flags=re.MULTILINE), encoding="utf-8")
    loaded, problems = examine("my.yaml")
    assert problems == [] and loaded is not None
    assert loaded.recipe.distributed.zero_stage == 2


def test_the_pins_of_the_built_in_data_are_those_of_the_constraints() -> None:
    from launcher.data.builtin_api_topics_sources import VERSIONS

    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if "==" in line and not line.startswith("#"))
    assert {name: pins.get(re.sub(r"[-_.]+", "-", name).lower()) for name in VERSIONS} == VERSIONS
