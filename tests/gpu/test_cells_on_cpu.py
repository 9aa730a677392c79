"""The recipes of the GPU's cells are sound, and what is asserted of their runs holds for tiny ones on the processor."""

from __future__ import annotations

from pathlib import Path

import cells
import pytest

from launcher.plans import Gpu, Hardware
from launcher.recipe.examine import examine


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return cells.make_place(tmp_path_factory.mktemp("tiny-cells"), cells.TINY)


# --- without a run ---------------------------------------------------------------------------------------------------

H100 = Gpu("NVIDIA H100 80GB HBM3", 80 * 2**30, 9.0)


@pytest.mark.parametrize("name", cells.CELLS)
def test_a_cells_recipe_has_no_fault_and_its_launch_is_as_expected(place, name, monkeypatch):
    from launcher.launching.launch_plan import plan_launch

    # A recipe's relative paths begin where the user stands.
    monkeypatch.chdir(place)
    loaded, problems = examine(str(cells.recipe_of(place, cells.TINY, name)), [])
    assert loaded is not None and not problems, problems
    cell = cells.CELLS[name]
    plan = plan_launch(loaded.recipe, Hardware((H100,) * cell.gpus, 16, 2**37, cpu_has_fast_bf16=True))
    assert plan.device == "cuda" and {key: getattr(plan, key) for key in cell.values} == dict(cell.values)


def test_the_large_model_has_half_a_billion_parameters():
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**cells.HALF_BILLION.config, tie_word_embeddings=True))
    assert 0.5e9 < sum(tensor.numel() for tensor in model.parameters()) < 1e9


# --- with runs -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bf16", *(pytest.param(n, marks=pytest.mark.soak) for n in ("lora", "prefix-cache"))])
def test_a_cell_runs(place, name):
    run = cells.run_cell(place, cells.TINY, name)
    cells.check_run(run, cells.CELLS[name], device="cpu")
    assert cells.measured_bytes(run) > 0


@pytest.mark.slow
def test_the_plan_says_how_much_memory(place):
    assert cells.predicted_bytes(place, cells.recipe_of(place, cells.TINY, "fp32")) > 0
