"""The recipes of large models: their numbers are the published ones, and each fits on the GPUs that its first line names."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path

import pytest
import tiny

from launcher.recipe.examine import examine
from launcher.recipe.load import list_recipes, load_recipe
from launcher.registry import TASKS
from launcher.tasks.causal_lm import CausalLM

RECIPES = {name: (path, about) for name, path, about in list_recipes() if name.startswith("llm/")}
# Of the weights on the hub.
SIZES = {
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.1-70b": 70_553_706_496,
    "qwen2.5-7b": 7_615_616_512,
    "qwen3-8b": 8_190_735_360,
    "mistral-7b-v0.3": 7_248_023_552,
    "gemma-2-9b": 9_241_705_984,
}
PARTS = Path(__file__).resolve().parents[1] / "recipes" / "llm" / "_parts"
# Planned with the slower tests; the others with the long ones.
OFTEN = ("llm/llama3-8b-sft-4-nodes", "llm/llama3-8b-sft-qlora", "llm/llama3-70b-full-4-nodes")
_FITS = re.compile(r"Fits on: (?:(?P<nodes>\d+) nodes? of (?P<each>\d+) |1 GPU, )(?P<gpu>[\w-]+)\.$")


@pytest.mark.parametrize("name", SIZES)
def test_a_model_has_its_published_size(name: str, tmp_path: Path) -> None:
    values = {
        "version": 1,
        "base": str(PARTS / f"{name}.yaml"),
        "name": "x",
        "task": "causal-lm",
        "data": {"source": "x"},
    }
    recipe = load_recipe(tiny.write_recipe(tmp_path / "r.yaml", values)).recipe
    loaded = CausalLM(recipe).build_model(None, skeleton=True)
    assert sum(tensor.numel() for tensor in loaded.model.parameters()) == SIZES[name]


def test_every_model_is_used_and_parts_are_no_recipes() -> None:
    bases = "".join(path.read_text(encoding="utf-8") for path, _ in RECIPES.values())
    assert {path.stem for path in PARTS.glob("*.yaml")} == {*SIZES, "sft-lora"}
    assert all(f"_parts/{path.name}" in bases for path in PARTS.glob("*.yaml"))
    assert not any("_parts" in name for name, _, _ in list_recipes())


def test_several_nodes_in_few_lines() -> None:
    path, _ = RECIPES["llm/llama3-8b-sft-4-nodes"]
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 35
    recipe = load_recipe(path).recipe
    assert (recipe.distributed.nodes, recipe.distributed.processes_per_node, recipe.distributed.zero_stage) == (4, 8, 3)


def test_what_is_asked_for_is_there() -> None:
    found = [load_recipe(path).recipe for path, _ in RECIPES.values()]
    models = {recipe.model.name_or_path for recipe in found}
    assert len(models) == len(SIZES)
    assert {recipe.strategy.type for recipe in found} == {"full", "lora", "discriminative"}
    assert {recipe.distributed.nodes for recipe in found} == {1, 4}
    assert any(getattr(recipe.strategy, "load_in_4bit", False) for recipe in found)
    assert any(recipe.distributed.sequence_parallel_size > 1 and recipe.data.max_length == 32768 for recipe in found)


@pytest.mark.parametrize("name", RECIPES)
def test_it_passes_its_checks_offline_and_says_where_it_fits(name: str) -> None:
    loaded, problems = examine(name)
    assert loaded is not None and problems == []
    assert _FITS.search(RECIPES[name][1]), RECIPES[name][1]


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "name", [name if name in OFTEN else pytest.param(name, marks=pytest.mark.soak) for name in RECIPES]
)
def test_it_fits_where_it_says(name: str, tmp_path: Path) -> None:
    """Offline, by the numbers in the recipe, for machines that are not here."""
    task = load_recipe(name).recipe.task.type
    if importlib.util.find_spec(TASKS[task].partition(":")[0]) is None:
        pytest.skip(f"the task {task} is not written yet")
    fits = _FITS.search(RECIPES[name][1])
    assert fits is not None
    where = ("--gpu", fits["gpu"], "--gpus-per-node", fits["each"] or "1", "--nodes", fits["nodes"] or "1")
    done = tiny.launcher("plan", name, *where, "--json", cwd=tmp_path, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout)["whole"]["fits"] is True


@pytest.mark.slow
def test_ranks_that_share_rows_hold_a_share_of_them(tmp_path: Path) -> None:
    where = ("--gpu", "h100-80gb", "--gpus-per-node", "8", "--json")
    held = {}
    for size in (4, 8):
        change = f"distributed.sequence_parallel_size={size}"
        done = tiny.launcher("plan", "llm/llama3-8b-long-context", change, *where, cwd=tmp_path, timeout=280)
        held[size] = json.loads(done.stdout)["whole"]["forecast"]["memory"]["moments"]
    assert held[8]["training"]["activations"] == pytest.approx(held[4]["training"]["activations"] / 2, rel=0.1)
    assert held[8]["evaluation"] == held[4]["evaluation"]
