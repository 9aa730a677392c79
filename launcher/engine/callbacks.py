"""What happens at Trainer's events."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from launcher.engine.asserting import assert_rates, assert_table
from launcher.engine.checkpoints import base_model
from launcher.engine.early_stopping import RunIsOver


class RunCallback(TrainerCallback):
    """Connects Trainer's events with the run: assertions, rates, ledger, progress, stopping."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self.stopped_early = False
        self._rates_are_checked = False

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Check that the engine has what was planned, take over what came before, and begin to tell about it."""
        trainer = self.trainer
        assert_table(trainer, trainer.context)
        trainer.remember_rates()
        if args.activation_checkpointing and not (args.activation_checkpointing_kwargs or {}).get("use_reentrant"):
            # transformers asks for gradients of the embeddings' output, which only the reentrant form needs: the backward
            # pass would go through every frozen block below what trains.
            base_model(trainer.model).disable_input_require_grads()
        trainer.context.progress.begin(total_steps=trainer.context.plan.total_steps, done=state.global_step)
        trainer.get_reference()
        trainer.begin()
        if trainer.stopping.has_stopped:
            raise RunIsOver

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Keep the rates of this step; at the first one, hold them to the plan."""
        self.trainer.remember_rates()
        if not self._rates_are_checked:
            assert_rates(self.trainer, self.trainer.context)
            self._rates_are_checked = True

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write the ledger, say what is due at this step, and stop together where any rank was asked to."""
        trainer = self.trainer
        state.epoch = trainer.at_epoch()
        trainer.report_step()
        if trainer.context.on_time_left is not None:
            trainer.context.on_time_left(trainer.model, trainer.context.progress.eta(state.global_step))
        if float(state.epoch).is_integer():
            self._end_epoch(args, state, control)
        # The next phase, with an engine of its own, begins from this checkpoint.
        control.should_save |= state.global_step == trainer.context.planned.last_step and not trainer.context.is_last
        if trainer.agree_to_stop():
            self.stopped_early = True
            trainer.leaves_evaluation_due = control.should_evaluate
            control.should_save = True
            control.should_evaluate = False
            control.should_training_stop = True

    def _end_epoch(self, args: Any, state: Any, control: Any) -> None:
        """What Trainer would do at the end of an epoch; its own epoch is a phase."""
        control.should_log |= args.logging_strategy == IntervalStrategy.EPOCH
        control.should_evaluate |= args.eval_strategy == IntervalStrategy.EPOCH and args.eval_delay <= state.epoch
        control.should_save |= args.save_strategy == SaveStrategy.EPOCH

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The end of a phase, or of what was left of it, is no event of its own."""
        control.should_log = control.should_evaluate = control.should_save = False

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Hand rows of metrics on."""
        if logs and ("loss" in logs or any(key.startswith("eval_") for key in logs)):
            self.trainer.context.progress.on_row(state.global_step, dict(logs))
