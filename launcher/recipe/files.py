"""Whether what a recipe names is on this machine: data files, folders, models, packages."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from launcher.errors import Problem
from launcher.recipe.addresses import is_address, lacking
from launcher.recipe.chat_options import CHAT_TEMPLATE_TOKENS
from launcher.recipe.distributed_checks import deepspeed_file_fits, nvme_folder_exists
from launcher.recipe.jinja_checks import file_fault
from launcher.recipe.keys import shown
from launcher.recipe.model_checks import check_models
from launcher.recipe.synonyms_file import BadSynonyms, read_synonyms
from launcher.recipe.view import FILE_ENDINGS, View, sources
from launcher.registry import suggest

if TYPE_CHECKING:
    from launcher.recipe.loaded import LoadedRecipe


def check_files(loaded: LoadedRecipe) -> list[Problem]:
    """Return what a recipe names and this machine lacks. Paths are relative to the current directory."""
    found = [
        *_data(loaded),
        *_readers(loaded),
        *_labels(loaded),
        *_synonyms(loaded),
        *_chat_template(loaded),
        *_models(loaded),
        *_model_files(loaded),
        *_quantisation(loaded),
        *_distributed(loaded),
    ]
    return [Problem(loaded.place(key), message, remedy, key) for key, message, remedy in found]


Lack = tuple[str, str, str]
"""Key, message, remedy."""


def looks_like_path(text: str) -> bool:
    """Whether a source or model names a place on this machine rather than on the hub, told by its form."""
    if "://" in text or text.startswith(("builtin:", "package:")):
        return False
    return text.startswith(("./", "../", "/", "~")) or text.lower().removesuffix(".gz").endswith(FILE_ENDINGS)


def _data(loaded: LoadedRecipe) -> Iterator[Lack]:
    for key, spec in sources(loaded.recipe):
        text = spec if isinstance(spec, str) else spec.source
        if looks_like_path(text) and not _path(text).exists():
            yield key, f"{shown(key, text)}; there is no such file or folder", _near_file(text)


def _readers(loaded: LoadedRecipe) -> Iterator[Lack]:
    for key, spec in sources(loaded.recipe):
        text, form = (spec, None) if isinstance(spec, str) else (spec.source, spec.format)
        is_xlsx = form == "xlsx" or (form is None and text.lower().endswith(".xlsx"))
        if is_xlsx and importlib.util.find_spec("openpyxl") is None:
            yield (
                key,
                f"{shown(key, text)}; reading .xlsx needs openpyxl, which is not installed",
                "pip install openpyxl",
            )

        if is_address(text) and (missing := lacking(text)):
            yield key, f"{shown(key, text)}; {missing[0]}", missing[1]


def _labels(loaded: LoadedRecipe) -> Iterator[Lack]:
    labels = loaded.recipe.data.labels
    if isinstance(labels, str) and not _path(labels).is_file():
        yield (
            "data.labels",
            f"{shown('data.labels', labels)}; there is no such file",
            "name a file with one label a line, or list the labels: [a, b]",
        )


def _synonyms(loaded: LoadedRecipe) -> Iterator[Lack]:
    key = "task.augmentation.synonyms"
    text = View(loaded.recipe).value(key)
    if text is None:
        return
    if not _path(text).is_file():
        yield key, f"{shown(key, text)}; there is no such file", _near_file(text)
        return
    try:
        read_synonyms(_path(text))
    except BadSynonyms as error:
        message, _, remedy = str(error).rpartition("; ")
        yield key, message, remedy


def _chat_template(loaded: LoadedRecipe) -> Iterator[Lack]:
    key = "task.chat_template"
    text = getattr(loaded.recipe.task, "chat_template", None)
    if text is None or text in CHAT_TEMPLATE_TOKENS:
        return
    if _path(text).is_file():
        if fault := file_fault(_path(text)):
            yield key, f"{shown(key, text)}; {fault}", "mend the file, or name another"
        return
    near = suggest(text, CHAT_TEMPLATE_TOKENS)
    remedy = f"did you mean {near}?" if near else _near_file(text)
    yield key, f"{shown(key, text)}; it is neither a file nor one of {', '.join(CHAT_TEMPLATE_TOKENS)}", remedy


def _path(text: str) -> Path:
    return Path(text).expanduser()


def _near_file(text: str) -> str:
    folder = _path(text).parent
    if not folder.is_dir():
        return f"paths are relative to the current directory, {Path.cwd()}; there is no folder {folder}"
    near = suggest(_path(text).name, [path.name for path in folder.iterdir()])
    return f"did you mean {near}?" if near else f"paths are relative to the current directory, {Path.cwd()}"


def _models(loaded: LoadedRecipe) -> Iterator[Lack]:
    for name in ("name_or_path", "tokenizer_name_or_path"):
        key, text = f"model.{name}", getattr(loaded.recipe.model, name)
        if text is None:
            continue
        if text.startswith("package:"):
            yield from _package(key, text, name)
        elif looks_like_path(text) or _path(text).is_dir():
            yield from _folder(key, text, _path(text), name)


def _package(key: str, text: str, name: str) -> Iterator[Lack]:
    package, _, inside = text.removeprefix("package:").partition("/")
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        yield (
            key,
            f"{shown(key, text)}; there is no installed package {package!r}",
            f"pip install {package.replace('_', '-')}",
        )
        return
    yield from _folder(key, text, Path(spec.submodule_search_locations[0]) / inside, name)


def _folder(key: str, text: str, path: Path, name: str) -> Iterator[Lack]:
    if not path.is_dir():
        yield key, f"{shown(key, text)}; there is no such folder", _near_file(str(path))
    elif name == "name_or_path" and not (path / "config.json").is_file():
        yield key, f"{shown(key, text)}; the folder has no config.json", "name a folder that save_pretrained wrote"


def _model_files(loaded: LoadedRecipe) -> Iterator[Lack]:
    for finding in check_models(loaded.recipe):
        if finding.is_fault:
            yield finding.key, finding.found, finding.remedy


def _quantisation(loaded: LoadedRecipe) -> Iterator[Lack]:
    for name in ("load_in_4bit", "load_in_8bit"):
        if getattr(loaded.recipe.strategy, name, False) and importlib.util.find_spec("bitsandbytes") is None:
            key = f"strategy.{name}"
            remedy = f"pip install bitsandbytes, or remove {name}"
            yield key, f"{key} is true, but bitsandbytes is not installed", remedy


def _distributed(loaded: LoadedRecipe) -> Iterator[Lack]:
    view = View(loaded.recipe)
    for finding in (*deepspeed_file_fits(view), *nvme_folder_exists(view)):
        yield finding.key, finding.message, finding.remedy
