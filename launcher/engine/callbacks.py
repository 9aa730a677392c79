"""What happens at Trainer's events."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback


class RunCallback(TrainerCallback):
    """Connects Trainer's events with the run: assertions, rates, ledger, progress, stopping."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self.stopped_early = False

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Check that the engine has what was planned, and begin to tell about it."""
        trainer = self.trainer
        trainer.assert_table_is_used()
        trainer.remember_rates()
        trainer.context.progress.begin(total_steps=state.max_steps, done=state.global_step)
        trainer.evaluate_if_due()

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Keep the rates of this step."""
        self.trainer.remember_rates()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write the ledger, and stop together where any rank was asked to."""
        self.trainer.report_step()
        if self.trainer.agree_to_stop():
            self.stopped_early = True
            at_epoch_end = args.eval_strategy == "epoch" and float(state.epoch).is_integer()
            self.trainer.leaves_evaluation_due = control.should_evaluate or at_epoch_end
            control.should_save = True
            control.should_evaluate = False
            control.should_training_stop = True
            # Whoever asked to stop may not wait for long; the best checkpoint is loaded when the run is resumed.
            args.load_best_model_at_end = False

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """After a stop, do not take the place where it happened for the end of an epoch."""
        if self.stopped_early:
            control.should_evaluate = control.should_save = False

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Hand rows of metrics on."""
        if logs and ("loss" in logs or any(key.startswith("eval_") for key in logs)):
            self.trainer.context.progress.on_row(state.global_step, dict(logs))
