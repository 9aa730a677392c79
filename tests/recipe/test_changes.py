"""Which changes leave a run the same run, and which do not."""

import pytest
import tiny

from launcher.recipe.changes import RULES, list_changes
from launcher.recipe.schema import Recipe, TrainingSection


def verdicts(before: dict, now: dict) -> dict[str, str]:
    return {change.key: change.verdict for change in list_changes(tiny.recipe(**before), tiny.recipe(**now))}


def test_equal_recipes_have_no_changes():
    assert list_changes(tiny.recipe(), tiny.recipe()) == ()


@pytest.mark.parametrize(
    "section, key, value, verdict",
    [
        ("tracking", "report_to", ["tensorboard"], "free"),
        ("evaluation", "bootstrap", 5, "free"),
        ("distributed", "processes_per_node", 7, "free"),
        ("distributed", "zero_stage", 2, "free"),
        ("training", "logging_steps", 3.0, "free"),
        ("training", "save_strategy", "no", "free"),
        ("training", "save_total_limit", 5, "free"),
        ("training", "eval_strategy", "no", "free"),
        ("training", "per_device_train_batch_size", 1, "free"),
        ("training", "dataloader_num_workers", 2, "free"),
        ("training", "async_save", True, "free"),
        ("data", "cache_dir", "x", "free"),
        ("data", "max_length", 9, "flag"),
        ("data", "source", "other", "flag"),
        ("model", "config", {"hidden_dropout_prob": 0.5}, "flag"),
        ("training", "seed", 9, "flag"),
        ("training", "learning_rate", 1.0, "flag"),
        ("training", "max_steps", 9, "flag"),
        ("training", "num_train_epochs", 9.0, "flag"),
        ("training", "weight_decay", 0.5, "flag"),
        ("training", "a_field_of_tomorrow", 1, "flag"),
        ("training", "global_batch_size", 9, "never"),
        ("training", "optim", "sgd", "never"),
    ],
)  # fmt: skip
def test_what_a_change_means(section, key, value, verdict):
    base = {"data": {"source": "s"}} if section == "data" else {}
    now = {section: {**base.get(section, {}), key: value}}
    if section == "model":
        now["model"]["name_or_path"] = "m"
    found = verdicts({}, now)
    assert set(found.values()) == {verdict} and all(name.startswith(f"{section}.{key}") for name in found)


def test_another_model_task_or_strategy_needs_another_run():
    assert verdicts({}, {"model": {"name_or_path": "other"}}) == {"model.name_or_path": "never"}
    assert set(verdicts({}, {"strategy": {"type": "lora", "r": 4}}).values()) == {"never"}
    assert verdicts({}, {"task": {"type": "text-classification", "class_weights": "balanced"}}) == {
        "task.class_weights": "never"
    }


@pytest.mark.parametrize(
    "training",
    [{"early_stopping_patience": 2}, {"lr_scheduler_type": "reduce_lr_on_plateau"}],
    ids=lambda t: next(iter(t)),
)
def test_evaluations_that_steer_training_are_a_part_of_it(training):
    both = {"training": {**training, "eval_strategy": "epoch"}}, {"training": {**training, "eval_strategy": "steps"}}
    assert verdicts(*both) == {"training.eval_strategy": "flag"}


def test_a_change_is_told_as_key_old_and_new():
    (change,) = list_changes(tiny.recipe(), tiny.recipe(training={"max_steps": 5}))
    assert str(change) == "training.max_steps: null -> 5"


def test_every_rule_names_a_key_that_exists_and_has_a_reason():
    from launcher.recipe.training_fields import training_fields

    for rule in RULES:
        assert rule.reason
        section, _, name = rule.key.partition(".")
        assert section in Recipe.model_fields
        if section == "training" and name:
            assert name in TrainingSection.model_fields or name in training_fields(), rule.key
    assert len({rule.key for rule in RULES}) == len(RULES)
