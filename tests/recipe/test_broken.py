"""tests/recipes_broken: every file says in its head which faults it has, and has no others.

A line ``# expect: LINE:COLUMN | part of the message | part of the remedy``; in a base file, FILE:LINE:COLUMN.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from launcher.recipe.examine import examine

FOLDER = Path(__file__).parent.parent / "recipes_broken"
BROKEN = sorted(FOLDER.glob("*.yaml"))


def _expected(path: Path) -> list[tuple[str, str, str]]:
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("# expect: ")]
    rows = [line.removeprefix("# expect: ").split(" | ") for line in lines]
    return [
        (f"{path}:{place}" if place.count(":") == 1 else f"{FOLDER}/{place}", message, remedy)
        for place, message, remedy in rows
    ]


def test_there_are_enough() -> None:
    assert len(BROKEN) >= 36


@pytest.mark.parametrize("path", BROKEN, ids=lambda path: path.stem)
def test_faults_are_named_with_line_and_remedy(path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    _, problems = examine(path)
    expected = _expected(path)
    assert expected, "a broken recipe says what is expected"
    assert [problem.place for problem in problems] == [place for place, _, _ in expected], "\n".join(map(str, problems))
    for problem, (_, message, remedy) in zip(problems, expected, strict=True):
        assert message in problem.message
        assert remedy in problem.remedy
