"""Command lines of TRL and LLaMA-Factory, taken apart as text: a shell script or a page that shows one. Nothing is executed."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from launcher.importing.given import read_yaml, refuse

_TRAINERS = {"sft": "sft", "dpo": "dpo", "reward": "reward", "reward_modeling": "reward"}
OTHER_TRAINERS = (
    "grpo", "kto", "rloo", "ppo", "orpo", "cpo", "gkd", "online_dpo", "dpo_online", "distillation", "nash_md", "xpo", "bco", "prm", "gold",
    "minillm", "simpo",
)  # fmt: skip
"""Trainers of TRL, by the names of its commands and scripts, that launcher does not have."""
_IMAGES = re.compile(r"vlm|vision|video|llava|image")
_LAUNCHERS = ("accelerate", "torchrun", "deepspeed", "uv")
_LLAMAFACTORY = ("train.py", "train_bash.py")


@dataclass
class Command:
    """A training command."""

    trainer: str
    """sft, dpo or reward; another name of TRL's, which launcher does not have; llamafactory, whose options name the method."""
    values: dict[str, Any] = field(default_factory=dict)
    """Options by name."""
    gpus: int | None = None
    given: str | None = None
    """File that ``llamafactory-cli train FILE`` names."""
    script: str = ""
    """Its script, where that is not one of TRL's own trainers alone."""


def tool_of_command(text: str) -> str | None:
    """Return the tool whose command a text has, trl or llamafactory; None where it has none, and is perhaps YAML."""
    found = [start for words in _lines(text) if (start := _start(words)) is not None]
    return None if not found else "llamafactory" if found[0][1] == "llamafactory" else "trl"


def read_command(path: Path, text: str) -> Command:
    """Return the one training command of a text.

    Raises:
        RecipeError: there is none, or several; quotes that do not close.
    """
    found = [(words, start) for words in _lines(text) if (start := _start(words)) is not None]
    if not found:
        raise refuse(
            path,
            "the file has no training command",
            "name a file with `trl sft ...`, `accelerate launch ... sft.py ...` or `llamafactory-cli train ...`",
        )
    if len(found) > 1:
        raise refuse(path, f"the file has {len(found)} training commands", "keep the one that is to be imported")
    words, (place, trainer) = found[0]
    script = PurePosixPath(words[place]).name
    command = Command(trainer, script=script if script.endswith(".py") and script[:-3] not in _TRAINERS else "")
    _launch_options(command, words[:place])
    options = words[place + 1 :]
    if trainer == "llamafactory" and options and re.search(r"\.(ya?ml|json)$", options[0]):
        command.given = options[0]
        options = [f"--{word}" if re.match(r"[a-z_]+=", word) else word for word in options[1:]]
    command.values |= _options(options)
    if isinstance(processes := command.values.get("num_processes"), int) and processes > 0:
        command.gpus = processes
    return _with_file(command, path)


def _lines(text: str) -> Iterator[list[str]]:
    joined = _with_variables(re.sub(r"\\\r?\n", " ", text))
    for line in joined.splitlines():
        for part in re.split(r"&&|;|\|\|", line.strip().removeprefix("$ ").removeprefix("> ")):
            try:
                words = shlex.split(part, comments=True)
            except ValueError:
                continue
            if words:
                yield words


def _with_variables(text: str) -> str:
    """Write out the variables that a script sets itself to plain words: ``MODEL=gpt2`` on a line of its own, then ``$MODEL``."""
    found = re.findall(
        r"""(?m)^[ \t]*(?:export[ \t]+)?([A-Za-z_]\w*)=(["']?)([^\s"'$`;&|()]*)\2[ \t]*(?:#.*)?$""", text
    )
    for name, _, value in found:
        text = re.sub(rf"\$\{{{name}\}}|\${name}\b", value.replace("\\", r"\\"), text)
    return text


def _start(words: list[str]) -> tuple[int, str] | None:
    """Return where a command's own options begin, and its trainer."""
    for place, word in enumerate(words):
        name, then = PurePosixPath(word).name, words[place + 1 :]
        if name == "trl" and then and then[0] in (*_TRAINERS, *OTHER_TRAINERS):
            return place + 1, _TRAINERS.get(then[0], then[0])
        if name in ("llamafactory-cli", "lmf") and then[:1] == ["train"]:
            return place + 1, "llamafactory"
        if name in _LLAMAFACTORY and any(one.startswith("--stage") for one in then):
            return place, "llamafactory"
        if (name.endswith(".py") or name.startswith("trl.scripts.")) and (trainer := _trainer(word, then)) is not None:
            return place, trainer
    return None


def _trainer(script: str, options: list[str]) -> str | None:
    """Return the trainer of a script, told by its name; its own name where launcher has none like it; None for no script of TRL's."""
    stem = PurePosixPath(script).name.removesuffix(".py").removeprefix("trl.scripts.")
    is_of_trl = "trl" in script or "examples/scripts" in script
    trains = any(re.match(r"--(model_name(_or_path)?|dataset_name|config)\b", one) for one in options)
    if not (trains or (is_of_trl and any(one.startswith("--") for one in options))):
        return stem if is_of_trl and _IMAGES.search(stem) else None
    if stem in _TRAINERS:
        return _TRAINERS[stem]
    family = next(
        (one for one in ("sft", "dpo", "reward") if stem.startswith(f"{one}_") or stem.endswith(f"_{one}")), None
    )
    if family is None or _IMAGES.search(stem) or any(one in stem for one in OTHER_TRAINERS):
        return stem
    return family


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
    name = command.values.get("config") if command.trainer != "llamafactory" else command.given
    for folder in (path.parent, Path()):
        if isinstance(name, str) and (folder / name).is_file():
            command.values = read_yaml(folder / name) | command.values
            return command
    if isinstance(name, str):
        raise refuse(
            path, f"the command reads {name}, which is not here", f"put it beside {path.name}, or import it itself"
        )
    return command
