"""The saved model served elsewhere: with transformers and PEFT alone it has the run's template, tokens, logits and answers."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import tiny

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

PLAIN = Path(__file__).with_name("plain_serving.py")
STORY = Path(__file__).resolve().parents[3] / "shared" / "models" / "stories260k-llama"
NAMES, THINGS = ("Tim", "Lily", "Ben", "Mia"), ("a red ball", "a big dog", "a small cat", "a blue hat")
LONGEST = 24


def chat(seed: int) -> list[dict[str, str]]:
    """Two questions and their answers, which a small model learns in a few steps."""
    name, thing = random.Random(seed).choice(NAMES), random.Random(seed + 1).choice(THINGS)
    return [
        {"role": "user", "content": f"Who has {thing}?"},
        {"role": "assistant", "content": f"Lily has {thing}."},
        {"role": "user", "content": f"What does {name} like?"},
        {"role": "assistant", "content": f"{name} likes {thing}."},
    ]


# The first is what `launcher predict RUN "..."` asks; prompts of several lengths, and one with what was said before.
QUESTIONS = ["Who has a big dog?", "What does Tim like?"]
CHATS: list[list[dict[str, str]]] = [*([{"role": "user", "content": text}] for text in QUESTIONS), chat(5)[:3]]


@dataclass(frozen=True)
class Served:
    run: Path
    plain: dict[str, Any]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, require: Callable[[object, str], None]) -> dict[str, Served]:
    """Two runs, started as a user starts them, and what a process without launcher makes of them."""
    require(STORY.is_dir(), f"needs the model in {STORY}")
    folder = tmp_path_factory.mktemp("serving")
    (folder / "chats").mkdir()
    for name, rows in {"train": range(96), "validation": range(200, 208), "test": range(300, 308)}.items():
        lines = (json.dumps({"messages": chat(row)}) for row in rows)
        (folder / "chats" / f"{name}.jsonl").write_text("\n".join(lines))
    kinds = {
        "full": ("chatml", {"type": "full"}),
        "lora": ("plain", {"type": "lora", "r": 8, "lora_alpha": 16}),
    }
    recipes = [
        tiny.write_recipe(
            folder / f"{name}.yaml",
            tiny.recipe_values(
                STORY, "./chats", name=name, strategy=strategy, data={"max_length": 160},
                task={"type": "sft", "chat_template": template, "sample_generations": 1, "max_new_tokens": LONGEST},
                training={"num_train_epochs": 3, "learning_rate": 3e-3, "logging_steps": 50},
                evaluation={"bootstrap": 0, "baselines": [], "verify_saved": True},
            ),
        )
        for name, (template, strategy) in kinds.items()
    ]  # fmt: skip
    with ThreadPoolExecutor(len(recipes)) as pool:
        for done in pool.map(lambda recipe: tiny.launcher("run", recipe, cwd=folder), recipes):
            assert done.returncode == 0, done.stdout + done.stderr
    runs = {name: folder / "runs" / f"{name}-001" for name in kinds}
    asked = [
        {
            "run": str(run),
            "conversation": chat(200),
            "chats": CHATS,
            "max_new_tokens": LONGEST,
            "base": str(STORY) if name == "lora" else None,
        }
        for name, run in runs.items()
    ]
    # -I: neither PYTHONPATH nor this folder lead to launcher.
    done = subprocess.run(
        [sys.executable, "-I", PLAIN], input=json.dumps(asked), cwd=folder, env=tiny.environment(), capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return {name: Served(run, plain) for (name, run), plain in zip(runs.items(), json.loads(done.stdout), strict=True)}


@pytest.mark.parametrize("name", ["full", "lora"])
def test_template_and_tokens_are_those_of_training(served: dict[str, Served], name: str) -> None:
    from launcher.data.pieces import read_split

    run, plain = served[name].run, served[name].plain
    prepared = Path(json.loads((run / "attempts/1/prepared.json").read_text())["folder"])
    row = read_split(prepared / "validation.arrow")[0]
    assert plain["template"] == (run / "chat_template.jinja").read_text()
    assert plain["ids"] == list(row["input_ids"])
    assert plain["rows"] == ([514, 514] if name == "full" else [512, 512])


@pytest.mark.parametrize("name", ["full", "lora"])
def test_logits_are_those_of_the_model_that_was_trained(served: dict[str, Served], name: str) -> None:
    plain = served[name].plain
    if name == "full":
        assert plain["difference"] < 1e-5
    else:
        # Merged adapters are added in another order; apart, they are what was trained.
        assert plain["difference"] < 1e-3 and plain["adapter_difference"] < 1e-4


def test_generation_stops_at_the_end_of_turn(served: dict[str, Served]) -> None:
    plain = served["full"].plain
    assert plain["ends"] == [513, 2] and plain["pad"] == 2
    assert all(tokens[-1] == 513 and len(tokens) < LONGEST for tokens in plain["tokens"])
    assert plain["texts"][0] == "Lily has a big dog."
    assert served["lora"].plain["ends"] == [2]


@pytest.mark.parametrize("name", ["full", "lora"])
def test_the_pipeline_says_what_generate_says(served: dict[str, Served], name: str) -> None:
    plain = served[name].plain
    assert plain["pipeline"] == [{"role": "assistant", "content": text} for text in plain["texts"]]


def test_predict_says_the_same_to_texts(served: dict[str, Served], tmp_path: Path) -> None:
    done = tiny.launcher("predict", served["full"].run, *QUESTIONS, cwd=tmp_path)
    assert done.stdout.splitlines() == served["full"].plain["texts"][:2], done.stderr


def test_predict_says_the_same_to_a_file_whose_answers_it_is_not_shown(
    served: dict[str, Served], tmp_path: Path
) -> None:
    rows = tmp_path / "chats.jsonl"
    rows.write_text("".join(json.dumps({"messages": one}) + "\n" for one in [*CHATS, chat(5)]))
    done = tiny.launcher("predict", served["lora"].run, "--file", rows, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    *found, whole = json.loads(done.stdout)
    assert [row["prediction"] for row in found] == [text.strip() for text in served["lora"].plain["texts"]]
    assert whole["text"] == found[2]["text"] and whole["text"].endswith("like?")
    assert whole["reference"] == chat(5)[-1]["content"] and found[2]["reference"] is None
    assert whole["prediction"] == found[2]["prediction"]
