"""Every field of the installed TrainingArguments has an answer."""

from __future__ import annotations

import pytest

from launcher.errors import RecipeError
from launcher.recipe import training_tables as tables
from launcher.recipe.load import load_recipe
from launcher.recipe.schema import TrainingSection
from launcher.recipe.training_fields import enum_values, passthrough_fields, training_fields
from tests.recipe.conftest import Write

NAMED = set(TrainingSection.model_fields)
# Keys of ``training`` that TrainingArguments does not have.
OURS = {
    "global_batch_size", "early_stopping_patience", "batch_size_schedule", "momentum", "l1_penalty", "l2_penalty",
    "max_grad_value", "async_save", "tokens_per_batch", "per_device_train_tokens",
}  # fmt: skip
REFUSED = {**tables.OWNED, **tables.WITHOUT_EFFECT}


def test_every_field_of_the_installed_version_is_classified_once() -> None:
    classes = [NAMED - OURS, tables.PASSTHROUGH, set(tables.OWNED), set(tables.WITHOUT_EFFECT)]
    known = set(training_fields())
    unclassified = known.difference(*classes, tables.RENAMED)
    assert not unclassified, f"say in training_tables.py who answers for {sorted(unclassified)}"
    assert not set().union(*classes) - known, "training_tables.py names fields that are gone"
    assert sum(map(len, classes)) == len(set().union(*classes)), "a field is classified twice"


def test_what_is_passed_through() -> None:
    assert set(passthrough_fields()) == tables.PASSTHROUGH


def test_fields_are_read_with_type_default_and_help() -> None:
    field = training_fields()["adam_beta1"]
    assert (field.kinds, field.default) == (("float",), 0.9)
    assert "first moment" in field.help
    assert training_fields()["report_to"].kinds == ("None", "str", "list")
    assert training_fields()["dataloader_multiprocessing_context"].choices == ("fork", "spawn", "forkserver")


def test_enums_are_read_from_the_source() -> None:
    assert "cosine" in enum_values("SchedulerType")
    assert "adamw_torch_fused" in enum_values("OptimizerNames")
    assert enum_values("NoSuchEnum") == ()


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_refused_fields_say_who_owns_them(write: Write, name: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(write(f"training: {{{name}: true}}\n"))
    (problem,) = caught.value.problems
    assert problem.key == f"training.{name}" and REFUSED[name].reason in problem.message and problem.remedy


@pytest.mark.parametrize("name", sorted(tables.RENAMED))
def test_earlier_names_say_the_present_one(write: Write, name: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(write(f"training: {{{name}: 0.5}}\n"))
    (problem,) = caught.value.problems
    present, _ = tables.RENAMED[name]
    assert problem.key == f"training.{name}"
    assert present is None or present.rpartition(".")[2] in problem.remedy


@pytest.mark.parametrize("row", sorted(present for present, _ in tables.RENAMED.values() if present))
def test_present_names_exist(row: str) -> None:
    section, name = row.split(".")
    assert section == "data" or name in NAMED | tables.PASSTHROUGH


@pytest.mark.parametrize(
    "line",
    [
        "optim: adamw_torch_fused", "adam_beta1: 0", "neftune_noise_alpha: 5", "optim: adam",
        "torch_compile: true", "data_seed: null", "include_num_input_tokens_seen: all", "liger_kernel_config: null",
        "logging_strategy: epoch", "log_level: debug", "eval_delay: 1", "optim_args: rank=2",
        "debug: underflow_overflow",
    ],
)  # fmt: skip
def test_sound_values_pass_through(write: Write, line: str) -> None:
    recipe = load_recipe(write(f"training: {{{line}}}\n")).recipe
    assert set(recipe.training.passthrough) == {line.partition(":")[0]}


@pytest.mark.parametrize(
    ("line", "fragment"),
    [
        ("optim: adamw_torchh", "did you mean adamw_torch"),
        ("optim: lomo", "not in this version"),
        ("adam_beta1: true", "must be a number"),
        ("adam_beta2: 1.0", r"lie in \[0, 1\)"),
        ("adam_epsilon: .nan", "lie in"),
        ("dataloader_num_workers: 1.5", "a whole number"),
        ("dataloader_num_workers: '2'", "write dataloader_num_workers: 2"),
        ("torch_compile: null", "true or false"),
        ("torch_compile_mode: 3", "text or null"),
        ("logging_strategy: epochs", "did you mean epoch"),
        ("log_level: loud", "no such choice"),
        ("lr_scheduler_kwargs: [1]", "a mapping or null"),
        ("optim: schedule_free_adamw", "not in this version"),
        ("momentum: 1.0", r"lie in \[0, 1\)"),
    ],
)
def test_unsound_values_are_refused(write: Write, line: str, fragment: str) -> None:
    with pytest.raises(RecipeError, match=fragment):
        load_recipe(write(f"training: {{{line}}}\n"))


@pytest.mark.parametrize("name", sorted(tables.PASSTHROUGH))
def test_defaults_are_sound(write: Write, name: str) -> None:
    field = training_fields()[name]
    if field.default is None and "None" not in field.kinds:
        pytest.skip("the default is computed")
    load_recipe(write(), [f"training.{name}={'null' if field.default is None else repr(field.default).lower()}"])
