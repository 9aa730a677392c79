"""From a file of LLaMA-Factory, Axolotl or TRL to a recipe: the way from reading to writing."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from launcher.errors import RunStateError
from launcher.importing import axolotl, llamafactory, trl
from launcher.importing.commands import read_command, tool_of_command
from launcher.importing.conversion import Conversion, Dialect
from launcher.importing.given import read_yaml, refuse
from launcher.importing.writing import recipe_text, settle
from launcher.recipe.tree import read_text

TOOLS: dict[str, Dialect] = {one.name: one for one in (llamafactory.DIALECT, axolotl.DIALECT, trl.DIALECT)}

# Keys that one of them has and the others have not.
_SIGNS = {
    "llamafactory": "stage finetuning_type do_train template cutoff_len lora_rank lora_target dataset_dir overwrite_cache dataset plot_loss pref_beta",
    "axolotl": "base_model micro_batch_size sequence_len adapter num_epochs val_set_size sample_packing lora_target_linear pretraining_dataset"
    " evals_per_epoch saves_per_epoch dataset_prepared_path",
    "trl": "dataset_name dataset_config use_peft lora_target_modules max_length dtype torch_dtype assistant_only_loss dataset_train_split"
    " completion_only_loss dataset_text_field beta loss_type",
}


def import_recipe(
    path: Path, *, tool: str, gpus: int | None = None, trainer: str | None = None, name: str | None = None
) -> Conversion:
    """Return the conversion of a file of ``tool``: a recipe that its own rules accept, and what became of each key.

    Args:
        gpus: how many GPUs the tool ran on; None: nobody knows, 1 is taken and said.
        trainer: for TRL's files sft, dpo or reward, where no key tells it.
        name: of the recipe; None: told by the file.

    Raises:
        RecipeError: the file cannot be read, is another tool's, or means something that no recipe can mean.
    """
    values, told_gpus, told_trainer, script = _read(path, tool)
    _is_of(path, tool, values)
    c = Conversion(TOOLS[tool], path, values, gpus if gpus is not None else told_gpus)
    c.recipe |= {"version": 1, "name": name or _name(c)}
    if tool == "trl":
        if script:
            c.assume(f"{script} trains as TRL's own script for {told_trainer} does: code of a file is not read")
        trl.convert(c, trainer=trainer or told_trainer)
    else:
        {"llamafactory": llamafactory, "axolotl": axolotl}[tool].convert(c)
    settle(c)
    return c


def refuse_existing(path: Path) -> None:
    """Raises RunStateError where a file exists: it is never overwritten."""
    if path.exists():
        raise RunStateError(f"{path} exists; name another file with --output, or remove it first")


def written(c: Conversion, path: Path) -> list[Path]:
    """Write the recipe, with the listing above it, and a chat template that stood in the file beside it; return what was written.

    Raises:
        RunStateError: one of the files exists.
    """
    from launcher.atomic import write_text

    template = path.with_suffix(".jinja")
    refuse_existing(path)
    if c.template is None:
        write_text(path, recipe_text(c))
        return [path]
    refuse_existing(template)
    c.recipe["task.chat_template"] = str(template)
    write_text(template, c.template)
    write_text(path, recipe_text(c))
    return [path, template]


def _read(path: Path, tool: str) -> tuple[dict[str, Any], int | None, str | None, str]:
    """Return the values, the number of GPUs and the trainer as far as they are told, and the script of a command."""
    text = read_text(path)
    of = tool_of_command(text)
    if of is None:
        values = read_yaml(path, text)
        return values, _processes(values, tool), None, ""
    if of != tool:
        raise refuse(path, f"this looks like a command of {TOOLS[of].shown}", f"write --from {of}")
    command = read_command(path, text)
    if command.trainer not in ("sft", "dpo", "reward", "llamafactory"):
        shown = command.script or f"trl {command.trainer}"
        raise refuse(
            path,
            f"the command is `{shown}`; launcher has sft, dpo and reward of TRL's trainers, on texts",
            "keep this run where it is",
        )
    return command.values, command.gpus, command.trainer, command.script


def _processes(values: Mapping[str, Any], tool: str) -> int | None:
    """Return the number of GPUs that a YAML file names: those of accelerate, or of Ray."""
    found = values.get("num_processes" if tool == "trl" else "ray_num_workers")
    return found if isinstance(found, int) and not isinstance(found, bool) and found > 0 else None


def _is_of(path: Path, tool: str, values: Mapping[str, Any]) -> None:
    if {"version", "task", "model"} <= set(values):
        raise refuse(path, "this is a recipe of launcher already", f"type `launcher check {path}`")
    counts = {name: sum(key in values for key in signs.split()) for name, signs in _SIGNS.items()}
    likely = max(counts, key=lambda name: counts[name])
    if counts[likely] > counts[tool] and counts[tool] <= 1:
        raise refuse(
            path,
            f"this looks like a file of {TOOLS[likely].shown}, not of {TOOLS[tool].shown}",
            f"write --from {likely}",
        )


def _name(c: Conversion) -> str:
    said = c.value("run_name") if isinstance(c.value("run_name"), str) else None
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", said or c.path.stem).strip("._-")[:80] or "imported"
    if said:
        c.put("name", name, "run_name")
    return name
