"""How a trainer saves and restores: the part of the mixin that writes checkpoints on all ranks and goes on from them."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from launcher.engine.carried import CARRIED, read_carried, write_carried
from launcher.engine.checkpoint_files import (
    MANIFEST,
    check_room,
    commit,
    partial_folder,
    prune,
    read_manifest,
    room_for,
    seal,
    size_of,
    steps,
    write_manifest,
)
from launcher.engine.checkpoints import has_adapters, load_weights, save_weights
from launcher.engine.context import Beginning, RunContext
from launcher.engine.optimizer_state import OptimizerState
from launcher.engine.optimizers import base_optimizer
from launcher.engine.ranks import barrier, everyone, rank_and_world, share
from launcher.engine.resuming import first_fault
from launcher.engine.saved_state import foreign_code, read_state
from launcher.errors import InstallationError, ModelError, RunStateError

_PACKAGES = ("launcher", "torch", "transformers", "accelerate", "deepspeed", "peft")

# Engines whose state is whole on every rank, and is written by us.
_IN_BACKGROUND = ("single", "ddp")


class BackgroundSave:
    """At most one checkpoint that a thread writes while training goes on."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._running: Future[None] | None = None

    def start(self, work: Callable[[], None]) -> None:
        """Begin to write; the one before has to be waited for first."""
        assert self._running is None
        self._running = self._pool.submit(work)

    def wait(self) -> None:
        """Return when nothing is being written. Raises what the writing raised."""
        running, self._running = self._running, None
        if running is not None:
            running.result()


class CheckpointMixin:
    """Overrides of Trainer's saving and loading; ``self.context`` and ``self._beginning`` are set before ``train()``."""

    context: RunContext
    _beginning: Beginning
    args: Any
    model: Any
    state: Any
    control: Any
    accelerator: Any
    rows_used: Callable[[], int]
    optimizer: Any
    lr_scheduler: Any
    leaves_evaluation_due: bool
    streamed: Any
    background: BackgroundSave

    # --- saving ----------------------------------------------------------------------------------------------------

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Write checkpoints/step-N on all ranks, its manifest last, give it its name, then remove older ones.

        Trainer's own writes to ``checkpoint-N`` in place, without a mark that it is complete.
        """
        self.context.progress.heartbeat.beat("saving")
        self.background.wait()
        folder = self.context.run.checkpoints
        target = folder / f"step-{self.state.global_step}"
        partial = partial_folder(target)
        self._refuse_without_room(folder, what=f"the checkpoint of step {self.state.global_step}")
        if self.args.should_save:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
        barrier()
        if self.state.best_global_step == self.state.global_step:
            self.state.best_model_checkpoint = str(target)
        self.context.progress.flush()
        if self._saves_in_background():
            self._save_in_background(partial, target)
            return
        with room_for(partial):
            self._write_all(partial)
            barrier()
            rank, world = rank_and_world()
            sealed = everyone(seal(partial, rank=rank, world=world))
            if self.args.should_save:
                files = {name: fact for part in sealed for name, fact in part.items()}
                write_manifest(partial, files, **self._facts())
        if self.args.should_save:
            self._commit(partial, target, self._best())
        barrier()

    def _write_all(self, partial: Path) -> None:
        self.save_model(str(partial), _internal_call=True)  # type: ignore[attr-defined]
        self._save_optimizer_and_scheduler(str(partial))  # type: ignore[attr-defined]
        self._save_scaler(str(partial))  # type: ignore[attr-defined]
        self._save_rng_state(str(partial))  # type: ignore[attr-defined]
        if self.args.should_save:
            self._save_trainer_state(partial)
        if self._ends_phase_with_adam():
            write_carried(partial / CARRIED, self.optimizer, self.model, writes=self.args.should_save)

    def _commit(self, partial: Path, target: Path, best: list[Path]) -> None:
        commit(partial, target)
        prune(target.parent, keep_last=self.context.recipe.training.save_total_limit, keep=best)
        step = int(target.name.split("-")[1])
        self.context.run.add_event("checkpoint", step=step, attempt=self.context.attempt)

    def _facts(self) -> dict[str, Any]:
        """Return what a manifest says beside its files."""
        context, launch, planned = self.context, self.context.launch, self.context.planned
        return {
            "step": self.state.global_step,
            "epoch": self.state.epoch,
            "consumed_samples": self.rows_used(),
            **({"stream": self.streamed.position.to_json()} if context.prepared.stream is not None else {}),
            "phase": planned.phase.name,
            "phase_number": context.number,
            "world_size": launch.world_size,
            "engine": launch.engine,
            "zero_stage": launch.zero_stage,
            "precision": launch.precision,
            "offload": launch.offload,
            "tensor_parallel_size": launch.tensor_parallel_size,
            "sequence_parallel_size": launch.sequence_parallel_size,
            **(
                {"global_batch_size": planned.batch.global_batch_size}
                if planned.batch.budget is None
                else {"tokens_per_batch": planned.batch.budget.tokens}
            ),
            "evaluation_due": self.leaves_evaluation_due,
            "data_fingerprint": context.prepared.fingerprint,
            "model_revision": _model_revision(context.run.plan),
            "attempt": context.attempt,
            "versions": _versions(),
        }

    def _best(self) -> list[Path]:
        best = self.state.best_model_checkpoint
        return [self.context.run.checkpoints / Path(best).name] if best else []

    def _ends_phase_with_adam(self) -> bool:
        """Whether the next phase, with an engine of its own, will want the optimizer's state by name."""
        context = self.context
        ends = self.state.global_step == context.planned.last_step and not context.is_last
        return ends and context.planned.phase.carry == "weights_and_adam"

    def _save_trainer_state(self, target: Path) -> None:
        """Write trainer_state.json with the state of stateful callbacks (early stopping), as Trainer's resume reads it."""
        from transformers.trainer_callback import ExportableState

        for callback in [*self.callback_handler.callbacks, self.control]:  # type: ignore[attr-defined]
            if isinstance(callback, ExportableState):
                self.state.stateful_callbacks[type(callback).__name__] = callback.state()
        self.state.save_to_json(str(target / "trainer_state.json"))

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """Write weights and configuration; not Trainer's pickled arguments, which nothing here reads."""
        if self.args.should_save:
            assert output_dir is not None
            save_weights(self.model, Path(output_dir), state_dict=state_dict)

    # --- saving while training goes on -----------------------------------------------------------------------------

    def _saves_in_background(self) -> bool:
        """Whether a thread may write this checkpoint: not where something waits for it, as the end of a phase does."""
        context = self.context
        waits = self.control.should_training_stop or self.state.global_step == context.planned.last_step
        return bool(context.recipe.training.async_save) and context.launch.engine in _IN_BACKGROUND and not waits

    def _save_in_background(self, partial: Path, target: Path) -> None:
        """Write what is small, copy weights and the optimizer's state to host memory, and let a thread do the rest."""
        with room_for(partial):
            self._save_scaler(str(partial))  # type: ignore[attr-defined]
            self._save_rng_state(str(partial))  # type: ignore[attr-defined]
        # Every rank's own files are there before the thread seals them all.
        barrier()
        if not self.args.should_save:
            return
        with room_for(partial):
            self._save_trainer_state(partial)
            torch.save(self.lr_scheduler.state_dict(), partial / "scheduler.pt")
            weights = {}
            if has_adapters(self.model):
                save_weights(self.model, partial, state_dict=self.model.state_dict())
            else:
                self.model.config.save_pretrained(str(partial))
                weights = _weights_on_host(self.model)
        optimizer, facts, best = _on_host(self.optimizer.state_dict()), self._facts(), self._best()

        def work() -> None:
            with room_for(partial):
                if weights:
                    save_file(weights, str(partial / "model.safetensors"), metadata={"format": "pt"})
                torch.save(optimizer, partial / "optimizer.pt")
                write_manifest(partial, **facts)
            self._commit(partial, target, best)

        self.background.start(work)

    def finish_saving(self) -> None:
        """Wait for the checkpoint that a thread still writes."""
        self.background.wait()

    # --- room ------------------------------------------------------------------------------------------------------

    def _refuse_without_room(self, folder: Path, *, what: str) -> None:
        """Raise InstallationError on all ranks where the disk has no room for a checkpoint."""
        state = self._optimizer_bytes()
        lack = share(lambda: _lack_of_room(folder, self._bytes_needed(folder, state), what))
        if lack is not None:
            raise InstallationError(lack)

    def _bytes_needed(self, folder: Path, optimizer_bytes: int) -> int:
        """Return the size of the newest checkpoint of this phase, or else what lies in memory."""
        for path in steps(folder):
            if (path / MANIFEST).is_file() and read_manifest(path).get("phase_number") == self.context.number:
                return size_of(path)
        tensors = self.model.parameters()
        kept = [p for p in tensors if p.requires_grad] if has_adapters(self.model) else list(tensors)
        weights = sum(getattr(p, "ds_numel", p.numel()) * p.element_size() for p in kept)
        # DeepSpeed writes the module's weights beside ours.
        copies = 2 if self.context.launch.engine == "deepspeed" else 1
        return copies * weights + optimizer_bytes

    def _optimizer_bytes(self) -> int:
        """Return the bytes of the optimizer's state over all ranks that write a part of it; 0 before the first step."""
        if self.optimizer is None:
            return 0
        base = base_optimizer(self.optimizer)
        own = sum(
            value.numel() * value.element_size()
            for state in base.state.values()
            for value in state.values()
            if isinstance(value, torch.Tensor)
        )
        if self.context.launch.zero_stage:
            own += sum(p.numel() * p.element_size() for group in base.param_groups for p in group["params"])
            return sum(everyone(own))
        return own

    # --- going on --------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Take over what the checkpoint holds beside Trainer's own state; the engine stands, no step is taken yet."""
        beginning = self._beginning
        context = self.context
        if context.recipe.training.async_save and context.launch.engine not in _IN_BACKGROUND:
            context.progress.warn(
                f"training.async_save: {context.launch.engine} writes its own files, and is waited for"
            )
        self._refuse_without_room(context.run.checkpoints, what="the first checkpoint")
        if beginning.checkpoint is None:
            return
        manifest = read_manifest(beginning.checkpoint)
        if manifest["world_size"] == self.context.launch.world_size:
            # Trainer restores these at the first batch, or, for a new engine, not at all.
            self._load_rng_state(str(beginning.checkpoint))  # type: ignore[attr-defined]
        else:
            _seed_anew(self.context.recipe.training.seed, manifest["step"], rank_and_world()[0])
        if beginning.by_name:
            self._take_over_by_name(beginning.checkpoint)
        elif beginning.carry_from is not None:
            self._take_over(beginning.carry_from)
        if manifest["evaluation_due"]:
            self._evaluate_late()

    def _take_over(self, checkpoint: Path) -> None:
        """Go on with the optimizer's and the schedule's state of the phase before."""
        if (checkpoint / CARRIED).is_file():
            read_carried(checkpoint / CARRIED, self.optimizer, self.model)
        self.lr_scheduler.take_over(torch.load(checkpoint / "scheduler.pt", weights_only=True))

    def _take_over_by_name(self, checkpoint: Path) -> None:
        """Go on inside a phase with the state that another number of processes, or another engine, has saved."""
        shapes = {name: tuple(tensor.shape) for name, tensor in self.model.named_parameters()}
        saved = read_state(checkpoint, table=self.context.planned.phase.table, shapes=shapes)
        OptimizerState(self.optimizer, self.model.named_parameters()).write(saved)
        self.lr_scheduler.load_state_dict(torch.load(checkpoint / "scheduler.pt", weights_only=True))

    def _evaluate_late(self) -> None:
        """Make up for the evaluation that a stop at its very step left out, so that the best checkpoint is the same."""
        metrics = self._evaluate(None, None)  # type: ignore[attr-defined]
        self._determine_best_metric(metrics=metrics, trial=None)  # type: ignore[attr-defined]
        if self._beginning.resume_from is not None:
            self._save_checkpoint(self.model, None)
        elif self.state.best_global_step == self.state.global_step:
            # The phase before has written it; this engine's own first checkpoint comes later.
            self.state.best_model_checkpoint = str(self._beginning.carry_from)

    def refuse_foreign_code(self) -> None:
        """Refuse a checkpoint that would run code when the engine loads it. Raises ModelError."""
        checkpoint = self._beginning.resume_from
        found = share(lambda: foreign_code(checkpoint)) if checkpoint is not None else None
        if found is not None:
            raise ModelError(found)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Load a checkpoint's weights; every name has to fit, where Trainer would leave out what does not."""
        load_weights(self.model, Path(resume_from_checkpoint), zero_stage=self.context.launch.zero_stage)

    def end_of_phase(self) -> Beginning:
        """Return how the next phase begins: from the checkpoint with which this one has ended."""
        return Beginning(carry_from=self.context.run.checkpoints / f"step-{self.context.planned.last_step}")

    def load_best(self) -> None:
        """Load the weights of the best checkpoint, of whatever phase, where there is one; they are verified first.

        Raises:
            RunStateError: they are not what was written.
        """
        for best in self._best():
            reason = first_fault(best, only="*.safetensors")
            if reason is not None:
                raise RunStateError(
                    f"the best checkpoint, {best.name}, is not valid: {reason}; bring the file back and resume, or keep the last "
                    "weights: launcher resume RUN training.load_best_model_at_end=false"
                )
            load_weights(self.model, best, zero_stage=self.context.launch.zero_stage)


def _lack_of_room(folder: Path, needed: int, what: str) -> str | None:
    try:
        check_room(folder, needed, what=what)
    except InstallationError as error:
        return str(error)
    return None


def _model_revision(plan: Path) -> str | None:
    """Return what identifies the pretrained weights, once the thread that finds it has written it down."""
    facts = json.loads(plan.read_text()).get("facts", {}) if plan.is_file() else {}
    revision: str | None = facts.get("model_revision")
    return revision


def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _seed_anew(seed: int, step: int, rank: int) -> None:
    """Give random numbers a state that depends on seed, step and rank alone: the saved ones belong to other ranks."""
    numbers = np.random.SeedSequence([seed, step, rank]).generate_state(3)
    random.seed(int(numbers[0]))
    np.random.seed(int(numbers[1]))
    torch.manual_seed(int(numbers[2]))


def _on_host(value: Any) -> Any:
    """Return a copy of nested values whose tensors lie in host memory, where no later step reaches them."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, Mapping):
        return {key: _on_host(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_on_host(item) for item in value)
    return value


def _weights_on_host(model: Any) -> dict[str, torch.Tensor]:
    """Return copies of a model's tensors by name, each tensor once: tied ones under the first of their names."""
    seen: set[int] = set()
    found = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            found[name] = tensor.detach().to("cpu", copy=True).contiguous()
    return found
