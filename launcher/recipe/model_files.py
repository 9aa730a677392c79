"""What lies of a model on this machine, read as plain files: no library is imported, and no hub is asked."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

PACKAGE_PREFIX = "package:"

CONFIG = "config.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
SPECIAL_TOKENS = "special_tokens_map.json"
FAST_TOKENIZER = "tokenizer.json"
CHAT_TEMPLATES = ("chat_template.jinja", "additional_chat_templates/default.jinja")
VOCABULARIES = (
    "tokenizer.model", "spiece.model", "spm.model", "sentencepiece.bpe.model", "vocab.txt", "vocab.json", "tekken.json", "tiktoken.model",
)  # fmt: skip
"""What tokenizers without a tokenizer.json are made from."""
LOOKED_FOR = (CONFIG, TOKENIZER_CONFIG, SPECIAL_TOKENS, FAST_TOKENIZER, *CHAT_TEMPLATES, *VOCABULARIES)


class BadModelFile(Exception):
    """A file of a model that is no JSON object; the text says which one and why."""


@dataclass(frozen=True)
class ModelFiles:
    """The small files of a model or tokenizer, as far as they are known."""

    name: str
    """As the recipe has it."""
    found: Mapping[str, Path | None]
    """File -> where it lies; None: the model has no such file. Nothing is known of a file that is not among them."""

    def has(self, *names: str) -> bool | None:
        """Return whether the model has one of these files; None: that is not known."""
        if any(self.found.get(name) is not None for name in names):
            return True
        return False if all(name in self.found for name in names) else None

    def read(self, name: str) -> dict[str, Any]:
        """Return what a file of JSON says; nothing where there is none. Raises BadModelFile."""
        path = self.found.get(name)
        if path is None:
            return {}
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise BadModelFile(f"its {name} cannot be read: {error}") from error
        if not isinstance(values, dict):
            raise BadModelFile(f"its {name} holds no JSON object")
        return values


def local_files(name: str, revision: str | None = None) -> ModelFiles | None:
    """Return what lies on this machine of a folder, a package's model or, in the hub's cache, of a hub id; None: nothing."""
    folder = _folder(name)
    if folder is not None:
        return ModelFiles(name, {file: _if_there(folder / file) for file in LOOKED_FOR})
    return None if is_local(name) else _cached(name, revision or "main")


def is_local(name: str) -> bool:
    """Whether a name cannot be a hub id."""
    return name.startswith((PACKAGE_PREFIX, ".", "/", "~")) or Path(name).is_dir()


def snapshot(name: str, revision: str = "main") -> Path | None:
    """Return the folder of a hub id's revision in the hub's cache; None: there is none. The layout is huggingface_hub's own."""
    place = _cache_place(name)
    commit = _commit(place, revision)
    folder = place / "snapshots" / commit
    return folder if folder.is_dir() else None


def hub_home() -> Path:
    """Return the folder of what Hugging Face's libraries keep: models, data, a token."""
    caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("HF_HOME") or Path(caches) / "huggingface").expanduser()


def _folder(name: str) -> Path | None:
    if name.startswith(PACKAGE_PREFIX):
        package, _, inside = name.removeprefix(PACKAGE_PREFIX).partition("/")
        spec = importlib.util.find_spec(package) if package.isidentifier() else None
        places = (spec.submodule_search_locations if spec else None) or ()
        return next((Path(place) / inside for place in places if (Path(place) / inside).is_dir()), None)
    folder = Path(name).expanduser()
    return folder if folder.is_dir() else None


def _if_there(path: Path) -> Path | None:
    return path if path.is_file() else None


def _cached(name: str, revision: str) -> ModelFiles | None:
    folder = snapshot(name, revision)
    if folder is None:
        return None
    # The hub's client notes files that it has looked for in vain.
    absent = _cache_place(name) / ".no_exist" / folder.name
    there = {file: folder / file for file in LOOKED_FOR if (folder / file).is_file()}
    return ModelFiles(name, {**{file: None for file in LOOKED_FOR if (absent / file).is_file()}, **there})


def _cache_place(name: str) -> Path:
    return Path(os.environ.get("HF_HUB_CACHE") or hub_home() / "hub") / f"models--{name.replace('/', '--')}"


def _commit(place: Path, revision: str) -> str:
    ref = place / "refs" / revision
    return ref.read_text().strip() if ref.is_file() else revision


@cache
def known_architectures() -> frozenset[str]:
    """Return the model types of the installed transformers, told from its source; none where it is not as expected."""
    spec = importlib.util.find_spec("transformers")
    folders = (spec.submodule_search_locations if spec else None) or ()
    found: set[str] = set()
    for folder in folders:
        for name in ("auto_mappings.py", "configuration_auto.py"):
            path = Path(folder) / "models" / "auto" / name
            found |= _names_in(path.read_text(encoding="utf-8")) if path.is_file() else set()
    return frozenset(found)


def _names_in(source: str) -> set[str]:
    """Return the keys of CONFIG_MAPPING_NAMES: of each statement that makes it or adds to it, at the outermost level."""
    statements = (node for node in ast.parse(source).body if "CONFIG_MAPPING_NAMES" in _targets(node))
    parts = (part for node in statements for part in ast.walk(node))
    found: set[str] = set()
    for part in parts:
        keys = part.keys if isinstance(part, ast.Dict) else part.elts[:1] if isinstance(part, ast.Tuple) else ()
        found |= {key.value for key in keys if isinstance(key, ast.Constant) and isinstance(key.value, str)}
    return found


def _targets(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.Assign):
        return [target.id for target in node.targets if isinstance(target, ast.Name)]
    call = node.value if isinstance(node, ast.Expr) else None
    if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and isinstance(call.func.value, ast.Name):
        return [call.func.value.id]
    return []
