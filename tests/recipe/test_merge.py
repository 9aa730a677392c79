"""Base files, overrides and interpolation."""

from __future__ import annotations

import pytest

from launcher.errors import RecipeError
from launcher.recipe.load import load_recipe
from tests.recipe.conftest import Write

# --- base files ----------------------------------------------------------------------------------------------------


def test_mappings_merge_and_the_rest_is_replaced(write: Write) -> None:
    base = write(
        "training: {seed: 1, learning_rate: 1e-3}\nevaluation: {baselines: [majority, tfidf]}\n", name="bases/base.yaml"
    )
    path = write("base: bases/base.yaml\ntraining:\n  seed: 2\nevaluation: {baselines: [tfidf]}\n", head="")
    loaded = load_recipe(path)
    assert (loaded.recipe.training.seed, loaded.recipe.training.learning_rate) == (2, 1e-3)
    assert loaded.recipe.evaluation.baselines == ["tfidf"]
    assert loaded.places["training.seed"] == f"{path}:3:3"
    assert loaded.places["training.learning_rate"] == f"{base}:7:21"
    assert loaded.places["training"] == f"{path}:2:1"
    assert "evaluation.baselines[1]" not in loaded.places


def test_of_several_bases_the_later_wins(write: Write) -> None:
    write("precision: fp32\n", name="one.yaml")
    write("precision: bf16\n", head="", name="two.yaml")
    path = write("base: [one.yaml, two.yaml]\n", head="")
    assert load_recipe(path).recipe.precision == "bf16"


def test_bases_of_bases_lie_beside_the_file_that_names_them(write: Write) -> None:
    write(name="far/root.yaml")
    write("base: ../far/root.yaml\nprecision: fp32\n", head="", name="near/middle.yaml")
    path = write("base: near/middle.yaml\n", head="")
    assert load_recipe(path).recipe.precision == "fp32"


def test_the_same_base_twice_is_no_circle(write: Write) -> None:
    write(name="root.yaml")
    write("base: root.yaml\nprecision: fp32\n", head="", name="a.yaml")
    path = write("base: [root.yaml, a.yaml]\n", head="")
    assert load_recipe(path).recipe.precision == "fp32"


def test_another_type_than_the_base_drops_its_options(write: Write) -> None:
    write("strategy: {type: full, embedding_lr: 1e-5}\n", name="base.yaml")
    path = write("base: base.yaml\nstrategy: {type: head}\n", head="")
    loaded = load_recipe(path)
    assert loaded.recipe.strategy.type == "head"
    assert loaded.notes == (f"strategy.type set by {path} to head: dropped embedding_lr",)


@pytest.mark.parametrize("base", ["3", "[]", "{a: b}", "[one.yaml, 2]"])
def test_base_must_name_files(write: Write, base: str) -> None:
    with pytest.raises(RecipeError, match="must be a file name or a list"):
        load_recipe(write(f"base: {base}\n"))


# --- overrides -----------------------------------------------------------------------------------------------------


def test_overrides_are_yaml_with_their_own_place(write: Write) -> None:
    loaded = load_recipe(
        write(), ["training.learning_rate=3e-5", "evaluation.baselines=[tfidf]", "training.eval_strategy=no"]
    )
    assert loaded.recipe.training.learning_rate == 3e-5
    assert loaded.recipe.evaluation.baselines == ["tfidf"]
    assert loaded.recipe.training.eval_strategy == "no"
    assert loaded.places["training.learning_rate"] == "command line: training.learning_rate=3e-5"


def test_the_last_override_wins_and_an_equals_sign_may_be_in_the_value(write: Write) -> None:
    loaded = load_recipe(write(), ["model.revision=a", "model.revision=b=c"])
    assert loaded.recipe.model.revision == "b=c"


def test_an_override_of_a_mapping_merges(write: Write) -> None:
    loaded = load_recipe(write("training: {seed: 3}\n"), ["training={learning_rate: 1e-3}"])
    assert (loaded.recipe.training.seed, loaded.recipe.training.learning_rate) == (3, 1e-3)


@pytest.mark.parametrize("order", [1, -1])
def test_a_new_type_drops_the_old_options_and_says_so(write: Write, order: int) -> None:
    path = write("strategy: {type: encoder, components: [mlp], head_lr: 1e-3}\n")
    loaded = load_recipe(path, ["strategy.type=full", "strategy.head_lr=1e-2"][::order])
    assert loaded.recipe.strategy.model_dump() == {"type": "full", "embedding_lr": None, "head_lr": 1e-2}
    assert loaded.notes == ("strategy.type set on the command line to full: dropped components, head_lr",)


def test_the_same_type_drops_nothing(write: Write) -> None:
    loaded = load_recipe(write("strategy: {type: full, head_lr: 1e-3}\n"), ["strategy.type=full"])
    assert loaded.recipe.strategy.head_lr == 1e-3  # type: ignore[union-attr]
    assert loaded.notes == ()


def test_the_short_form_of_a_task_takes_overrides(write: Write) -> None:
    loaded = load_recipe(write(), ["task.problem_type=regression", "task=text-classification"])
    assert loaded.recipe.task.problem_type == "regression"


@pytest.mark.parametrize(
    ("override", "fragment"),
    [
        ("training.seed", "not of the form key=value"),
        ("=3", "not of the form key=value"),
        ("training..seed=3", "not of the form key=value"),
        ("base=x.yaml", "cannot be set on the command line"),
        ("data.source.limit=3", "data.source is 'ag_news', not a mapping"),
        ("training.seed=[1", "the value cannot be read"),
        ("training.sed=1", "did you mean seed"),
        ("training.seed=-1", "at least 0"),
    ],
)
def test_faults_of_overrides(write: Write, override: str, fragment: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(write(), [override])
    (problem,) = caught.value.problems
    assert problem.place == f"command line: {override}"
    assert fragment in str(problem)


# --- interpolation -------------------------------------------------------------------------------------------------


def test_interpolation_keeps_types_and_joins_text(write: Write) -> None:
    tail = (
        "training: {seed: 7, data_seed: '${training.seed}'}\n"
        "slurm: {profile: 'seed-${training.seed}'}\n"
        "tracking: {wandb: {tags: '${evaluation.baselines}'}}\n"
        "evaluation: {baselines: [tfidf]}\n"
    )
    recipe = load_recipe(write(tail)).recipe
    assert recipe.training.passthrough == {"data_seed": 7}
    assert recipe.slurm.profile == "seed-7"
    assert recipe.tracking.wandb is not None and recipe.tracking.wandb.tags == ["tfidf"]


def test_interpolation_sees_bases_and_overrides(write: Write) -> None:
    write("slurm: {profile: '${name}-${training.seed}'}\n", name="base.yaml")
    path = write("base: base.yaml\nname: mine\n", head="")
    assert load_recipe(path, ["training.seed=5"]).recipe.slurm.profile == "mine-5"


def test_an_escaped_interpolation_is_text(write: Write) -> None:
    assert load_recipe(write("tracking: {wandb: {group: '\\${HOME}'}}\n")).recipe.tracking.wandb.group == "${HOME}"


@pytest.mark.parametrize(
    "text", ["${oc.env:HOME}", "${env:HOME}", "x ${oc.env:HOME,none}", "${${name}:x}", "${oc.decode:${oc.env:HOME}}"]
)
def test_no_resolver_is_run(write: Write, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "a-secret")
    path = write(f"slurm:\n  profile: '{text}'\n")
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    (problem,) = caught.value.problems
    assert problem.place == f"{path}:8:3"
    assert "interpolation reaches keys of the recipe only" in problem.remedy
    assert "a-secret" not in str(problem)


@pytest.mark.parametrize(
    ("text", "fragment"),
    [("${training.nothing}", "does not set"), ("${", "cannot be read"), ("${slurm.profile}", "circle")],
)
def test_faults_of_interpolation(write: Write, text: str, fragment: str) -> None:
    with pytest.raises(RecipeError, match=fragment):
        load_recipe(write(f"slurm: {{profile: '{text}'}}\n"))
