"""How the other tool spreads a run: DeepSpeed files, FSDP, accelerate's configurations."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from launcher.importing.conversion import Conversion
from launcher.recipe.deepspeed_file import BadDeepSpeedFile, Zero, zero_of

_STAGE = re.compile(r"(?i)(?:zero|ds_z|(?<![a-z])z)[-_]?(?:stage[-_]?)?([0-3])(?![0-9])")


def deepspeed_key(c: Conversion, name: str = "deepspeed") -> None:
    """Translate a DeepSpeed file, by what it says where it is here, or else by its name."""
    if not c.has(name):
        return
    given = c.value(name)
    found = _described(given) if isinstance(given, Mapping) else _read(c, str(given)) or _named(Path(str(given)).name)
    if found is None:
        remedy = "write distributed: {zero_stage: 2}, or {deepspeed_config: FILE} with the file at hand"
        c.missed(name, "the file is not here and its name tells no stage of ZeRO", remedy)
        return
    _write(c, name, found)
    if "autotp" in str(given).lower():
        c.missed(
            name,
            "it spreads each layer over GPUs (tensor parallelism), with which runs can be planned, but not started",
            "its stage of ZeRO was written; stage 3 shards the weights",
        )


def _write(c: Conversion, name: str, found: Zero) -> None:
    c.put(
        "distributed.zero_stage",
        found.stage,
        name,
        note="launcher's own file for the stage; distributed.deepspeed_config takes yours",
    )
    if found.device == "nvme":
        c.missed(
            name,
            "it offloads to nvme",
            "add offload, offload_device: nvme and nvme_path, a folder on a local disk, to distributed",
        )
    elif found.offload != "none":
        c.put("distributed.offload", found.offload, name)


def _described(config: Mapping[str, Any]) -> Zero | None:
    try:
        return zero_of(config)
    except BadDeepSpeedFile:
        return None


def _read(c: Conversion, text: str) -> Zero | None:
    for folder in (c.path.parent, Path()):
        path = folder / text
        try:
            config = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
        except (OSError, ValueError):
            continue
        if isinstance(config, dict) and (found := _described(config)):
            return found
    return None


def _named(name: str) -> Zero | None:
    stage = _STAGE.search(name)
    if stage is None:
        return None
    number, offloads = int(stage[1]), "offload" in name.lower()
    everything = offloads and number == 3 and not re.search(r"(?i)optim|opt\b", name)
    return Zero(number, "all" if everything else "optimizer" if offloads and number else "none", "cpu", None)


def fsdp_keys(c: Conversion, *, also: tuple[str, ...] = ()) -> None:
    """Translate FSDP: launcher shards everything (FSDP2), and finds the blocks to wrap by itself."""
    config = c.value("fsdp_config")
    offloads = False
    if isinstance(config, Mapping):
        c.open("fsdp_config", config)
        offloads = any(c.flag(f"fsdp_config.{name}") for name in ("offload_params", "fsdp_offload_params"))
    words = c.value("fsdp")
    if not words and not (isinstance(config, Mapping) and config):
        return
    offloads = offloads or "offload" in str(words)
    c.put("distributed.engine", "fsdp", *(name for name in ("fsdp", *also) if c.has(name)))
    if offloads:
        c.put("distributed.offload", "all", "fsdp_config.offload_params", "fsdp_config.fsdp_offload_params")
    for key in config if isinstance(config, Mapping) else ():
        if str(key).endswith("activation_checkpointing"):
            continue
        c.unneeded(
            f"fsdp_config.{key}", "launcher's engine fsdp (FSDP2, everything sharded) sets it as the model needs"
        )


def accelerate_config(c: Conversion, name: str) -> None:
    """Translate a configuration of accelerate, by its name: zero2, fsdp2, multi_gpu."""
    if not c.has(name):
        return
    stem = Path(str(c.value(name))).name.lower()
    if (found := _named(stem)) is not None:
        _write(c, name, found)
    elif "fsdp" in stem:
        c.put("distributed.engine", "fsdp", name)
    elif "multi_gpu" in stem or "single_gpu" in stem or "ddp" in stem:
        c.unneeded(name, "one process for each GPU is what launcher starts by itself")
    else:
        c.missed(
            name,
            "launcher does not read accelerate's files",
            "write distributed: {engine, zero_stage} as the file says",
        )
