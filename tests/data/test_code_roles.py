"""builtin:code-roles: true roles, no module in two splits, the same rows again."""

from __future__ import annotations

from pathlib import Path

import pytest

from launcher.data.builtin import make_builtin
from launcher.data.builtin_code_roles import ROLES, TEST, TRAIN, VALIDATION


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make_builtin("code-roles", cache_dir=tmp_path_factory.mktemp("cache"))


def test_rows_are_whole_and_splits_apart(made):
    assert {split: len(rows) for split, rows in made.splits.items()} == {
        "train": TRAIN,
        "validation": VALIDATION,
        "test": TEST,
    }
    modules = {split: {row["id"].rpartition(":")[0] for row in rows} for split, rows in made.splits.items()}
    assert not modules["train"] & modules["test"] and not modules["train"] & modules["validation"]
    for rows in made.splits.values():
        assert all(len(row["tokens"]) == len(row["label"]) and set(row["label"]) <= set(ROLES) for row in rows)
    assert {role for row in made.splits["train"] for role in row["label"]} == set(ROLES)


def test_roles_are_those_of_pythons_parser(tmp_path, monkeypatch):
    from launcher.data import builtin_code_roles

    code = "def add(self, first: Number = 1):\n    return self.make(Sum, first, key=math.pi, word='x')\n"
    (tmp_path / "made_up_module.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    head, body = builtin_code_roles._statements_of("made_up_module")
    assert dict(zip(head.words, head.roles, strict=True)) == {
        "def": "keyword", "add": "function", "(": "operator", "self": "parameter", ",": "operator", "first": "parameter",
        ":": "operator", "Number": "class", "=": "operator", "1": "number", ")": "operator",
    }  # fmt: skip
    assert dict(zip(body.words, body.roles, strict=True)) == {
        "return": "keyword", "self": "variable", ".": "operator", "make": "method", "(": "operator", "Sum": "variable",
        ",": "operator", "first": "variable", "key": "argument", "=": "operator", "math": "variable", "pi": "attribute",
        "word": "argument", "'x'": "string", ")": "operator",
    }  # fmt: skip


def test_rows_are_kept_and_made_again_where_the_file_is_damaged(tmp_path: Path):
    first = make_builtin("code-roles", cache_dir=tmp_path)
    (kept,) = (tmp_path / "builtin").iterdir()
    text = kept.read_text()
    kept.write_text(text[:-50])
    again = make_builtin("code-roles", cache_dir=tmp_path)
    assert again.splits == first.splits and kept.read_text() == text
