"""Stop a run when its metric no longer improves; the count goes on over phases and resumed attempts."""

from __future__ import annotations

from typing import Any

from transformers import EarlyStoppingCallback


class RunIsOver(Exception):
    """Raised before the first step of a resumed run that the evaluation it still owed has ended; Trainer would take one more."""


class EarlyStopping(EarlyStoppingCallback):
    """transformers' rule. Its own count starts anew with every Trainer, so it is taken from the state, where checkpoints keep it."""

    def __init__(self, early_stopping_patience: int | None = None, early_stopping_threshold: float = 0.0) -> None:
        """``early_stopping_patience``: evaluations without a better metric; None: never stop."""
        super().__init__(early_stopping_patience or 0, early_stopping_threshold)
        self.is_on = early_stopping_patience is not None

    def is_over(self, state: Any) -> bool:
        """Take the count from a restored state; return whether the run had already stopped."""
        saved = state.stateful_callbacks.get(type(self).__name__)
        if self.is_on and isinstance(saved, dict):
            self.early_stopping_patience_counter = saved["attributes"]["early_stopping_patience_counter"]
        return self.has_stopped

    @property
    def has_stopped(self) -> bool:
        """Whether the metric has not improved for too long."""
        return self.is_on and self.early_stopping_patience_counter >= self.early_stopping_patience

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Nothing: that there are evaluations was checked with the recipe."""

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any) -> None:
        """Count an evaluation, and stop after too many without a better metric."""
        if self.is_on:
            super().on_evaluate(args, state, control, metrics, **kwargs)
