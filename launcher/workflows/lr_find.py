"""The learning-rate range test: train a few steps in this process while the rate grows, and keep nothing but the losses."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launcher import registry
from launcher.contracts import TARGETS, Phase, Prepared
from launcher.evaluation.range_test import RangeTest, exponential_rates, has_diverged, read_range_test
from launcher.launching.launch_plan import plan_launch
from launcher.planning.token_budget import with_settled_batch
from launcher.plans import Hardware, LaunchPlan, PlannedPhase
from launcher.recipe.load import LoadedRecipe
from launcher.recipe.schema import Recipe

if TYPE_CHECKING:
    from launcher.data.streams import Stream


@dataclass(frozen=True)
class _Setting:
    """What every step needs."""

    recipe: Recipe
    launch: LaunchPlan
    task: Any
    model: Any
    optimizer: Any
    scaler: Any
    device: Any


def find_rate(
    loaded: LoadedRecipe,
    *,
    min_lr: float,
    max_lr: float,
    steps: int,
    hardware: Hardware | None = None,
    base_folder: Path | None = None,
    tell: Callable[[str], object] = lambda text: None,
) -> RangeTest:
    """Train up to ``steps`` steps while the rate grows from ``min_lr`` to ``max_lr``, and read the losses.

    Model, tuning table, loss, optimizer, clipping, precision and the order of rows are those of the run; the rate is
    training.learning_rate's, and the groups keep their ratios to it. One process, nothing sharded, no schedule. The phase is
    the one in which the most trains.

    Args:
        hardware: this machine; found where it is None.
        base_folder: what the recipe's paths are relative to; None: the current folder.
        tell: told what happens, a line at a time.

    Raises:
        DataError, ModelError, RecipeError: as a run would.
    """
    from transformers.utils import logging

    from launcher.planning.hardware import hardware_for

    # Bars and the report of loaded weights are not what someone who asked for a rate wants to read.
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    recipe = _alone(loaded.recipe)
    launch = plan_launch(recipe, hardware or hardware_for(recipe))
    task = registry.load(registry.TASKS, recipe.task.type)(recipe, base_folder=base_folder or Path.cwd())
    _, prepared = task.prepare_data()
    launch = with_settled_batch(recipe, launch, prepared)
    model, phase = _model_and_phase(recipe, launch, task, prepared)
    tell(f"phase {phase.name}: {phase.table.trainable_numel:,} of {phase.table.total_numel:,} parameters train")
    setting = _setting(recipe, launch, task, model, phase)
    rates, losses = exponential_rates(min_lr, max_lr, steps), []
    parts = _batches(setting, phase, prepared, steps=steps)
    if task.reference_columns:
        # It is told by the model before its first step.
        parts = _with_references(setting, phase, parts)
    for step, (rate, batches) in enumerate(zip(rates, parts, strict=True)):
        losses.append(_step(setting, phase, batches, scale=float(rate) / recipe.training.learning_rate))
        if (step + 1) % 10 == 0:
            tell(f"step {step + 1}/{steps}  rate {rate:.2e}  loss {losses[-1]:.4f}")
        if has_diverged(losses):
            tell(f"step {step + 1}/{steps}  rate {rate:.2e}: the loss has diverged")
            break
    return read_range_test(rates[: len(losses)].tolist(), losses)


def _alone(recipe: Recipe) -> Recipe:
    """Return the recipe for one process."""
    one = {"nodes": 1, "processes_per_node": 1, "engine": "single", "zero_stage": None}
    return recipe.model_copy(update={"distributed": recipe.distributed.model_copy(update=one)})


def _model_and_phase(recipe: Recipe, launch: LaunchPlan, task: Any, prepared: Prepared) -> tuple[Any, Phase]:
    """Build the model as a run does, and make it what the phase with the most parameters in training says."""
    from launcher.strategies.preparing import prepare_model
    from launcher.workflows.building import build_model

    model, parameters = build_model(recipe, launch, task, prepared)
    phases = registry.load(registry.STRATEGIES, recipe.strategy.type)().phases(parameters, recipe)
    phase: Phase = max(phases, key=lambda one: one.table.trainable_numel)
    return prepare_model(model, phase), phase


def _setting(recipe: Recipe, launch: LaunchPlan, task: Any, model: Any, phase: Phase) -> _Setting:
    import torch

    from launcher.engine.arguments import training_arguments
    from launcher.engine.optimizers import make_optimizer, optimizer_groups, regularize_before_step
    from launcher.strategies.quantization import is_quantized

    device = torch.device(launch.device)
    if not is_quantized(recipe.strategy):
        # Quantised weights are where they were loaded, and may not be moved.
        model.to(device)
    _set_training(model, phase)
    with tempfile.TemporaryDirectory() as folder:
        arguments = training_arguments(recipe, launch, output_dir=folder)
    optimizer = make_optimizer(arguments, optimizer_groups(model, phase.table), model)
    regularize_before_step(optimizer, max_grad_value=recipe.training.max_grad_value)
    scaler = torch.amp.GradScaler(launch.device, enabled=launch.precision == "fp16")
    return _Setting(recipe, launch, task, model, optimizer, scaler, device)


def _set_training(model: Any, phase: Phase) -> None:
    from launcher.strategies.preparing import modules_kept_in_eval

    model.train()
    for module in modules_kept_in_eval(model, phase):
        module.eval()


def _batches(setting: _Setting, phase: Phase, prepared: Prepared, *, steps: int) -> Iterator[list[dict[str, Any]]]:
    """Yield the micro-batches of each optimizer step in the order of a run's first steps."""
    import numpy as np

    from launcher.data.sampling import PhaseBatches, RankBatches
    from launcher.engine.loading import Rows

    training, batch = setting.recipe.training, setting.launch.batch
    size, collate = batch.global_batch_size, setting.task.collator(training=True)
    if prepared.stream is not None:
        also = setting.task.read_in_training
        yield from _streamed(
            prepared.stream, collate, size=size, accumulation=batch.accumulation, steps=steps, also=also
        )
        return
    count = batch.units(prepared.epoch_rows)
    order = PhaseBatches(
        lengths=np.asarray(prepared.train["length"][:]),
        phase=PlannedPhase(phase, first_step=0, steps=steps, batch=batch, rows=count, epoch_batch_size=size),
        seed=training.passthrough.get("data_seed", training.seed),
        order=training.train_sampling_strategy,
        draws=prepared.draws,
    )
    parts = iter(RankBatches(order, accumulation=batch.accumulation, rank=0, world_size=1))
    rows = Rows(prepared.train, also=setting.task.read_in_training)
    for _ in range(steps):
        yield [collate(rows.__getitems__(part)) for part in islice(parts, batch.accumulation)]


def _streamed(
    stream: Stream, collate: Any, *, size: int, accumulation: int, steps: int, also: Sequence[str]
) -> Iterator[list[dict[str, Any]]]:
    """Yield the micro-batches of each step of a stream."""
    from launcher.data.streams import Position
    from launcher.engine.streaming import StreamedBatches

    spread = {"accumulation": accumulation, "rank": 0, "world_size": 1}
    parts = iter(StreamedBatches(stream, start=Position(), steps=steps, size=size, spread=spread, also=also))
    for _ in range(steps):
        yield [collate(part.rows) for part in islice(parts, accumulation)]


def _step(setting: _Setting, phase: Phase, batches: list[dict[str, Any]], *, scale: float) -> float:
    """Take one optimizer step with every group's rate times ``scale``; return the mean loss of its rows before it."""
    import torch

    for group, planned in zip(setting.optimizer.param_groups, phase.table.trainable, strict=True):
        group["lr"] = planned.lr * scale
    items = sum(float(setting.task.items(batch)) for batch in batches)
    total = 0.0
    for batch in batches:
        loss = _loss(setting, batch) / max(items, 1e-12)
        setting.scaler.scale(loss).backward()
        total += float(loss.detach())
    setting.scaler.unscale_(setting.optimizer)
    norm = setting.recipe.training.max_grad_norm
    if norm > 0:
        tensors = [tensor for group in setting.optimizer.param_groups for tensor in group["params"]]
        torch.nn.utils.clip_grad_norm_(tensors, norm)
    setting.scaler.step(setting.optimizer)
    setting.scaler.update()
    setting.optimizer.zero_grad(set_to_none=True)
    return total


def _with_references(
    setting: _Setting, phase: Phase, parts: Iterator[list[dict[str, Any]]]
) -> Iterator[list[dict[str, Any]]]:
    """Return the batches of every step with what the model, as it is now, makes of their rows."""
    setting.model.eval()
    found = [[_with_reference(setting, batch) for batch in batches] for batches in parts]
    _set_training(setting.model, phase)
    return iter(found)


def _with_reference(setting: _Setting, batch: dict[str, Any]) -> dict[str, Any]:
    import torch

    moved = _on_device(setting, batch)
    with torch.no_grad():
        outputs = _forward(setting, {name: value for name, value in moved.items() if name not in TARGETS})
        kept = setting.task.row_outputs(outputs, moved)
    return {**batch, "reference": kept[:, : len(setting.task.reference_columns)].float().cpu()}


def _on_device(setting: _Setting, batch: dict[str, Any]) -> dict[str, Any]:
    import torch

    return {key: value.to(setting.device) if isinstance(value, torch.Tensor) else value for key, value in batch.items()}


def _forward(setting: _Setting, inputs: dict[str, Any]) -> Any:
    """Return the model's outputs, computed in the run's precision."""
    import torch

    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(setting.launch.precision)
    with torch.autocast(setting.launch.device, dtype=dtype, enabled=dtype is not None):
        return setting.model(**inputs)


def _loss(setting: _Setting, batch: dict[str, Any]) -> Any:
    """Return the summed loss of a micro-batch."""
    moved = _on_device(setting, batch)
    targets = {name: moved.pop(name) for name in TARGETS if name in moved}
    outputs = _forward(setting, moved)
    smoothing = setting.recipe.training.label_smoothing_factor
    return setting.task.loss(outputs, targets, label_smoothing=smoothing)
