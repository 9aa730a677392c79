"""The JSON Schema says what the loader takes."""

from __future__ import annotations

import json

from launcher.recipe import training_tables as tables
from launcher.recipe.json_schema import json_schema
from launcher.recipe.schedule_keys import OURS
from launcher.recipe.schema import Recipe, TrainingSection
from launcher.recipe.training_fields import enum_values


def test_top() -> None:
    schema = json_schema()
    assert json.loads(json.dumps(schema)) == schema
    assert set(schema["properties"]) == {*Recipe.model_fields, "base"}
    assert schema["additionalProperties"] is False
    assert schema["anyOf"] == [{"required": ["base"]}, {"required": ["version", "name", "task", "model", "data"]}]
    assert schema["$id"] and schema["title"]


def test_the_short_form_of_the_task() -> None:
    assert {
        "enum": [
            "text-classification",
            "token-classification",
            "question-answering",
            "causal-lm",
            "sft",
            "preference",
            "reward",
            "masked-lm",
            "translation",
            "summarization",
            "image-classification",
            "object-detection",
            "semantic-segmentation",
        ]
    } in json_schema()["properties"]["task"]["anyOf"]


def test_training_takes_what_the_loader_takes() -> None:
    training = json_schema()["$defs"]["TrainingSection"]
    assert set(training["properties"]) == {*TrainingSection.model_fields, *tables.PASSTHROUGH}
    assert training["additionalProperties"] is False
    assert {"adam", "adamw_torch_fused"} < set(training["properties"]["optim"]["enum"])
    assert training["properties"]["adam_beta1"]["type"] == ["number"]
    assert "first moment" in training["properties"]["adam_beta1"]["description"]
    assert training["properties"]["lr_scheduler_type"]["enum"] == [*enum_values("SchedulerType"), *OURS]


def test_every_key_is_documented_and_every_section_closed() -> None:
    for name, section in json_schema()["$defs"].items():
        assert section["additionalProperties"] is False, name
        for key, value in section["properties"].items():
            assert key == "type" or value.get("description"), f"{name}.{key} has no documentation"
