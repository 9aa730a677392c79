"""The walls of the house: who may import whom, and names that are written down twice."""

from __future__ import annotations

import subprocess
import sys
import typing
from pathlib import Path

import pytest

from launcher import registry
from launcher.recipe import data_section, schema, task_options

ROOT = Path(__file__).resolve().parents[1]


def test_floors_hold():
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


ROWS = {name: row for rows in (registry.TASKS, registry.STRATEGIES, registry.BACKENDS) for name, row in rows.items()}


@pytest.mark.parametrize("name", ROWS)
def test_every_row_of_the_registries_can_be_loaded(name):
    assert isinstance(registry.load(ROWS_OF[name], name), type)


ROWS_OF = {name: rows for rows in (registry.TASKS, registry.STRATEGIES, registry.BACKENDS) for name in rows}


def test_no_name_is_in_two_registries():
    assert len(ROWS) == sum(map(len, (registry.TASKS, registry.STRATEGIES, registry.BACKENDS)))


def test_a_miss_suggests_and_a_near_miss_leads_to_a_name():
    with pytest.raises(KeyError, match="did you mean 'encoder'"):
        registry.load(registry.STRATEGIES, "encoder-only")
    from launcher.cli import app

    verbs = {command.name or command.callback.__name__ for command in app.registered_commands}
    known = {*ROWS, *verbs}
    assert {right for right in registry.NEAR_MISSES.values()} <= known
    assert not set(registry.NEAR_MISSES) & known


def types_of(annotation: object) -> set[str]:
    """The values that the discriminator ``type`` takes in an options class or a union of them."""
    options = [part for part in _leaves(annotation) if isinstance(part, type)]
    return {value for option in options for value in typing.get_args(option.model_fields["type"].annotation)}


def _leaves(annotation: object) -> list[object]:
    if typing.get_origin(annotation) is typing.Annotated:
        return _leaves(typing.get_args(annotation)[0])
    parts = typing.get_args(annotation)
    return [leaf for part in parts for leaf in _leaves(part)] if parts else [annotation]


def test_the_schema_knows_the_registries_names():
    fields = schema.Recipe.model_fields
    assert types_of(fields["strategy"].annotation) == set(registry.STRATEGIES)
    assert types_of(fields["task"].annotation) == set(registry.TASKS)
    assert set(task_options.COLUMNS) == set(registry.TASKS)


def test_the_schema_knows_the_built_in_sources():
    from launcher.data.builtin import BUILTIN_SOURCES

    assert set(data_section.BUILTIN_SOURCES) == set(BUILTIN_SOURCES)
    assert all(callable(registry.load(BUILTIN_SOURCES, name)) for name in BUILTIN_SOURCES)


def test_columns_of_the_schema_are_those_that_the_data_are_read_by():
    from launcher.data import sources

    assert set(task_options.COLUMNS["text-classification"]) == {*sources.NEEDS, *sources.OPTIONAL}
