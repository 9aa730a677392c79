"""What a probe measures while it trains, and how the measurements are gathered over ranks.

Element-wise statistics live in the optimizer's own state: whatever the engine does with Adam's averages (shard, offload,
checkpoint, resume), it does with them. Every gathering function is collective: all ranks call it, in the same order.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from launcher.engine.optimizer_state import OptimizerState
from launcher.strategies.adapters import part_of, target_of
from launcher.strategies.importance import gradient_scores, module_scores, variance_scores

IMPORTANCE, UNCERTAINTY, GRADIENT_SUM = "importance", "uncertainty", "gradient_sum"


# --- statistics in the optimizer's state ---------------------------------------------------------------------------


def track_sensitivity(optimizer: torch.optim.Optimizer, *, beta: float = 0.85) -> None:
    """Make every step of ``optimizer`` first update AdaLoRA's statistics of each element that has a gradient.

    With q = abs(p * g), the parameter before the step times the gradient that it gets (reduced, unscaled, clipped), in float32:
    importance = beta * importance + (1 - beta) * q, and uncertainty = beta * uncertainty + (1 - beta) * abs(q - importance),
    both from 0 (Zhang et al. 2023, "AdaLoRA", equations 8 to 10, beta1 = beta2 = 0.85). They stand in the optimizer's state
    under IMPORTANCE and UNCERTAINTY. ``optimizer``: the innermost one, before an engine wraps it.
    """
    tracker = _Tracker(beta)
    optimizer.register_step_pre_hook(tracker.before_step)
    optimizer.register_step_post_hook(tracker.after_step)
    _load_exactly(optimizer, (IMPORTANCE, UNCERTAINTY))


class _Tracker:
    def __init__(self, beta: float) -> None:
        self._beta = beta
        self._first: dict[torch.Tensor, torch.Tensor] = {}

    @torch.no_grad()
    def before_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        """Update the statistics; those of a parameter's first step wait for its state."""
        inverse_scale = _inverse_scale(optimizer)
        if inverse_scale is None:
            return
        for parameter, gradient in _gradients(optimizer):
            q = (parameter.float() * gradient.float() * inverse_scale).abs_()
            state = optimizer.state[parameter]
            if state:
                self._update(state, q)
            else:
                # An optimizer takes a state that is not empty for one that it has set up.
                self._first[parameter] = q

    @torch.no_grad()
    def after_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        """Update the statistics that had to wait."""
        while self._first:
            parameter, q = self._first.popitem()
            self._update(optimizer.state[parameter], q)

    def _update(self, state: dict[str, Any], q: torch.Tensor) -> None:
        for key in (IMPORTANCE, UNCERTAINTY):
            if key not in state:
                state[key] = torch.zeros_like(q)
        # In place: engines keep views of these tensors.
        importance, uncertainty = state[IMPORTANCE], state[UNCERTAINTY]
        importance.mul_(self._beta).add_(q, alpha=1 - self._beta)
        uncertainty.mul_(self._beta).add_(q.sub_(importance).abs_(), alpha=1 - self._beta)


class GradientSum(torch.optim.Optimizer):
    """Leaves parameters as they are, and sums their gradients in float32, under GRADIENT_SUM in its state.

    Rates and decay are accepted and ignored, so that the groups of a tuning table fit.
    """

    def __init__(self, params: Any, lr: float = 0.0) -> None:
        super().__init__(params, {"lr": lr})
        _load_exactly(self, (GRADIENT_SUM,))

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Add the gradients; returns the closure's loss, where there is a closure."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for parameter, gradient in _gradients(self):
            state = self.state[parameter]
            if GRADIENT_SUM not in state:
                state[GRADIENT_SUM] = torch.zeros_like(parameter, dtype=torch.float32)
            state[GRADIENT_SUM].add_(gradient)
        return loss


def _gradients(optimizer: torch.optim.Optimizer) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.grad is not None:
                yield parameter, parameter.grad


def _inverse_scale(optimizer: torch.optim.Optimizer) -> float | torch.Tensor | None:
    """Return what takes fp16's loss scale out of the gradients; None: they overflowed and the step will change nothing.

    A fused optimizer gets scaled gradients from torch's GradScaler, with these two attributes set; others get them unscaled.
    """
    overflow, scale = getattr(optimizer, "found_inf", None), getattr(optimizer, "grad_scale", None)
    if isinstance(overflow, torch.Tensor) and overflow.item():
        return None
    return 1.0 / scale if isinstance(scale, torch.Tensor) else 1.0


def _load_exactly(optimizer: torch.optim.Optimizer, keys: Sequence[str]) -> None:
    """Keep loaded statistics in float32: torch casts a loaded state to its parameter's type."""
    saved: dict[Any, dict[str, torch.Tensor]] = {}

    def before(optimizer: torch.optim.Optimizer, state_dict: dict[str, Any]) -> None:
        names = [name for group in state_dict["param_groups"] for name in group["params"]]
        state = state_dict["state"]
        for name, parameter in zip(names, _parameters(optimizer), strict=False):
            saved[parameter] = {key: state[name][key] for key in keys if key in state.get(name, {})}

    def after(optimizer: torch.optim.Optimizer) -> None:
        while saved:
            parameter, values = saved.popitem()
            for key, value in values.items():
                optimizer.state[parameter][key] = value.to(parameter.device, torch.float32, copy=True)

    optimizer.register_load_state_dict_pre_hook(before)
    optimizer.register_load_state_dict_post_hook(after)


def _parameters(optimizer: torch.optim.Optimizer) -> Iterator[torch.Tensor]:
    return (parameter for group in optimizer.param_groups for parameter in group["params"])


# --- gathering -----------------------------------------------------------------------------------------------------


def gather_statistics(
    optimizer: Any, named_parameters: Mapping[str, torch.nn.Parameter], *, keys: Sequence[str]
) -> dict[str, dict[str, np.ndarray]]:
    """Return name -> key -> float32 array of the whole parameter's shape, on every rank. Collective.

    Args:
        optimizer: torch's, DeepSpeed's, or what ``accelerator.prepare`` made of one of them.
        named_parameters: trained parameters of the model, in the same order on all ranks.
        keys: of the optimizer's state. A parameter that never had a gradient gets zeros.
    """
    found: dict[str, dict[str, np.ndarray]] = {name: {} for name in named_parameters}
    for name, key, value in OptimizerState(optimizer, named_parameters.items()).items(keys):
        found[name][key] = value.numpy()
    return found


# --- scores --------------------------------------------------------------------------------------------------------


def sensitivity_scores(optimizer: Any, model: torch.nn.Module) -> dict[str, np.ndarray]:
    """Return the scores of every module with a LoRA adapter: float64 [rank], descending. Collective.

    ``optimizer`` is one that ``track_sensitivity`` has prepared; names are those of the model without adapters.
    Raises ModelError where a statistic is not finite.
    """
    adapters = {name: p for name, p in model.named_parameters() if part_of(name) in ("A", "B")}
    found = gather_statistics(optimizer, adapters, keys=(IMPORTANCE, UNCERTAINTY))
    statistics: dict[str, dict[str, np.ndarray]] = {}
    for name, values in found.items():
        module, matrix = target_of(name), "a" if part_of(name) == "A" else "b"
        for key, value in values.items():
            # A convolution's A is [rank, in, height, width], its B [out, rank, 1, 1].
            flat = value.reshape(len(value), -1)
            statistics.setdefault(module, {})[f"{key}_{matrix}"] = flat
    return module_scores(statistics)


def summed_gradient_scores(
    optimizer: Any, model: torch.nn.Module, *, weights: Collection[str], steps: int
) -> dict[str, np.ndarray]:
    """Return the scores of the modules that own ``weights`` (parameter names), from GradientSum's state. Collective.

    Args:
        weights: names of the target modules' weights, each of which trains.
        steps: steps that were summed.

    Raises:
        ModelError: a gradient is not finite.
    """
    wanted = {name: parameter for name, parameter in model.named_parameters() if name in weights}
    assert len(wanted) == len(set(weights)), "every weight is a parameter of the model"
    found = gather_statistics(optimizer, wanted, keys=(GRADIENT_SUM,))
    means = {
        name.rpartition(".")[0]: values[GRADIENT_SUM].reshape(len(values[GRADIENT_SUM]), -1) / np.float64(steps)
        for name, values in found.items()
    }
    return gradient_scores(means)


class InputVariance:
    """Accumulates the covariance of modules' inputs over forward passes, for EVA's score; padding can be left out.

    Memory: a float32 matrix [in, in] for each module. Batches are merged with the pairwise update of Chan, Golub and LeVeque
    (1983), so a large mean costs no digits.
    """

    def __init__(self, model: torch.nn.Module, modules: Collection[str]) -> None:
        self.mask: torch.Tensor | None = None
        """Of the batch that runs: [rows, positions], 0 for padding; inputs of another shape count whole."""
        self._moments: dict[str, _Moments] = {}
        named = dict(model.named_modules())
        self._handles = [
            named[name].register_forward_pre_hook(lambda module, args, name=name: self._observe(name, args[0]))
            for name in sorted(modules)
        ]

    def close(self) -> None:
        """Take the hooks off the model."""
        for handle in self._handles:
            handle.remove()

    @torch.no_grad()
    def _observe(self, name: str, inputs: torch.Tensor) -> None:
        rows = inputs.detach().float()
        if self.mask is not None and self.mask.shape == inputs.shape[:-1]:
            rows = rows[self.mask.bool()]
        batch = _Moments.of(rows.reshape(-1, inputs.shape[-1]))
        self._moments[name] = self._moments[name].merge(batch) if name in self._moments else batch

    def state_dict(self) -> dict[str, dict[str, torch.Tensor]]:
        """Return what this rank has accumulated, for a checkpoint of this rank."""
        return {name: vars(moments) for name, moments in self._moments.items()}

    def load_state_dict(self, state: Mapping[str, Mapping[str, torch.Tensor]]) -> None:
        """Go on from what ``state_dict`` returned."""
        self._moments = {name: _Moments(**values) for name, values in state.items()}

    def scores(self) -> dict[str, np.ndarray]:
        """Return every module's scores: float64 [in], descending. Collective. Raises ModelError where one is not finite."""
        covariances = {}
        for name in sorted(self._moments):
            moments = self._moments[name].over_ranks()
            covariances[name] = (moments.scatter / moments.count).cpu().numpy()
        return variance_scores(covariances)


class _Moments:
    """Number of rows, their mean [in], and the sum of their deviations' outer products [in, in]."""

    def __init__(self, count: torch.Tensor, mean: torch.Tensor, scatter: torch.Tensor) -> None:
        self.count = count
        self.mean = mean
        self.scatter = scatter

    @classmethod
    def of(cls, rows: torch.Tensor) -> _Moments:
        count = torch.tensor(len(rows), dtype=torch.float64, device=rows.device)
        mean = rows.sum(dim=0) / count.clamp(min=1)
        centred = rows - mean
        return cls(count, mean, centred.T @ centred)

    def merge(self, other: _Moments) -> _Moments:
        count = (self.count + other.count).clamp(min=1)
        gap = other.mean - self.mean
        between = torch.outer(gap, gap) * (self.count * other.count / count)
        mean = self.mean + gap * (other.count / count)
        return _Moments(self.count + other.count, mean, self.scatter + other.scatter + between)

    def over_ranks(self) -> _Moments:
        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            return self
        count, total = self.count.clone(), self.mean * self.count
        torch.distributed.all_reduce(count)
        torch.distributed.all_reduce(total)
        mean = total / count.clamp(min=1)
        gap = self.mean - mean
        scatter = self.scatter + torch.outer(gap, gap) * self.count
        torch.distributed.all_reduce(scatter)
        return _Moments(count, mean, scatter)
