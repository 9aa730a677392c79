"""Rules between the keys of ``distributed``, and a DeepSpeed file held to the recipe; what depends on the machine is not here."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from launcher.recipe.deepspeed_agreement import contradictions
from launcher.recipe.deepspeed_file import BadDeepSpeedFile, Zero, read_deepspeed_file, stage_of, zero_of
from launcher.recipe.keys import did_you_mean, shown
from launcher.recipe.strategy_options import DiscriminativeOptions
from launcher.recipe.view import Finding, View
from launcher.shipped import SHIPPED_DEEPSPEED as SHIPPED

# Attention that Ulysses can divide by heads: DeepSpeed 0.19 refuses eager, accelerate 1.15 also flex_attention.
_ULYSSES = ("sdpa", "flash_attention_2", "flash_attention_3")


def engine_fits(v: View) -> Iterator[Finding]:
    """Yield what is wrong between engine, stage, and processes."""
    d = v.recipe.distributed
    if d.zero_stage is not None and d.engine in ("single", "ddp", "fsdp"):
        remedy = "write engine: deepspeed, or remove zero_stage"
        if d.engine == "fsdp":
            remedy = "remove zero_stage; fsdp shards weights, gradients and optimizer state, as stage 3 does"
        yield Finding(
            "distributed.zero_stage",
            f"{shown('distributed.zero_stage', d.zero_stage)} but engine is {d.engine}",
            remedy,
        )
    if d.deepspeed_config is not None and d.engine in ("single", "ddp", "fsdp"):
        key = "distributed.deepspeed_config"
        yield Finding(
            key, f"{shown(key, d.deepspeed_config)} but engine is {d.engine}", "write engine: deepspeed, or remove it"
        )
    if d.engine == "deepspeed" and d.deepspeed_config is None and stage_of(d) is None:
        yield Finding(
            "distributed.engine",
            "distributed.engine is 'deepspeed' but zero_stage is not given",
            "add zero_stage: 2 (or 0, 1, 3)",
        )
    if d.engine == "single" and (d.nodes > 1 or (d.processes_per_node or 1) > 1):
        key = "distributed.nodes" if d.nodes > 1 else "distributed.processes_per_node"
        yield Finding(key, f"{shown(key, v.value(key))} but engine is single", "write engine: auto, or one process")
    if d.nodes > 1 and d.processes_per_node is None:
        yield Finding(
            "distributed.nodes",
            f"{shown('distributed.nodes', d.nodes)} but processes_per_node is not given",
            "add processes_per_node: the GPUs of one node",
        )
    if d.engine == "fsdp" and _is_quantised(v):
        yield Finding(
            "distributed.engine",
            "distributed.engine is 'fsdp' but the strategy holds the frozen weights in 4 or 8 bits, which FSDP2 does not shard",
            "write engine: ddp, or load the weights whole",
        )


def _is_quantised(v: View) -> bool:
    return any(getattr(v.recipe.strategy, name, False) for name in ("load_in_4bit", "load_in_8bit"))


def offload_fits(v: View) -> Iterator[Finding]:
    """Yield what is wrong between offload, stage, engine and device."""
    d, key = v.recipe.distributed, "distributed.offload"
    if d.offload == "none":
        return
    what = shown(key, d.offload)
    if d.engine in ("single", "ddp"):
        yield Finding(
            key, f"{what} but engine is {d.engine}", "write engine: deepspeed and zero_stage: 2, or remove it"
        )
    elif d.engine == "fsdp":
        yield from _fsdp_offload(v)
    elif d.deepspeed_config is None:
        yield from _deepspeed_offload(v)


def _fsdp_offload(v: View) -> Iterator[Finding]:
    d, key = v.recipe.distributed, "distributed.offload"
    if d.offload == "optimizer":
        message = f"{shown(key, d.offload)} but engine is fsdp, which offloads weights, gradients and optimizer state together"
        yield Finding(key, message, "write offload: all, or engine: deepspeed")
    if d.offload_device == "nvme":
        key = "distributed.offload_device"
        yield Finding(
            key, f"{shown(key, 'nvme')} but engine is fsdp", "write offload_device: cpu, or engine: deepspeed"
        )


def _deepspeed_offload(v: View) -> Iterator[Finding]:
    d, key = v.recipe.distributed, "distributed.offload"
    what, stage = shown(key, d.offload), stage_of(d)
    if stage == 0:
        yield Finding(key, f"{what} but zero_stage is 0, which shards no optimizer state", "write zero_stage: 2")
    elif d.offload == "all" and stage != 3:
        remedy = "write zero_stage: 3, or offload: optimizer"
        yield Finding(key, f"{what} but zero_stage is {stage}; weights are offloaded at stage 3 only", remedy)
    elif d.offload_device == "nvme" and stage != 3:
        key = "distributed.offload_device"
        message = f"{shown(key, 'nvme')} but zero_stage is {stage}; DeepSpeed offloads to nvme at stage 3 only"
        yield Finding(key, message, "write zero_stage: 3, or offload_device: cpu")
    if d.offload_device == "nvme" and d.nvme_path is None:
        key = "distributed.offload_device"
        yield Finding(
            key, f"{shown(key, 'nvme')} but nvme_path is not given", "add nvme_path: a folder on a local disk"
        )


def parallelism_fits(v: View) -> Iterator[Finding]:
    """Yield what is wrong with sequence and tensor parallelism, as far as sizes of the world are not needed."""
    d = v.recipe.distributed
    if d.sequence_parallel_size > 1:
        yield from _sequence_parallel(v)
    if d.tensor_parallel_size > 1:
        yield from _tensor_parallel(v)
    if d.sequence_parallel_size > 1 and d.tensor_parallel_size > 1:
        key = "distributed.tensor_parallel_size"
        message = f"{shown(key, d.tensor_parallel_size)} and sequence_parallel_size is {d.sequence_parallel_size}"
        yield Finding(key, f"{message}; they do not go together in these versions", "keep one of the two")


def _sequence_parallel(v: View) -> Iterator[Finding]:
    d, key, model = v.recipe.distributed, "distributed.sequence_parallel_size", v.recipe.model
    what, task = shown(key, d.sequence_parallel_size), v.recipe.task.type
    if d.engine in ("single", "ddp", "fsdp"):
        yield Finding(key, f"{what} but engine is {d.engine}; it is DeepSpeed's (Ulysses)", "write engine: deepspeed")
    elif d.deepspeed_config is None and stage_of(d) is None:
        yield Finding(key, f"{what} but zero_stage is not given; it is DeepSpeed's (Ulysses)", "add zero_stage: 3")
    if task not in ("causal-lm", "sft"):
        message = f"{what} but the task is {task}, whose answer needs a whole row on one process"
        yield Finding(key, message, "remove it; causal-lm and sft can divide rows")
    several = _several_phases(v)
    if several is not None:
        message = f"{what} but {several} divides the run into phases, and Ulysses starts once in a process"
        yield Finding(key, message, "remove one of the two")
    if model.attn_implementation is not None and model.attn_implementation not in _ULYSSES:
        message = f"{shown('model.attn_implementation', model.attn_implementation)} but sequence_parallel_size is given"
        yield Finding("model.attn_implementation", message, f"write {', '.join(_ULYSSES[:-1])} or {_ULYSSES[-1]}")


def _several_phases(v: View) -> str | None:
    if v.t.batch_size_schedule is not None:
        return "training.batch_size_schedule"
    strategy = v.recipe.strategy
    if getattr(strategy, "gradual_unfreezing", None) is not None:
        return "strategy.gradual_unfreezing"
    return "strategy.type" if isinstance(strategy, DiscriminativeOptions) else None


def _tensor_parallel(v: View) -> Iterator[Finding]:
    d, key = v.recipe.distributed, "distributed.tensor_parallel_size"
    what = shown(key, d.tensor_parallel_size)
    if d.engine == "single":
        yield Finding(key, f"{what} but engine is single", "write engine: auto")
    elif d.engine in ("deepspeed", "fsdp") or stage_of(d) is not None or d.deepspeed_config is not None:
        engine = "fsdp" if d.engine == "fsdp" else "deepspeed"
        message = f"{what} but engine is {engine}; transformers divides the weight matrices itself"
        yield Finding(key, message, "write engine: ddp without zero_stage, or remove it")
    if _is_quantised(v):
        yield Finding(
            key, f"{what} but the frozen weights are held in 4 or 8 bits", "load the weights whole, or remove it"
        )


def precision_fits(v: View) -> Iterator[Finding]:
    """Yield what is wrong between precision, the weights' type and the engine."""
    precision, dtype, d = v.recipe.precision, v.recipe.model.dtype, v.recipe.distributed
    if precision == "fp16" and dtype in ("float16", "bfloat16"):
        message = f"{shown('model.dtype', dtype)} while precision is fp16"
        yield Finding("model.dtype", f"{message}, whose loss scaling needs float32 weights", "write dtype: float32")
    if precision == "tf32" and dtype in ("float16", "bfloat16"):
        message = f"{shown('model.dtype', dtype)} while precision is tf32, which computes with float32 weights"
        yield Finding("model.dtype", message, "write dtype: float32")
    if precision == "fp8" and (d.engine == "deepspeed" or stage_of(d) is not None or d.deepspeed_config is not None):
        remedy = "write engine: ddp or fsdp without zero_stage, or precision: bf16"
        yield Finding("precision", "precision is 'fp8' but the engine is deepspeed", remedy)


# --- the DeepSpeed file ----------------------------------------------------------------------------------------------


def deepspeed_file_fits(v: View) -> Iterator[Finding]:
    """Yield what is wrong with the file of ``distributed.deepspeed_config``, read from the current directory."""
    d, key = v.recipe.distributed, "distributed.deepspeed_config"
    if d.deepspeed_config is None or d.engine in ("single", "ddp", "fsdp"):
        return
    try:
        config = read_deepspeed_file(d.deepspeed_config)
        zero, found = zero_of(config), list(contradictions(config, v.recipe))
    except BadDeepSpeedFile as error:
        near = did_you_mean(d.deepspeed_config, SHIPPED) if not Path(d.deepspeed_config).suffix else ""
        yield Finding(key, f"{shown(key, d.deepspeed_config)}; {error}", near)
        return
    for item in found:
        place = item.key if v.given(item.key) else key
        yield Finding(place, f"{d.deepspeed_config}: {item.message}", item.remedy)
    yield from _explicit_defaults(v, zero)
    if zero.device == "nvme" and (d.nvme_path is None and (d.deepspeed_config in SHIPPED or zero.nvme_path is None)):
        message = f"{shown(key, d.deepspeed_config)} offloads to nvme but nvme_path is not given"
        yield Finding(key, message, "add nvme_path: a folder on a local disk")


def _explicit_defaults(v: View, zero: Zero) -> Iterator[Finding]:
    """A recipe that writes a default out means it."""
    d = v.recipe.distributed
    for key, said, found in (
        ("distributed.offload", d.offload, zero.offload),
        ("distributed.offload_device", d.offload_device, zero.device if zero.offload != "none" else d.offload_device),
    ):
        is_default = said in ("none", "cpu")
        if is_default and v.given(key) and said != found and (key.endswith("offload") or d.offload == "none"):
            message = f"{d.deepspeed_config}: the offload is {found}, but the recipe's {key} is {said}"
            yield Finding(key, message, f"change one of them, or leave {key} out of the recipe")


def nvme_folder_exists(v: View) -> Iterator[Finding]:
    """Yield a folder of ``distributed.nvme_path`` that is not there."""
    path, key = v.recipe.distributed.nvme_path, "distributed.nvme_path"
    if path is not None and not Path(path).expanduser().is_dir():
        yield Finding(key, f"{shown(key, path)}; there is no such folder", "make it on a local disk of every machine")
