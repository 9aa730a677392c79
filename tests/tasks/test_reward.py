"""Reward models: a number for a conversation, read where it ends, larger for the chosen answer."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch

from launcher.errors import DataError
from launcher.evaluation.kinds import kind_of, metrics_for
from launcher.recipe.schema import Recipe
from launcher.tasks.reward import Reward, RewardCollator

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "engine"))
import in_process

TASK = {"type": "reward", "chat_template": "plain"}
PARTS = {
    name: {"source": "builtin:number-preferences", "split": name, "limit": 48}
    for name in ("train", "validation", "test")
}
DATA = {"source": None, **PARTS, "max_length": 96}


@pytest.fixture(scope="module")
def story(request: pytest.FixtureRequest) -> Path:
    """A real small language model."""
    folder = Path(__file__).resolve().parents[2].parent / "shared" / "models" / "stories260k-llama"
    request.getfixturevalue("require")(folder.is_dir(), f"needs the model in {folder}")
    return folder


def task_for(model: Path | dict[str, Any], **changes: Any) -> Reward:
    task = {**TASK, **changes.pop("task", {})}
    section = model if isinstance(model, dict) else {"name_or_path": str(model)}
    values = tiny.recipe_values("", "", task=task, model=section, data=DATA, strategy={"type": "full"}, **changes)
    return Reward(Recipe.model_validate(values))


# --- the model -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("template", ["plain", "chatml"])
def test_the_number_is_read_where_the_conversation_ends(template: str, story: Path) -> None:
    """However much is padded behind it; and a template's new tokens have embeddings."""
    task = task_for(story, task={"chat_template": template})
    torch.manual_seed(0)
    loaded = task.build_model(None)
    model = loaded.model.eval()
    assert "score.weight" in loaded.newly_initialized
    assert model.get_input_embeddings().num_embeddings >= len(task.tokenizer)
    rows, _ = task.prepare_rows(
        {"text": ["What is red?"] * 2, "text_pair": ["An apple.", "An apple is red, and so is a ball."]},
        {"max_length": 64},
    )
    batch = task.collator()([dict(row) for row in rows])
    with torch.no_grad():
        both = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
        alone = model(input_ids=torch.tensor([rows[0]["input_ids"]]))
    assert both.logits.shape == (2, 1) and float(both.logits[0]) == pytest.approx(float(alone.logits[0]), abs=1e-5)
    kept = task.row_outputs(both, batch)
    assert kept.shape == (2, 1) and "labels" not in batch


def test_a_plan_without_weights(story: Path) -> None:
    skeleton = task_for(story).build_model(None, skeleton=True)
    assert skeleton.newly_initialized == {"score.weight"} and next(skeleton.model.parameters()).is_meta


def test_a_plan_without_a_tokenizer() -> None:
    """A model in numbers whose tokenizer is out of reach: several rows want a padding token all the same."""
    from launcher.planning.tracing import example_batch

    numbers = {
        "model_type": "llama",
        "vocab_size": 64,
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    task = task_for({"name_or_path": "no-one/has-this", "config": numbers})
    model = task.build_model(None, skeleton=True).model
    batch = example_batch(task, None, rows=2, length=32)
    # transformers' head refuses several rows of a model without one.
    assert model.config.pad_token_id == 0 and batch["input_ids"].shape == (4, 16)


# --- rows and batches ------------------------------------------------------------------------------------------------


def test_rows_are_those_of_pairs(story: Path) -> None:
    task = task_for(story)
    _, prepared = task.prepare_data()
    assert len(prepared.train) == 48 and prepared.problem_type == "reward"
    batch = task.collator()([dict(prepared.train[number]) for number in range(3)])
    assert batch["input_ids"].shape[0] == 6 and batch["labels"].tolist() == [0, 0, 0]
    from launcher.planning.tracing import example_batch

    made = example_batch(task, prepared, rows=2, length=64)
    assert made["input_ids"].shape == (4, 32) and "reference" not in made


def test_padding_rows_do_not_count() -> None:
    rows = [{"chosen_ids": [1, 2], "rejected_ids": [1, 3, 4]}, {"chosen_ids": [5], "rejected_ids": [6], "weight": 0.0}]
    batch = RewardCollator(pad_token_id=0)(rows)
    task = Reward(Recipe.model_validate(tiny.recipe_values("m", "s", task=TASK, strategy={"type": "full"})))
    logits = torch.tensor([[2.0], [100.0], [1.0], [-100.0]])
    assert float(task.items(batch)) == 1.0
    assert float(task.loss({"logits": logits}, batch)) == pytest.approx(float(np.log1p(np.exp(-1.0))))


# --- a run -----------------------------------------------------------------------------------------------------------


def test_training_tells_better_answers_from_worse(story: Path, tmp_path: Path) -> None:
    run = in_process.prepare(
        story, "", tmp_path, task=TASK, data=DATA, strategy={"type": "lora", "r": 8, "target_modules": "all-linear"},
        training={"num_train_epochs": 6, "learning_rate": 1e-2, "global_batch_size": 8, "eval_strategy": "no"},
    )  # fmt: skip
    trainer, _ = run.train()
    assert not run.run.reference.exists(), "a reward model has no reference"
    split = run.context.prepared.train
    kept, loss = trainer.logits(split)
    found = run.context.task.predictions(kept, split, run.context.prepared)
    metrics = metrics_for(found)
    assert metrics["accuracy"] > 0.9 and metrics["loss"] == pytest.approx(loss, rel=1e-4)
    assert metrics["margin"] == pytest.approx(float((kept[:, 0] - kept[:, 1]).mean()), rel=1e-5)


# --- predictions -----------------------------------------------------------------------------------------------------


def test_conversations_without_a_pair(story: Path, tmp_path: Path) -> None:
    """A file of single conversations, of pairs, and what a person types."""
    single, pairs = tmp_path / "single.jsonl", tmp_path / "pairs.jsonl"
    single.write_text(json.dumps({"prompt": "one", "completion": "uno"}) + "\n")
    pairs.write_text(json.dumps({"prompt": "one", "chosen": "uno", "rejected": "dos"}) + "\n")
    task = task_for(story)
    rows, prepared = task.prepare_rows(task.read_rows(str(single)), {"max_length": 64})
    assert rows.column_names == ["input_ids", "length", "row_id", "text"]
    found = task.predictions(np.array([[1.5]], dtype=np.float32), rows, prepared)
    assert found.labels is None
    assert kind_of(found).rows(found) == [{"text": "user: one\nassistant: uno", "reward": 1.5}]
    assert (
        kind_of(found).line({"text": "user: one\nassistant: uno", "reward": 1.5}) == "1.5000\tuser: one assistant: uno"
    )
    with pytest.raises(DataError, match="single conversations"):
        metrics_for(found)
    both, _ = task.prepare_rows(task.read_rows(str(pairs)), {"max_length": 64})
    assert {"chosen_ids", "rejected_ids"} <= set(both.column_names)
    typed, _ = task.prepare_rows({"text": ["one"], "text_pair": ["uno"]}, {"max_length": 64})
    assert typed[0]["input_ids"] == rows[0]["input_ids"]
    kind = task_for(story, task={"default_system_message": "Be kind."})
    typed, _ = kind.prepare_rows({"text": ["one"], "text_pair": ["uno"]}, {"max_length": 64})
    filed, _ = kind.prepare_rows(kind.read_rows(str(single)), {"max_length": 64})
    assert typed[0]["input_ids"] == filed[0]["input_ids"] != rows[0]["input_ids"]
    asked = [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "uno"},
        {"role": "user", "content": "and?"},
    ]
    single.write_text(json.dumps({"messages": asked}) + "\n")
    with pytest.raises(DataError, match="conversation 1 ends with a message of the user"):
        task.prepare_rows(task.read_rows(str(single)), {"max_length": 64})
    with pytest.raises(DataError, match="a text is empty"):
        task.prepare_rows({"text": ["one"], "text_pair": [" "]}, {"max_length": 64})
    with pytest.raises(DataError, match="--pair"):
        task.prepare_rows({"text": ["one"]}, {"max_length": 64})
    with pytest.raises(DataError, match="of 1 of the 2 conversations .* leaves nothing of an answer: number 2;"):
        task.prepare_rows({"text": ["one", "one " * 50], "text_pair": ["uno", "uno"]}, {"max_length": 64})


def test_rewards_go_to_a_file_and_back(tmp_path: Path) -> None:
    from launcher.contracts import Predictions
    from launcher.evaluation.predictions_io import read_predictions, write_predictions

    written = Predictions("reward", np.array([[0.25], [-3.0]]), None, (), ("a", "b"), (0, 1))
    write_predictions(written, tmp_path / "p.parquet")
    back = read_predictions(tmp_path / "p.parquet")
    assert back.scores.tolist() == [[0.25], [-3.0]] and back.labels is None
