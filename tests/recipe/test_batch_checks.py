"""What does not go with steps that are bounded by tokens."""

from __future__ import annotations

import pytest
import tiny

from launcher.recipe.batch_checks import token_batches_fit
from launcher.recipe.data_section import SourceSpec
from launcher.recipe.view import Finding, View


def found(**sections: object) -> list[Finding]:
    training = {"tokens_per_batch": 512, **sections.pop("training", {})}  # type: ignore[dict-item]
    return list(token_batches_fit(View(tiny.recipe(training=training, **sections))))


@pytest.mark.parametrize(
    ("sections", "key", "why"),
    [
        (
            {"training": {"batch_size_schedule": [{"epoch": 1, "global_batch_size": 8}]}},
            "training.batch_size_schedule",
            "rows",
        ),
        ({"training": {"train_sampling_strategy": "random"}}, "training.train_sampling_strategy", "any length"),
        ({"training": {"train_sampling_strategy": "sequential"}}, "training.train_sampling_strategy", "any length"),
        ({"data": {"train": "a.csv", "validation": "b.csv", "streaming": True}}, "data.streaming", "lengths"),
        (
            {"data": {"train": [SourceSpec(source=name, weight=1) for name in ("a", "b")]}},
            "data.train",
            "every epoch draws other rows",
        ),
        ({"task": {"type": "text-classification", "class_sampling": "balanced"}}, "task.class_sampling", "every epoch"),
        (
            {"task": {"type": "text-classification", "augmentation": {"synonyms": "s.txt"}}},
            "task.augmentation.synonyms",
            "longer",
        ),
        ({"distributed": {"sequence_parallel_size": 2}}, "distributed.sequence_parallel_size", "equally many"),
        ({"task": {"type": "image-classification"}}, "training.tokens_per_batch", "images"),
        ({"task": {"type": "translation"}}, "training.tokens_per_batch", "two texts"),
        ({"task": {"type": "summarization"}}, "training.tokens_per_batch", "two texts"),
    ],
)
def test_what_does_not_go_with_a_budget_is_refused(sections, key, why):
    (finding,) = found(**sections)
    assert finding.key == key and why in finding.message and finding.remedy
    assert "training.tokens_per_batch is 512" in finding.message


def test_a_step_needs_a_size():
    (finding,) = found(training={"tokens_per_batch": None, "global_batch_size": None})
    assert finding.key == "training.global_batch_size" and "nothing says how large a step is" in finding.message
    assert found() == [] and found(training={"global_batch_size": None}) == []
