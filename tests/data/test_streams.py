"""Streams: every row once an epoch, the same from any position on, and never more rows held than a block has."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny

from launcher.data.sources import load_splits
from launcher.data.stream_files import Cursor, Mark, StreamFile
from launcher.data.stream_readers import open_cursor
from launcher.data.stream_sources import find_stream
from launcher.data.streams import PIECES_OF_A_ROW, ROWS_OF_A_FILE, Features, Position, Stream, StreamBatch
from launcher.errors import DataError
from launcher.recipe.data_section import DataSection
from launcher.recipe.schema import Recipe
from launcher.tasks.causal_lm import CausalLM
from launcher.tasks.masked_lm import MaskedLM
from launcher.tasks.text_classification import TextClassification

SIZES = (7, 23, 1, 40)
ROWS = {file * ROWS_OF_A_FILE + row for file, size in enumerate(SIZES) for row in range(size)}


def data_of(folder: Path, **changes: Any) -> DataSection:
    values = {"train": str(folder / "train"), "validation": str(folder / "validation.csv"), "streaming": True}
    return DataSection.model_validate({**values, "shuffle_buffer_size": 10, **changes})


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    found = tmp_path_factory.mktemp("stream")
    tiny.save_bert(found / "bert")
    (found / "train").mkdir()
    for number, size in enumerate(SIZES):
        rows = [
            {"text": f"{text} {number} {row}", "label": label}
            for row, (text, label) in enumerate(tiny.rows(size, seed=number))
        ]
        (found / "train" / f"part-{number}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tiny.write_csv(found / "validation.csv", tiny.rows(9, seed=99))
    return found


def same(columns: dict[str, list[Any]]) -> tuple[dict[str, list[Any]], dict[str, int]]:
    return columns, {}


def stream_of(folder: Path, *, features: Features | None = None, seed: int = 1, **changes: Any) -> Stream:
    data = data_of(folder, **changes)
    found = load_splits(data, base_folder=folder)
    return Stream(found.files, data, features or Features(same, divides=False), seed)


def numbers(batch: StreamBatch) -> list[int]:
    return [row["row_id"] for row in batch.rows]


def epochs(stream: Stream, count: int, *, size: int = 8) -> list[list[StreamBatch]]:
    steps = itertools.takewhile(lambda batch: batch.epoch < count, stream.batches(Position(), size=size))
    return [list(group) for _, group in itertools.groupby(steps, key=lambda batch: batch.epoch)]


@pytest.mark.parametrize("buffer", [1, 10, 1000])
@pytest.mark.parametrize("size", [1, 8, 30])
def test_each_row_once_an_epoch_in_full_batches(folder, buffer, size):
    found = epochs(stream_of(folder, shuffle_buffer_size=buffer), 3, size=size)
    for epoch in found:
        assert set().union(*map(numbers, epoch)) == ROWS and sum(len(batch.rows) for batch in epoch) == len(ROWS)
        assert all(len(batch.rows) == size for batch in epoch[:-1])
    if buffer > 1:
        assert numbers(found[0][0]) != numbers(found[1][0])


def test_rows_meet_others_only_within_a_block_and_files_come_in_another_order(folder):
    stream = stream_of(folder)
    assert len({tuple(stream.order(epoch)) for epoch in range(20)}) > 5
    order = [number * ROWS_OF_A_FILE + row for number in stream.order(0).tolist() for row in range(SIZES[number])]
    used = [number for batch in epochs(stream, 1)[0] for number in numbers(batch)]
    assert used != order
    for start in range(0, len(order), 10):
        assert sorted(used[start : start + 10]) == sorted(order[start : start + 10])


@pytest.mark.parametrize("size", [3, 10, 25])
def test_a_stream_goes_on_from_the_end_of_any_batch(folder, size):
    stream = stream_of(folder)
    whole = list(itertools.islice(stream.batches(Position(), size=size), 60))
    for after, batch in enumerate(whole[:40], start=1):
        place = Position.from_json(json.loads(json.dumps(batch.end.to_json())))
        again = list(itertools.islice(stream.batches(place, size=size), 5))
        assert [(numbers(one), one.epoch, one.end) for one in again] == [
            (numbers(one), one.epoch, one.end) for one in whole[after : after + 5]
        ]


def test_a_resumed_stream_reads_nothing_before_its_block(folder):
    begun: list[tuple[str, Mark]] = []

    def noting(file: StreamFile, mark: Mark) -> Cursor:
        begun.append((file.place, mark))
        return open_cursor(file, mark)

    found = stream_of(folder)
    stream = Stream(found.files, found.data, found.features, found.seed, read=noting)
    batch = next(itertools.islice(stream.batches(Position(), size=8), 5, None))
    begun.clear()
    next(stream.batches(batch.end, size=8))
    place, mark = begun[0]
    assert mark == batch.end.mark and place == stream.files[stream.order(0)[batch.end.file]].place
    assert batch.end.file or mark.offset


def test_no_more_rows_are_held_than_a_block_has(tmp_path):
    """200,000 rows: what was taken of the files is at most a block ahead of what was used."""
    path = tmp_path / "train.jsonl"
    with path.open("w") as file:
        file.writelines(f'{{"text": "row {number}"}}\n' for number in range(200_000))
    taken = 0

    class Counting(Cursor):
        def __init__(self, file: StreamFile, mark: Mark) -> None:
            self.inner = open_cursor(file, mark)

        def take(self, most: int) -> Any:
            nonlocal taken
            table = self.inner.take(most)
            taken += table.rows
            self.mark, self.is_at_end = self.inner.mark, self.inner.is_at_end
            return table

        def close(self) -> None:
            self.inner.close()

    data = DataSection(train=str(path), validation=str(path), streaming=True, shuffle_buffer_size=1000)
    files = (StreamFile(str(path), "jsonl", 0, columns={"text": ["text"]}),)
    stream, used = Stream(files, data, Features(same, divides=False), 1, read=Counting), 0
    for batch in stream.batches(Position(), size=64):
        if batch.epoch:
            break
        used += len(batch.rows)
        assert taken <= used + 1000
    assert used == 200_000


def test_bad_rows_are_named_or_left_out_and_listed_once(folder, tmp_path):
    (tmp_path / "train").mkdir()
    lines = (folder / "train" / "part-3.jsonl").read_text().splitlines()
    broken = [*lines[:30], '{"text": "no end', *lines[30:35], '{"text": 5, "label": "fruit"}', *lines[35:]]
    (tmp_path / "train" / "a.jsonl").write_text("\n".join(broken))
    (tmp_path / "validation.csv").write_bytes((folder / "validation.csv").read_bytes())
    stream = stream_of(tmp_path, on_bad_row="skip", shuffle_buffer_size=20)
    found = epochs(stream, 2)
    assert [sum(len(batch.rows) for batch in epoch) for epoch in found] == [40, 40]
    skipped = [row for epoch in found for batch in epoch for row in batch.skipped]
    assert [(row.row, row.place.rpartition("/")[2]) for row in skipped] == [
        (31, "a.jsonl:31:10"), (37, "a.jsonl:37 (row 37)"),
    ]  # fmt: skip
    strict = Stream(stream.files, data_of(tmp_path), stream.features, 1)
    with pytest.raises(DataError, match=r"a\.jsonl:31:10: broken JSON"):
        epochs(strict, 1)
    many = "\n".join(['{"text": 5}'] * 150)
    (tmp_path / "train" / "a.jsonl").write_text("\n".join(lines) + "\n" + many)
    with pytest.raises(DataError, match=r"150 of the 190 train rows \(79%\) cannot be used"):
        epochs(
            Stream(stream.files, data_of(tmp_path, on_bad_row="skip", shuffle_buffer_size=500), stream.features, 1), 1
        )


def test_filters_and_keys_that_a_stretch_lacks(tmp_path):
    rows = [{"text": f"row {number}", "kept": number % 3 == 0} for number in range(60)]
    for row in rows[20:40]:
        del row["kept"]
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tiny.write_csv(tmp_path / "validation.csv", [["text", "text"]], head=("text", "kept"))
    train = {"source": str(tmp_path / "train"), "filter": {"kept": True}}
    found = epochs(stream_of(tmp_path, train=train), 1)
    wanted = [number for number in range(60) if number % 3 == 0 and not 20 <= number < 40]
    assert sorted(row["row_id"] for batch in found[0] for row in batch.rows) == wanted


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_column_inside_a_mapping(tmp_path, kind):
    from datasets import Dataset

    rows = [{"both": {"en": f"row {number}", "de": "Zeile"}, "more": 1} for number in range(30)]
    (tmp_path / "train").mkdir()
    (tmp_path / "validation.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:9]))
    if kind == "parquet":
        Dataset.from_list(rows).to_parquet(str(tmp_path / "train" / "a.parquet"))
    else:
        (tmp_path / "train" / "a.jsonl").write_bytes((tmp_path / "validation.jsonl").read_bytes())
    changes = {"columns": {"text": "both.en"}, "validation": str(tmp_path / "validation.jsonl")}
    found = epochs(stream_of(tmp_path, **changes), 1)
    assert {row["text"] for batch in found[0] for row in batch.rows} == {
        f"row {number}" for number in range(30 if kind == "parquet" else 9)
    }


# --- tasks -----------------------------------------------------------------------------------------------------------


def recipe(folder: Path, task: Any, **data: Any) -> Recipe:
    values = tiny.recipe_values(folder / "bert", "", training={"max_steps": 9})
    section = {**data_of(folder).model_dump(), "max_length": 16, "cache_dir": str(folder / "cache"), **data}
    return Recipe.model_validate(
        {**values, "task": task if isinstance(task, dict) else {"type": task}, "data": section}
    )


def test_streamed_rows_are_the_prepared_ones(folder):
    whole = {"train": [str(folder / "train" / f"part-{n}.jsonl") for n in range(4)], "streaming": False}
    names = ["metal", "fruit", "river"]
    _, prepared = TextClassification(
        recipe(folder, "text-classification", **whole, labels=names), base_folder=folder
    ).prepare_data()
    task = TextClassification(recipe(folder, "text-classification", labels=names), base_folder=folder)
    place, streamed = task.prepare_data()
    assert streamed.stream is not None and len(streamed.train) == 71 and prepared.stream is None
    assert task.load_data(place).stream.files == streamed.stream.files
    rows = {
        row["row_id"]: row for batch in epochs(streamed.stream, 1)[0] for row in streamed.stream.featured(batch.rows)
    }
    wanted = [prepared.train[number] for number in range(len(prepared.train))]
    assert [
        {name: row[name] for name in ("input_ids", "labels", "text")}
        for row in (rows[number] for number in sorted(rows))
    ] == [{name: row[name] for name in ("input_ids", "labels", "text")} for row in wanted]


@pytest.mark.parametrize("task_of, name", [(CausalLM, "causal-lm"), (MaskedLM, "masked-lm")])
def test_texts_are_divided_as_prepared_ones_are(folder, task_of, name):
    data = {"max_length": 6, "columns": {"text": "text"}}
    whole = {**data, "train": [str(folder / "train" / f"part-{n}.jsonl") for n in range(4)], "streaming": False}
    _, prepared = task_of(recipe(folder, name, **whole), base_folder=folder).prepare_data()
    _, streamed = task_of(recipe(folder, name, **data), base_folder=folder).prepare_data()
    found = epochs(streamed.stream, 2)
    for epoch in found:
        rows = {row["row_id"]: list(row["input_ids"]) for batch in epoch for row in batch.rows}
        assert [rows[number] for number in sorted(rows)] == prepared.train["input_ids"][:]
    assert {number // PIECES_OF_A_ROW for number in rows} <= ROWS and len(rows) > len(ROWS)
    # Inside a text that is divided, too.
    whole_run = [numbers(batch) for batch in found[0]]
    for after, batch in enumerate(found[0][:-1], start=1):
        again = next(streamed.stream.batches(batch.end, size=8))
        assert numbers(again) == whole_run[after]


def test_workers_share_the_work_and_keep_the_order(folder):
    from torch.utils.data import DataLoader

    from launcher.engine.streaming import StreamedBatches, WithPosition

    names = ["fruit", "metal", "river"]
    task = TextClassification(recipe(folder, "text-classification", labels=names), base_folder=folder)
    _, prepared = task.prepare_data()

    def read(workers: int, rank: int, world: int) -> list[tuple[list[int], Position]]:
        spread = {"accumulation": 2, "rank": rank, "world_size": world}
        rows = StreamedBatches(prepared.stream, start=Position(), steps=20, size=8, spread=spread)
        collate = WithPosition(task.collator(training=True))
        loader = DataLoader(rows, batch_size=None, collate_fn=collate, num_workers=workers)
        assert len(loader) == 40
        return [(batch["row_numbers"], batch["stream_end"]) for batch in loader]

    one = read(0, 0, 1)
    assert len(one) == 40 and read(2, 0, 1) == one
    ranks = [read(0, rank, 2) for rank in range(2)]
    steps = itertools.islice(prepared.stream.batches(Position(), size=8), 20)
    for step, batch in enumerate(steps):
        shares = [[n for part, _ in rank[2 * step : 2 * step + 2] for n in part] for rank in ranks]
        assert not set(shares[0]) & set(shares[1]) and sorted(shares[0] + shares[1]) == sorted(numbers(batch))
        assert {end for rank in (*ranks, one) for _, end in rank[2 * step : 2 * step + 2]} == {batch.end}


def test_a_rank_makes_features_of_its_own_rows_alone(folder):
    from launcher.engine.streaming import StreamedBatches

    made: list[int] = []

    def counting(columns: dict[str, list[Any]]) -> Any:
        made.append(len(columns["row_id"]))
        return columns, {}

    stream = stream_of(folder, features=Features(counting, divides=False))
    spread = {"accumulation": 1, "rank": 0, "world_size": 2}
    list(StreamedBatches(stream, start=Position(), steps=5, size=8, spread=spread))
    assert made == [4] * 5


# --- finding ---------------------------------------------------------------------------------------------------------


def test_the_files_of_a_folder_are_those_of_train_or_all(tmp_path):
    for name in ("b.jsonl", "a.csv", "notes.md"):
        (tmp_path / name).write_text("")
    data = DataSection(train=str(tmp_path), validation="v", streaming=True)
    (source,) = find_stream(data, base_folder=tmp_path, plain_text=False)
    assert [Path(file.place).name for file in source.files] == ["a.csv", "b.jsonl"]
    for name in ("train-00000-of-00002.parquet", "train-00001-of-00002.parquet", "test.jsonl"):
        (tmp_path / name).write_text("")
    (source,) = find_stream(data, base_folder=tmp_path, plain_text=False)
    assert [Path(file.place).name[:11] for file in source.files] == ["train-00000", "train-00001"]


@pytest.mark.parametrize(
    "source, said",
    [
        ("builtin:api-topics", "cannot be streamed"),
        ("user/set", r"such as hf://datasets/user/set/data"),
        ("a.xlsx", "is xlsx; what can be streamed is jsonl, csv"),
        ("saved", "was saved by `datasets`"),
    ],
)
def test_what_is_none_of_files_says_what_to_write(tmp_path, source, said):
    (tmp_path / "a.xlsx").write_text("")
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "state.json").write_text("{}")
    with pytest.raises(DataError, match=said):
        find_stream(DataSection(train=source, validation="v", streaming=True), base_folder=tmp_path, plain_text=False)


def test_a_file_that_lacks_a_column_is_named_before_training(folder, tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "a.jsonl").write_text('{"text": "one"}\n')
    (tmp_path / "train" / "b.jsonl").write_text('{"body": "two"}\n')
    (tmp_path / "validation.csv").write_bytes((folder / "validation.csv").read_bytes())
    with pytest.raises(DataError, match=r"b\.jsonl: which column is text cannot be told from its columns 'body'"):
        stream_of(tmp_path)


def test_other_files_are_other_data(folder, tmp_path):
    import shutil

    shutil.copytree(folder, tmp_path / "copy")
    first = load_splits(data_of(folder), base_folder=folder).fingerprint
    assert load_splits(data_of(tmp_path / "copy"), base_folder=folder).fingerprint == first, "wherever they lie"
    with (tmp_path / "copy" / "train" / "part-3.jsonl").open("a") as file:
        # Behind the rows that are looked at.
        file.write('{"text": "one more", "label": "metal"}\n' * 2000)
    assert load_splits(data_of(tmp_path / "copy"), base_folder=folder).fingerprint != first


def test_the_order_is_that_of_the_seed(folder):
    assert np.array_equal(stream_of(folder).order(3), stream_of(folder).order(3))
    one, other = (epochs(stream_of(folder, seed=seed), 1)[0] for seed in (1, 2))
    assert [numbers(batch) for batch in one] != [numbers(batch) for batch in other]
