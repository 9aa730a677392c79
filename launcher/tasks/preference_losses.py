"""The losses of pairs of answers: direct preference optimization and its relatives, each a function of summed log-probabilities.

Names and numbers are those of trl's DPOTrainer. The reward of an answer is beta times the log-ratio, its log-probability under the model minus
that under the model before training (Rafailov et al. 2023, arXiv:2305.18290, equation 5, without the part that answers to one prompt share).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

DISCOPOP_TAU = 0.05
"""Temperature of ``discopop``, as its paper has it."""


@dataclass(frozen=True)
class PairScores:
    """What a model makes of pairs of answers; tensors of any floating type, [pairs] each."""

    chosen: Any
    """Summed log-probability of the chosen answer's tokens, in nats."""
    rejected: Any
    reference_chosen: Any
    """The same by the model before training."""
    reference_rejected: Any
    chosen_tokens: Any
    """Tokens of the chosen answer, at least 1."""
    rejected_tokens: Any

    @property
    def chosen_ratio(self) -> Any:
        """Log-ratio of the chosen answer [pairs]."""
        return self.chosen - self.reference_chosen

    @property
    def rejected_ratio(self) -> Any:
        """Log-ratio of the rejected answer [pairs]."""
        return self.rejected - self.reference_rejected

    @property
    def difference(self) -> Any:
        """How much more the chosen answer has gained than the rejected one, in nats [pairs]."""
        return self.chosen_ratio - self.rejected_ratio

    @property
    def difference_per_token(self) -> Any:
        """The same with each answer's log-ratio divided by its tokens [pairs]."""
        return self.chosen_ratio / self.chosen_tokens - self.rejected_ratio / self.rejected_tokens


Loss = Callable[[PairScores, float, float], Any]
"""(scores, beta, label_smoothing) -> loss of each pair [pairs]."""


def _log_sigmoid(values: Any) -> Any:
    import torch.nn.functional as F

    return F.logsigmoid(values)


def _sigmoid(scores: PairScores, beta: float, smoothing: float) -> Any:
    """DPO: Rafailov et al. 2023, arXiv:2305.18290, equation 7; with ``smoothing`` conservative DPO (Mitchell 2023)."""
    value = beta * scores.difference
    return -(1 - smoothing) * _log_sigmoid(value) - smoothing * _log_sigmoid(-value)


def _sigmoid_norm(scores: PairScores, beta: float, smoothing: float) -> Any:
    """DPO of log-ratios per token: Lambert et al. 2024, arXiv:2411.15124 (Tulu 3)."""
    return -_log_sigmoid(beta * scores.difference_per_token)


def _hinge(scores: PairScores, beta: float, smoothing: float) -> Any:
    """A margin of 1: Zhao et al. 2023, arXiv:2305.10425 (SLiC-HF), with rewards as Liu et al. 2024, arXiv:2309.06657, have them."""
    return (1 - beta * scores.difference).relu()


def _ipo(scores: PairScores, beta: float, smoothing: float) -> Any:
    """IPO: Azar et al. 2023, arXiv:2310.12036, equation 17 with tau = beta; log-ratios per token, as its authors computed it."""
    return (scores.difference_per_token - 1 / (2 * beta)) ** 2


def _exo_pair(scores: PairScores, beta: float, smoothing: float) -> Any:
    """EXO: Ji et al. 2024, arXiv:2402.00856, equation 16 for two answers; ``smoothing`` must be above 0."""
    value = beta * scores.difference
    right, wrong = _log_sigmoid(value), _log_sigmoid(-value)
    return right.exp() * (right - math.log1p(-smoothing)) + wrong.exp() * (wrong - math.log(smoothing))


def _nca_pair(scores: PairScores, beta: float, smoothing: float) -> Any:
    """NCA: Chen et al. 2024, arXiv:2402.05369, for two answers."""
    chosen, rejected = beta * scores.chosen_ratio, beta * scores.rejected_ratio
    return -_log_sigmoid(chosen) - 0.5 * _log_sigmoid(-chosen) - 0.5 * _log_sigmoid(-rejected)


def _robust(scores: PairScores, beta: float, smoothing: float) -> Any:
    """Robust DPO: Chowdhury et al. 2024, arXiv:2403.00409; ``smoothing`` is the share of flipped pairs."""
    value = beta * scores.difference
    return (-(1 - smoothing) * _log_sigmoid(value) + smoothing * _log_sigmoid(-value)) / (1 - 2 * smoothing)


def _bco_pair(scores: PairScores, beta: float, smoothing: float) -> Any:
    """BCO: Jung et al. 2024, arXiv:2404.04656: each answer is told good or bad by itself, without the shift of rewards, as trl has it."""
    return -_log_sigmoid(beta * scores.chosen_ratio) - _log_sigmoid(-beta * scores.rejected_ratio)


def _sppo_hard(scores: PairScores, beta: float, smoothing: float) -> Any:
    """SPPO: Wu et al. 2024, arXiv:2405.00675, equation 4.7 where the chosen answer always wins."""
    return (scores.chosen_ratio - 0.5 / beta) ** 2 + (scores.rejected_ratio + 0.5 / beta) ** 2


def _apo_zero(scores: PairScores, beta: float, smoothing: float) -> Any:
    """APO-zero: D'Oosterlinck et al. 2024, arXiv:2408.06266, equation 7: chosen answers are better than the model's own."""
    return 1 - (beta * scores.chosen_ratio).sigmoid() + (beta * scores.rejected_ratio).sigmoid()


def _apo_down(scores: PairScores, beta: float, smoothing: float) -> Any:
    """APO-down: D'Oosterlinck et al. 2024, arXiv:2408.06266, equation 8: chosen answers are worse than the model's own."""
    return (beta * scores.chosen_ratio).sigmoid() + 1 - (beta * scores.difference).sigmoid()


def _discopop(scores: PairScores, beta: float, smoothing: float) -> Any:
    """DiscoPOP: Lu et al. 2024, arXiv:2406.08414, equation 5: between a logistic and an exponential loss."""
    value = beta * scores.difference
    share = (value / DISCOPOP_TAU).sigmoid()
    return -_log_sigmoid(value) * (1 - share) + (-value).exp() * share


LOSSES: dict[str, Loss] = {
    "sigmoid": _sigmoid,
    "sigmoid_norm": _sigmoid_norm,
    "hinge": _hinge,
    "ipo": _ipo,
    "exo_pair": _exo_pair,
    "nca_pair": _nca_pair,
    "robust": _robust,
    "bco_pair": _bco_pair,
    "sppo_hard": _sppo_hard,
    "apo_zero": _apo_zero,
    "apo_down": _apo_down,
    "discopop": _discopop,
}
"""``task.loss_type`` -> loss."""


def pair_losses(
    scores: PairScores, *, loss_type: str, beta: float, label_smoothing: float = 0.0, rpo_alpha: float = 0.0
) -> Any:
    """Return the loss of each pair [pairs], in the type of the scores.

    ``rpo_alpha`` times the chosen answer's negative log-likelihood per token is added (Pang et al. 2024, arXiv:2404.19733, equation 1).
    """
    losses = LOSSES[loss_type](scores, beta, label_smoothing)
    return losses - rpo_alpha * scores.chosen / scores.chosen_tokens if rpo_alpha else losses


def reward_losses(chosen: Any, rejected: Any, *, center: float = 0.0) -> Any:
    """Return the loss of each pair of rewards [pairs]: -ln sigmoid(chosen - rejected) (Bradley and Terry 1952).

    ``center`` times the square of their sum is added, which keeps rewards around 0 (Eisenstein et al. 2023, arXiv:2312.09244).
    """
    losses = -_log_sigmoid(chosen - rejected)
    return losses + center * (chosen + rejected) ** 2 if center else losses
