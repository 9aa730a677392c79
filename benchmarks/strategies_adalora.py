"""PEFT's AdaLoRA on the rows, batches, loss, schedule and evaluation of a launcher run, in a small loop of its own.

AdaLoRA (Zhang et al. 2023, "Adaptive Budget Allocation for Parameter-Efficient Fine-Tuning") writes an update as B diag(E) A, begins
with 1.5 times the final rank, as its authors do, and masks the least sensitive entries of E while it trains, over all layers together.
launcher's ``lora`` of the same recipe says which modules get adapters, and which train whole.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from peft import AdaLoraConfig, get_peft_model
from transformers import set_seed

from launcher import registry
from launcher.contracts import AdapterPlan, Prepared
from launcher.data.sampling import PhaseBatches
from launcher.engine.loading import Rows
from launcher.engine.predicting import predict_logits
from launcher.planning.plan import plan_run
from launcher.plans import RunPlan
from launcher.recipe.schema import Recipe
from launcher.strategies.layers import list_parameters
from launcher.strategies.schedules import schedule_factor
from launcher.workflows.rank import Session

FIRST_RANK = 1.5
"""The rank to begin with, over the final mean rank."""
WARM_UP, SETTLED = 0.1, 0.4
"""Share of the steps before ranks begin to fall, and share after they have."""
ORTHOGONALITY = 0.5
"""Weight of the penalty that keeps A and B orthogonal: PEFT's default."""
_TOLD_EVERY = 10


def train_adalora(
    session: Session, *, rank: int, scale: float, head_rate: float, say: Callable[[str], object]
) -> dict[str, Any]:
    """Train a run with AdaLoRA in place of its strategy; return predictions on test, and facts.

    Args:
        rank: final mean rank.
        scale: of the update: lora_alpha over the rank that PEFT divides by, which stays the first one.
        head_rate: rate of what trains whole.
        say: told what happens, in the words of launcher's own line.
    """
    recipe = session.recipe
    task = registry.load(registry.TASKS, recipe.task.type)(recipe, base_folder=session.base_folder)
    _, prepared = task.prepare_data()
    say("data: prepared")
    set_seed(recipe.training.seed)
    loaded = task.build_model(prepared)
    parameters = list_parameters(loaded.model, newly_initialized=loaded.newly_initialized)
    phases = registry.load(registry.STRATEGIES, recipe.strategy.type)().phases(parameters, recipe)
    plan = plan_run(recipe, session.launch, phases, train_rows=len(prepared.train), facts=prepared.facts)
    adapters = phases[0].adapters
    assert adapters is not None
    model = attach(loaded.model, adapters, rank=rank, scale=scale, steps=plan.total_steps)
    say("plan: AdaLoRA")
    run_steps(model, task, prepared, recipe, plan, head_rate=head_rate, say=say)
    say("adapter: trained")
    with autocast(plan):
        logits, _ = predict_logits(model, prepared.test, task.collator(), batch_size=64, device="cpu")
    return {
        "predictions": task.predictions(logits, prepared.test, prepared),
        "trainable": sum(tensor.numel() for tensor in model.parameters() if tensor.requires_grad),
        "steps": plan.total_steps,
        "ranks": ranks_of(model),
    }


def attach(model: Any, adapters: AdapterPlan, *, rank: int, scale: float, steps: int) -> Any:
    """Return the model with AdaLoRA on the modules of ``adapters``; what trains whole there trains whole here."""
    first = round(rank * FIRST_RANK)
    config = AdaLoraConfig(
        init_r=first,
        target_r=rank,
        # PEFT divides by the first rank for good, however many entries are masked later.
        lora_alpha=round(scale * first),
        tinit=round(WARM_UP * steps),
        tfinal=round(SETTLED * steps),
        deltaT=1,
        total_step=steps,
        orth_reg_weight=ORTHOGONALITY,
        target_modules=list(adapters.ranks),
        modules_to_save=list(adapters.modules_to_save) or None,
    )
    return get_peft_model(model, config)


def run_steps(
    model: Any,
    task: Any,
    prepared: Prepared,
    recipe: Recipe,
    plan: RunPlan,
    *,
    head_rate: float,
    say: Callable[[str], object],
) -> None:
    """Train through the plan's only phase."""
    training, phase = recipe.training, plan.phases[0]
    batches = PhaseBatches(np.asarray(prepared.train["length"]), phase, training.seed, training.train_sampling_strategy)
    rows, collate = Rows(prepared.train), task.collator()
    parts: dict[bool, list[Any]] = {False: [], True: []}
    for name, tensor in model.named_parameters():
        if tensor.requires_grad:
            parts[".modules_to_save." in name].append(tensor)
    rates = {False: training.learning_rate, True: head_rate}
    groups = [{"params": tensors, "lr": rates[is_whole]} for is_whole, tensors in parts.items()]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0, fused=True)
    trained = [tensor for tensors in parts.values() for tensor in tensors]
    factor = schedule_factor(recipe, total_steps=plan.total_steps, warmup_steps=plan.warmup_steps)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    model.train()
    for step, numbers in enumerate(batches, 1):
        batch = collate(rows.__getitems__([int(number) for number in numbers]))
        targets = {name: batch.pop(name) for name in ("labels", "sample_weight")}
        with autocast(plan):
            loss = task.loss(model(**batch), targets) / task.items(targets)
        # PEFT adds this only to a loss that the model itself computes.
        (loss + ORTHOGONALITY * orthogonality(model)).backward()
        torch.nn.utils.clip_grad_norm_(trained, training.max_grad_norm)
        optimizer.step()
        schedule.step()
        # Needs the gradients of this step, and comes after it.
        model.base_model.update_and_allocate(step)
        optimizer.zero_grad()
        if step % _TOLD_EVERY == 0:
            say(f"step {step}/{plan.total_steps}  loss {loss.item():.4f}")


def orthogonality(model: Any) -> torch.Tensor:
    """Return the mean over all A and B of the Frobenius norm of A Aᵀ − I and Bᵀ B − I (Zhang et al. 2023, equation 4, without
    the square, as in PEFT), a scalar.
    """
    norms = []
    for name, tensor in model.named_parameters():
        if ".lora_A." in name or ".lora_B." in name:
            product = tensor @ tensor.T if ".lora_A." in name else tensor.T @ tensor
            norms.append((product - torch.eye(len(product))).norm())
    return torch.stack(norms).mean()


def ranks_of(model: Any) -> dict[str, int]:
    """Return module -> entries of E that are not masked."""
    found = {}
    for name, tensor in model.named_parameters():
        if ".lora_E." in name:
            module = name.partition(".lora_E.")[0].removeprefix("base_model.model.")
            found[module.partition("encoder.layer.")[2] or module] = int((tensor != 0).sum())
    return found


def autocast(plan: RunPlan) -> contextlib.AbstractContextManager[Any]:
    """Return the precision that a run of this plan computes in."""
    if plan.launch.precision == "bf16":
        return torch.autocast(plan.launch.device, torch.bfloat16)
    return contextlib.nullcontext()
