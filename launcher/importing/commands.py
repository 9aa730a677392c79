"""TRL's command lines, taken apart as text: a shell script or a page that shows one. Nothing is executed."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from launcher.importing.given import read_yaml, refuse

_TRAINERS = {"sft": "sft", "dpo": "dpo", "reward": "reward", "reward_modeling": "reward"}
_OTHERS = ("grpo", "kto", "rloo", "ppo", "orpo", "cpo", "gkd", "online_dpo", "distillation")
_LAUNCHERS = ("accelerate", "torchrun", "deepspeed", "uv")


@dataclass
class Command:
    """A training command."""

    trainer: str
    """sft, dpo or reward; another name of TRL's, which launcher does not have."""
    values: dict[str, Any] = field(default_factory=dict)
    """Options by name."""
    gpus: int | None = None


def looks_like_command(text: str) -> bool:
    """Whether a text has a command of TRL rather than YAML."""
    return any(_start(words) is not None for words in _lines(text))


def read_command(path: Path, text: str) -> Command:
    """Return the one training command of a text.

    Raises:
        RecipeError: there is none, or several; quotes that do not close.
    """
    found = [(words, start) for words in _lines(text) if (start := _start(words)) is not None]
    if not found:
        raise refuse(
            path,
            "the file has no command of TRL",
            "name a file with `trl sft ...` or `accelerate launch ... sft.py ...`",
        )
    if len(found) > 1:
        raise refuse(path, f"the file has {len(found)} training commands", "keep the one that is to be imported")
    words, (place, trainer) = found[0]
    command = Command(trainer)
    _launch_options(command, words[:place])
    command.values |= _options(words[place + 1 :])
    return _with_file(command, path)


def _lines(text: str) -> Iterator[list[str]]:
    joined = re.sub(r"\\\r?\n", " ", text)
    for line in joined.splitlines():
        for part in re.split(r"&&|;|\|\|", line.strip().removeprefix("$ ").removeprefix("> ")):
            try:
                words = shlex.split(part, comments=True)
            except ValueError:
                continue
            if words:
                yield words


def _start(words: list[str]) -> tuple[int, str] | None:
    """Return where a command's own options begin, and its trainer."""
    for place, word in enumerate(words):
        name = PurePosixPath(word).name
        if name == "trl" and place + 1 < len(words) and words[place + 1] in (*_TRAINERS, *_OTHERS):
            return place + 1, _TRAINERS.get(words[place + 1], words[place + 1])
        stem = name.removesuffix(".py").removeprefix("trl.scripts.")
        is_script = name.endswith(".py") or name.startswith("trl.scripts.")
        if is_script and (stem in _TRAINERS or stem in _OTHERS) and any(one.startswith("--") for one in words[place:]):
            return place, _TRAINERS.get(stem, stem)
    return None


def _launch_options(command: Command, words: list[str]) -> None:
    """Take what accelerate, torchrun and deepspeed say before the script."""
    for word in words:
        name, sign, _ = word.partition("=")
        if sign and name.isidentifier() and not word.startswith("-"):
            command.values.setdefault("env", {})[name] = "(not read)"
    given = _options([word for word in words if word.split("=")[0] not in _LAUNCHERS])
    for name in ("num_processes", "nproc_per_node", "num_gpus"):
        if isinstance(given.get(name), int):
            command.gpus = given[name]
            command.values["num_processes"] = given[name]
    if "config_file" in given:
        command.values["accelerate_config"] = given["config_file"]
    for name in ("main_process_port", "mixed_precision", "num_machines", "machine_rank", "main_process_ip"):
        if name in given:
            command.values[name] = given[name]


def _options(words: list[str]) -> dict[str, Any]:
    """Return ``--name value``, ``--name=value``, ``--name a b`` and ``--flag`` as TRL's parser takes them."""
    found: dict[str, list[str]] = {}
    name = None
    for word in words:
        if re.match(r"--?[A-Za-z]", word):
            name, sign, value = word.lstrip("-").partition("=")
            name = name.replace("-", "_")
            found[name] = [value] if sign else []
        elif name is not None:
            found[name].append(word)
    values: dict[str, Any] = {}
    for key, given in found.items():
        if not given and key.startswith("no_"):
            values[key.removeprefix("no_")] = False
        else:
            values[key] = (
                True if not given else _scalar(given[0]) if len(given) == 1 else [_scalar(one) for one in given]
            )
    return values


def _scalar(text: str) -> Any:
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        value = YAML(typ="safe", pure=True).load(text)
    except (YAMLError, ValueError):
        return text
    return value if isinstance(value, bool | int | float | dict | list) else text


def _with_file(command: Command, path: Path) -> Command:
    """Add the keys of ``--config FILE`` where it lies here; options of the command go before them."""
    name = command.values.get("config")
    for folder in (path.parent, Path()):
        if isinstance(name, str) and (folder / name).is_file():
            command.values = read_yaml(folder / name) | command.values
            return command
    if isinstance(name, str):
        raise refuse(
            path, f"the command reads {name}, which is not here", f"put it beside {path.name}, or import it itself"
        )
    return command
