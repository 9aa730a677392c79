"""Reading: YAML 1.2, places, names of shipped recipes, files that cannot be read."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import launcher.recipe.find
from launcher.errors import RecipeError
from launcher.recipe.load import find_recipe, list_recipes, load_recipe, parse_recipe
from tests.recipe.conftest import SOUND, Write


def test_yaml_is_read_as_1_2(write: Write) -> None:
    path = write(
        "training: {learning_rate: 3e-4, eval_strategy: no, seed: 012}\nslurm: {profile: 2026-01-01, time: 02:00:00}\n"
    )
    recipe = load_recipe(path).recipe
    assert recipe.training.learning_rate == 3e-4
    assert recipe.training.eval_strategy == "no"
    assert recipe.training.seed == 12
    assert (recipe.slurm.profile, recipe.slurm.time) == ("2026-01-01", "02:00:00")


def test_keys_are_text_as_written() -> None:
    text = SOUND.replace(
        "task: text-classification", "task: {type: text-classification, class_weights: {0: 1.0, no: 2}}"
    )
    assert parse_recipe(text, "r.yaml").recipe.task.class_weights == {"0": 1.0, "no": 2.0}


def test_places_of_keys_and_items(write: Write) -> None:
    path = write("evaluation:\n  baselines: [majority, tfidf]\n")
    loaded = load_recipe(path)
    assert loaded.places["model.name_or_path"] == f"{path}:5:9"
    assert loaded.places["evaluation.baselines[1]"] == f"{path}:8:25"
    assert loaded.places["task.type"] == f"{path}:4:1"
    assert loaded.place("training.seed") == f"{path}:1:1"
    assert loaded.place("data.columns.text") == f"{path}:6:1"


def test_the_text_is_kept_as_given(write: Write) -> None:
    path = write("precision: fp32\n")
    assert load_recipe(path, ["precision=bf16"]).source_text == path.read_text()


def test_an_anchor_is_read_where_it_is_used(write: Write) -> None:
    path = write("evaluation: {baselines: &b [tfidf]}\ntracking: {report_to: *b}\n")
    assert load_recipe(path).recipe.tracking.report_to == ["tfidf"]


@pytest.mark.parametrize(
    ("content", "fragment"),
    [
        (b"name: \0", "binary"),
        (b"name: caf\xe9\n", "not UTF-8"),
        (b"just words\n", "not a text"),
        (b"# nothing\n", "empty"),
        (b"a: &x {b: *x}\n", "contains itself"),
        (b"? [1, 2]\n: 3\n", "a key that is itself"),
    ],
)
def test_files_that_are_no_recipe(tmp_path: Path, content: bytes, fragment: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(content)
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    assert fragment in str(caught.value) and str(path) in caught.value.problems[0].place
    assert caught.value.problems[0].remedy


def test_a_byte_that_is_not_utf_8_is_placed(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(b"version: 1\nname: caf\xe9\n")
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    assert caught.value.problems[0].place == f"{path}:2:10"


def test_a_byte_order_mark_is_no_fault(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + SOUND.encode())
    assert load_recipe(path).recipe.name == "sound"


def test_a_folder_and_a_miss(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="is a folder"):
        load_recipe(tmp_path)
    with pytest.raises(RecipeError, match="there is no recipe"):
        load_recipe(tmp_path / "none.yaml")


def test_all_faults_come_at_once_in_order(write: Write) -> None:
    path = write("training:\n  seed: -1\n  lerning_rate: 1\nprecison: bf16\n")
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, ["training.weight_decay=-1"])
    places = [problem.place.removeprefix(str(path)) for problem in caught.value.problems]
    assert places == [":8:3", ":9:3", ":10:1", "command line: training.weight_decay=-1"]


# --- shipped recipes -----------------------------------------------------------------------------------------------


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of shipped recipes; the current directory has none."""
    folder = tmp_path / "shipped"
    for name in ("quickstart/api-topics", "glue/mrpc", "glue/sst2"):
        path = folder / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"# yaml-language-server: $schema=x\n# About {name}\n{SOUND}")
    monkeypatch.setattr(launcher.recipe.find, "shipped_folder", lambda name: folder)
    monkeypatch.chdir(tmp_path)
    return folder


@pytest.mark.parametrize("name", ["quickstart/api-topics", "quickstart", "api-topics", "quickstart/api-topics.yaml"])
def test_shipped_recipes_have_names(shipped: Path, name: str) -> None:
    assert find_recipe(name) == shipped / "quickstart/api-topics.yaml"
    assert load_recipe(name).recipe.name == "sound"


def test_shipped_recipes_are_listed(shipped: Path) -> None:
    assert list_recipes()[0] == ("glue/mrpc", shipped / "glue/mrpc.yaml", "About glue/mrpc")


@pytest.mark.parametrize(
    ("name", "fragment"),
    [("glue", "could be glue/mrpc, glue/sst2"), ("quickstrt/api-topics", "did you mean quickstart/api-topics")],
)
def test_names_that_are_not_clear(shipped: Path, name: str, fragment: str) -> None:
    with pytest.raises(RecipeError, match=fragment):
        find_recipe(name)


def test_a_file_goes_before_a_shipped_recipe(shipped: Path) -> None:
    Path("quickstart").write_text(SOUND)
    assert find_recipe("quickstart") == Path("quickstart")


def test_loading_imports_nothing_heavy(write: Write) -> None:
    path = write("training: {optim: sgd}\n")
    code = (
        "import sys; from launcher.recipe.examine import examine; from launcher.recipe.json_schema import json_schema;"
        f"print(examine({str(path)!r})[1]); json_schema();"
        "heavy = {'torch', 'transformers', 'datasets', 'deepspeed', 'wandb', 'numpy', 'omegaconf'};"
        "print(heavy & {name.partition('.')[0] for name in sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == ["[]", "set()"]
