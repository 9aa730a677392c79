"""Keep what a run has trained: model/, which transformers loads, and adapter/ where there are adapters."""

from __future__ import annotations

from typing import Any

from launcher.engine.checkpoints import save_adapter_folder, save_model_folder
from launcher.engine.context import RunContext
from launcher.strategies.adapters import merged_from_state
from launcher.strategies.quantization import is_quantized, whole_state


def save_model(trainer: Any) -> None:
    """Gather the weights on all ranks; rank 0 writes them, adapters merged into the weights that they adapt."""
    context: RunContext = trainer.context
    quantized = is_quantized(context.recipe.strategy)
    state = whole_state(trainer.model) if quantized else trainer.final_state_dict()
    if context.progress.rank != 0:
        return
    task, prepared, run = context.task, context.prepared, context.run
    model, adapters = trainer.model, context.planned.phase.adapters
    zero_stage = context.launch.zero_stage
    if adapters is not None:
        save_adapter_folder(model, run.adapter, state_dict=state)
        context.progress.say(f"adapter: {run.adapter}")
        model = merged_from_state(_skeleton(task, prepared), adapters, state)
        # These are whole tensors of our own, whatever the engine had.
        state, zero_stage = None, None
    save_model_folder(
        model, task.tokenizer, run.model,
        state_dict=state, zero_stage=zero_stage, facts=task.model_facts(prepared),
    )  # fmt: skip
    context.progress.say(f"model: {run.model}")


def _skeleton(task: Any, prepared: Any) -> Any:
    """Return the model on the meta device, outside DeepSpeed's partitioning."""
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    unset_hf_deepspeed_config()
    return task.build_model(prepared, skeleton=True).model
