"""Before a launch: what obviously fits is waved through at once, what cannot fit is refused, and auto takes a stage."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import tiny

from launcher.errors import RecipeError
from launcher.plans import Gpu, Hardware
from launcher.recipe.load import LoadedRecipe, load_recipe
from launcher.rundir import RunDir
from launcher.workflows import room
from launcher.workflows.room import with_room
from launcher.workflows.start import create_run

CPU = Hardware((), 8, 2**34, cpu_has_fast_bf16=False)
TWO_CARDS = Hardware((Gpu("card", 2**34, 9.0),) * 2, 8, 2**34, cpu_has_fast_bf16=False)


@pytest.fixture(scope="module")
def bert(tmp_path_factory) -> Path:
    return tiny.save_bert(tmp_path_factory.mktemp("room") / "bert")


def load(folder: Path, name: object = "./bert", **changes: object) -> LoadedRecipe:
    return load_recipe(tiny.write_recipe(folder / "r.yaml", tiny.recipe_values(str(name), "./data", **changes)))


@pytest.fixture
def plans(monkeypatch):
    """What the plan in a process of its own would say, and how often it was asked."""
    said = {"refused": None, "chosen": None, "engine": "ddp", "zero_stage": None, "asked": 0}

    def run(command, **_):
        said["asked"] += 1
        assert "plan" in command and "--json" in command
        text = said.get("text") or json.dumps({"whole": said})
        return subprocess.CompletedProcess(command, 0, text, "")

    monkeypatch.setattr(room.subprocess, "run", run)
    return said


def test_a_small_model_is_not_planned(bert, tmp_path, plans):
    loaded = load(tmp_path, bert)
    assert with_room(loaded, hardware=CPU, runs=tmp_path) is loaded and plans["asked"] == 0


def test_a_model_that_is_not_here_is_not_planned(tmp_path, plans):
    for name in ("./bert", "someone/model"):
        loaded = load(tmp_path, name)
        assert with_room(loaded, hardware=CPU, runs=tmp_path) is loaded
    assert plans["asked"] == 0


def test_a_model_of_which_the_recipe_has_the_numbers_is_planned(tmp_path, plans):
    """Before gigabytes are fetched."""
    config = {"model_type": "llama", "hidden_size": 4096, "num_hidden_layers": 32}
    values = {"name_or_path": "someone/model", "config": config}
    with_room(load(tmp_path, model=values), hardware=CPU, runs=tmp_path)
    assert plans["asked"] == 1


@pytest.mark.parametrize(
    "hardware, changes",
    [
        (Hardware((), 8, 2**31, cpu_has_fast_bf16=False), {}),
        (CPU, {"training": {"per_device_eval_batch_size": 200_000}}),
        (Hardware((Gpu("small", 2**31, 9.0),), 8, 2**34, cpu_has_fast_bf16=False), {}),
    ],
)
def test_what_is_not_obvious_is_planned(bert, tmp_path, plans, hardware, changes):
    with_room(load(tmp_path, bert, **changes), hardware=hardware, runs=tmp_path)
    assert plans["asked"] == 1


def test_a_disk_that_may_not_suffice_is_looked_at(bert, tmp_path, plans, monkeypatch):
    monkeypatch.setattr(room, "free_bytes", lambda folder: 2**18)
    with_room(load(tmp_path, bert), hardware=CPU, runs=tmp_path)
    assert plans["asked"] == 1


@pytest.fixture
def not_obvious(monkeypatch):
    monkeypatch.setattr(room, "_OBVIOUS_SHARE", 0.0)


def test_a_run_that_cannot_fit_is_refused_before_anything_is_written(bert, tmp_path, plans, not_obvious):
    plans["refused"] = "this run needs 40 GiB, and 8 GiB may be used; the cheapest change that fits: a=b"
    with pytest.raises(RecipeError, match=r"r\.yaml: this run needs 40 GiB.*; the cheapest change") as caught:
        create_run(load(tmp_path, bert), runs=tmp_path / "runs", hardware=CPU)
    assert caught.value.exit_code == 2 and not (tmp_path / "runs").exists()


def test_what_auto_takes_stands_in_everything_that_starts_the_run(bert, tmp_path, plans, not_obvious, capsys):
    plans.update(chosen="ZeRO-2, the first stage that fits", engine="deepspeed", zero_stage=2)
    loaded = load(tmp_path, bert, distributed={"processes_per_node": 2})
    run, _ = create_run(loaded, runs=tmp_path / "runs", hardware=TWO_CARDS)
    recipe = load_recipe(run.resolved).recipe
    assert (recipe.distributed.engine, recipe.distributed.zero_stage) == ("deepspeed", 2)
    launched = json.loads(RunDir(run.path).launch_plan(1).read_text())["plan"]
    assert (launched["engine"], launched["zero_stage"]) == ("deepspeed", 2)
    assert json.loads(run.deepspeed(1).read_text())["zero_optimization"]["stage"] == 2
    assert "engine: auto takes ZeRO-2" in capsys.readouterr().err
    assert run.recipe.read_text() == loaded.source_text, "the recipe as given"


def test_a_plan_that_fails_leaves_the_word_to_the_run(bert, tmp_path, plans, not_obvious):
    plans["text"] = "Traceback: not JSON"
    loaded = load(tmp_path, bert)
    assert with_room(loaded, hardware=CPU, runs=tmp_path) is loaded


def test_a_models_numbers_are_read_from_its_files(bert):
    shape = room._shape(room._numbers(load(bert.parent, bert).recipe, bert), bert)
    assert shape is not None and (shape.hidden, shape.layers, shape.heads, shape.vocabulary) == (32, 2, 2, 128)
    from transformers import BertConfig, BertModel

    model = BertModel(BertConfig.from_pretrained(bert))
    assert shape.numel == sum(p.numel() for p in model.parameters())
