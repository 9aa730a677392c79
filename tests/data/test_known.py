"""Unchanged files are not read again; whatever may have changed is."""

from __future__ import annotations

import os
from pathlib import Path

import fsspec
import pytest
import tiny

from launcher.data import known
from launcher.errors import DataError
from launcher.recipe.schema import Recipe
from launcher.tasks.text_classification import TextClassification


@pytest.fixture(scope="module")
def bert(tmp_path_factory) -> Path:
    return tiny.save_bert(tmp_path_factory.mktemp("bert"))


@pytest.fixture
def data(tmp_path) -> Path:
    return tiny.write_data(tmp_path / "data", train=12, validation=6, test=6)


@pytest.fixture
def settled(monkeypatch):
    """Files count as left alone, however young they are."""
    monkeypatch.setattr(known, "_RACY_SECONDS", -60.0)


def task_for(bert: Path, source: Path | str, cache: Path, **options: object) -> TextClassification:
    values = tiny.recipe_values(bert, source, data={"cache_dir": str(cache), **options})
    values["task"], values["strategy"] = {"type": "text-classification"}, {"type": "full"}
    return TextClassification(Recipe.model_validate(values), base_folder=cache.parent)


@pytest.fixture
def reads(monkeypatch) -> list[int]:
    """A one for each time that rows were read."""
    found: list[int] = []
    whole = TextClassification.load_splits
    monkeypatch.setattr(TextClassification, "load_splits", lambda self: (found.append(1), whole(self))[1])
    return found


def test_the_second_run_reads_neither_rows_nor_tokenizer_and_tells_the_same(bert, data, tmp_path, reads, settled):
    (data / "test.csv").write_text((data / "train.csv").read_text())
    folder, first = task_for(bert, data, tmp_path / "cache").prepare_data()
    again = task_for(bert, data, tmp_path / "cache")
    same_folder, second = again.prepare_data()
    assert reads == [1] and "tokenizer" not in vars(again)
    assert same_folder == folder and second.facts["was_cached"] is True
    told = ("warnings", "provenance")
    assert [second.facts[name] for name in told] == [first.facts[name] for name in told]
    assert "also stand in train" in second.facts["warnings"][0]


def test_young_files_are_read_again(bert, data, tmp_path, reads):
    """They could be written once more within a step of the clock, with as many bytes."""
    for _ in range(2):
        task_for(bert, data, tmp_path / "cache").prepare_data()
    assert reads == [1, 1]


def rewritten(data: Path) -> None:
    """As many bytes, and its time of before."""
    path = data / "train.csv"
    look = path.stat()
    path.write_bytes(path.read_bytes().replace(b"old", b"new"))
    os.utime(path, ns=(look.st_atime_ns, look.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (look.st_size, look.st_mtime_ns)


def replaced(data: Path) -> None:
    (data / "new.tmp").write_text((data / "train.csv").read_text().replace("old", "new"))
    (data / "new.tmp").rename(data / "train.csv")


def gained(data: Path) -> None:
    (data / "test.csv").rename(data / "dev.csv")


@pytest.mark.parametrize("change", [rewritten, replaced, gained])
def test_whatever_has_changed_is_read(bert, data, tmp_path, reads, settled, change):
    if change is gained:
        (data / "validation.csv").unlink()
    old, _ = task_for(bert, data, tmp_path / "cache").prepare_data()
    change(data)
    new, _ = task_for(bert, data, tmp_path / "cache").prepare_data()
    assert reads == [1, 1] and new != old


def test_a_link_is_what_it_points_to(bert, data, tmp_path, reads, settled):
    other = tiny.write_data(tmp_path / "other", train=15, validation=6, test=6)
    link = tmp_path / "link"
    link.mkdir()
    for name in ("train", "validation", "test"):
        (link / f"{name}.csv").symlink_to(data / f"{name}.csv")
    task_for(bert, link, tmp_path / "cache").prepare_data()
    task_for(bert, link, tmp_path / "cache").prepare_data()
    assert reads == [1]
    (link / "train.csv").unlink()
    (link / "train.csv").symlink_to(other / "train.csv")
    _, prepared = task_for(bert, link, tmp_path / "cache").prepare_data()
    assert reads == [1, 1] and len(prepared.train) == 15


def test_files_that_change_while_they_are_read_are_not_kept(bert, data, tmp_path, reads, settled, monkeypatch):
    whole = TextClassification.prepare_splits

    def changed(self, *arguments, **options):
        (data / "train.csv").write_text((data / "train.csv").read_text())
        return whole(self, *arguments, **options)

    monkeypatch.setattr(TextClassification, "prepare_splits", changed)
    task_for(bert, data, tmp_path / "cache").prepare_data()
    task_for(bert, data, tmp_path / "cache").prepare_data()
    assert reads == [1, 1]


def test_the_recipe_and_the_tokenizer_count_too(bert, data, tmp_path, reads, settled):
    other = tiny.save_bert(tmp_path / "bert")
    folders = [
        task_for(bert, data, tmp_path / "cache").prepare_data()[0],
        task_for(bert, data, tmp_path / "cache", max_length=16).prepare_data()[0],
        task_for(other, data, tmp_path / "cache").prepare_data()[0],
    ]
    text = (other / "tokenizer.json").read_text()
    (other / "tokenizer.json").write_text(text.replace('"lowercase": true', '"lowercase": false'))
    folders.append(task_for(other, data, tmp_path / "cache").prepare_data()[0])
    assert len(reads) == 4 and folders[0] == folders[2] and len(set(folders)) == 3


def test_a_label_file_counts(bert, data, tmp_path, reads, settled):
    (tmp_path / "labels.txt").write_text("fruit\nmetal\nriver\n")
    first = task_for(bert, data, tmp_path / "cache", labels="labels.txt").prepare_data()[1]
    (tmp_path / "labels.txt").write_text("river\nmetal\nfruit\n")
    second = task_for(bert, data, tmp_path / "cache", labels="labels.txt").prepare_data()[1]
    assert first.label_names != second.label_names and reads == [1, 1]


def test_rows_from_elsewhere_and_links_to_folders_are_uncertain(data, tmp_path):
    (tmp_path / "https:/host").mkdir(parents=True)
    (tmp_path / "https:/host/rows.csv").write_text("text,label\n")
    for source in ("builtin:api-topics", "a/hub-id", "https://host/rows.csv", "s3://bucket/set"):
        section = tiny.recipe(data={"source": source}).data
        assert known.sources_on_disk(section, base_folder=tmp_path) is None
    assert known.look_at([data]) is not None and known.look_at([data, tmp_path / "missing"]) is None
    (data / "more").symlink_to(tmp_path)
    assert known.look_at([data]) is None


def test_rows_that_were_left_out_are_told_again(bert, data, tmp_path, reads, settled):
    (data / "train.csv").write_text((data / "train.csv").read_text().replace("\n", "\nno cell of a label\n", 1))

    def prepared():
        return task_for(bert, data, tmp_path / "cache", on_bad_row="skip").prepare_data()

    folder, first = prepared()
    _, second = prepared()
    assert reads == [1] and second.facts["was_cached"]
    assert first.facts["skipped"]["counts"] == {"train": 1}
    for name in ("skipped", "warnings", "provenance"):
        assert second.facts[name] == first.facts[name]
    assert "were skipped" in " ".join(second.facts["warnings"])
    listed = folder / "skipped.jsonl"
    whole = listed.read_text()
    for damage in (listed.unlink, lambda: listed.write_text(""), lambda: listed.write_text(whole[:20])):
        damage()
        assert prepared()[1].facts["skipped"] == first.facts["skipped"] and listed.read_text() == whole
    assert len(reads) == 4
    with pytest.raises(DataError, match="train.csv:2: has 1 fields"):
        task_for(bert, data, tmp_path / "cache").prepare_data()


def test_an_address_is_asked_each_time(bert, data, tmp_path, reads, settled):
    """Also where it and its copy on this machine are as old as any file."""
    memory = fsspec.filesystem("memory")
    try:
        for path in data.iterdir():
            memory.pipe_file(f"/known/{path.name}", path.read_bytes())
        old, _ = task_for(bert, "memory://known", tmp_path / "cache").prepare_data()
        again, prepared = task_for(bert, "memory://known", tmp_path / "cache").prepare_data()
        assert reads == [1, 1] and again == old and prepared.facts["was_cached"]
        memory.pipe_file("/known/train.csv", (data / "train.csv").read_bytes().replace(b"old", b"new"))
        new, _ = task_for(bert, "memory://known", tmp_path / "cache").prepare_data()
        assert reads == [1, 1, 1] and new != old
    finally:
        memory.rm("/known", recursive=True)


def test_a_damaged_or_outdated_entry_is_no_entry(bert, data, tmp_path, reads, settled):
    import shutil

    folder, _ = task_for(bert, data, tmp_path / "cache").prepare_data()
    [entry] = (tmp_path / "cache/known").iterdir()
    whole = entry.read_text()
    entry.write_text(whole[:20])
    task_for(bert, data, tmp_path / "cache").prepare_data()
    assert reads == [1, 1] and entry.read_text() == whole
    shutil.rmtree(folder)
    assert task_for(bert, data, tmp_path / "cache").prepare_data()[1].facts["was_cached"] is False
    assert reads == [1, 1, 1]
