"""The losses of pairs of answers: direct preference optimization and its relatives, each a function of summed log-probabilities.

Names and numbers are those of trl's DPOTrainer, and of its CPOTrainer and ORPOTrainer. The reward of an answer is beta times the log-ratio, its log-probability under the model minus
that under the model before training (Rafailov et al. 2023, arXiv:2305.18290, equation 5, without the part that answers to one prompt share).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from launcher.recipe.chat_options import REFERENCE_FREE_LOSSES, PreferenceOptions

DISCOPOP_TAU = 0.05
"""Temperature of ``discopop``, as its paper has it."""


@dataclass(frozen=True)
class PairScores:
    """What a model makes of pairs of answers; tensors of any floating type, [pairs] each."""

    chosen: Any
    """Summed log-probability of the chosen answer's tokens, in nats."""
    rejected: Any
    chosen_tokens: Any
    """Tokens of the chosen answer, at least 1."""
    rejected_tokens: Any
    reference_chosen: Any = None
    """Log-probability by the model before training; None for losses that do without."""
    reference_rejected: Any = None

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

    @property
    def chosen_mean(self) -> Any:
        """Log-probability of a token of the chosen answer on average [pairs]."""
        return self.chosen / self.chosen_tokens

    @property
    def rejected_mean(self) -> Any:
        """The same of the rejected answer [pairs]."""
        return self.rejected / self.rejected_tokens


Loss = Callable[[PairScores, PreferenceOptions], Any]
"""(scores, options) -> loss of each pair [pairs]."""


def _log_sigmoid(values: Any) -> Any:
    import torch.nn.functional as F

    return F.logsigmoid(values)


def _smoothed(value: Any, options: PreferenceOptions) -> Any:
    """Return -ln sigmoid(value) of each pair, of which a share of ``label_smoothing`` is the wrong way round."""
    smoothing = options.label_smoothing
    return -(1 - smoothing) * _log_sigmoid(value) - smoothing * _log_sigmoid(-value)


def _sigmoid(scores: PairScores, options: PreferenceOptions) -> Any:
    """DPO: Rafailov et al. 2023, arXiv:2305.18290, equation 7; with ``label_smoothing`` conservative DPO (Mitchell 2023)."""
    return _smoothed(options.beta * scores.difference, options)


def _sigmoid_norm(scores: PairScores, options: PreferenceOptions) -> Any:
    """DPO of log-ratios per token: Lambert et al. 2024, arXiv:2411.15124 (Tulu 3)."""
    return -_log_sigmoid(options.beta * scores.difference_per_token)


def _hinge(scores: PairScores, options: PreferenceOptions) -> Any:
    """A margin of 1: Zhao et al. 2023, arXiv:2305.10425 (SLiC-HF), with rewards as Liu et al. 2024, arXiv:2309.06657, have them."""
    return (1 - options.beta * scores.difference).relu()


def _ipo(scores: PairScores, options: PreferenceOptions) -> Any:
    """IPO: Azar et al. 2023, arXiv:2310.12036, equation 17 with tau = beta; log-ratios per token, as its authors computed it."""
    return (scores.difference_per_token - 1 / (2 * options.beta)) ** 2


def _exo_pair(scores: PairScores, options: PreferenceOptions) -> Any:
    """EXO: Ji et al. 2024, arXiv:2402.00856, equation 16 for two answers; ``label_smoothing`` must be above 0."""
    smoothing = options.label_smoothing
    value = options.beta * scores.difference
    right, wrong = _log_sigmoid(value), _log_sigmoid(-value)
    return right.exp() * (right - math.log1p(-smoothing)) + wrong.exp() * (wrong - math.log(smoothing))


def _nca_pair(scores: PairScores, options: PreferenceOptions) -> Any:
    """NCA: Chen et al. 2024, arXiv:2402.05369, for two answers."""
    chosen, rejected = options.beta * scores.chosen_ratio, options.beta * scores.rejected_ratio
    return -_log_sigmoid(chosen) - 0.5 * _log_sigmoid(-chosen) - 0.5 * _log_sigmoid(-rejected)


def _robust(scores: PairScores, options: PreferenceOptions) -> Any:
    """Robust DPO: Chowdhury et al. 2024, arXiv:2403.00409; ``label_smoothing`` is the share of flipped pairs."""
    smoothing = options.label_smoothing
    value = options.beta * scores.difference
    return (-(1 - smoothing) * _log_sigmoid(value) + smoothing * _log_sigmoid(-value)) / (1 - 2 * smoothing)


def _bco_pair(scores: PairScores, options: PreferenceOptions) -> Any:
    """BCO: Jung et al. 2024, arXiv:2404.04656: each answer is told good or bad by itself, without the shift of rewards, as trl has it."""
    return -_log_sigmoid(options.beta * scores.chosen_ratio) - _log_sigmoid(-options.beta * scores.rejected_ratio)


def _sppo_hard(scores: PairScores, options: PreferenceOptions) -> Any:
    """SPPO: Wu et al. 2024, arXiv:2405.00675, equation 4.7 where the chosen answer always wins."""
    return (scores.chosen_ratio - 0.5 / options.beta) ** 2 + (scores.rejected_ratio + 0.5 / options.beta) ** 2


def _apo_zero(scores: PairScores, options: PreferenceOptions) -> Any:
    """APO-zero: D'Oosterlinck et al. 2024, arXiv:2408.06266, equation 7: chosen answers are better than the model's own."""
    return 1 - (options.beta * scores.chosen_ratio).sigmoid() + (options.beta * scores.rejected_ratio).sigmoid()


def _apo_down(scores: PairScores, options: PreferenceOptions) -> Any:
    """APO-down: D'Oosterlinck et al. 2024, arXiv:2408.06266, equation 8: chosen answers are worse than the model's own."""
    return (options.beta * scores.chosen_ratio).sigmoid() + 1 - (options.beta * scores.difference).sigmoid()


def _discopop(scores: PairScores, options: PreferenceOptions) -> Any:
    """DiscoPOP: Lu et al. 2024, arXiv:2406.08414, equation 5: between a logistic and an exponential loss."""
    value = options.beta * scores.difference
    share = (value / DISCOPOP_TAU).sigmoid()
    return -_log_sigmoid(value) * (1 - share) + (-value).exp() * share


def _cpo(scores: PairScores, options: PreferenceOptions) -> Any:
    """CPO: Xu et al. 2024, arXiv:2401.08417, equation 3; its other part, the chosen answer's own loss, is ``rpo_alpha``'s."""
    return _smoothed(options.beta * (scores.chosen - scores.rejected), options)


def _simpo(scores: PairScores, options: PreferenceOptions) -> Any:
    """SimPO: Meng et al. 2024, arXiv:2405.14734, equation 6."""
    return _smoothed(options.beta * (scores.chosen_mean - scores.rejected_mean) - options.simpo_gamma, options)


def _orpo(scores: PairScores, options: PreferenceOptions) -> Any:
    """ORPO: Hong et al. 2024, arXiv:2403.07691, equations 6 and 7: the chosen answer's own loss per token, and a ratio of odds."""
    return -scores.chosen_mean - options.beta * _log_sigmoid(
        _log_odds(scores.chosen_mean) - _log_odds(scores.rejected_mean)
    )


def _log_odds(mean: Any) -> Any:
    """Return ln(p / (1 - p)) of p = exp(mean)."""
    # An answer that is certain has no odds.
    certain = mean.clamp(max=-1e-6)
    return certain - (-certain.expm1()).log()


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
    "cpo": _cpo,
    "simpo": _simpo,
    "orpo": _orpo,
}
"""``task.loss_type`` -> loss."""


def pair_losses(scores: PairScores, options: PreferenceOptions) -> Any:
    """Return the loss of each pair [pairs], in the type of the scores.

    ``rpo_alpha`` times the chosen answer's negative log-likelihood per token is added (Pang et al. 2024, arXiv:2404.19733, equation 1).
    """
    losses = LOSSES[options.loss_type](scores, options)
    return losses - options.rpo_alpha * scores.chosen_mean if options.rpo_alpha else losses


def pair_rewards(scores: PairScores, options: PreferenceOptions) -> tuple[Any, Any]:
    """Return the reward of the chosen and of the rejected answer of each pair, [pairs] each."""
    if options.loss_type not in REFERENCE_FREE_LOSSES:
        return options.beta * scores.chosen_ratio, options.beta * scores.rejected_ratio
    if options.loss_type == "cpo":
        return options.beta * scores.chosen, options.beta * scores.rejected
    return options.beta * scores.chosen_mean, options.beta * scores.rejected_mean


def reward_losses(chosen: Any, rejected: Any, *, center: float = 0.0) -> Any:
    """Return the loss of each pair of rewards [pairs]: -ln sigmoid(chosen - rejected) (Bradley and Terry 1952).

    ``center`` times the square of their sum is added, which keeps rewards around 0 (Eisenstein et al. 2023, arXiv:2312.09244).
    """
    losses = -_log_sigmoid(chosen - rejected)
    return losses + center * (chosen + rejected) ** 2 if center else losses
