"""The GPU benchmark's recipes have no fault, its rows have the length that it counts with, and what it reads of a run is there."""

from __future__ import annotations

import csv
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import tiny

from launcher.recipe.examine import examine

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
import gpu as benchmark

SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "intermediate_size": 32,
    "vocab_size": 64,
}
SHAPES = (benchmark.HALF_BILLION, benchmark.EIGHT_BILLION)


def shrunk(shape: benchmark.Shape, **fields: int) -> benchmark.Shape:
    """A tiny model of the same kind."""
    return replace(shape, config={**shape.config, **SMALL}, **fields)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("benchmark")
    for shape in SHAPES:
        benchmark.write_place(found, shrunk(shape), steps=2)
    return found


@pytest.mark.parametrize("name", benchmark.CELLS)
def test_a_recipe_has_no_fault(folder, name, monkeypatch):
    monkeypatch.chdir(folder)
    path = tiny.write_recipe(folder / f"{name}.yaml", benchmark.recipe_of(name))
    loaded, problems = examine(str(path), [])
    assert loaded is not None and not problems, problems


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.task)
def test_every_row_has_the_length_that_is_counted(folder, shape):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(folder / benchmark.folder_of(shape, "model")))
    with (folder / benchmark.folder_of(shape, "data") / "train.csv").open() as file:
        texts = [row["text"] for row in csv.DictReader(file)]
    assert len(texts) == len(set(texts)) == 2 * shape.rows
    assert {len(tokenizer(text)["input_ids"]) for text in texts} == {shape.tokens}


def test_the_large_model_has_eight_billion_parameters():
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**benchmark.EIGHT_BILLION.config))
    assert sum(tensor.numel() for tensor in model.parameters()) == 8_030_261_248, "as Llama 3.1 8B"


def test_a_published_speed_stands_beside_ours():
    found = benchmark.beside(benchmark.CELLS["8b-lora"], 12_473 / 2)
    assert (found["tokens"], found["published"]["tokens_per_second"], found["published"]["ratio"]) == (
        4096,
        12_473,
        0.5,
    )
    assert "published" not in benchmark.beside(benchmark.CELLS["full"], 1.0)


@pytest.mark.slow
def test_the_cell_of_the_large_model_runs_in_small(tmp_path, monkeypatch):
    small = shrunk(benchmark.EIGHT_BILLION, tokens=64, rows=2)
    cell = replace(benchmark.CELLS["8b-lora"], shape=small)
    monkeypatch.setitem(benchmark.CELLS, "8b-lora", cell)
    found = benchmark.measure(tmp_path, "8b-lora", steps=6, peak=1e12)
    assert found["tokens_per_second"] > 0 and found["peak_bytes"] > 0 and 0 < found["mfu"] < 1
    assert found["published"]["who"].startswith("NeMo") and json.dumps(found)
    assert not list((tmp_path / "runs").glob("8b-lora-*")), "of 8 billion parameters they would fill a disk"
