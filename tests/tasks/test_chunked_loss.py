"""Losses in parts: the same values and gradients to the last bit, and no float32 copy of all logits."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from launcher.tasks import chunked_loss
from launcher.tasks.text_task import IGNORED, token_losses


def batch(
    *, dtype: torch.dtype, tokens: int = 37, classes: int = 50
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits, targets of which some are ignored, and a gradient for each place."""
    made = torch.Generator().manual_seed(3)
    logits = (3 * torch.randn(3, tokens, classes, generator=made)).to(dtype)
    targets = torch.randint(classes, (3, tokens), generator=made)
    targets[:, ::5] = IGNORED
    return logits, targets, torch.randn(3, tokens, generator=made)


def found(logits: torch.Tensor, targets: torch.Tensor, gradient: torch.Tensor, **options) -> list[torch.Tensor]:
    own = logits.clone().requires_grad_()
    losses = token_losses(own, targets, **options)
    losses.backward(gradient)
    return [losses.detach(), own.grad]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "options",
    [{}, {"label_smoothing": 0.1}, {"class_weights": torch.arange(50.0)}, {"focal_gamma": 2.0, "label_smoothing": 0.1}],
    ids=["plain", "smoothed", "weighted", "focal"],
)
def test_values_and_gradients_are_those_of_all_at_once(monkeypatch, dtype, options):
    given = batch(dtype=dtype)
    whole = found(*given, **options)
    monkeypatch.setattr(chunked_loss, "LARGE_BYTES", 0)
    parts = found(*given, **options)
    assert [value.dtype for value in parts] == [torch.float32, dtype]
    assert all(torch.equal(a, b) for a, b in zip(whole, parts, strict=True))


@pytest.mark.parametrize("tokens", [1, 2, 5, 6, 11])
def test_any_number_of_places_is_cut_without_a_rest(monkeypatch, tokens):
    given = batch(dtype=torch.float32, tokens=tokens)
    whole = found(*given)
    monkeypatch.setattr(chunked_loss, "LARGE_BYTES", 0)
    assert all(torch.equal(a, b) for a, b in zip(whole, found(*given), strict=True))


def test_only_large_logits_are_cut(monkeypatch):
    logits, targets, _ = batch(dtype=torch.bfloat16)
    held: list[int] = []
    small = lambda places, labels: held.append(len(places)) or places.sum(dim=1)  # noqa: E731
    flat, labels = logits.flatten(0, 1), targets.flatten()
    monkeypatch.setattr(chunked_loss, "LARGE_BYTES", 4 * flat.numel())
    chunked_loss.by_place(small, flat, labels)
    assert held == [111]
    held.clear()
    with chunked_loss.as_if(1.01):
        chunked_loss.by_place(small, flat, labels)
    assert max(held) == 7
    held.clear()
    monkeypatch.setattr(chunked_loss, "LARGE_BYTES", 4 * flat.numel() - 1)
    chunked_loss.by_place(small, flat, labels)
    assert sum(held) == 111 and max(held) == 7


MEMORY = """
import sys, torch
from launcher.engine.allocator import return_freed_memory
from launcher.tasks import chunked_loss
from launcher.tasks.text_task import token_losses
def peak():
    # Not ru_maxrss, which begins with that of the process that starts this one.
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
return_freed_memory()
if sys.argv[1] == "whole":
    chunked_loss.LARGE_BYTES = 2**40
logits = torch.ones(1, 2048, 16384, dtype=torch.bfloat16, requires_grad=True)
targets = torch.zeros(1, 2048, dtype=torch.long)
token_losses(torch.zeros(1, 2, 8, requires_grad=True), torch.zeros(1, 2, dtype=torch.long)).sum().backward()
before = peak()
torch.autograd.grad(token_losses(logits, targets).sum(), logits)
print(peak() - before)
"""


def test_the_peak_is_less_by_the_float32_copies():
    whole, parts = (
        int(subprocess.run([sys.executable, "-c", MEMORY, name], capture_output=True, text=True, check=True).stdout)
        for name in ("whole", "parts")
    )
    # KiB, beside 64 MiB of logits in bf16: whole holds three times 128 MiB, parts the gradient and some sixteenths of that.
    assert whole > 320 * 1024 and parts < 160 * 1024
