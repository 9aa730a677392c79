"""A look at a recipe's models before a run: what lies on this machine, and, where it is asked for, what the hub says."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from launcher.data.sources_find import hub_has_address
from launcher.recipe.model_checks import ModelFinding, judge_files, models_of
from launcher.recipe.model_files import (
    CONFIG,
    LOOKED_FOR,
    SPECIAL_TOKENS,
    TOKENIZER_CONFIG,
    ModelFiles,
    is_local,
    local_files,
    snapshot,
)
from launcher.recipe.schema import Recipe
from launcher.tasks.hub_words import hub_words, offline_words, token_state
from launcher.tasks.models import is_offline

_SECONDS = 5.0
_WEIGHTS = ("*.safetensors", "*.bin")
# Those that are read; of the others it is enough that they are there.
_READ = (CONFIG, TOKENIZER_CONFIG, SPECIAL_TOKENS)


def model_findings(recipe: Recipe) -> list[ModelFinding]:
    """Return what is known of a recipe's models; those of the hub are asked for, a few seconds at most each."""
    return [finding for key, name, revision in models_of(recipe) for finding in _findings(recipe, key, name, revision)]


def _findings(recipe: Recipe, key: str, name: str, revision: str | None) -> Iterator[ModelFinding]:
    if is_local(name):
        files = local_files(name)
        yield ModelFinding(key, False, f"{name} lies on this machine") if files else _no_folder(key, name)
    elif is_offline() or not hub_has_address():
        files = local_files(name, revision)
        yield _without_hub(key, name, revision)
    else:
        files, finding = _asked(key, name, revision)
        yield finding
    if files is not None:
        yield from judge_files(recipe, key, files)


def _no_folder(key: str, name: str) -> ModelFinding:
    return ModelFinding(key, True, f"{key} is {name}; there is no such folder", "correct it, or name a hub id")


def _without_hub(key: str, name: str, revision: str | None) -> ModelFinding:
    """Return whether the cache has what a run needs, where the hub cannot be asked."""
    folder = snapshot(name, revision or "main")
    why, remedy = offline_words() if is_offline() else _no_answer()
    if folder is None:
        return ModelFinding(key, True, f"{key} is {name}; {why}", remedy)
    if key == "model.name_or_path" and not any(any(folder.glob(pattern)) for pattern in _WEIGHTS):
        return ModelFinding(
            key, True, f"{key} is {name}; the cache has no weights of it, and the hub cannot be asked", remedy
        )
    return ModelFinding(key, False, f"{name} lies in the hub's cache; the hub was not asked")


def _no_answer() -> tuple[str, str]:
    return (
        "it is not on this machine, and the hub does not answer",
        "mend the network, or fetch it where there is one (`hf download`) and name the folder",
    )


def _asked(key: str, name: str, revision: str | None) -> tuple[ModelFiles | None, ModelFinding]:
    """Return the model's small files, as the hub has them, and whether this account may have them."""
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.utils import httpx  # type: ignore[attr-defined]

    try:
        files = _fetch(name, revision)
    except HfHubHTTPError as error:
        text, remedy = hub_words(name, error) or (f"the hub answers: {str(error).splitlines()[0]}", "try again later")
        return local_files(name, revision), ModelFinding(key, True, f"{key} is {name}; {text}", remedy)
    except (httpx.HTTPError, OSError):
        return local_files(name, revision), _without_hub(key, name, revision)
    how = f" with a token ({state})" if (state := token_state()) else " without a token"
    return files, ModelFinding(key, False, f"{name} can be fetched from the hub{how}")


def _fetch(name: str, revision: str | None) -> ModelFiles:
    """Return which of the small files the hub has, with those that are read in its cache. Raises HfHubHTTPError and httpx's errors."""
    from huggingface_hub import HfApi, get_hf_file_metadata, get_token, hf_hub_download, hf_hub_url

    listed: Any = HfApi().model_info(name, revision=revision, timeout=_SECONDS)
    there = {file.rfilename for file in listed.siblings or ()}
    found: dict[str, Path | None] = {file: Path(file) if file in there else None for file in LOOKED_FOR}
    # Anyone may see what a gated model has; only this tells who may read it.
    probe = CONFIG if CONFIG in there else next((file for file in LOOKED_FOR if file in there), CONFIG)
    get_hf_file_metadata(hf_hub_url(name, probe, revision=revision), token=get_token(), timeout=_SECONDS)
    for file in _READ:
        if file in there:
            found[file] = Path(hf_hub_download(name, file, revision=revision, etag_timeout=_SECONDS))
    return ModelFiles(name, found)
