"""The GPU benchmark's recipes have no fault, and its rows have the length that it counts with."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import pytest
import tiny

from launcher.recipe.examine import examine

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
import gpu as benchmark


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("benchmark")
    small = {
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "vocab_size": 64,
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(benchmark, "CONFIG", {**small, "max_position_embeddings": 2048})
        benchmark.write_model(found / "model")
    benchmark.write_rows(found / "data", 2)
    return found


@pytest.mark.parametrize("name", benchmark.CELLS)
def test_a_recipe_has_no_fault(folder, name, monkeypatch):
    monkeypatch.chdir(folder)
    path = tiny.write_recipe(folder / f"{name}.yaml", benchmark.recipe_of(name))
    loaded, problems = examine(str(path), [])
    assert loaded is not None and not problems, problems


def test_every_row_has_the_length_that_is_counted(folder):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(folder / "model"))
    with (folder / "data/train.csv").open() as file:
        texts = [row["text"] for row in csv.DictReader(file)]
    assert len(texts) == len(set(texts)) == 2 * benchmark.ROWS
    assert {len(tokenizer(text)["input_ids"]) for text in texts} == {benchmark.TOKENS}
