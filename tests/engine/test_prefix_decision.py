"""Whether a run gets a frozen-prefix cache: told once, written down, and the same in every attempt."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import tiny

sys.path.insert(0, str(Path(__file__).resolve().parent))
import in_process

from launcher.engine.prefix_decision import open_cache
from launcher.errors import ModelError
from launcher.strategies.preparing import prepare_model

FROZEN = {"type": "layerwise", "freeze_layers": 2, "frozen_eval": True}


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    folder = tmp_path_factory.mktemp("decision")
    return tiny.save_bert(folder / "bert"), tiny.write_data(folder / "data"), folder / "runs"


def ready(places: Any, strategy: Any, **changes: Any) -> Any:
    prepared = in_process.prepare(*places, strategy=strategy, **changes)
    prepare_model(prepared.model, prepared.context.planned.phase)
    return prepared


def opened(prepared: Any) -> Any:
    return open_cache(prepared.context, prepared.model, "cpu")


def events(prepared: Any) -> list[Any]:
    return [row for row in tiny.jsonl(prepared.run.events) if row["event"] == "prefix_cache"]


def test_a_cache_is_told_written_down_and_filled_for_training_and_validation(
    places: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    run = ready(places, FROZEN | {"prefix_cache": "memory"})
    cache = opened(run)
    assert {name: len(rows) for name, rows in cache.entries.items()} == {"train": 50, "validation": 18}
    assert "prefix cache: the output of 2 frozen blocks" in capsys.readouterr().out
    (event,) = events(run)
    assert (event["store"], event["bytes"]) == ("memory", cache.plan.bytes)
    assert not any("layer.0" in name for name, _ in run.model.named_parameters())


def test_without_evaluations_only_training_rows_are_kept(places: Any) -> None:
    changes = {"eval_strategy": "no", "load_best_model_at_end": False}
    cache = opened(ready(places, FROZEN | {"prefix_cache": "memory"}, training=changes))
    assert list(cache.entries) == ["train"]


def test_a_refusal_says_why_and_leaves_the_model_whole(places: Any, capsys: pytest.CaptureFixture[str]) -> None:
    run = ready(places, FROZEN | {"prefix_cache": "auto"}, training={"activation_checkpointing": True})
    names = [name for name, _ in run.model.named_parameters()]
    assert opened(run) is None
    assert "prefix cache: off: training.activation_checkpointing" in capsys.readouterr().out
    assert [row["store"] for row in events(run)] == ["off"]
    assert [name for name, _ in run.model.named_parameters()] == names


@pytest.mark.parametrize("strategy", [{"type": "full"}, FROZEN | {"prefix_cache": "off"}])
def test_nothing_is_said_where_nobody_asked(places: Any, strategy: Any, capsys: pytest.CaptureFixture[str]) -> None:
    run = ready(places, strategy)
    assert opened(run) is None
    assert "prefix cache" not in capsys.readouterr().out and not events(run)


def test_what_cannot_be_is_an_error_where_it_is_asked_for(places: Any) -> None:
    run = ready(places, FROZEN | {"prefix_cache": "disk"}, training={"activation_checkpointing": True})
    with pytest.raises(ModelError, match="activation_checkpointing"):
        opened(run)


@pytest.mark.parametrize("store", ["off", "disk"])
def test_later_attempts_do_what_the_first_one_did(places: Any, store: str) -> None:
    """``auto`` decides by what is free, and a checkpoint of a cut model fits no whole one."""
    run = ready(places, FROZEN | {"prefix_cache": "auto"})
    run.run.add_event("prefix_cache", attempt=1, store=store)
    cache = opened(run)
    assert (cache.plan.store if cache else "off") == store
    assert len(events(run)) == 1
