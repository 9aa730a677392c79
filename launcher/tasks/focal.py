"""The focal loss: what a row's cross entropy is multiplied by, so that easy rows count little.

Lin, Goyal, Girshick, He and Dollar 2017, "Focal Loss for Dense Object Detection" (arXiv:1708.02002), eq. 4: FL(p) = -(1 - p)^gamma log(p),
with p the probability of the right class; eq. 5 has a weight for each class, alpha, which task.class_weights gives.
"""

from __future__ import annotations

from typing import Any


def focal_factors(logits: Any, targets: Any, *, gamma: float) -> Any:
    """Return (1 - p)^gamma of each row, float32 [rows], with p the softmax's probability of its target.

    ``logits`` float32 [rows, classes], two classes or more; ``targets`` int64 [rows]. The logarithm of 1 - p is taken over the other classes'
    logits: 1 - p itself is 0 where p rounds to 1, where the gradient of its power is not finite for gamma below 1.
    """
    import torch

    right = torch.zeros_like(logits, dtype=torch.bool).scatter(1, targets[:, None], True)
    others = logits.masked_fill(right, float("-inf")).logsumexp(dim=1)
    return torch.exp(gamma * (others - logits.logsumexp(dim=1)))


def focal_factors_of_two(logits: Any, targets: Any, *, gamma: float) -> Any:
    """Return (1 - p)^gamma of each decision between yes and no, float32 of the shape of ``logits``, with p the sigmoid's probability
    of what is right.

    ``targets``: 1 for yes and 0 for no, of that shape too.
    """
    import torch
    import torch.nn.functional as F

    # 1 - sigmoid(z) is sigmoid(-z).
    return torch.exp(gamma * F.logsigmoid(torch.where(targets > 0, -logits, logits)))
