"""The one mixin that makes transformers' Trainer ours: groups from the tuning table, global batches, checkpoints, progress.

It is put before ``Trainer`` (or its Seq2Seq or trl kin): ``class RunTrainer(RunMixin, Trainer)``. Nothing of Trainer is copied.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch.utils.data import DataLoader
from transformers import Trainer

from launcher.contracts import TARGETS
from launcher.data.sampling import PhaseBatches, RankBatches
from launcher.engine.checkpoint_files import read_manifest
from launcher.engine.context import Beginning, RunContext
from launcher.engine.early_stopping import EarlyStopping
from launcher.engine.loading import Rows, WithRowIds
from launcher.engine.optimizers import make_optimizer, optimizer_groups, regularize_before_step
from launcher.engine.own_time import OwnTime
from launcher.engine.predicting import predict_logits
from launcher.engine.prefix_cache import PrefixCache
from launcher.engine.reference import Reference
from launcher.engine.samples import write_samples
from launcher.engine.saving import BackgroundSave, CheckpointMixin
from launcher.engine.schedule import RunSchedule, plateau_factor
from launcher.engine.signals import ignore_in_worker
from launcher.engine.streaming import Streamed, StreamedBatches, WithPosition
from launcher.errors import TrainingDiverged
from launcher.strategies.preparing import modules_kept_in_eval
from launcher.strategies.schedules import schedule_factor


class RunMixin(CheckpointMixin):
    """Overrides of Trainer's public extension points; ``self.context`` is set before ``train()``."""

    context: RunContext
    args: Any
    model: Any
    state: Any
    control: Any
    accelerator: Any
    optimizer: Any
    lr_scheduler: Any
    _created_lr_scheduler: bool
    loss_is_scaled_for_ga: Any
    cache: PrefixCache | None = None
    """Stored states of a frozen prefix, while the model is cut to start from them."""
    reference: Reference | None = None
    """What the model before training makes of each row, where the task wants that."""

    def start(self, context: RunContext, *, beginning: Beginning) -> None:
        """Take over a phase, at its beginning or inside it."""
        self.context = context
        self._beginning = beginning
        self._steps_done = context.planned.first_step
        self.streamed = Streamed(context.run.skipped, context.progress)
        if beginning.resume_from is not None:
            manifest = read_manifest(beginning.resume_from)
            self._steps_done = manifest["step"]
            self.streamed.resume(manifest, context.prepared.fingerprint)
        self.reference = Reference.wanted(context.task, context.prepared)
        self._kept_in_eval = modules_kept_in_eval(self.model, context.planned.phase)
        # The loss below is already divided by the items of the whole global batch.
        self.loss_is_scaled_for_ga = True
        self._row_numbers: list[int] = []
        self._rates: dict[str, float] = {}
        self.leaves_evaluation_due = False
        self.background = BackgroundSave()
        self._bad_loss = torch.zeros((), device=self.args.device)
        self._own_time = OwnTime(device=context.launch.device)
        self.stopping = EarlyStopping(context.recipe.training.early_stopping_patience)

    # --- batches ---------------------------------------------------------------------------------------------------

    def get_train_dataloader(self) -> DataLoader[dict[str, Any]]:
        """Return this rank's share of the global batches that are left of the phase."""
        context = self.context
        split, planned = context.prepared.train, context.planned
        # Ranks that share rows read batches of their own too, and take them on together, one after the other, at one size.
        sharing = context.launch.sequence_parallel_size
        spread: dict[str, int] = {
            "accumulation": planned.batch.accumulation // sharing,
            "rank": self.args.process_index,
            "world_size": context.launch.world_size,
            "least_rows": planned.batch.micro_batch_size if sharing > 1 else 1,
        }
        if context.prepared.stream is not None:
            return self._loader(
                StreamedBatches(
                    context.prepared.stream,
                    start=self.streamed.position,
                    steps=max(1, planned.last_step - self._steps_done),
                    size=planned.batch.global_batch_size,
                    spread=spread,
                    also=context.task.read_in_training,
                ),
                collate_fn=WithPosition(self.collator(split, training=True)),
                batch_size=None,
            )
        # A finished phase trains nothing (_init_training_state), but Trainer wants batches to count.
        after = self._steps_done if self._steps_done < planned.last_step else planned.first_step
        return self._loader(
            Rows(split, also=context.task.read_in_training),
            batch_sampler=RankBatches(self._phase_batches(after=after), **spread),
            collate_fn=WithRowIds(self.collator(split, training=True)),
        )

    def _phase_batches(self, *, after: int | None = None) -> PhaseBatches:
        training = self.context.recipe.training
        return PhaseBatches(
            lengths=_column(self.context.prepared.train, "length"),
            phase=self.context.planned,
            seed=training.passthrough.get("data_seed", training.seed),
            order=training.train_sampling_strategy,
            after=after,
            draws=self.context.prepared.draws,
        )

    def rows_used(self) -> int:
        """Return the rows of the run that are used so far."""
        planned, step = self.context.planned, self.state.global_step
        # Only where tokens bound a step do the lengths of all rows have to be read for it.
        return planned.used(step) if planned.batch.budget is None else self._phase_batches().rows_used(step)

    def _loader(self, rows: Any, **options: Any) -> DataLoader[dict[str, Any]]:
        return DataLoader(
            rows,
            **options,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory and self.context.launch.device == "cuda",
            persistent_workers=self.args.dataloader_persistent_workers,
            prefetch_factor=self.args.dataloader_prefetch_factor,
            worker_init_fn=ignore_in_worker if self.args.dataloader_num_workers else None,
            # Without one, every new iterator would draw a number from the state that dropout goes on with.
            generator=torch.Generator(),
        )

    def collator(self, split: Any, *, training: bool) -> Any:
        """Return what makes batches of ``split``: the task's own, with stored states while the model is cut, and with the reference."""
        own = self.context.task.collator(training=training)
        own = own if self.reference is None else self.reference.collator(own, split)
        return own if self.cache is None else self.cache.collator(own, split)

    def make_whole(self) -> None:
        """Put the frozen prefix back, where it was cached, and remove its states; the best weights are loaded before."""
        if self.cache is not None:
            self.cache.restore(self.model)
            if self.args.should_save:
                self.cache.remove()
            self.cache = None

    def _init_training_state(
        self,
        max_steps: int,
        num_update_steps_per_epoch: int,
        num_train_epochs: int,
        resume_from_checkpoint: Any,
        trial: Any,
    ) -> tuple[int, int]:
        """Restore Trainer's state. To Trainer a phase is one epoch whose loader begins where the checkpoint ends."""
        checkpoint = self._beginning.checkpoint
        super()._init_training_state(  # type: ignore[misc]
            max_steps, num_update_steps_per_epoch, num_train_epochs, str(checkpoint) if checkpoint else None, trial
        )
        is_done = self._steps_done >= self.context.planned.last_step or self.stopping.is_over(self.state)
        return (num_train_epochs if is_done else 0), 0

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int, device: Any) -> tuple[list[Any], Any]:
        """Return the micro-batches of one optimizer step, and the items of that step over all ranks."""
        self.context.progress.on_batch_wanted()
        began = time.monotonic()
        batches = [batch for _, batch in zip(range(num_batches), epoch_iterator, strict=False)]
        self._own_time.add(time.monotonic() - began)
        self.context.progress.on_batch()
        self.streamed.note(batches)
        rows = [number for batch in batches for number in batch.pop("row_numbers")]
        # Of ranks that share rows, the first one counts them.
        self._row_numbers = [] if self.args.process_index % self.context.launch.sequence_parallel_size else rows
        items = torch.stack([self.context.task.items(batch) for batch in batches]).sum()
        tokens = torch.stack([_real_tokens(batch) for batch in batches]).sum()
        totals = torch.stack([items.double(), tokens.double(), torch.full_like(items, len(self._row_numbers)).double()])
        # One process keeps them beside the processor: reading them from a GPU at every step would wait for it.
        if self.context.launch.world_size > 1:
            totals = totals.to(device)
            dist.all_reduce(totals)
        self._step_totals = totals
        # A batch of classes whose weight is 0 has no items, and its loss is 0 as well.
        return batches, totals[0].float().clamp(min=1e-12)

    def at_epoch(self) -> float:
        """Return how many epochs of the run are done; Trainer's own count is of its one epoch. Of a stream, only whole ones are known."""
        if self.context.prepared.stream is not None:
            return float(self.streamed.position.epoch)
        return self.context.planned.epochs_at(self.state.global_step)

    def report_step(self) -> None:
        """Tell the progress about the step that has just ended."""
        _, tokens, samples = self._step_totals.tolist()
        self.context.progress.on_step(
            self.state.global_step,
            epoch=self.state.epoch,
            rows=self._row_numbers,
            samples=int(samples),
            tokens=int(tokens),
            own_seconds=self._own_time.end_step(),
        )

    # --- loss ------------------------------------------------------------------------------------------------------

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Move a batch to the device. Under DeepSpeed, Trainer rounds floating tensors to the weights' 16 bits: here not what they are held to."""
        # bf16 has room for numbers of classes up to 256, and none for places of boxes.
        targets = {name: inputs[name].to(self.args.device) for name in TARGETS if name in inputs}
        prepared: dict[str, Any] = super()._prepare_inputs(inputs)  # type: ignore[misc]
        return prepared | targets

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return this micro-batch's part of the mean loss over the global batch.

        Engines average gradients over ranks, so each rank's part is multiplied by their number (of groups, where ranks share
        rows and their gradients are added); summed over passes and averaged over ranks it is the loss that one rank would have
        at the same global batch.
        """
        for module in self._kept_in_eval:
            # Trainer has just put the whole model into training mode.
            module.eval()
        targets = {name: inputs[name] for name in TARGETS if name in inputs}
        smoothing = self.context.recipe.training.label_smoothing_factor
        with self._own_time:
            outputs = model(**{name: value for name, value in inputs.items() if name not in targets})
            summed = self.context.task.loss(outputs, targets, label_smoothing=smoothing)
        loss = summed * self.context.planned.batch.world_size / num_items_in_batch
        self._bad_loss += (~torch.isfinite(loss.detach())).float()
        return (loss, outputs) if return_outputs else loss

    # --- optimizer -------------------------------------------------------------------------------------------------

    def create_optimizer(self, model: Any = None) -> Any:
        """Build the optimizer from the tuning table: one named group for each group that trains."""
        if self.optimizer is not None:
            return self.optimizer
        groups = optimizer_groups(model or self.model, self.context.planned.phase.table)
        self.optimizer = self.new_optimizer(groups)
        return self.optimizer

    def new_optimizer(self, groups: list[dict[str, Any]]) -> Any:
        """Return the recipe's optimizer for ``groups``."""
        return make_optimizer(self.args, groups, self.model)

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Return the run's schedule from this phase's first step on: one factor on every group's peak rate."""
        if self.lr_scheduler is None:
            recipe, plan = self.context.recipe, self.context.plan
            self.lr_scheduler = RunSchedule(
                optimizer or self.optimizer,
                schedule_factor(recipe, total_steps=plan.total_steps, warmup_steps=plan.warmup_steps),
                first_step=self.context.planned.first_step,
                plateau=plateau_factor(recipe, greater_is_better=bool(self.args.greater_is_better)),
            )
            self._created_lr_scheduler = True
        # The engine is prepared: the steps from here on are the run's.
        regularize_before_step(self.optimizer, max_grad_value=self.context.recipe.training.max_grad_value)
        return self.lr_scheduler

    def rates(self) -> dict[str, float]:
        """Return group name -> rate that the last step used."""
        return dict(self._rates)

    def remember_rates(self) -> None:
        """Keep the rates of the step that was just taken, before the schedule moves on."""
        self._rates = {group["name"]: float(group["lr"]) for group in self.optimizer.param_groups}

    # --- the step's end --------------------------------------------------------------------------------------------

    def agree_to_stop(self) -> bool:
        """Return whether any rank was asked to stop. Raises TrainingDiverged where any rank's loss is not finite."""
        world = self.context.launch.world_size
        looks = self.control.should_log or self.control.should_save
        if world == 1 and self.context.launch.device == "cuda" and not looks:
            # Reading the loss waits for the GPU; one process does that only when it logs or saves.
            return self.context.stop.is_set
        flags = torch.stack([self._bad_loss, torch.full_like(self._bad_loss, float(self.context.stop.is_set))])
        if world > 1:
            dist.all_reduce(flags, op=dist.ReduceOp.MAX)
        bad, stop = (bool(value) for value in flags.tolist())
        if bad:
            raise TrainingDiverged(
                f"the loss is not finite at step {self.state.global_step}; lower training.learning_rate, lengthen "
                "training.warmup_steps, or use precision: fp32; the newest checkpoint is from before"
            )
        return stop

    # --- evaluation ------------------------------------------------------------------------------------------------

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Evaluate on the validation rows, on all ranks, and log the task's metrics with ``prefix_`` before each."""
        context = self.context
        started = time.time()
        by_loss = context.task.validates_by_loss
        logits, loss = self.logits(context.prepared.validation, with_predictions=not by_loss)
        predictions = (
            None if by_loss else context.task.predictions(logits, context.prepared.validation, context.prepared)
        )
        metrics = {} if predictions is None else context.task.metrics(predictions)
        metrics = {f"{metric_key_prefix}_{name}": float(value) for name, value in metrics.items()}
        if loss is not None:
            metrics[f"{metric_key_prefix}_loss"] = loss
        metrics[f"{metric_key_prefix}_seconds"] = time.time() - started
        self.log(dict(metrics))  # type: ignore[attr-defined]
        write_samples(context, self.evaluation_model(), step=self.state.global_step, is_whole=self.cache is None)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)  # type: ignore[attr-defined]
        return metrics

    def _evaluate(self, trial: Any, ignore_keys_for_eval: Any, skip_scheduler: bool = False) -> dict[str, float]:
        """Evaluate, and tell the schedule, which may follow the metric."""
        metrics: dict[str, float] = super()._evaluate(trial, ignore_keys_for_eval, skip_scheduler=True)  # type: ignore[misc]
        if not skip_scheduler:
            self.lr_scheduler.on_metric(metrics[f"eval_{self.args.metric_for_best_model.removeprefix('eval_')}"])
        return metrics

    def logits(self, split: Any, *, with_loss: bool = True, with_predictions: bool = True) -> tuple[Any, float | None]:
        """Return (the task's outputs [rows, outputs], mean loss or None) of the current model on ``split``.

        ``with_predictions``: whether predictions are to be made of them; without, a model that writes texts writes none.
        """
        context = self.context
        writes = context.task.generates and with_predictions
        context.progress.heartbeat.beat("evaluating", may_be_silent=True)
        return predict_logits(
            self.evaluation_model(),
            split,
            self.collator(split, training=False),
            batch_size=self.args.per_device_eval_batch_size,
            device=self.args.device,
            loss=(lambda outputs, batch: (context.task.loss(outputs, batch), context.task.items(batch)))
            if with_loss
            else None,
            on_batch=context.progress.on_evaluation_batch,
            row_outputs=context.task.row_outputs,
            generate=context.task.generate if writes else None,
        )

    def get_reference(self) -> None:
        """Compute what the model before training makes of each row, or read it where training has begun; all ranks call it."""
        if self.reference is not None:
            self.reference.get(self, is_fresh=self._beginning.checkpoint is None and self.context.number == 0)

    def evaluation_model(self) -> Any:
        """Return what forward passes go through outside training."""
        # Sharded weights are gathered by the engine's hooks; DDP's wrapper adds nothing to a forward pass.
        return getattr(self, "model_wrapped", self.model) if self.context.launch.engine == "deepspeed" else self.model

    def final_state_dict(self) -> Any:
        """Return the whole model's weights on rank 0, gathered where they are sharded; all ranks must call it."""
        if self.context.launch.engine == "deepspeed":
            return self.accelerator.get_state_dict(self.deepspeed)  # type: ignore[attr-defined]
        return self.model.state_dict()

    # --- progress --------------------------------------------------------------------------------------------------

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add rates and throughput to a row of progress, and hand it to Trainer's callbacks."""
        if "loss" in logs:
            # Trainer takes the mean over ranks; ranks that share rows hold parts of one loss.
            logs["loss"] *= self.context.launch.sequence_parallel_size
            logs.update({f"lr/{name}": rate for name, rate in self.rates().items()})
            logs.update(self.context.progress.throughput())
        super().log(logs, start_time)  # type: ignore[misc]


class RunTrainer(RunMixin, Trainer):
    """Trainer for tasks with one forward pass."""


def _column(split: Any, name: str) -> Any:
    import numpy as np

    # The slice comes out of Arrow at once; a column itself would be read row by row.
    return np.asarray(split[name][:])


def _real_tokens(batch: dict[str, Any]) -> Any:
    mask = batch.get("attention_mask")
    if mask is not None and "decoder_input_ids" in batch:
        # Those that are written count as well.
        return mask.sum() + (batch["labels"] >= 0).sum()
    if mask is not None:
        return mask.sum()
    # Packed rows have no mask, and hardly any padding.
    counted = batch["input_ids"].numel() if "input_ids" in batch else next(iter(batch.values())).shape[0]
    return torch.tensor(float(counted))
