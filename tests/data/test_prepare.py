from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import tiny

from launcher.data.pieces import Source, write_split
from launcher.data.prepare import cache_folder, fingerprint_of, load_prepared, prepared_folder, tokenize
from launcher.recipe.schema import Recipe

# --- tokenize --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bert(tmp_path_factory) -> Path:
    return tiny.save_bert(tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="module")
def tokenizer(bert):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(bert))


def test_cut_texts_are_counted_and_keep_their_last_token(tokenizer):
    texts = ["apple", " ".join(["iron"] * 6), " ".join(["iron"] * 7), " ".join(["gold"] * 50)]
    found = tokenize(tokenizer, texts, None, max_length=8)
    assert found.cut == 2 and found.lengths.tolist() == [3, 8, 8, 8]
    assert [tokenizer.convert_ids_to_tokens(ids)[-1] for ids in found.features["input_ids"]] == ["[SEP]"] * 4
    assert set(found.features) == {"input_ids", "token_type_ids"}


def test_pairs_are_cut_together(tokenizer):
    found = tokenize(tokenizer, ["apple", "iron " * 9], ["pear plum", "gold " * 9], max_length=10)
    assert found.cut == 1 and found.lengths.tolist() == [6, 10]
    assert found.features["token_type_ids"][0] == [0, 0, 0, 1, 1, 1]


def test_batches_do_not_change_the_result(tokenizer):
    texts = [text for text, _ in tiny.rows(50, seed=3)]
    whole, parts = (tokenize(tokenizer, texts, None, max_length=9, batch_rows=n) for n in (100, 7))
    assert whole.features == parts.features and whole.cut == parts.cut > 0


# --- keys and folders ------------------------------------------------------------------------------------------------


def test_a_fingerprint_knows_values_and_not_the_order_of_keys():
    assert fingerprint_of({"a": 1, "b": [1, "ü"]}) == fingerprint_of({"b": [1, "ü"], "a": 1})
    assert fingerprint_of({"a": 1}) != fingerprint_of({"a": 2})
    assert fingerprint_of({"a": 1}) != fingerprint_of({"a": "1"})


def test_the_cache_lies_where_it_was_asked_for(monkeypatch, tmp_path):
    assert cache_folder(str(tmp_path)) == tmp_path
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert cache_folder() == Path("/x/launcher")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache/launcher"


def make_rows(folder: Path):
    write_split(folder / "train.arrow", Source({"a": [1, 2]}, 2, str), lambda rows, origin: (rows, {}))
    return {"warnings": []}


def test_a_folder_is_made_once(tmp_path):
    calls = []

    def make(folder):
        calls.append(1)
        return make_rows(folder)

    first, found = prepared_folder(tmp_path, "k" * 64, make)
    assert not found
    assert prepared_folder(tmp_path, "k" * 64, make) == (first, True) and len(calls) == 1
    assert prepared_folder(tmp_path, "l" * 64, make)[1] is False and len(calls) == 2
    splits, facts = load_prepared(first)
    assert splits["train"]["a"][:] == [1, 2] and facts == {"warnings": []}


def test_a_failing_maker_leaves_nothing(tmp_path):
    def make(folder):
        raise ValueError("bad row")

    with pytest.raises(ValueError, match="bad row"):
        prepared_folder(tmp_path, "k" * 64, make)
    assert not (tmp_path / "prepared" / ("k" * 32)).exists()


MAKER = """
import sys, time
from pathlib import Path
from launcher.data.pieces import Source, write_split
from launcher.data.prepare import load_prepared, prepared_folder
from launcher.data.telling import listening
root = Path(sys.argv[1])
def make(folder):
    print("making", flush=True)
    while not (root / "go").exists():
        time.sleep(0.05)
    write_split(folder / "train.arrow", Source({"a": list(range(1000))}, 1000, str), lambda rows, origin: (rows, {}))
    return {"warnings": []}
with listening(lambda what, done, total: total or print(what, flush=True)):
    folder, found = prepared_folder(root, "k" * 64, make)
assert load_prepared(folder)[0]["train"]["a"][:] == list(range(1000))
print("found" if found else "made")
"""


def start_maker(root: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", MAKER, str(root)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=tiny.environment())


def test_of_two_makers_at_the_same_time_one_works_and_the_other_waits(tmp_path):
    first = start_maker(tmp_path)
    assert first.stdout.readline() == "making\n"
    second = start_maker(tmp_path)
    assert second.stdout.readline() == f"waiting for process {first.pid}, which prepares the same data\n"
    (tmp_path / "go").touch()
    assert (second.communicate(timeout=120)[0], second.returncode) == ("found\n", 0)
    assert (first.communicate(timeout=120)[0], first.returncode) == ("made\n", 0)
    assert [p.name for p in (tmp_path / "prepared").iterdir()] == ["k" * 32], "something is left beside it"


def test_a_maker_that_died_blocks_nobody(tmp_path):
    first = start_maker(tmp_path)
    assert first.stdout.readline() == "making\n"
    first.kill()
    first.wait()
    first.stdout.close()
    _, found = prepared_folder(tmp_path, "k" * 64, make_rows)
    assert found is False


# --- a task's use of the cache ---------------------------------------------------------------------------------------


def task_for(bert: Path, data: Path, cache: Path, *, base_folder: Path | None = None, **options: object):
    from launcher.tasks.text_classification import TextClassification

    values = tiny.recipe_values(bert, data, data={"cache_dir": str(cache), **options})
    values["task"], values["strategy"] = {"type": "text-classification"}, {"type": "full"}
    return TextClassification(Recipe.model_validate(values), base_folder=base_folder or data)


@pytest.fixture
def data(tmp_path) -> Path:
    return tiny.write_data(tmp_path / "data", train=12, validation=6, test=6)


def test_the_second_run_does_not_tokenize(bert, data, tmp_path, monkeypatch):
    folder, prepared = task_for(bert, data, tmp_path / "cache").prepare_data()
    assert prepared.facts["was_cached"] is False
    again = task_for(bert, data, tmp_path / "cache")
    monkeypatch.setattr(type(again), "prepare_splits", lambda *_, **__: pytest.fail("tokenized again"))
    same_folder, same = again.prepare_data()
    assert same_folder == folder and same.facts["was_cached"] is True
    assert same.train[:] == prepared.train[:] and same.label_names == prepared.label_names


def test_the_key_changes_with_all_that_the_rows_depend_on(bert, data, tmp_path):
    cache = tmp_path / "cache"
    folders = {"first": task_for(bert, data, cache).prepare_data()[0]}
    folders["length"] = task_for(bert, data, cache, max_length=16).prepare_data()[0]
    folders["labels"] = task_for(bert, data, cache, labels=["river", "metal", "fruit"]).prepare_data()[0]
    other = tmp_path / "other-bert"
    tiny.save_bert(other)
    text = (other / "tokenizer.json").read_text()
    (other / "tokenizer.json").write_text(text.replace('"lowercase": true', '"lowercase": false'))
    folders["tokenizer"] = task_for(other, data, cache).prepare_data()[0]
    with (data / "test.csv").open("a") as file:
        file.write("one more apple,fruit\n")
    folders["data"] = task_for(bert, data, cache).prepare_data()[0]
    assert len(set(folders.values())) == len(folders)


def test_the_key_changes_with_what_a_label_file_says(bert, data, tmp_path):
    """The file's name stays the same; the numbers of the labels do not."""
    names = data / "labels.txt"
    names.write_text("fruit\nmetal\nriver\n")
    first = task_for(bert, data, tmp_path / "cache", labels="labels.txt").prepare_data()[1]
    names.write_text("river\nmetal\nfruit\n")
    second = task_for(bert, data, tmp_path / "cache", labels="labels.txt").prepare_data()[1]
    assert first.label_names == ("fruit", "metal", "river")
    assert second.label_names == ("river", "metal", "fruit")


def test_equal_data_elsewhere_share_the_rows_but_say_where_they_lie(bert, data, tmp_path):
    import shutil

    task_for(bert, data, tmp_path / "cache").prepare_data()
    copy = tmp_path / "copy"
    shutil.copytree(data, copy)
    _, prepared = task_for(bert, copy, tmp_path / "cache").prepare_data()
    assert prepared.facts["was_cached"] is True
    assert str(copy) in str(prepared.facts["provenance"])


def test_counts_say_rows_tokens_and_cut_texts(bert, data, tmp_path):
    _, prepared = task_for(bert, data, tmp_path / "cache", max_length=8).prepare_data()
    for name, rows in {"train": 12, "validation": 6, "test": 6}.items():
        counts, split = prepared.facts["splits"][name], getattr(prepared, name)
        assert counts["rows"] == len(split) == rows
        assert counts["tokens"] == sum(split["length"]) and max(split["length"]) <= 8
        assert counts["labels"] == [split["labels"].count(k) if isinstance(split["labels"], list) else list(split["labels"]).count(k) for k in range(3)]  # fmt: skip
    texts = [text for text, _ in tiny.rows(12, seed=0)]
    assert prepared.facts["splits"]["train"]["cut"] == sum(len(text.split()) + 2 > 8 for text in texts) > 0
