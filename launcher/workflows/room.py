"""Before a run is launched: is there room for it? Small models are waved through; others are planned in a process of their own.

The process that starts a run stays for as long as the run does, and should not hold torch in its memory meanwhile.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from launcher.atomic import write_text
from launcher.data.token_batches import MULTIPLE
from launcher.errors import Problem, RecipeError
from launcher.launching.launch_plan import plan_launch
from launcher.planning.disk import disk_need, free_bytes
from launcher.planning.forecast import capacity_of
from launcher.plans import Hardware, LaunchPlan
from launcher.recipe.load import LoadedRecipe, resolved_text
from launcher.recipe.schema import Recipe
from launcher.recipe.task_options import PAIR_TASKS
from launcher.tasks.models import folder_on_disk

# Weights, gradients, two moments and a copy, each in fp32.
_BYTES_A_PARAMETER = 20
# A run that by a generous estimate fills no more than this share of a device is not planned further.
_OBVIOUS_SHARE = 0.5
_BASE_BYTES = 2**30


def with_room(
    loaded: LoadedRecipe, *, hardware: Hardware, runs: Path, gpu: tuple[str, int] | None = None
) -> LoadedRecipe:
    """Return the recipe with the sharding that ``engine: auto`` takes, once it is known that the run fits.

    What cannot be planned (a model that is not on this machine, or of a kind that cannot be traced) is let through.

    Args:
        gpu: name in the catalogue, and number, of the GPUs of ``hardware`` where that is not this machine.

    Raises:
        RecipeError: the run cannot fit into memory or onto the disk; the text has the cheapest change that would make it fit.
    """
    launch = plan_launch(loaded.recipe, hardware)
    name = loaded.recipe.model.name_or_path
    folder = folder_on_disk(name) if name is not None else None
    numbers = _numbers(loaded.recipe, folder)
    if not numbers:
        return loaded
    shape = _shape(numbers, folder)
    if shape is not None and _obviously_fits(shape, loaded.recipe, launch, hardware, runs=runs):
        return loaded
    print("looking whether it fits, before anything is started ...", file=sys.stderr, flush=True)
    found = _planned_elsewhere(loaded, runs=runs, gpu=gpu)
    if found is None:
        return loaded
    if found["refused"]:
        message, _, remedy = found["refused"].partition("; ")
        raise RecipeError([Problem(str(loaded.path), message, remedy)])
    if not found["chosen"]:
        return loaded
    print(f"engine: auto takes {found['chosen']}", file=sys.stderr)
    chosen = {"engine": found["engine"], "zero_stage": found["zero_stage"]}
    distributed = loaded.recipe.distributed.model_copy(update=chosen)
    return replace(loaded, recipe=loaded.recipe.model_copy(update={"distributed": distributed}))


def checkpoint_bytes(recipe: Recipe, launch: LaunchPlan) -> int | None:
    """Return the bytes of one checkpoint, at most; None where the model's numbers are not on this machine."""
    name = recipe.model.name_or_path
    folder = folder_on_disk(name) if name is not None else None
    shape = _shape(_numbers(recipe, folder), folder)
    if shape is None:
        return None
    need = disk_need(recipe, launch, total_numel=shape.numel, trainable_numel=shape.numel, has_adapters=False)
    return need.checkpoint


def _planned_elsewhere(loaded: LoadedRecipe, *, runs: Path, gpu: tuple[str, int] | None) -> dict[str, Any] | None:
    """Return what ``launcher plan --json`` says of the recipe; None where it says nothing."""
    with tempfile.TemporaryDirectory(prefix="launcher-plan-") as folder:
        path = Path(folder) / "recipe.yaml"
        write_text(path, resolved_text(loaded.recipe))
        command = [sys.executable, "-m", "launcher.cli", "plan", str(path), "--json", "--runs-dir", str(runs)]
        command += ["--gpu", gpu[0], "--gpus-per-node", str(gpu[1])] if gpu else []
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONWARNINGS": "ignore"})
    try:
        values = json.loads(done.stdout)
    except ValueError:
        # The run will meet the same fault, and say so in its own words.
        return None
    found: dict[str, Any] = values["whole"]
    return found


# --- obvious cases ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Shape:
    """A model's numbers, as its configuration and its files have them."""

    numel: int
    hidden: int
    layers: int
    heads: int
    vocabulary: int


def _obviously_fits(shape: _Shape, recipe: Recipe, launch: LaunchPlan, hardware: Hardware, *, runs: Path) -> bool:
    from launcher.strategies.prefix_facts import free_room

    memory, _ = free_room(Path.cwd())
    capacity = capacity_of(hardware, launch, available=int(memory))
    disk = disk_need(recipe, launch, total_numel=shape.numel, trainable_numel=shape.numel, has_adapters=False)
    generous = _generous_bytes(shape, recipe, launch)
    return generous < _OBVIOUS_SHARE * capacity.device_bytes and disk.total < free_bytes(runs)


def _generous_bytes(shape: _Shape, recipe: Recipe, launch: LaunchPlan) -> float:
    """Return more than a run should need, in fp32 and without anything that saves memory.

    Activations of a layer are at most 34 h + 5 a s bytes a token in 16 bits (Korthikanti et al. 2022, arXiv:2205.05198, section 4.1)
    for hidden size h, a heads and s tokens; twice that in 32, and twice again to be safe.
    """
    length = (recipe.data.max_length or 512) * (2 if recipe.task.type in PAIR_TASKS else 1)
    training, evaluation = (
        _most_tokens(recipe, launch, length=length),
        recipe.training.per_device_eval_batch_size * length,
    )
    layer = 4 * (34 * shape.hidden + 5 * shape.heads * length)
    logits = 4 * 4 * shape.vocabulary if recipe.task.type in ("causal-lm", "masked-lm", "sft", "preference") else 0
    activations = max(training * (shape.layers * layer + logits), evaluation * (2 * layer + logits))
    return _BASE_BYTES + _BYTES_A_PARAMETER * shape.numel + activations


def _most_tokens(recipe: Recipe, launch: LaunchPlan, *, length: int) -> int:
    """Return at least as many tokens as a rank trains on at a time, whose rows have at most ``length``."""
    batch = launch.batch
    if batch.budget is None:
        return batch.micro_batch_size * length
    share = -(-batch.budget.tokens // batch.world_size) + length + MULTIPLE
    return min(share, recipe.training.per_device_train_tokens or share)


def _numbers(recipe: Recipe, folder: Path | None) -> dict[str, Any]:
    """Return the fields of the model's configuration, the recipe's own first; {} where they are not on this machine."""
    given = recipe.model.config or {}
    if folder is None:
        return given if "model_type" in given else {}
    try:
        return {**json.loads((folder / "config.json").read_text()), **given}
    except (OSError, ValueError):
        return {}


def _shape(numbers: dict[str, Any], folder: Path | None) -> _Shape | None:
    """Return the model's shape; None where it cannot be told without building the model."""
    try:
        hidden, layers, heads, vocabulary = (
            int(numbers[key]) for key in ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
        )
    except (KeyError, TypeError, ValueError):
        return None
    if folder is None:
        return None
    numel = sum(_numel(path) for path in folder.glob("*.safetensors"))
    numel = numel or sum(path.stat().st_size // 2 for path in folder.glob("*.bin"))
    return _Shape(numel, hidden, layers, heads, vocabulary) if numel else None


def _numel(path: Path) -> int:
    """Return the elements of a safetensors file, from its header."""
    import math

    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return sum(math.prod(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__")
