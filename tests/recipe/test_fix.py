"""``check --fix``: the words in question change, all else stays."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from launcher.recipe.examine import examine
from launcher.recipe.fix import apply_fixes, write_fixed
from tests.recipe.conftest import SOUND, Write


def _fixed(path: Path) -> str | None:
    return apply_fixes(path, examine(path)[1])


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("training:\n  lerning_rate: 3e-4  # peak\n  # about the seed\n  seed: 1\n",
         "training:\n  learning_rate: 3e-4  # peak\n  # about the seed\n  seed: 1\n"),
        ("training:\n  warmup_ratio: 0.1\n", "training:\n  warmup_steps: 0.1\n"),
        ("training: {group_by_length: true, seed: 1}\n",
         "training: {train_sampling_strategy: group_by_length, seed: 1}\n"),
        ("training:\n  group_by_length: false   # mixed\n", "training:\n  train_sampling_strategy: random   # mixed\n"),
        ("training:\n  evaluation_strategy: \"no\"\n", "training:\n  eval_strategy: \"no\"\n"),
        ("training:\n  gradient_checkpointing_kwargs:\n    use_reentrant: false\n  gradient_checkpointing: true\n",
         "training:\n  activation_checkpointing_kwargs:\n    use_reentrant: false\n  activation_checkpointing: true\n"),
        ("training:\n  adafactor: true\n", "training:\n  optim: adafactor\n"),
        ("training:\n  seed: 1\n  output_dir: out  # here\n  # next\n  data_seed: 2\n",
         "training:\n  seed: 1\n  # next\n  data_seed: 2\n"),
        ("training:\n  do_train: true\nprecision: fp32\n", "precision: fp32\n"),
        ("training: {do_train: true, seed: 1}\n", "training: {seed: 1}\n"),
        ("training: {seed: 1, do_train: true}\n", "training: {seed: 1}\n"),
        ("training:\n  bf16: true\n  seed: 1", "training:\n  seed: 1\nprecision: bf16\n"),
        ("training:\n  fp16: false\n  seed: 1\n", "training:\n  seed: 1\n"),
        ("learning_rate: 1e-4\ntraining:\n  seed: 1  # mine\n\n# the end\n",
         "training:\n  seed: 1  # mine\n  learning_rate: 1e-4\n\n# the end\n"),
        ("learning_rate: 1e-4\n", "training:\n  learning_rate: 1e-4\n"),
        ("tracking: {project: topics}\n", "tracking:\n  wandb:\n    project: topics\n"),
        ("precision: fp61\n", "precision: fp16\n"),
        ("strategy: {type: encoder-only}\n", "strategy: {type: encoder}\n"),
        ("strategy: linear-probe\n", "strategy: {type: head}\n"),
        ("training:\n  learning_rate: \"3e-4\"\n  load_best_model_at_end: no\n",
         "training:\n  learning_rate: 0.0003\n  load_best_model_at_end: false\n"),
        ("evaluation:\n  baselines: [majority, tf-idf]\n", "evaluation:\n  baselines: [majority, tfidf]\n"),
        ("evaluation:\n  baselines:\n    - tf-idf  # words\n", "evaluation:\n  baselines:\n    - tfidf  # words\n"),
        ("training:\n", ""),
        ("distributed: ddp\n", "distributed: {engine: ddp}\n"),
    ],
)  # fmt: skip
def test_edits(write: Write, before: str, after: str) -> None:
    path = write(before)
    assert _fixed(path) == SOUND + after
    path.write_text(SOUND + after)
    assert examine(path)[1] == []


def test_a_key_that_moves_into_a_one_line_section(write: Write) -> None:
    fixed = _fixed(write("training: {max_seq_length: 64, seed: 1}\n"))
    assert fixed is not None
    assert "data: {source: ag_news, max_length: 64}  # four topics\n" in fixed
    assert "training: {seed: 1}\n" in fixed


def test_a_text_where_a_section_should_be(write: Write) -> None:
    short = SOUND.replace("{name_or_path: bert-base-uncased}", "bert-base-uncased").replace(
        "{source: ag_news}", "ag_news"
    )
    assert _fixed(write(head=short)) == SOUND


def test_the_short_form_of_a_task(write: Write) -> None:
    path = write(head=SOUND.replace("text-classification", "sentiment-analysis"))
    assert _fixed(path) == SOUND


@pytest.mark.parametrize(
    "text",
    [
        "",
        "training: {seed: -1}\n",
        "training: {gradient_accumulation_steps: 4}\n",
        "training: {lr: 1e-3, learning_rate: 1e-4}\n",
        "training: {warmup_ratio: 5}\n",
        "training: {no_cuda: true}\n",
        "training: {bf16: &b true, torch_compile: *b}\n",
    ],
)
def test_what_needs_a_decision_is_left_alone(write: Write, text: str) -> None:
    assert _fixed(write(text)) is None


def test_only_the_file_at_hand_is_edited(write: Write) -> None:
    base = write("training: {sed: 1}\n", name="base.yaml")
    path = write("base: base.yaml\n", head="")
    problems = examine(path, ["training.lerning_rate=1"])[1]
    assert len(problems) == 2
    assert apply_fixes(path, problems) is None
    assert "seed: 1" in str(apply_fixes(base, problems))


def test_line_ends_stay(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes((SOUND + "learning_rate: 1e-4\n").replace("\n", "\r\n").encode())
    fixed = _fixed(path)
    assert fixed == (SOUND + "training:\n  learning_rate: 1e-4\n").replace("\n", "\r\n")
    write_fixed(path, fixed)
    assert path.read_bytes() == fixed.encode()


def test_writing_keeps_the_mode_and_leaves_nothing_behind(write: Write) -> None:
    path = write()
    os.chmod(path, 0o640)
    write_fixed(path, "version: 1\n")
    assert path.read_text() == "version: 1\n"
    assert path.stat().st_mode & 0o777 == 0o640
    assert [other.name for other in path.parent.iterdir()] == ["recipe.yaml"]
