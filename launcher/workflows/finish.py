"""Keep what a run has trained: model/, which transformers loads, and adapter/ where there are adapters."""

from __future__ import annotations

from typing import Any

from launcher.engine.checkpoints import save_adapter_folder, save_model_folder
from launcher.engine.context import RunContext
from launcher.strategies.adapters import merged_from_state
from launcher.strategies.quantization import is_quantized, whole_state
from launcher.workflows.saved_model import SavedModelCheck, ask_live_model, make_probe


def save_model(trainer: Any, check: SavedModelCheck) -> None:
    """Gather the weights on all ranks; rank 0 writes them, adapters merged into the weights that they adapt.

    ``check`` is told what the live model gives for a few rows, and what was to be saved.
    """
    context: RunContext = trainer.context
    answers = ask_live_model(trainer) if check.is_wanted else None
    state = whole_state(trainer.model) if is_quantized(context.recipe.strategy) else trainer.final_state_dict()
    if context.progress.rank != 0:
        return
    model, adapters = trainer.model, context.planned.phase.adapters
    zero_stage, adapter_state = context.launch.zero_stage, None
    if adapters is not None:
        save_adapter_folder(model, context.run.adapter, state_dict=state)
        context.progress.say(f"adapter: {context.run.adapter}")
        adapter_state = state
        model = merged_from_state(_skeleton(context.task, context.prepared), adapters, state)
        # These are whole tensors of our own, whatever the engine had.
        state, zero_stage = None, None
    save_model_folder(
        model, context.task.processor, context.run.model,
        state_dict=state, zero_stage=zero_stage, facts=context.task.model_facts(context.prepared),
    )  # fmt: skip
    context.progress.say(f"model: {context.run.model}")
    if answers is not None:
        saved = model.state_dict() if state is None else state
        check.expect(answers, make_probe(trainer, answers, state=saved, adapter_state=adapter_state))


def _skeleton(task: Any, prepared: Any) -> Any:
    """Return the model on the meta device, outside DeepSpeed's partitioning."""
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    unset_hf_deepspeed_config()
    return task.build_model(prepared, skeleton=True).model
