"""The command line: every verb, near misses, JSON, and nothing heavy at its start."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
from typer.testing import CliRunner

from launcher.cli import app

VERBS = (
    "recipes",
    "init",
    "check",
    "import",
    "plan",
    "lr-find",
    "run",
    "resume",
    "evaluate",
    "predict",
    "report",
    "schema",
    "doctor",
)
HEAVY = {"torch", "transformers", "datasets", "deepspeed", "wandb", "accelerate", "peft", "trl", "sklearn", "scipy", "pandas",
         "matplotlib", "pyarrow", "numpy"}  # fmt: skip


def invoke(*arguments: str):
    return CliRunner().invoke(app, list(arguments))


def imported(*command: str) -> set[str]:
    """Top-level names of what a Python process imported."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *command],
        env=tiny.environment(),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return {
        match[1]
        for match in re.finditer(r"^import time:\s+\d+ \|\s+\d+ \|\s+([A-Za-z_0-9]+)", done.stderr, re.MULTILINE)
    }


# --- help ------------------------------------------------------------------------------------------------------------


def test_help_lists_every_verb():
    done = invoke("--help")
    assert done.exit_code == 0
    for verb in VERBS:
        assert re.search(rf"\b{verb}\b", done.output), verb


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself(verb):
    done = invoke(verb, "--help")
    assert done.exit_code == 0 and "Usage" in done.output and len(done.output.splitlines()) >= 5


def test_help_imports_nothing_heavy():
    found = imported(str(Path(sys.executable).with_name("launcher")), "--help")
    assert "launcher" in found and "typer" in found
    assert not HEAVY & found


def test_neither_does_listing_recipes_nor_the_schema():
    """Verbs for a login node."""
    for verb in ("recipes", "schema"):
        assert not HEAVY & imported(str(Path(sys.executable).with_name("launcher")), verb), verb


def test_checking_a_recipe_imports_no_torch(tmp_path):
    recipe = tiny.write_recipe(tmp_path / "r.yaml", tiny.recipe_values("org/model", "org/data"))
    found = imported(str(Path(sys.executable).with_name("launcher")), "check", str(recipe))
    assert not (HEAVY - {"numpy"}) & found


def test_version():
    from launcher import __version__

    assert invoke("--version").output.strip() == f"launcher {__version__}"


# --- near misses -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "word, verb",
    [("train", "run"), ("launch", "run"), ("start", "run"), ("continue", "resume"), ("validate", "check"), ("eval", "evaluate"),
     ("infer", "predict"), ("new", "init"), ("chekc", "check"), ("Report", "report")],
)  # fmt: skip
def test_a_near_miss_is_answered(word, verb):
    done = invoke(word)
    assert done.exit_code == 2
    assert f"did you mean {verb!r}?" in " ".join(done.output.split()), done.output


def test_a_word_like_no_verb_gets_them_all():
    done = invoke("xylophone")
    assert done.exit_code == 2 and "recipes" in done.output and "doctor" in done.output


# --- errors ----------------------------------------------------------------------------------------------------------


def test_an_error_is_its_text_and_its_code_without_a_traceback(tmp_path):
    recipe = tiny.write_recipe(
        tmp_path / "r.yaml", tiny.recipe_values("./bert", "./data", training={"learning_rat": 1})
    )
    done = tiny.launcher("run", recipe, cwd=tmp_path)
    assert done.returncode == 2 and not (tmp_path / "runs").exists()
    assert "r.yaml:" in done.stderr and "learning_rate" in done.stderr and "Traceback" not in done.stderr
    assert "./bert" in done.stderr, "all faults at once"


def test_predict_wants_texts_or_a_file(tmp_path):
    for more in ([], ["a text", "--file", "x.csv"]):
        done = invoke("predict", str(tmp_path), *more)
        assert done.exit_code == 2 and "--file" in done.output


def test_a_directory_that_is_no_run_is_named(tmp_path):
    from launcher.errors import RunStateError

    for verb in ("resume", "report", "evaluate"):
        done = invoke(verb, str(tmp_path))
        assert isinstance(done.exception, RunStateError) and str(tmp_path) in str(done.exception), verb


# --- JSON ------------------------------------------------------------------------------------------------------------


def test_recipes_as_json():
    found = json.loads(invoke("recipes", "--json").stdout)
    assert {"name", "path", "about"} == set(found[0])
    assert "quickstart/api-topics" in [row["name"] for row in found] and all(row["about"] for row in found)
    assert all(Path(row["path"]).is_file() for row in found)


def test_check_as_json(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = tiny.write_recipe(tmp_path / "r.yaml", tiny.recipe_values("org/model", "org/data", training={"sede": 3}))
    done = invoke("check", str(recipe), "--json")
    found = json.loads(done.stdout)
    assert done.exit_code == 2 and found["ok"] is False
    (problem,) = found["problems"]
    assert set(problem) == {"place", "key", "message", "remedy"} and "seed" in problem["remedy"]
    good = invoke("check", str(recipe), "training.sede=null", "--json")
    assert json.loads(good.stdout)["ok"] is False
    recipe = tiny.write_recipe(tmp_path / "r.yaml", tiny.recipe_values("org/model", "org/data"))
    done = invoke("check", str(recipe), "--json")
    assert done.exit_code == 0 and json.loads(done.stdout)["problems"] == []


def test_schema_is_a_json_schema():
    found = json.loads(invoke("schema").stdout)
    assert found["type"] == "object" and {"task", "model", "data", "training"} <= set(found["properties"])


def test_doctor_as_json(monkeypatch):
    from launcher.workflows import doctor

    monkeypatch.setattr(doctor, "can_reach", lambda _: False)
    done = invoke("doctor", "--json")
    found = json.loads(done.stdout)
    assert {"name", "verdict", "found", "remedy"} == set(found[0])
    assert done.exit_code == int(any(row["verdict"] == "missing" for row in found))


# --- plan ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def planned(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("planned")
    tiny.save_bert(folder / "bert")
    tiny.write_data(folder / "data", train=21, validation=9, test=6)
    return tiny.write_recipe(folder / "r.yaml", tiny.recipe_values(folder / "bert", folder / "data"))


def test_plan_as_json(planned):
    done = invoke("plan", str(planned), "strategy.type=head", "--json")
    assert done.exit_code == 0, done.exception
    found = json.loads(done.stdout)
    groups = found["phases"][0]["phase"]["table"]["groups"]
    assert {group["name"]: group["trainable"] for group in groups} == {
        "embeddings.frozen": False, "encoder.frozen": False, "tail.frozen": False, "head": True,
    }  # fmt: skip
    assert (found["train_rows"], found["steps_per_epoch"], found["total_steps"]) == (21, 3, 6)
    assert found["command"][1:3] == ["-m", "launcher.train"]
    rows = found["tuning"]
    assert [(row["phase"], row["group"], row["lr"]) for row in rows][-1] == ("main", "head", 1e-3)
    assert {"phase", "group", "depth", "parameters", "trainable", "lr", "weight_decay", "rank"} <= set(rows[0])


def test_plan_for_people(planned):
    done = invoke("plan", str(planned))
    text = done.stdout
    assert re.search(r"encoder\.no_decay\s+1-2\s", text)
    assert "main (steps 1-6, epochs 0 to 2, 8 rows a step)" in text
    assert "24,515 of 24,515 train (100.0%)" in text
    assert "21 train, 9 validation, 6 test rows" in text
    assert "8 rows a step = 1 process(es) x 8 rows x 1 pass(es)" in text
    assert "6 = 2 epochs of 3; warm-up 1" in text
    assert "rank" not in text and "L1" not in text, "columns of nothing"


def test_plan_shows_a_table_for_each_phase(planned):
    keys = ("strategy.type=layerwise", "strategy.gradual_unfreezing.epochs_per_stage=0.5", "training.l1_penalty=1e-4")
    done = invoke("plan", str(planned), *keys)
    assert done.exit_code == 0, done.exception
    heads = re.findall(r"^(.*) \(steps (\d+)-(\d+), ", done.stdout, re.MULTILINE)
    assert len(heads) == 3 and [int(first) for _, first, _ in heads] == [1] + [int(last) + 1 for *_, last in heads[:-1]]
    assert done.stdout.count("peak rate") == 3 and "L1" in done.stdout
    assert re.search(r"block\.1\.frozen\s+1\s+[\d,]+\s+no", done.stdout)


def test_plan_shows_one_table_for_a_change_of_the_batch(planned):
    done = invoke("plan", str(planned), "training.batch_size_schedule=[{epoch: 1, global_batch_size: 4}]")
    assert "main (steps 1-3, epochs 0 to 1, 8 rows a step)" in done.stdout, done.output
    assert "main (steps 4-9, epochs 1 to 2, 4 rows a step)" in done.stdout
    assert done.stdout.count("peak rate") == 1 and "9 = 2 epochs; warm-up 1" in done.stdout
    assert "4 rows a step = 1 process(es) x 4 rows x 1 pass(es)" in done.stdout


def test_plan_shows_the_probe_first_and_what_follows_from_it(planned):
    done = invoke("plan", str(planned), "strategy.type=discriminative", "strategy.probe_steps=7")
    assert done.exit_code == 0, done.exception
    assert done.stdout.startswith("probe (7 steps before the run") and "discarded" in done.stdout.splitlines()[0]
    assert done.stdout.index("probe (") < done.stdout.index("main (steps") and "ranks after the probe" in done.stdout
    assert re.search(r"decay\s+rank", done.stdout)


def test_plan_predicts_what_a_prefix_cache_brings(planned):
    done = invoke("plan", str(planned), "strategy.type=head", "strategy.prefix_cache=memory")
    assert re.search(r"^cache +the head's input, .* in memory; .* predicted 2\.\dx$", done.stdout, re.MULTILINE), (
        done.output
    )
    off = invoke("plan", str(planned), "strategy.type=layerwise", "strategy.freeze_layers=1", "strategy.layer_decay=1")
    assert "cache       off: " in off.stdout, off.output
    assert "cache  " not in invoke("plan", str(planned), "strategy.type=layerwise").stdout, "nothing is frozen"


def test_plan_keeps_long_tables_whole(tmp_path, planned):
    tiny.save_bert(tmp_path / "deep", num_hidden_layers=14)
    done = invoke("plan", str(planned), f"model.name_or_path={tmp_path / 'deep'}", "strategy.type=layerwise")
    names = re.findall(r"^ (block\.\d+)\s", done.stdout, re.MULTILINE)
    assert names == [f"block.{i}" for i in range(1, 15)]


def test_plan_draws_the_rates(planned, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = invoke("plan", str(planned), "--plot")
    assert done.exit_code == 0 and "tiny-rates.svg" in done.stdout
    assert (tmp_path / "tiny-rates.svg").read_text().startswith("<svg xmlns=")
    done = invoke("plan", str(planned), "--plot", "my.png", "training.seed=3", "--json")
    assert done.exit_code == 0 and (tmp_path / "my.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads(done.stdout)["total_steps"] == 6, "the name of the picture is no part of the JSON"
    assert invoke("plan", str(planned), "--plot", "a.png", "b.svg").exit_code == 2


# --- lr-find ---------------------------------------------------------------------------------------------------------


def test_lr_find_writes_a_picture_and_its_numbers(planned, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = invoke("lr-find", str(planned), "--steps", "40", "--min-lr", "1e-6", "--plot", "r.png", "--json")
    assert done.exit_code == 0, done.exception
    found = json.loads(done.stdout)
    assert found == json.loads((tmp_path / "r.json").read_text()) and found["rates"][0] == 1e-6
    assert (tmp_path / "r.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["r.json", "r.png"]


def test_lr_find_says_what_it_found_or_why_it_found_nothing(planned, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = invoke("lr-find", str(planned), "--steps", "5")
    assert "no suggestion: only 5 steps" in done.stdout and "tiny-lr-find.svg" in done.stdout, done.output


def test_lr_find_refuses_what_cannot_be(planned, tmp_path):
    for wrong in (["--min-lr", "1", "--max-lr", "0.1"], ["--min-lr", "0"], ["--steps", "1"], ["--plot", "a.pdf"]):
        assert invoke("lr-find", str(planned), *wrong).exit_code == 2, wrong
