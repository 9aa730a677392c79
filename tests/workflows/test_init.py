"""A recipe to start from: its task is told from the user's files where these leave no doubt, and asked for otherwise."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
from PIL import Image
from ruamel.yaml import YAML
from typer.testing import CliRunner

from launcher.cli import app
from launcher.errors import DataError
from launcher.recipe.examine import examine
from launcher.registry import TASKS
from launcher.shipped import shipped_folder
from launcher.workflows.init import starter_of, starter_recipe
from launcher.workflows.task_of_data import Told, task_of_data


def jsonl(place: Path, *rows: dict[str, Any]) -> Path:
    path = place / "train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def squad(place: Path) -> Path:
    asked = {"id": "1", "question": "Who?", "answers": [{"text": "Ann", "answer_start": 0}]}
    (place / "train.json").write_text(
        json.dumps({"data": [{"title": "t", "paragraphs": [{"context": "Ann.", "qas": [asked]}]}]})
    )
    return place


def images(place: Path) -> Path:
    for label in ("cat", "dog"):
        (place / "train" / label).mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(place / "train" / label / "1.png")
    return place


def listed_images(place: Path, **more: Any) -> Path:
    Image.new("RGB", (4, 4)).save(place / "1.png")
    (place / "metadata.jsonl").write_text(json.dumps({"file_name": "1.png", **(more or {"label": "cat"})}) + "\n")
    return place


def conll(place: Path) -> Path:
    (place / "train.conll").write_text("Ann\tB-PER\nruns\tO\n\n")
    return place / "train.conll"


def csv(*head: str, rows: list[list[str]]) -> Callable[[Path], Path]:
    return lambda place: tiny.write_csv(place / "train.csv", rows, head=head)


TEXTS = [[f"text number {n}", f"another text {n}"] for n in range(9)]
LABELLED = [[f"text number {n}", "ab"[n % 2]] for n in range(9)]


@pytest.mark.parametrize(
    ("make", "task"),
    [
        (csv("text", "label", rows=LABELLED), "text-classification"),
        (csv("text", "target", rows=LABELLED), "text-classification"),
        (csv("sentence1", "sentence2", "label", rows=[["a", "b", "0"], ["c", "d", "1"]]), "text-classification"),
        (conll, "token-classification"),
        (lambda place: jsonl(place, {"tokens": ["Ann", "runs"], "tags": ["B", "O"]}), "token-classification"),
        (squad, "question-answering"),
        (images, "image-classification"),
        (listed_images, "image-classification"),
        (lambda place: listed_images(place, objects={"bbox": [[0, 0, 1, 1]], "category": ["a"]}), "object-detection"),
        (lambda place: listed_images(place, mask="1.png"), "semantic-segmentation"),
        (csv("article", "summary", rows=TEXTS), "summarization"),
        (csv("article", "highlights", rows=TEXTS), "summarization"),
        (lambda place: jsonl(place, {"translation": {"en": "one", "es": "uno"}}), "translation"),
    ],
)  # fmt: skip
def test_the_files_tell_the_task_and_the_recipe_is_sound(
    make: Callable[[Path], Path], task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "data").mkdir()
    source = make(tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    for name, more in (("own.yaml", []), ("model.yaml", ["--model", "some/model"])):
        done = CliRunner().invoke(app, ["init", name, "--data", str(source), *more])
        assert done.exit_code == 0, done.output
        assert f"for {task}, as the data tell" in done.output
        loaded, problems = examine(name)
        assert problems == [] and loaded is not None and loaded.recipe.task.type == task
        assert loaded.recipe.data.source == str(source)
        if task == "translation":
            assert loaded.recipe.data.columns == {"text": "translation.en", "target": "translation.es"}
        if more:
            assert loaded.recipe.model.name_or_path == "some/model" and loaded.recipe.model.config is None


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (csv("text", "target", rows=TEXTS), "add --task: translation, summarization$"),
        (csv("source", "target", rows=TEXTS), "add --task: translation, summarization$"),
        (csv("input", "output", rows=TEXTS), "add --task: translation, summarization$"),
        (csv("title", "body", "topic", rows=[["a", "b", "c"]]), r"columns 'title', 'body', 'topic'; add --task: text-cl"),
        (csv("text", rows=[["a"], ["b"]]), "add --task: causal-lm, masked-lm$"),
        (csv("text", "summary", "label", rows=[["a", "b", "c"]]), "add --task: summarization, text-classification$"),
        (lambda place: jsonl(place, {"tokens": ["a", "b"], "tags": "x"}), "add --task: text-classification, token-"),
    ],
)  # fmt: skip
def test_files_that_leave_a_doubt_are_asked_about(make: Any, said: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=said):
        task_of_data(str(make(tmp_path)), base_folder=tmp_path)


@pytest.mark.parametrize("more", [{"objects": [[0, 0, 1, 1]]}, {"bbox": [0, 0, 1, 1]}])
def test_images_with_more_than_labels_are_asked_about(more: dict[str, Any], tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "1.png")
    row = {"file_name": "1.png", "label": "cat", **more}
    (tmp_path / "metadata.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(DataError, match="cannot be told"):
        task_of_data(str(tmp_path), base_folder=tmp_path)


def test_what_is_not_on_this_machine_is_not_looked_at(tmp_path: Path) -> None:
    for name in ("fancyzhx/ag_news", "s3://bucket/rows.csv"):
        with pytest.raises(DataError, match=f"{name} is not looked at.*add --task: text-classification, "):
            task_of_data(name, base_folder=tmp_path)
    with pytest.raises(DataError, match=r"nowhere.csv"):
        task_of_data("./nowhere.csv", base_folder=tmp_path)
    assert task_of_data("builtin:digits", base_folder=tmp_path) == Told("image-classification")


def test_the_task_that_is_named_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tiny.write_csv(tmp_path / "train.csv", TEXTS, head=("text", "target"))
    run = CliRunner().invoke
    assert run(app, ["init", "a.yaml", "--data", "train.csv", "--task", "translation"]).exit_code == 0
    loaded, problems = examine("a.yaml")
    assert problems == [] and loaded is not None and loaded.recipe.task.type == "translation"
    assert loaded.recipe.data.max_length is None, "it suited the data of the recipe that this began as"
    assert run(app, ["init", "b.yaml", "--data", "some/hub-set", "--task", "masked-lm"]).exit_code == 0
    assert run(app, ["init", "c.yaml", "--task", "question-answering"]).exit_code == 0
    wrong = run(app, ["init", "d.yaml", "--task", "ner"])
    assert wrong.exit_code == 2 and "did you mean token-classification?" in " ".join(wrong.output.split())
    both = run(app, ["init", "d.yaml", "--task", "masked-lm", "--from", "quickstart/api-topics"])
    assert both.exit_code == 2 and not (tmp_path / "d.yaml").exists()


@pytest.mark.parametrize("task", TASKS)
def test_every_task_has_a_recipe_to_start_from(task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    source = starter_of(task)
    said = YAML(typ="safe").load((shipped_folder("recipes") / f"{source}.yaml").read_text())["task"]
    assert (said if isinstance(said, str) else said["type"]) == task
    starter_recipe(Path("r.yaml"), source=source, data="some/set", model="some/model")
    assert examine("r.yaml")[1] == []
