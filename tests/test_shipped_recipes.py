"""Every shipped recipe passes its checks; those of the well-known examples train, offline, on the shared data."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import tiny

from launcher.recipe.examine import examine
from launcher.recipe.json_schema import json_schema
from launcher.recipe.load import list_recipes
from launcher.recipe.schema import Recipe
from launcher.registry import STRATEGIES, TASKS

ROOT = Path(__file__).resolve().parents[1]
RECIPES = {name: path for name, path, _ in list_recipes()}


def load(name: str) -> Recipe:
    loaded, problems = examine(name)
    assert loaded is not None and problems == []
    return loaded.recipe


# --- all of them -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RECIPES)
def test_passes_the_checks(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Paths in recipes count from the folder where the command is typed: the checkout.
    monkeypatch.chdir(ROOT)
    loaded, problems = examine(name)
    assert [str(problem) for problem in problems] == []
    assert loaded is not None and loaded.notes == ()


@pytest.mark.parametrize("name", RECIPES)
def test_says_what_it_is_and_names_the_schema(name: str) -> None:
    first, second = RECIPES[name].read_text(encoding="utf-8").splitlines()[:2]
    schema = RECIPES[name].parent / first.removeprefix("# yaml-language-server: $schema=")
    assert schema.resolve() == ROOT / "recipes" / "recipe.schema.json"
    assert second.startswith("# ") and len(second) > 20


def test_the_schema_is_current() -> None:
    written = json.loads((ROOT / "recipes" / "recipe.schema.json").read_text(encoding="utf-8"))
    assert written == json_schema(), "run `make docs`"


def test_every_task_and_strategy_has_a_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    found = [load(name) for name in RECIPES]
    assert {recipe.task.type for recipe in found} == set(TASKS)
    assert {recipe.strategy.type for recipe in found} == set(STRATEGIES)


# --- what the well-known examples say --------------------------------------------------------------------------------


def test_ag_news_with_bert_base() -> None:
    recipe = load("text-classification/ag-news-bert")
    training = recipe.training
    assert (recipe.model.name_or_path, recipe.data.source) == ("google-bert/bert-base-uncased", "fancyzhx/ag_news")
    assert (training.num_train_epochs, training.global_batch_size, training.per_device_eval_batch_size) == (3, 16, 64)
    assert (training.warmup_steps, recipe.data.max_length) == (500, 512)


def test_mrpc_pairs() -> None:
    recipe = load("text-classification/glue-mrpc")
    assert recipe.data.source.model_dump(exclude_defaults=True) == {"source": "nyu-mll/glue", "name": "mrpc"}
    assert recipe.data.columns["text_pair"] == "sentence2"
    assert (recipe.data.max_length, recipe.training.learning_rate) == (128, 2e-5)
    assert recipe.training.lr_scheduler_type == "linear"


def test_csv_sentiment_with_a_test_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    recipe = load("text-classification/csv-sentiment")
    training = recipe.training
    assert recipe.data.test is not None
    assert (training.global_batch_size, training.learning_rate, training.num_train_epochs) == (32, 2e-5, 3)


def test_labelled_text_files_with_adam(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    training = load("text-classification/labelled-text-files").training
    assert (training.passthrough["optim"], training.weight_decay) == ("adamw_torch", 0)
    assert (training.global_batch_size, training.learning_rate, training.num_train_epochs) == (32, 2e-5, 10)


# --- a few steps of each, offline ------------------------------------------------------------------------------------

FEW_STEPS = ["training.num_train_epochs=0.1", "training.logging_steps=1", "data.max_length=48"]
QUICK = ["precision=fp32", "evaluation.bootstrap=50", "evaluation.baselines=[majority]", "tracking.wandb=null"]


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_bert(tmp_path_factory.mktemp("model") / "bert")


@pytest.fixture
def real(shared: Path) -> Path:
    """The folder of real data sets."""
    return shared / "data"


def train(name: str, *overrides: str, bert: Path, cwd: Path) -> tuple[Path, Recipe]:
    """Run a shipped recipe for a few steps in ``cwd``; return its run directory and the recipe that it used."""
    changes = [f"model.name_or_path={bert}", *FEW_STEPS, *QUICK, *overrides]
    done = tiny.launcher("run", f"text-classification/{name}", *changes, cwd=cwd)
    assert done.returncode == 0, done.stdout + done.stderr
    (run,) = (cwd / "runs").iterdir()
    loaded, _ = examine(run / "resolved.yaml")
    assert loaded is not None
    assert (run / "report.html").is_file() and (run / "model" / "config.json").is_file()
    assert len(tiny.losses(run)) >= 2
    return run, loaded.recipe


def plan_of(run: Path) -> dict[str, object]:
    return dict(json.loads((run / "plan.json").read_text()))


@pytest.mark.slow
def test_ag_news_offline(bert: Path, real: Path, tmp_path: Path) -> None:
    columns = "data.columns={text: [title, description], label: label}"
    labels = f"data.labels={real / 'ag_news' / 'classes.txt'}"
    changes = [f"data.source={real / 'ag_news'}", columns, labels, "training.warmup_steps=2"]
    run, recipe = train("ag-news-bert", *changes, bert=bert, cwd=tmp_path)
    config = json.loads((run / "model" / "config.json").read_text())
    assert list(config["id2label"].values()) == ["World", "Sports", "Business", "Sci/Tech"]
    assert recipe.training.global_batch_size == 16
    assert plan_of(run)["total_steps"] == 13  # 0.1 epochs of 125 steps


@pytest.mark.slow
@pytest.mark.soak
def test_pairs_offline(bert: Path, real: Path, tmp_path: Path) -> None:
    columns = "data.columns={text: question, text_pair: sentence, label: label}"
    run, _ = train("glue-mrpc", f"data.source={real / 'qnli'}", columns, bert=bert, cwd=tmp_path)
    assert json.loads((run / "model" / "launcher.json").read_text())["pairs"] is True


@pytest.mark.slow
def test_csv_sentiment_offline(bert: Path, real: Path, tmp_path: Path) -> None:
    for name in ("train", "test"):
        rows = [(text, "pleased") for text in emotions(real, name, "17")]
        rows += [(text, "annoyed") for text in emotions(real, name, "3")]
        tiny.write_csv(tmp_path / f"{name}.csv", rows, head=("review", "sentiment"))
    files = ["data.train=train.csv", "data.test=test.csv", "training.num_train_epochs=0.5"]
    run, _ = train("csv-sentiment", *files, bert=bert, cwd=tmp_path)
    assert json.loads((run / "evaluation" / "metrics.json").read_text())["split"] == "test"


@pytest.mark.slow
@pytest.mark.soak
def test_labelled_text_offline(bert: Path, real: Path, tmp_path: Path) -> None:
    for name in ("train", "validation", "test"):
        with (real / "ag_news" / f"{name}.csv").open(encoding="utf-8", newline="") as file:
            lines = [f"{row['label']}\t{' '.join(row['title'].split())}\n" for row in csv.DictReader(file)]
        (tmp_path / f"{name}.txt").write_text("".join(lines), encoding="gbk", errors="ignore")
    files = [f"data.{name}={{source: {name}.txt, encoding: gbk}}" for name in ("train", "validation", "test")]
    run, recipe = train("labelled-text-files", *files, bert=bert, cwd=tmp_path)
    groups = plan_of(run)["phases"][0]["phase"]["table"]["groups"]  # type: ignore[index]
    assert {group["weight_decay"] for group in groups} == {0.0}
    rates = {row["learning_rate"] for row in tiny.jsonl(run / "progress.jsonl") if "loss" in row}
    assert rates == {recipe.training.learning_rate}


def emotions(real: Path, split: str, label: str) -> list[str]:
    """Texts of GoEmotions with exactly this label (3: annoyance, 17: joy)."""
    lines = (real / "go_emotions" / f"{split}.tsv").read_text(encoding="utf-8").split("\n")[1:]
    rows = [line.split("\t") for line in lines if line]
    return [row[0] for row in rows if row[1] == label]
