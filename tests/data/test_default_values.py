"""builtin:default-values: answers that stand in the text, and splits of other modules."""

from __future__ import annotations

from launcher.data.builtin import make_builtin
from launcher.data.builtin_default_values import SIZES
from launcher.data.sources import load_splits
from launcher.recipe.data_section import DataSection


def test_answers_stand_where_they_say_and_splits_are_apart(tmp_path):
    made = make_builtin("default-values", cache_dir=tmp_path)
    modules = {split: {row["id"].split(":")[0] for row in rows} for split, rows in made.splits.items()}
    assert not modules["train"] & modules["test"] and not modules["train"] & modules["validation"]
    for split, rows in made.splits.items():
        assert SIZES[split] // 3 < len(rows) <= SIZES[split]
        without = sum(not row["answers"]["text"] for row in rows)
        assert 0.1 < without / len(rows) < 0.3
        for row in rows:
            for text, start in zip(*row["answers"].values(), strict=True):
                name = row["id"].rpartition(":")[2]
                assert row["context"][start - len(name) - 1 : start + len(text)] == f"{name}={text}", row


def test_no_question_stands_in_two_splits(tmp_path):
    section = DataSection(source="builtin:default-values", cache_dir=str(tmp_path))
    found = load_splits(section, base_folder=tmp_path, needs=("question", "context"), optional=("answers", "id"))
    assert found.warnings == ()
