"""The quickstart's data: made offline, the same everywhere, fair."""

from __future__ import annotations

import re
import socket
from collections import Counter
from pathlib import Path

import pytest

from launcher.data import builtin_api_topics as api
from launcher.data.builtin import BUILTIN_SOURCES, make_builtin
from launcher.data.sources import load_splits
from launcher.errors import DataError
from launcher.recipe import data_section
from launcher.recipe.data_section import DataSection


@pytest.fixture(scope="module")
def made():
    """The rows as a user gets them, kept in the tests' own cache folder, with every way to the network closed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket, "getaddrinfo", lambda *_: (_ for _ in ()).throw(OSError("no network")))
        return make_builtin("api-topics")


def test_the_schema_knows_the_same_names() -> None:
    assert set(data_section.BUILTIN_SOURCES) == set(BUILTIN_SOURCES)


def test_sizes_and_balance(made) -> None:
    train, validation, test = (made.splits[name] for name in ("train", "validation", "test"))
    assert 10 <= len(api.TOPICS) <= 15
    assert Counter(row["label"] for row in train) == dict.fromkeys(api.TOPICS, 40)
    assert Counter(row["label"] for row in validation) == dict.fromkeys(api.TOPICS, 40)
    of_test = Counter(row["label"] for row in test)
    assert len(test) >= 2500 and set(of_test) == set(api.TOPICS)
    assert max(of_test.values()) <= 0.12 * len(test)


def test_no_text_recurs_nearly(made) -> None:
    texts = [row["text"] for rows in made.splits.values() for row in rows]
    words = [tuple(re.findall("[a-z]+", text.lower())) for text in texts]
    assert len(set(words)) == len(texts)
    holes = [{(n, w[:n] + w[n + 1 :]) for n in range(len(w))} for w in words]
    assert len(set().union(*holes)) == sum(map(len, holes))


def test_texts_are_prose_without_names_of_libraries(made) -> None:
    for rows in made.splits.values():
        for row in rows:
            assert 40 <= len(row["text"]) <= 300 and row["text"] == " ".join(row["text"].split())
            assert not re.search(
                r"\b(scipy|sympy|pytorch|networkx|pandas|sqlalchemy|nltk)\b|`", row["text"], re.IGNORECASE
            )


def test_the_rows_are_those_that_the_documentation_is_about(made) -> None:
    if api.installed_versions() != api.VERSIONS:
        pytest.skip("other versions than those of constraints.txt are installed")
    assert made.facts["fingerprint"] == api.FINGERPRINT and made.warnings == ()


def test_the_second_time_comes_from_the_cache(made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "make_rows", lambda: pytest.fail("was made again"))
    assert api.make_api_topics().splits == made.splits


def test_a_damaged_cache_is_made_again(made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"split": split, **row} for split, part in made.splits.items() for row in part]
    calls = []
    monkeypatch.setattr(api, "make_rows", lambda: calls.append(1) or rows)
    monkeypatch.setattr(api, "FINGERPRINT", api._fingerprint(rows))
    api.make_api_topics(cache_dir=tmp_path)
    (path,) = tmp_path.glob("builtin/*")
    path.write_text(path.read_text()[:-200])
    assert api.make_api_topics(cache_dir=tmp_path).splits == made.splits and len(calls) == 2
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_other_rows_from_the_pinned_versions_are_an_error(made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "VERSIONS", api.installed_versions())
    monkeypatch.setattr(api, "FINGERPRINT", "0" * 64)
    with pytest.raises(DataError, match="install the packages of constraints"):
        api.make_api_topics()


def test_other_versions_are_a_warning(made, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    rows = [{"split": split, **row} for split, part in made.splits.items() for row in part]
    monkeypatch.setattr(api, "make_rows", lambda: rows)
    monkeypatch.setattr(api, "VERSIONS", {**api.installed_versions(), "sympy": "0.1"})
    (note,) = api.make_api_topics(cache_dir=tmp_path).warnings
    assert "sympy" in note and "pinned: 0.1" in note and "scipy" not in note
    monkeypatch.setattr(api, "VERSIONS", {"no-such-package": "1"})
    with pytest.raises(DataError, match="install no-such-package==1"):
        api.make_api_topics(cache_dir=tmp_path)


def test_as_a_source(made, tmp_path: Path) -> None:
    splits = load_splits(DataSection(source="builtin:api-topics"), base_folder=tmp_path)
    assert splits.train.column_names == ["text", "label", "id", "row_id"] and len(splits.train) == len(
        made.splits["train"]
    )
    assert not [note for note in splits.warnings if "also stand in train" in note]


@pytest.mark.parametrize(
    ("docstring", "text"),
    [
        ("Draw :func:`~numpy.random.rand` with ``size`` of `Axes`.\n\nMore.", "Draw rand with size of Axes."),
        ("\n    Wrap\n    SciPy and NumPy's arrays\n    ", "Wrap [library] and [library]'s arrays"),
        ("Set it [1]_ on all.\n    Args:\n        it: A thing", "Set it on all."),
        ("See :class:`a table <pandas.DataFrame>`", "See a table"),
    ],
)
def test_markup_is_taken_off_and_names_are_masked(docstring: str, text: str) -> None:
    assert api.clean(docstring) == text
