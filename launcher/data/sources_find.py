"""What a source's name stands for: a file, a folder of splits, one saved by ``datasets``, a built-in set, an address, a hub id."""

from __future__ import annotations

import os
import re
import socket
import urllib.request
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from launcher.data.addresses import fetch, file_name, list_folder, refuse_faulty
from launcher.data.builtin import PREFIX, make_builtin
from launcher.data.image_folders import holds_images, metadata_file, read_image_folder
from launcher.data.readers import bare_stem, file_format, read_file
from launcher.data.readers_arrow import ArrowTable
from launcher.data.readers_boxes import read_voc_folder, voc_files
from launcher.data.tables import ColumnsTable, Places, Table
from launcher.errors import DataError, DataUnreachable
from launcher.recipe.addresses import is_address
from launcher.recipe.data_section import FORMATS
from launcher.registry import suggest

if TYPE_CHECKING:
    from launcher.recipe.data_section import SourceSpec

SPLITS = ("train", "validation", "test")
_ALIASES = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
}
_SHARD = re.compile(r"(?P<split>[A-Za-z]+)-(?P<number>\d{5})-of-(?P<count>\d{5})(?:-[0-9a-f]+)?")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(?:/[A-Za-z0-9][\w.-]*)?")
_COMMIT = re.compile(r"@([0-9a-f]{40})/")

Reader = Callable[[], list[Table]]


@dataclass(frozen=True)
class OpenSource:
    """A source that was found: the name of every split and how to read it."""

    shown: str
    splits: dict[str, Reader]
    single: bool
    """The source has one set of rows and does not name it: it serves as any split."""
    warnings: tuple[str, ...] = ()


def open_source(
    spec: SourceSpec, *, base_folder: Path, cache_dir: Path | None = None, plain_text: bool = False
) -> OpenSource:
    """Find what ``spec.source`` names; an existing path wins over a hub id. ``plain_text``: see ``readers.read_file``.

    Raises:
        DataError: nothing is there (with near names), a folder holds no splits, or the hub or address cannot be reached.
        InstallationError: a package that reads such addresses is not installed.
    """
    if is_address(spec.source):
        return _open_address(spec, cache_dir=cache_dir, plain_text=plain_text)
    if spec.source.startswith(PREFIX):
        return _open_builtin(spec, cache_dir=cache_dir)
    path = (base_folder / Path(spec.source).expanduser()).resolve()
    if path.exists():
        _refuse_hub_options(spec)
        return (_open_folder if path.is_dir() else _open_file)(path, spec=spec, plain_text=plain_text)
    if _looks_like_path(spec.source):
        raise DataError(_missing(spec.source, path=path))
    return _open_hub(spec, path=path)


def split_name(name: str) -> str | None:
    """Return train, validation or test for any common name of one of them, else None."""
    return _ALIASES.get(name.lower())


def pick_split(opened: OpenSource, *, spec: SourceSpec, wanted: str) -> Reader:
    """Return the reader of the split that ``spec.split``, or else ``wanted``, names. Raises DataError."""
    if opened.single:
        return next(iter(opened.splits.values()))
    name = spec.split or wanted
    for key in (name, split_name(name)):
        if key in opened.splits:
            return opened.splits[key]
    near = suggest(name, opened.splits)
    hint = f"; did you mean {near!r}?" if near else ""
    raise DataError(
        f"{opened.shown}: has no split {name!r}, only {', '.join(opened.splits)}{hint}; set `split` of this source"
    )


# --- kinds ---------------------------------------------------------------------------------------------------------


def _open_builtin(spec: SourceSpec, *, cache_dir: Path | None) -> OpenSource:
    for key in ("name", "revision", "format", "encoding", "delimiter", "header"):
        if getattr(spec, key) is not None:
            raise DataError(f"{spec.source}: `{key}` has no meaning for a built-in source; remove it")
    made = make_builtin(spec.source.removeprefix(PREFIX), cache_dir=cache_dir)

    def reader(split: str) -> Reader:
        rows = made.splits[split]
        columns = {name: [row[name] for row in rows] for name in rows[0]}
        return lambda: [ColumnsTable(Places(f"{spec.source} {split}"), columns, dict(made.facts))]

    return OpenSource(
        spec.source, {split: reader(split) for split in made.splits}, single=False, warnings=made.warnings
    )


def _open_file(path: Path, *, spec: SourceSpec, plain_text: bool) -> OpenSource:
    _refuse_split(spec)
    return OpenSource(str(path), {"train": lambda: [read_file(path, spec=spec, plain_text=plain_text)]}, single=True)


def _refuse_split(spec: SourceSpec) -> None:
    if spec.split is not None:
        raise DataError(f"{spec.source}: is one file and has no splits; remove `split: {spec.split}` from this source")


def _open_folder(path: Path, *, spec: SourceSpec, plain_text: bool) -> OpenSource:
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        return _open_saved(path, spec=spec)
    folder = next((one for one in (path, path / "data") if split_files(_files_in(one), shown=str(one))), None)
    images = None if folder else _open_images(path, spec=spec, plain_text=plain_text)
    if images is not None:
        return images
    if folder is None:
        raise DataError(_no_splits(str(path), held=[f"{e.name}/" if e.is_dir() else e.name for e in path.iterdir()]))

    def reader(shards: list[str]) -> Reader:
        return lambda: [read_file(folder / shard, spec=spec, plain_text=plain_text) for shard in shards]

    files = split_files(_files_in(folder), shown=str(folder))
    return OpenSource(str(path), {split: reader(files[split]) for split in files}, single=False)


def _open_images(path: Path, *, spec: SourceSpec, plain_text: bool) -> OpenSource | None:
    """Return the images of a folder: its folders named for splits, or the whole of it as one; None where there are none."""
    named = {split_name(inner.name): inner for inner in sorted(path.iterdir()) if inner.is_dir()}
    splits = {split: named[split] for split in SPLITS if split in named}
    folders = splits or {"train": path}
    if not all(metadata_file(folder) or voc_files(folder) or holds_images(folder) for folder in folders.values()):
        return None

    def reader(folder: Path) -> Reader:
        described = metadata_file(folder)
        if described is not None:
            return lambda: [read_file(described, spec=spec, plain_text=plain_text)]
        return lambda: [read_voc_folder(folder) if voc_files(folder) else read_image_folder(folder)]

    found = {split: reader(folder) for split, folder in folders.items()}
    return OpenSource(str(path), found, single=not splits)


def _files_in(folder: Path) -> list[str]:
    return [entry.name for entry in folder.iterdir() if entry.is_file()] if folder.is_dir() else []


def split_files(names: Iterable[str], *, shown: str) -> dict[str, list[str]]:
    """Return split -> its files among ``names``, one or all shards in order. Raises DataError where that is in doubt."""
    found: dict[str, list[str]] = {}
    for name in sorted(names):
        stem = bare_stem(Path(name))
        shard = _SHARD.fullmatch(stem)
        split = split_name(shard["split"] if shard else stem)
        if split and file_format(Path(name)):
            found.setdefault(split, []).append(name)
    for split, of_split in found.items():
        _check_shards(split, names=of_split, shown=shown)
    return {split: found[split] for split in SPLITS if split in found}


def _check_shards(split: str, *, names: list[str], shown: str) -> None:
    shards = [_SHARD.fullmatch(bare_stem(Path(name))) for name in names]
    if len(names) > 1 and not all(shards):
        raise DataError(
            f"{shown}: both {' and '.join(names)} could be the {split} split; name the right one as data.{split}"
        )
    counts = {int(shard["count"]) for shard in shards if shard}
    if shards[0] and (len(counts) > 1 or len(names) != max(counts)):
        raise DataError(f"{shown}: the {split} split has {len(names)} of {max(counts)} shards; fetch the missing ones")


def _open_address(spec: SourceSpec, *, cache_dir: Path | None, plain_text: bool) -> OpenSource:
    refuse_faulty(spec.source)
    _refuse_hub_options(spec)

    def reader(addresses: list[str]) -> Reader:
        return lambda: [_read_address(one, spec=spec, cache_dir=cache_dir, plain_text=plain_text) for one in addresses]

    listed = [] if file_format(Path(file_name(spec.source))) else list_folder(spec.source)
    if not listed:
        _refuse_split(spec)
        return OpenSource(spec.source, {"train": reader([spec.source])}, single=True)
    by_name = {file_name(address): address for address in listed}
    files = split_files(by_name, shown=spec.source)
    if not files:
        raise DataError(_no_splits(spec.source, held=list(by_name)))
    return OpenSource(
        spec.source, {split: reader([by_name[name] for name in files[split]]) for split in files}, single=False
    )


def _read_address(address: str, *, spec: SourceSpec, cache_dir: Path | None, plain_text: bool) -> Table:
    fetched = fetch(address, cache_dir=cache_dir)
    table = read_file(fetched.path, spec=spec, shown=address, plain_text=plain_text)
    return replace(table, facts={**table.facts, **fetched.facts}, warnings=(*fetched.warnings, *table.warnings))


def _open_saved(path: Path, *, spec: SourceSpec) -> OpenSource:
    import datasets

    if spec.format or spec.encoding or spec.delimiter or spec.header:
        raise DataError(
            f"{path}: was saved by `datasets`; remove format, encoding, delimiter and header from this source"
        )
    try:
        loaded = datasets.load_from_disk(str(path))
    except Exception as error:
        # A damaged folder raises whatever its reader met.
        raise DataError(
            f"{path}: cannot be loaded as saved by `datasets` ({_first_line(error)}); save it again"
        ) from None
    return _of_datasets(loaded, shown=str(path), facts={"format": "datasets"})


def _of_datasets(loaded: Any, *, shown: str, facts: dict[str, Any]) -> OpenSource:
    if not isinstance(loaded, dict):
        return OpenSource(shown, {"train": lambda: [ArrowTable(Places(shown), loaded, facts)]}, single=True)

    def reader(split: str) -> Reader:
        return lambda: [ArrowTable(Places(f"{shown} {split}"), loaded[split], facts)]

    known = {split_name(split) or split: reader(split) for split in loaded}
    unused = [split for split in known if split not in SPLITS]
    warning = (f"{shown}: splits that are not used: {', '.join(unused)}",) if unused else ()
    return OpenSource(shown, known, single=False, warnings=warning)


# --- the hub -------------------------------------------------------------------------------------------------------


def _open_hub(spec: SourceSpec, *, path: Path) -> OpenSource:
    if spec.format or spec.encoding or spec.delimiter or spec.header:
        raise DataError(f"{spec.source}: is a hub id; remove format, encoding, delimiter and header, or give a path")
    shown = spec.source + (f" ({spec.name})" if spec.name else "")
    if not _cached(spec.source) and not hub_has_address():
        raise _hub_fault(spec, error=ConnectionError(f"no address for {_hub_host()}"), path=path)
    import datasets

    try:
        loaded = datasets.load_dataset(spec.source, name=spec.name, split=spec.split, revision=spec.revision)
    except Exception as error:
        # The hub's client, its cache and every builder have errors of their own.
        raise _hub_fault(spec, error=error, path=path) from None
    some = next(iter(loaded.values())) if isinstance(loaded, dict) else loaded
    return _of_datasets(loaded, shown=shown, facts={"format": "hub", "revision": _commit(some) or spec.revision})


def _cached(source: str) -> bool:
    """Whether `datasets` has prepared this data set before, in whatever version."""
    from huggingface_hub import constants

    *owner, name = source.split("/")
    root = Path(os.environ.get("HF_DATASETS_CACHE") or Path(constants.HF_HOME) / "datasets").expanduser()
    # Importing datasets takes seconds, which a plan without data need not spend.
    if not any(root.glob(f"{owner[0]}___*" if owner else "*")):
        return False
    import datasets
    from datasets.naming import camelcase_to_snakecase

    folder = "___".join([*owner, camelcase_to_snakecase(name)])
    return (Path(datasets.config.HF_DATASETS_CACHE).expanduser() / folder).is_dir()


def _hub_host() -> str:
    from huggingface_hub import constants

    return urlsplit(constants.ENDPOINT).hostname or ""


def hub_has_address() -> bool:
    """Whether the hub's name resolves: without a network its client would try for 20 seconds and more.

    A proxy resolves names itself.
    """
    if urllib.request.getproxies():
        return True
    try:
        socket.getaddrinfo(_hub_host(), 443)
    except OSError:
        return False
    return True


def _commit(dataset: Any) -> str | None:
    found = (_COMMIT.search(url) for url in (dataset.info.download_checksums or {}))
    return next((match[1] for match in found if match), None)


def _hub_fault(spec: SourceSpec, *, error: Exception, path: Path) -> DataError:
    reason = _first_line(error)
    start = f"data source {spec.source!r}: no file or folder {path} exists{_near(path)}, and as a hub id it"
    if isinstance(error, ConnectionError) or "offline" in reason.lower() or "reach" in reason.lower():
        return DataUnreachable(
            f"{start} is neither in the local cache nor can the hub be reached ({reason}); fetch it once on a machine with "
            "a network (`hf download --repo-type dataset`, or datasets.load_dataset(...).save_to_disk(FOLDER)) "
            "and name the folder as the source"
        )
    return DataError(
        f"{start} cannot be loaded: {reason}; check the id, `name`, `split`, `revision` and your login (`hf auth login`)"
    )


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {' '.join(lines)[:300]}" if lines else type(error).__name__


def _refuse_hub_options(spec: SourceSpec) -> None:
    for key in ("name", "revision"):
        if getattr(spec, key) is not None:
            what = "an address" if is_address(spec.source) else "a path"
            raise DataError(f"{spec.source}: is {what}, for which `{key}` has no meaning; remove it, or give a hub id")


# --- nothing there -------------------------------------------------------------------------------------------------


def _looks_like_path(source: str) -> bool:
    return (
        source.startswith((".", "/", "~"))
        or file_format(Path(source)) is not None
        or source.endswith("/")
        or not _HUB_ID.fullmatch(source)
    )


def _missing(source: str, *, path: Path) -> str:
    return f"data source {source!r}: no file or folder {path} exists{_near(path)}; paths count from the current folder"


def _near(path: Path) -> str:
    """Say what is there instead: the nearest name beside the path, or the last folder that exists."""
    parent = path.parent
    if not parent.is_dir():
        standing = next(folder for folder in parent.parents if folder.is_dir())
        return f" (there is no folder {parent}; the path exists up to {standing})"
    near = suggest(path.name, [entry.name for entry in parent.iterdir()])
    return f" (did you mean {near!r}?)" if near else ""


def _no_splits(shown: str, *, held: list[str]) -> str:
    held = sorted(held)
    listed = ", ".join(held[:8]) + (", ..." if len(held) > 8 else "") if held else "nothing"
    return (
        f"{shown}: holds no file named train, validation (dev, valid, val) or test with a known ending "
        f"({', '.join(sorted(FORMATS))}); it holds {listed}; name the files as data.train, data.validation, data.test"
    )
