"""Rows that are read while training, in this process: stops, resumes, and what is planned and told."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))
from in_process import CPU, prepare

from launcher.data.streams import ROWS_OF_A_FILE
from launcher.engine.checkpoint_files import read_manifest

SIZES = (30, 17)
STEPS = 20
NEVER = {"eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": False}
ALL = {file * ROWS_OF_A_FILE + row for file, size in enumerate(SIZES) for row in range(size)}


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("stream")
    tiny.save_bert(folder / "bert", hidden_dropout_prob=0.1)
    (folder / "train").mkdir()
    for number, size in enumerate(SIZES):
        rows = [json.dumps({"text": text, "label": label}) for text, label in tiny.rows(size, seed=number)]
        rows.insert(5, '{"text": 7}')
        (folder / "train" / f"{number}.jsonl").write_text("\n".join(rows))
    tiny.write_csv(folder / "validation.csv", tiny.rows(9, seed=99))
    return folder


def data_of(place: Path, **changes: Any) -> dict[str, Any]:
    return {
        "source": None, "train": str(place / "train"), "validation": str(place / "validation.csv"), "streaming": True,
        "shuffle_buffer_size": 12, "labels": list(tiny.TOPICS), "cache_dir": str(place / "cache"), "on_bad_row": "skip",
        **changes,
    }  # fmt: skip


def ready(place: Path, runs: Path, *, found: Any = None, stop_at: int | None = None, **changes: Any) -> Any:
    training = {"num_train_epochs": None, "max_steps": STEPS, **NEVER, **changes.pop("training", {})}
    training.pop("num_train_epochs")
    made = prepare(place / "bert", place, runs, run=found, data=data_of(place), training=training, **changes)
    if stop_at is not None:
        on_step = made.context.progress.on_step

        def stop(step: int, **facts: Any) -> None:
            on_step(step, **facts)
            if step == stop_at:
                made.run.stop_request(made.context.attempt).touch()

        made.context.progress.on_step = stop
    return made


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("stop_at", [1, 6, 13])
def test_a_run_goes_on_where_its_checkpoint_stands(place, tmp_path, stop_at, workers):
    whole = ready(place, tmp_path / "whole")
    one, _ = whole.train()
    training = {"dataloader_num_workers": workers, "per_device_train_batch_size": 4}
    first = ready(place, tmp_path / "cut", stop_at=stop_at, training=training)
    assert first.train()[1]
    manifest = read_manifest(first.run.latest_checkpoint())
    assert manifest["step"] == stop_at and manifest["stream"]["epoch"] == (stop_at >= 6) + (stop_at >= 12)
    second = ready(place, tmp_path / "cut", found=first.run, training=training)
    two, _ = second.train(resume=True)
    ledger = tiny.ledger(whole.run.path)
    assert tiny.ledger(first.run.path) == ledger and len(ledger) == STEPS
    used = [row for step in sorted(ledger) for row in ledger[step]]
    # 47 rows that can be used, in six steps an epoch, of which the last one is short.
    bad = {5, ROWS_OF_A_FILE + 5}
    usable = {row for row in ALL | {30, ROWS_OF_A_FILE + 17} if row not in bad}
    assert set(used[:47]) == set(used[47:94]) == usable
    assert all(torch.isfinite(tensor).all() for tensor in two.model.state_dict().values()) and one is not two
    listed = tiny.jsonl(first.run.skipped)
    assert sorted((Path(row["file"]).name, row["row"]) for row in listed) == [("0.jsonl", 6), ("1.jsonl", 6)]


def test_losses_and_weights_are_those_of_the_run_that_was_not_cut(place, tmp_path):
    whole = ready(place, tmp_path / "whole")
    one, _ = whole.train()
    first = ready(place, tmp_path / "cut", stop_at=8)
    first.train()
    two, _ = ready(place, tmp_path / "cut", found=first.run).train(resume=True)
    assert tiny.losses(first.run.path) == tiny.losses(whole.run.path)
    for name, tensor in one.model.state_dict().items():
        assert torch.equal(two.model.state_dict()[name], tensor), name


def test_with_other_files_a_run_goes_on_in_the_next_epoch():
    from launcher.data.stream_files import Mark
    from launcher.data.streams import Position
    from launcher.engine.streaming import Streamed

    place = Position(epoch=2, file=1, mark=Mark(100, 7, 8), block=3, used=5)
    manifest = json.loads(json.dumps({"stream": place.to_json(), "data_fingerprint": "a"}))
    for fingerprint, wanted in (("a", place), ("b", Position(epoch=3))):
        streamed = Streamed(Path("skipped.jsonl"), None)
        streamed.resume(manifest, fingerprint)
        assert streamed.position == wanted


def test_the_epoch_that_is_told_is_the_streams(place, tmp_path):
    run = ready(place, tmp_path / "run", training={"logging_steps": 1})
    run.train()
    epochs = [row["epoch"] for row in tiny.jsonl(run.run.progress) if "loss" in row]
    assert epochs[4] == 0 and epochs[6] == 1 and epochs[-1] == 3


def test_a_frozen_prefix_is_not_cached(place, tmp_path):
    run = ready(place, tmp_path / "run", strategy={"type": "head"})
    trainer, _ = run.train()
    assert trainer.cache is None and run.context.prepared.stream is not None


def test_plan_and_data_say_that_rows_are_not_counted(place, tmp_path, capsys):
    from types import SimpleNamespace

    from launcher.cli.planning import _plan_lines
    from launcher.launching.launch_plan import plan_launch
    from launcher.planning.forecast import memory_setting
    from launcher.planning.plan import preview
    from launcher.workflows.data_view import view_data
    from launcher.workflows.evaluate import assess
    from launcher.workflows.plan_view import table_views

    recipe = ready(place, tmp_path / "run").context.recipe
    launch = plan_launch(recipe, CPU)
    found = preview(recipe, launch, base_folder=place)
    lines = dict(_plan_lines(SimpleNamespace(plan=found.plan, chosen="")))
    assert lines["data"] == "a sample of 47 train, 9 validation rows"
    assert lines["steps"].startswith("20 (training.max_steps; epochs are not known)")
    assert "epochs" not in table_views(found.plan)[0].headings[0]
    # As long as rows may be, not as long as those of the sample are.
    assert memory_setting(recipe, launch, found.prepared).length == 32
    view = view_data(recipe, base_folder=place, rows=2)
    assert view.is_sample and len(view.rows) == 2 and list(view.padding) == ["random"]
    assert any("train is streamed from 2 file(s)" in text for text in view.warnings)
    asked: list[Any] = []
    task = SimpleNamespace(baselines=lambda names, *args, **kwargs: asked.append(list(names)) or [])
    with pytest.raises(AttributeError):
        assess(task, recipe, found.prepared, None, split="validation")  # type: ignore[arg-type]
    assert asked == [[]]


def test_a_range_test_reads_the_stream(place):
    from launcher.recipe.load import parse_recipe
    from launcher.workflows.lr_find import find_rate

    values = tiny.recipe_values(place / "bert", "", data=data_of(place))
    del values["data"]["source"], values["training"]["num_train_epochs"]
    values["training"] |= {"max_steps": 5, **NEVER}
    loaded = parse_recipe(json.dumps(values), "r.yaml")
    found = find_rate(loaded, min_lr=1e-5, max_lr=1e-3, steps=12, hardware=CPU, base_folder=place)
    assert len(found.losses) == 12
