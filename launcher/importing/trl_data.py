"""TRL's data: one set with its splits, or a mixture of several; also the mixtures of the Alignment Handbook's recipes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from launcher.importing.conversion import Conversion
from launcher.importing.trainer import whole

_A_SHARE = (
    "a recipe takes a number of rows, not a share of them",
    "write limit: ROWS beside the source; all of its rows were written",
)


def data_keys(c: Conversion) -> None:
    """Translate data: one set, a mixture, or the mixtures of the Alignment Handbook. Raises RecipeError where the file names none."""
    if isinstance(mixture := c.value("dataset_mixture"), Mapping):
        c.open("dataset_mixture", mixture)
        _mixture(c, "dataset_mixture.datasets", "dataset_mixture.test_split_size")
        c.unneeded("dataset_mixture.seed", "data.split_seed divides the rows")
    elif c.has("datasets"):
        _mixture(c, "datasets", "test_split_size")
    elif isinstance(mixer := c.value("dataset_mixer"), Mapping) and mixer:
        _mixer(c, mixer)
    elif c.has("dataset_name"):
        _one(c)
    else:
        raise c.cannot("dataset_name", "it names the data", "write dataset_name, a hub id or folder")
    longest = c.number("max_length")
    if longest is not None and not (c.raw("max_length") is None and "max_length" in c.values):
        c.put("data.max_length", whole(longest), "max_length")
    if c.flag("dataset_streaming") or c.flag("streaming"):
        for name in ("dataset_streaming", "streaming"):
            c.missed(
                name,
                "rows of these tasks are read before training",
                "nothing has to be done where they fit on the disk",
            )


def _validates(c: Conversion) -> bool:
    said = c.value("evaluation_strategy" if c.has("evaluation_strategy") else "eval_strategy")
    return said is not False and said != "no"


def _one(c: Conversion) -> None:
    source = {"source": str(c.value("dataset_name"))}
    if c.has("dataset_config"):
        source["name"] = str(c.value("dataset_config"))
    names = ("dataset_name", "dataset_config")
    c.put("data.train", source | {"split": str(c.value("dataset_train_split"))}, *names, "dataset_train_split")
    if _validates(c):
        c.put("data.validation", source | {"split": str(c.value("dataset_test_split"))}, *names, "dataset_test_split")
    else:
        c.unneeded("dataset_test_split", "eval_strategy is no, so that TRL does not read it")
        keep_some(c)


def keep_some(c: Conversion) -> None:
    """Set the least share aside for validation, which launcher always keeps."""
    c.recipe["data.validation_share"] = 0.01
    c.comments["data.validation_share"] = "launcher always keeps some rows of train to validate on"
    c.assume(
        "1 percent of train is kept for validation, which TRL would train on: data.validation_share, or name data.validation"
    )


def _mixer(c: Conversion, mixer: Mapping[str, Any]) -> None:
    """Names with the share of their rows, in the splits of a list: those with train in their name are for training."""
    splits, configs = c.names("dataset_splits") or ["train", "test"], c.names("dataset_configs")
    sets = [
        {"source": str(name)} | ({"name": configs[number]} if len(configs) == len(mixer) else {})
        for number, name in enumerate(mixer)
    ]
    keys = ("dataset_mixer", "dataset_configs", "dataset_splits")
    train = [one | {"split": split} for one in sets for split in splits if "train" in split]
    if not train:
        raise c.cannot("dataset_splits", "none of them is for training", "write a split with train in its name")
    c.put("data.train", train[0] if len(train) == 1 else train, *keys)
    tests = [one | {"split": split} for one in sets for split in splits if "test" in split]
    if tests and _validates(c):
        c.put("data.validation", tests[0] if len(tests) == 1 else tests, *keys)
    else:
        keep_some(c)
    if any(share != 1 for share in mixer.values()):
        c.missed("dataset_mixer", *_A_SHARE)


def _mixture(c: Conversion, key: str, size: str) -> None:
    given = c.value(key)
    entries = given if isinstance(given, list) else []
    if not entries or not all(
        isinstance(entry, Mapping) and (entry.get("path") or entry.get("id")) for entry in entries
    ):
        raise c.cannot(key, "each of it has a path", "write datasets, a list of path, name and split")
    sources = []
    for number, entry in enumerate(entries):
        name = f"{key}[{number}]"
        c.open(name, entry)
        sources.append(_source(c, name))
        c.mark("data.train", *(f"{name}.{field}" for field in ("path", "id", "name", "config", "split", "fraction")))
    c.put("data.train", sources[0] if len(sources) == 1 else sources, *((key,) if "." in key else ()))
    if len(sources) > 1 and any("weight" in one for one in sources):
        c.assume("each epoch draws from the mixture anew by the shares; TRL keeps the first rows of each data set")
    share = c.number(size)
    if share is not None and 0 < share < 1:
        c.put("data.validation_share", float(share), size)
    else:
        c.missed(
            size,
            "it is a number of rows, and validation_share a share of them",
            "write data.validation_share",
        )
        keep_some(c)
    for name in ("dataset_name", "dataset_config", "dataset_train_split", "dataset_test_split"):
        c.unneeded(name, f"{key} goes before it")


def _source(c: Conversion, name: str) -> dict[str, Any]:
    source: dict[str, Any] = {"source": str(c.value(f"{name}.path", c.value(f"{name}.id")))}
    files = c.value(f"{name}.data_files")
    config = f"{name}.name" if c.has(f"{name}.name") else f"{name}.config"
    if source["source"] in ("json", "csv", "parquet", "text") and isinstance(files, str):
        source["source"] = files
        c.mark("data.train", f"{name}.data_files")
    else:
        if c.has(config):
            source["name"] = str(c.value(config))
        c.missed(
            f"{name}.data_files",
            "files inside a hub data set are not chosen",
            "name the file or its folder as the source",
        )
    if not c.has(f"{name}.data_files"):
        source["split"] = str(c.value(f"{name}.split", "train"))
    if share := c.number(f"{name}.fraction"):
        source["weight"] = float(share)
    if c.number(f"{name}.weight", 1) == 1:
        c.unneeded(f"{name}.weight", "all rows are taken")
    else:
        c.missed(f"{name}.weight", *_A_SHARE)
    c.unneeded(f"{name}.columns", "the task takes the columns that it needs")
    return source
