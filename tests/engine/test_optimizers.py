"""Each optimizer builds or says what is missing; penalties and clipping against their closed forms."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Trainer
from transformers.training_args import OptimizerNames

from launcher.engine.arguments import training_arguments
from launcher.engine.optimizers import base_optimizer, make_optimizer, regularize_before_step
from launcher.errors import InstallationError
from launcher.plans import BatchPlan, LaunchPlan
from launcher.recipe.optimizer_keys import DEFAULT_OPTIMIZER, OPTIMIZERS, OURS, options_in
from launcher.recipe.schema import Recipe
from launcher.recipe.training_tables import FOREIGN_OPTIMIZERS

PLAN = LaunchPlan("single", None, "fp32", "cpu", 1, 1, BatchPlan(8, 1, 8, 1))


def arguments(tmp_path: Path, **training: Any) -> Any:
    recipe = Recipe.model_validate(
        {
            "version": 1,
            "name": "r",
            "task": {"type": "text-classification"},
            "model": {"name_or_path": "m"},
            "data": {"source": "s"},
            "training": {"learning_rate": 0.1, **training},
        }
    )
    return training_arguments(recipe, PLAN, output_dir=str(tmp_path))


def model() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Linear(3, 2))


def groups(module: torch.nn.Module) -> list[dict[str, Any]]:
    return [
        {
            "params": list(layer.parameters()), "lr": lr, "weight_decay": decay, "name": name,
            "l1_penalty": 0.0, "l2_penalty": 0.0,
        }
        for layer, lr, decay, name in zip(module, (0.1, 0.01), (0.5, 0.0), ("low", "high"), strict=True)
    ]  # fmt: skip


def one_step(optimizer: torch.optim.Optimizer, module: torch.nn.Module) -> None:
    module(torch.ones(2, 4)).pow(2).sum().backward()
    optimizer.step()
    optimizer.zero_grad()


# --- building ----------------------------------------------------------------------------------------------------------


def test_the_table_has_every_name_but_foreign_ones() -> None:
    names = {name.value for name in OptimizerNames if not name.value.startswith(FOREIGN_OPTIMIZERS)}
    assert set(OPTIMIZERS) == names | set(OURS)


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_each_builds_with_our_groups_or_says_what_is_missing(tmp_path: Path, name: str) -> None:
    module, package = model(), OPTIMIZERS[name].package
    before = [parameter.detach().clone() for parameter in module.parameters()]
    found = arguments(tmp_path, optim=name)
    if package is not None and importlib.util.find_spec(package) is None:
        with pytest.raises(InstallationError, match=f"training.optim is {name}, which needs the package {package}"):
            make_optimizer(found, groups(module), module)
        return
    optimizer = make_optimizer(found, groups(module), module)
    kept = [(g["name"], g["lr"], g["weight_decay"], g["l1_penalty"]) for g in optimizer.param_groups]
    assert kept == [("low", 0.1, 0.5, 0.0), ("high", 0.01, 0.0, 0.0)]
    one_step(optimizer, module)
    assert all(not torch.equal(old, new) for old, new in zip(before, module.parameters(), strict=True))


def test_the_default_is_fused_adamw(tmp_path: Path) -> None:
    module = model()
    optimizer = make_optimizer(arguments(tmp_path), groups(module), module)
    assert type(optimizer) is torch.optim.AdamW and optimizer.defaults["fused"] is True
    assert arguments(tmp_path).optim == DEFAULT_OPTIMIZER


@pytest.mark.parametrize("name", sorted(name for name in set(OPTIMIZERS) - set(OURS) if not OPTIMIZERS[name].package))
def test_others_are_built_as_trainer_builds_them(tmp_path: Path, name: str) -> None:
    module, found = model(), arguments(tmp_path, optim=name)
    wanted, options = Trainer.get_optimizer_cls_and_kwargs(found, module)
    optimizer = make_optimizer(found, groups(module), module)
    assert type(optimizer) is wanted
    assert options.items() <= optimizer.defaults.items()


@pytest.mark.parametrize(
    ("name", "key", "default"),
    [
        (name, key, option)
        for name, row in OPTIMIZERS.items()
        if row.package is None
        for key, option in row.options.items()
    ],
)
def test_options_reach_the_optimizer(tmp_path: Path, name: str, key: str, default: Any) -> None:
    value, text = (True, "true") if default.kind == "flag" else (0.25, "0.25")
    module = model()
    optimizer = make_optimizer(arguments(tmp_path, optim=name, optim_args=f"{key}={text}"), groups(module), module)
    assert optimizer.defaults[key] == value
    plain = make_optimizer(arguments(tmp_path, optim=name), groups(module), module)
    assert plain.defaults[key] == default.default, "the table's default is the optimizer's"


def test_options_in_a_text() -> None:
    assert options_in("a=1, b = true") == {"a": "1", "b": "true"}
    for wrong in ("a", "a=", "=1", "a=1,,b=2", "a=b=c", ""):
        with pytest.raises(ValueError):
            options_in(wrong)


def test_betas_and_epsilon_reach_adam(tmp_path: Path) -> None:
    for name in ("adam", "adamw_torch"):
        module = model()
        found = arguments(tmp_path, optim=name, adam_beta1=0.8, adam_beta2=0.95, adam_epsilon=1e-6)
        defaults = make_optimizer(found, groups(module), module).defaults
        assert (defaults["betas"], defaults["eps"]) == ((0.8, 0.95), 1e-6)


def test_the_decay_of_adam_is_in_the_gradient_and_that_of_adamw_is_not(tmp_path: Path) -> None:
    after = {}
    for name in ("adam", "adamw_torch"):
        module = torch.nn.Linear(1, 1, bias=False)
        torch.nn.init.constant_(module.weight, 2.0)
        group = {"params": [module.weight], "lr": 0.1, "weight_decay": 0.5}
        optimizer = make_optimizer(arguments(tmp_path, optim=name), [group], module)
        module.weight.grad = torch.zeros(1, 1)
        optimizer.step()
        after[name] = module.weight.item()
    # Adam's first step is the rate times the gradient's sign; AdamW's is lr * decay * weight.
    assert after["adam"] == pytest.approx(2 - 0.1)
    assert after["adamw_torch"] == pytest.approx(2 - 0.1 * 0.5 * 2)


def test_adafactor_follows_the_rates_of_its_groups(tmp_path: Path) -> None:
    steps = {}
    for factor in (1.0, 0.1):
        module = model()
        before = [parameter.detach().clone() for parameter in module.parameters()]
        optimizer = make_optimizer(
            arguments(tmp_path, optim="adafactor"), [{**g, "weight_decay": 0.0} for g in groups(module)], module
        )
        for group in optimizer.param_groups:
            group["lr"] *= factor
        one_step(optimizer, module)
        steps[factor] = [new.detach() - old for new, old in zip(module.parameters(), before, strict=True)]
    for whole, tenth in zip(steps[1.0], steps[0.1], strict=True):
        assert torch.allclose(whole * 0.1, tenth, atol=1e-7)


@pytest.mark.parametrize(("given", "momentum"), [({}, 0.9), ({"momentum": 0.5}, 0.5), ({"momentum": 0.0}, 0.0)])
def test_momentum_of_sgd(tmp_path: Path, given: dict[str, float], momentum: float) -> None:
    weight = torch.nn.Parameter(torch.tensor([1.0]))
    group = {"params": [weight], "lr": 0.1, "weight_decay": 0.0}
    optimizer = make_optimizer(arguments(tmp_path, optim="sgd", **given), [group], None)
    velocity, wanted = 0.0, 1.0
    for _ in range(4):
        weight.grad = torch.tensor([2.0])
        optimizer.step()
        velocity = momentum * velocity + 2.0
        wanted -= 0.1 * velocity
    assert weight.item() == pytest.approx(wanted)


def test_momentum_goes_beside_other_options(tmp_path: Path) -> None:
    module = model()
    found = arguments(tmp_path, optim="sgd", momentum=0.8, optim_args="nesterov=true")
    defaults = make_optimizer(found, groups(module), module).defaults
    assert (defaults["momentum"], defaults["nesterov"]) == (0.8, True)


def test_trainers_own_schedule_stays_out_of_the_way(tmp_path: Path) -> None:
    found = arguments(
        tmp_path, lr_scheduler_type="one_cycle", lr_scheduler_kwargs={"pct_start": 0.2}, optim="adam",
        l1_penalty=0.1, max_grad_value=1.0, batch_size_schedule=[{"epoch": 1, "global_batch_size": 4}],
    )  # fmt: skip
    assert (found.lr_scheduler_type.value, found.warmup_steps, found.lr_scheduler_kwargs) == ("constant", 0, None)
    assert found.optim == "adam"


# --- penalties and clipping ------------------------------------------------------------------------------------------------


def sgd(values: list[float], *, lr: float = 0.1, **penalties: float) -> tuple[torch.nn.Parameter, torch.optim.SGD]:
    weight = torch.nn.Parameter(torch.tensor(values))
    return weight, torch.optim.SGD([{"params": [weight], "lr": lr, **penalties}])


def test_l1_and_l2_on_sgd() -> None:
    weight, optimizer = sgd([2.0, -3.0, 0.0], l1_penalty=0.5, l2_penalty=0.2)
    regularize_before_step(optimizer, max_grad_value=None)
    weight.grad = torch.tensor([1.0, 1.0, 1.0])
    optimizer.step()
    wanted = [w - 0.1 * (1 + 0.2 * w + 0.5 * s) for w, s in ((2.0, 1), (-3.0, -1), (0.0, 0))]
    assert weight.tolist() == pytest.approx(wanted)


def test_l2_alone_shrinks_by_its_closed_form() -> None:
    weight, optimizer = sgd([2.0, -1.0], l2_penalty=0.3)
    regularize_before_step(optimizer, max_grad_value=None)
    for _ in range(5):
        weight.grad = torch.zeros(2)
        optimizer.step()
    assert weight.tolist() == pytest.approx([2 * (1 - 0.03) ** 5, -1 * (1 - 0.03) ** 5])


def test_l1_alone_falls_by_a_constant() -> None:
    weight, optimizer = sgd([2.0, -1.0], l1_penalty=0.3)
    regularize_before_step(optimizer, max_grad_value=None)
    for _ in range(5):
        weight.grad = torch.zeros(2)
        optimizer.step()
    assert weight.tolist() == pytest.approx([2 - 5 * 0.03, -1 + 5 * 0.03])


def test_gradients_are_clipped_by_value_after_the_penalties() -> None:
    weight, optimizer = sgd([1.0, 1.0, 1.0, 1.0], lr=1.0, l2_penalty=0.5)
    regularize_before_step(optimizer, max_grad_value=2.0)
    weight.grad = torch.tensor([5.0, -5.0, 1.8, -1.0])
    optimizer.step()
    assert weight.tolist() == pytest.approx([1 - 2, 1 + 2, 1 - 2, 1 + 0.5])


def test_penalties_belong_to_their_group() -> None:
    first, second = (torch.nn.Parameter(torch.tensor([1.0])) for _ in range(2))
    optimizer = torch.optim.SGD([{"params": [first], "l1_penalty": 1.0}, {"params": [second]}], lr=0.1)
    regularize_before_step(optimizer, max_grad_value=None)
    first.grad, second.grad = torch.zeros(1), torch.zeros(1)
    optimizer.step()
    assert (first.item(), second.item()) == (pytest.approx(0.9), 1.0)


def test_parameters_without_a_gradient_stay() -> None:
    weight, optimizer = sgd([2.0], l1_penalty=1.0)
    regularize_before_step(optimizer, max_grad_value=1.0)
    optimizer.step()
    assert weight.item() == 2.0


def test_nothing_is_hooked_where_there_is_nothing_to_do() -> None:
    _, optimizer = sgd([1.0], l1_penalty=0.0)
    assert regularize_before_step(optimizer, max_grad_value=None) is None
    assert not optimizer._optimizer_step_pre_hooks


def test_a_hook_can_be_removed() -> None:
    weight, optimizer = sgd([2.0], l1_penalty=1.0)
    regularize_before_step(optimizer, max_grad_value=None).remove()
    weight.grad = torch.zeros(1)
    optimizer.step()
    assert weight.item() == 2.0


@pytest.mark.parametrize("fused", [True, False])
def test_adamw_sees_the_penalized_gradient(fused: bool) -> None:
    found = []
    for by_hand in (True, False):
        weight = torch.nn.Parameter(torch.tensor([2.0, -3.0]))
        group = {"params": [weight], **({} if by_hand else {"l1_penalty": 0.5, "l2_penalty": 0.2})}
        optimizer = torch.optim.AdamW([group], lr=0.1, fused=fused)
        regularize_before_step(optimizer, max_grad_value=None)
        for _ in range(3):
            weight.grad = torch.tensor([1.0, 0.3])
            if by_hand:
                weight.grad += 0.2 * weight.detach() + 0.5 * weight.detach().sign()
            optimizer.step()
        found.append(weight.tolist())
    assert found[0] == pytest.approx(found[1])


@pytest.mark.parametrize("fused", [True, False])
def test_a_loss_scale_changes_nothing(fused: bool) -> None:
    found = []
    for scale in (1.0, 1024.0):
        weight = torch.nn.Parameter(torch.tensor([2.0, -3.0]))
        group = {"params": [weight], "l1_penalty": 0.5, "l2_penalty": 0.2}
        optimizer = torch.optim.SGD([group], lr=0.1, fused=fused)
        regularize_before_step(optimizer, max_grad_value=0.9)
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        scaler.scale((weight * torch.tensor([0.1, 5.0])).sum()).backward()
        scaler.step(optimizer)
        found.append(weight.tolist())
    assert found[0] == pytest.approx([2 - 0.1 * 0.9, -3 - 0.1 * 0.9])
    assert found[1] == pytest.approx(found[0])


def test_the_hook_reaches_through_accelerates_wrapper() -> None:
    from accelerate import Accelerator

    weight, optimizer = sgd([2.0], l1_penalty=1.0)
    wrapped = Accelerator(cpu=True).prepare(optimizer)
    assert base_optimizer(wrapped) is optimizer
    regularize_before_step(wrapped, max_grad_value=None)
    weight.grad = torch.zeros(1)
    wrapped.step()
    assert weight.item() == pytest.approx(1.9)
