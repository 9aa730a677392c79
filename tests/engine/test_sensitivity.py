"""Statistics in the optimizer's state: their closed form, on any optimizer, through checkpoints, and under every engine."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from launcher.engine.sensitivity import (
    GRADIENT_SUM,
    IMPORTANCE,
    UNCERTAINTY,
    GradientSum,
    InputVariance,
    gather_statistics,
    sensitivity_scores,
    summed_gradient_scores,
    track_sensitivity,
)

WORKER = Path(__file__).with_name("sensitivity_ranks.py")


def step_with(optimizer: torch.optim.Optimizer, parameter: torch.Tensor, gradient: list[float]) -> None:
    parameter.grad = torch.tensor(gradient, dtype=parameter.dtype)
    optimizer.step()


# --- sensitivity ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.SGD, torch.optim.Adafactor])
def test_statistics_follow_their_recurrences_with_any_optimizer(kind: type) -> None:
    parameter = nn.Parameter(torch.tensor([1.0, -2.0]))
    optimizer = kind([parameter], lr=0.1)
    track_sensitivity(optimizer)
    importance, uncertainty = np.zeros(2), np.zeros(2)
    for gradient in ([0.5, 1.0], [-0.3, 0.2], [0.0, 4.0]):
        q = np.abs(parameter.detach().numpy() * np.array(gradient))
        importance = 0.85 * importance + 0.15 * q
        uncertainty = 0.85 * uncertainty + 0.15 * np.abs(q - importance)
        step_with(optimizer, parameter, gradient)
    state = optimizer.state[parameter]
    np.testing.assert_allclose(state[IMPORTANCE], importance, rtol=1e-5)
    np.testing.assert_allclose(state[UNCERTAINTY], uncertainty, rtol=1e-5)


def test_the_optimizers_own_steps_stay_as_they_were() -> None:
    tracked, plain = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    optimizers = [torch.optim.AdamW([p], lr=0.1) for p in (tracked, plain)]
    track_sensitivity(optimizers[0])
    for gradient in ([1.0, 2.0, 3.0], [-1.0, 0.0, 5.0]):
        for optimizer, parameter in zip(optimizers, (tracked, plain), strict=True):
            step_with(optimizer, parameter, gradient)
    assert torch.equal(tracked, plain)


def test_a_step_without_gradients_or_with_zero_gradients_leaves_nothing_behind() -> None:
    parameter, idle = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    optimizer = torch.optim.AdamW([parameter, idle])
    track_sensitivity(optimizer)
    step_with(optimizer, parameter, [0.0, 0.0])
    found = gather_statistics(optimizer, {"p": parameter, "idle": idle}, keys=(IMPORTANCE, UNCERTAINTY))
    assert all(not value.any() for values in found.values() for value in values.values())
    assert found["idle"][IMPORTANCE].shape == (2,)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_statistics_come_back_from_a_state_dict_bit_for_bit(dtype: torch.dtype) -> None:
    def fresh() -> tuple[nn.Parameter, torch.optim.Optimizer]:
        parameter = nn.Parameter(torch.tensor([1.0, -2.0, 0.3], dtype=dtype))
        optimizer = torch.optim.AdamW([parameter], lr=0.1)
        track_sensitivity(optimizer)
        return parameter, optimizer

    parameter, optimizer = fresh()
    step_with(optimizer, parameter, [0.1, 0.7, 0.9])
    again, other = fresh()
    again.data.copy_(parameter.data)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for one, its in ((parameter, optimizer), (again, other)):
        step_with(its, one, [0.4, -0.2, 0.1])
    for key in (IMPORTANCE, UNCERTAINTY):
        assert other.state[again][key].dtype == torch.float32
        assert torch.equal(other.state[again][key], optimizer.state[parameter][key])


def test_a_fused_optimizer_under_a_loss_scale_gives_the_same_statistics_and_skips_overflows() -> None:
    plain, scaled = nn.Parameter(torch.tensor([1.0, -2.0])), nn.Parameter(torch.tensor([1.0, -2.0]))
    one, other = torch.optim.AdamW([plain], lr=0.1), torch.optim.AdamW([scaled], lr=0.1, fused=True)
    track_sensitivity(one)
    track_sensitivity(other)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    for gradient in ([0.5, 1.0], [float("inf"), 1.0], [-0.3, 0.2]):
        scaled.grad = torch.tensor(gradient) * scaler.scale(torch.tensor(1.0))
        scaler.step(other)
        scaler.update()
        if np.isfinite(gradient).all():
            step_with(one, plain, gradient)
    for key in (IMPORTANCE, UNCERTAINTY):
        torch.testing.assert_close(other.state[scaled][key], one.state[plain][key])


def test_gathering_a_parameter_that_the_optimizer_does_not_hold_fails() -> None:
    optimizer = torch.optim.AdamW([nn.Parameter(torch.ones(2))])
    with pytest.raises(AssertionError, match="holds the parameter"):
        gather_statistics(optimizer, {"other": nn.Parameter(torch.ones(2))}, keys=(IMPORTANCE,))


def test_scores_are_named_after_modules_and_found_on_a_peft_model() -> None:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    model = get_peft_model(base, LoraConfig(r=2, target_modules=["0", "2"]))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.05)
    track_sensitivity(optimizer)
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(8, 4)).square().sum().backward()
        optimizer.step()
    found = sensitivity_scores(optimizer, model)
    assert sorted(found) == ["0", "2"]
    layer = model.base_model.model[2]
    state = optimizer.state
    a = state[layer.lora_A["default"].weight]
    b = state[layer.lora_B["default"].weight]
    expected = (a[IMPORTANCE] * a[UNCERTAINTY]).mean(1) + (b[IMPORTANCE] * b[UNCERTAINTY]).mean(0)
    np.testing.assert_allclose(found["2"], sorted(expected.tolist(), reverse=True), rtol=1e-5)
    assert found["2"].dtype == np.float64 and (found["2"] > 0).all()


# --- gradients -----------------------------------------------------------------------------------------------------


def test_gradient_sum_leaves_parameters_alone_and_scores_the_mean() -> None:
    model = nn.Sequential(nn.Linear(3, 2, bias=False))
    before = model[0].weight.detach().clone()
    optimizer = GradientSum([{"params": list(model.parameters()), "lr": 0.1, "weight_decay": 0.5}])
    gradients = [torch.randn(2, 3) for _ in range(4)]
    for gradient in gradients:
        step_with(optimizer, model[0].weight, gradient.tolist())
    assert torch.equal(model[0].weight, before)
    found = summed_gradient_scores(optimizer, model, weights=["0.weight"], steps=4)
    mean = torch.stack(gradients).double().mean(0)
    np.testing.assert_allclose(found["0"], torch.linalg.svdvals(mean) ** 2, rtol=1e-5)


def test_a_gradient_sum_stays_float32_through_a_state_dict() -> None:
    parameter = nn.Parameter(torch.ones(2, dtype=torch.bfloat16))
    optimizer = GradientSum([parameter])
    for _ in range(3):
        step_with(optimizer, parameter, [1.0, 2**-9])
    other = GradientSum([parameter])
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert other.state[parameter][GRADIENT_SUM].tolist() == [3.0, 3 * 2**-9]


# --- inputs --------------------------------------------------------------------------------------------------------


def test_input_variance_is_that_of_all_rows_without_padding() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    observed = InputVariance(model, ["0"])
    batches = [torch.randn(5, 7, 4) * torch.tensor([1.0, 2.0, 3.0, 4.0]) + 100 for _ in range(3)]
    masks = [torch.randint(0, 2, (5, 7)) for _ in batches]
    for inputs, mask in zip(batches, masks, strict=True):
        observed.mask = mask
        model(inputs)
    rows = torch.cat([x[mask.bool()] for x, mask in zip(batches, masks, strict=True)]).double()
    values = torch.linalg.eigvalsh(torch.cov(rows.T)).flip(0)
    np.testing.assert_allclose(observed.scores()["0"], values / values.sum(), rtol=1e-4)
    again = InputVariance(model, ["0"])
    again.load_state_dict(observed.state_dict())
    np.testing.assert_array_equal(again.scores()["0"], observed.scores()["0"])


def test_input_variance_takes_its_hooks_away() -> None:
    model = nn.Sequential(nn.Linear(4, 2))
    observed = InputVariance(model, ["0"])
    model(torch.randn(3, 4))
    before = observed.scores()["0"]
    observed.close()
    model(torch.randn(3, 4))
    np.testing.assert_array_equal(observed.scores()["0"], before)


# --- engines -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    root = WORKER.parents[2]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    # DeepSpeed builds its operations with the compiler's helpers that stand beside the interpreter.
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    with subprocess.Popen(
        [*torchrun, str(WORKER), str(folder)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        try:
            output, _ = process.communicate(timeout=500)
        finally:
            # torchrun ends its ranks when it is asked to stop, not when it is killed.
            process.terminate()
    assert process.returncode == 0, output[-3000:]
    return folder


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("score", ["sensitivity", "gradient"])
def test_two_ranks_of_every_engine_measure_what_one_process_does(ranks: Path, score: str) -> None:
    from importlib import util

    spec = util.spec_from_file_location("sensitivity_ranks", WORKER)
    assert spec and spec.loader
    worker = util.module_from_spec(spec)
    spec.loader.exec_module(worker)
    expected = worker.train_plainly(score)
    files = [np.load(ranks / f"{score}.{rank}.npz") for rank in (0, 1)]
    for engine in ("ddp", "zero0", "zero1", "zero2", "zero3"):
        for name, values in expected.items():
            for key, value in values.items():
                first, second = (file[f"{engine}/{name}/{key}"] for file in files)
                np.testing.assert_array_equal(first, second)
                np.testing.assert_allclose(first, value, rtol=2e-5, atol=1e-6 * value.max(), err_msg=engine)
