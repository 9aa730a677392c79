"""Penalties, clipping by value and the schedule on two ranks: every engine ends with the weights of a loop by hand."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))
from regularized_ranks import GROUPS, STEPS, Net, Rows

HERE = Path(__file__).resolve().parent


def one_cycle(step: int) -> float:
    """OneCycleLR's factor with its defaults, over STEPS steps."""
    top, last = 0.3 * STEPS - 1, STEPS - 1
    start, end, share = (1 / 25, 1.0, step / top) if step <= top else (1.0, 1 / 25e4, (step - top) / (last - top))
    return end + (start - end) / 2 * (1 + math.cos(math.pi * share))


def by_hand() -> dict[str, torch.Tensor]:
    """The weights after STEPS steps of AdamW, in one process, without any of our code."""
    torch.manual_seed(0)
    net, rows = Net(), Rows()
    layers = {name: list(getattr(net, name).parameters()) for name in GROUPS}
    optimizer = torch.optim.AdamW([{"params": layers[name], "weight_decay": 0.01} for name in GROUPS])
    for step in range(STEPS):
        batch = slice(4 * step, 4 * step + 4)
        net(rows.x[batch], rows.y[batch])["loss"].backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        for group, (lr, l1, l2) in zip(optimizer.param_groups, GROUPS.values(), strict=True):
            group["lr"] = lr * one_cycle(step)
            for p in group["params"]:
                p.grad = torch.clamp(p.grad + l2 * p.detach() + l1 * torch.sign(p.detach()), -0.3, 0.3)
        optimizer.step()
        optimizer.zero_grad()
    return {name: value.detach() for name, value in net.state_dict().items()}


def trained(tmp_path: Path, engine: str, *arguments: str) -> dict[str, Any]:
    target = tmp_path / "final.pt"
    root = HERE.parent.parent
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--rdzv_backend", "c10d",
        "--rdzv_endpoint", "localhost:0", str(HERE / "regularized_ranks.py"), engine, *arguments, str(target),
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    found = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=250, cwd=tmp_path)
    assert found.returncode == 0, found.stderr[-3000:]
    return torch.load(target)


@pytest.mark.parametrize(
    "engine",
    [pytest.param(name, marks=pytest.mark.slow if name == "3" else pytest.mark.soak) for name in ("ddp", *"0123")],
)
def test_two_ranks_end_with_the_weights_of_a_loop_by_hand(tmp_path: Path, engine: str) -> None:
    found = trained(tmp_path, engine, "fp32", "adamw_torch_fused")
    for name, wanted in by_hand().items():
        assert torch.allclose(found["weights"][name], wanted, atol=1e-6), name
    assert len(found["rates"]) == STEPS
    for step, rates in enumerate(found["rates"]):
        assert rates == pytest.approx([lr * one_cycle(step) for lr, _, _ in GROUPS.values()])


@pytest.mark.slow
def test_half_precision_without_zero_takes_no_penalty_before_the_first_step(tmp_path: Path) -> None:
    # DeepSpeed steps once with zero gradients there; with the hook each weight would already move by a whole rate.
    found = trained(tmp_path, "0", "bf16", "adamw_torch_fused")
    for name, wanted in by_hand().items():
        assert torch.allclose(found["weights"][name], wanted, atol=0.02), name
