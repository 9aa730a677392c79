"""Hold the saved model to the live one: what the live model gives for a few rows, and the process that compares.

The process imports its libraries while the last weights are loaded, saved and evaluated, and waits for its probe.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from launcher.atomic import write_json
from launcher.contracts import TARGETS
from launcher.engine.checkpoint_files import write_manifest
from launcher.engine.checkpoints import base_model, has_adapters
from launcher.engine.context import RunContext
from launcher.engine.half_weights import inputs_for
from launcher.engine.loading import Rows
from launcher.engine.predicting import evaluating
from launcher.engine.progress import Progress
from launcher.engine.signals import StopFlag
from launcher.errors import Interrupted
from launcher.plans import LaunchPlan
from launcher.recipe.schema import Recipe
from launcher.rundir import RunDir
from launcher.strategies.adapters import part_of
from launcher.strategies.quantization import is_quantized
from launcher.tasks.models import locate
from launcher.workflows.verify import (
    RESULT,
    AdapterProbe,
    Probe,
    describe,
    digests,
    logits_in,
    write_tensors,
)

ROWS = 16
"""Rows of validation that are compared, the first ones."""
TOKENS = 128
"""Tokens of each row."""
_ROWS_AT_ONCE = 4
# A language model has logits for every token; these many bytes of them are kept, evenly spaced.
_LOGITS_BYTES = 2**24

# Share of the largest logit (at least of 1) by which another one may differ. The same computation gives the same bits on one
# device; libraries may choose another kernel or number of threads, which moves a logit by some units of the format's precision
# (2^-23 fp32, 2^-10 tf32 and fp16, 2^-7 bf16), and that grows over the layers. Merged adapters are added in another order, and
# in a short format rounded where the live model's were not. Weights are compared bit for bit beside this, so that it has to
# find only a model that computes something else.
SAME = {"fp32": 1e-5, "tf32": 2e-3, "fp16": 5e-3, "bf16": 2e-2, "fp8": 1e-1}
MERGED = {"fp32": 1e-4, "tf32": 1e-2, "fp16": 2e-2, "bf16": 5e-2, "fp8": 2e-1}
# bitsandbytes multiplies 4-bit weights in bf16 on a processor, and for 8 bits rounds the inputs too.
QUANTIZED = {4: 2e-2, 8: 1e-1}

# These detectors go on with the places of an image that score best, in the order of their scores: rounding, as of merged adapters, may swap two that are
# nearly equal, and all that is told of them. Their weights are compared bit for bit, and their adapters, which round nothing, within SAME.
_CHOOSE_QUERIES = ("rt_detr", "rt_detr_v2")
OTHER_QUERIES = 1.0

# All tokens of the probe's rows are asked for.
_NOT_INPUTS = (*TARGETS, "logits_to_keep")
# A row has one of these for each of its texts.
_TOKENS = ("input_ids", "chosen_ids", "rejected_ids")
_POLL_SECONDS = 0.05
# What importing torch and transformers takes on a busy machine.
_START_SECONDS = 20.0

# What a launcher tells a rank; a process that is none must not hear it.
_OF_RANKS = ("ACCELERATE_", "FSDP_", "TORCHELASTIC_", "GROUP_", "ROLE_", "MASTER_", "LOCAL_", "PARALLELISM_CONFIG_")


@dataclass(frozen=True)
class LiveAnswers:
    """What the live model gave for the probe's rows, on every rank."""

    batches: list[dict[str, Any]]
    """Inputs on the CPU."""
    places: list[Any]
    """For each batch, the rows or tokens whose logits count."""
    logits: Any
    """float32 [places, outputs]."""


def why_not(recipe: Recipe, launch: LaunchPlan) -> str:
    """Return why the saved model is not held to the live one; "" where it is."""
    if not recipe.evaluation.verify_saved:
        return "evaluation.verify_saved is false"
    if launch.sequence_parallel_size > 1:
        # The live model's ranks each want another part of a row.
        return "rows are shared among ranks (distributed.sequence_parallel_size)"
    return ""


def ask_live_model(trainer: Any) -> LiveAnswers:
    """Run the live model over the probe's rows as it runs in evaluation; all ranks call it, with the same rows."""
    import torch

    batches = _probe_batches(trainer.context)
    model, device = trainer.evaluation_model(), trainer.args.device
    places, answers = [], []
    with evaluating(model), torch.no_grad():
        for batch in batches:
            inputs = inputs_for(model, {name: tensor.to(device) for name, tensor in batch.items()})
            logits = logits_in(model(**inputs))
            chosen = _places(batch, tuple(logits.shape), share=1 / len(batches))
            places.append(chosen)
            answers.append(logits.reshape(-1, logits.shape[-1])[chosen.to(device)].float().cpu())
    return LiveAnswers(batches, places, torch.cat(answers))


def _probe_batches(context: RunContext) -> list[dict[str, Any]]:
    """Return batches of inputs for the first rows of validation."""
    import torch

    split = context.prepared.validation if context.prepared.validation is not None else context.prepared.train
    found = Rows(split).__getitems__(list(range(min(ROWS, len(split)))))
    rows = [{name: _cut(value, row) for name, value in row.items() if name != "labels"} for row in found]
    collate, batches = context.task.collator(), []
    for first in range(0, len(rows), _ROWS_AT_ONCE):
        batch = collate(rows[first : first + _ROWS_AT_ONCE])
        batches.append({k: v for k, v in batch.items() if isinstance(v, torch.Tensor) and k not in _NOT_INPUTS})
    return batches


def _cut(value: Any, row: Mapping[str, Any]) -> Any:
    """Return the first TOKENS of what a row has for each of its tokens."""
    texts = (row[name] for name in _TOKENS if name in row)
    is_by_token = hasattr(value, "__len__") and any(len(value) == len(tokens) for tokens in texts)
    return value[:TOKENS] if is_by_token else value


def _places(batch: Mapping[str, Any], shape: tuple[int, ...], *, share: float) -> Any:
    """Return numbers of rows or, for logits [rows, tokens, outputs], of tokens that are none of padding, evenly spaced."""
    import torch

    if len(shape) == 2:
        return torch.arange(shape[0])
    mask = batch.get("attention_mask")
    counts = (
        mask.reshape(-1) if mask is not None and tuple(mask.shape) == shape[:2] else torch.ones(shape[0] * shape[1])
    )
    real = counts.nonzero().reshape(-1)
    number = min(len(real), max(1, int(share * _LOGITS_BYTES / (4 * shape[-1]))))
    return real[torch.linspace(0, len(real) - 1, number).round().long()]


# --- the process that compares -----------------------------------------------------------------------------------------


class SavedModelCheck:
    """The comparison of one attempt, as rank 0 sees it; on other ranks, and where it is switched off, nothing happens."""

    def __init__(
        self, recipe: Recipe, launch: LaunchPlan, run: RunDir, *, attempt: int, progress: Progress, stop: StopFlag
    ) -> None:
        self.run = run
        self.progress = progress
        self.stop = stop
        self.reason = why_not(recipe, launch)
        self.folder = run.saved_model(attempt)
        self._process: subprocess.Popen[bytes] | None = None
        self._probe: Probe | None = None

    @property
    def is_wanted(self) -> bool:
        """Whether the live model has to be asked; the same on all ranks."""
        return not self.reason

    def get_ready(self, model: Any, seconds_left: float) -> None:
        """Start the process when training is about to end."""
        if seconds_left < _START_SECONDS:
            self.start(model)

    def start(self, model: Any) -> None:
        """Start the process, unless it runs; it imports what ``model`` needs and waits."""
        if not self.is_wanted or self.progress.rank != 0 or self._process is not None:
            return
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        modules = [type(base_model(model)).__module__, *(["peft"] if has_adapters(model) else [])]
        warm = [name for name in modules if name.startswith(("transformers.", "peft"))]
        command = [sys.executable, "-m", "launcher.workflows.verify", str(self.run.model), str(self.request)]
        with (self.folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [*command, "--wait", "--warm", *warm],
                env=_plain_environment(), stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                # Ctrl-C is for the ranks, which end this process themselves.
                start_new_session=True,
            )  # fmt: skip

    def expect(self, answers: LiveAnswers, probe: Probe) -> None:
        """Keep what the live model gave; nothing is compared yet."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_tensors(self.request, answers.batches, answers.places, answers.logits)
        self._probe = probe

    def begin(self) -> None:
        """Let the process load the model; call it when the live one has left the room."""
        if self._probe is not None:
            write_json(self.request, asdict(self._probe))

    def result(self) -> dict[str, Any]:
        """Wait for the findings, put them into the saved model's manifest, tell them, and return them.

        ``passed`` is None, and ``reason`` says why, where nothing was compared.
        """
        run = self.run
        found = self._wait() if self._process is not None else {"passed": None, "reason": self.reason}
        write_manifest(run.model, verification=found)
        tell = self.progress.say if found["passed"] else self.progress.warn
        if self.is_wanted:
            tell(describe(found))
        return found

    def _wait(self) -> dict[str, Any]:
        assert self._process is not None
        self.progress.heartbeat.beat("finishing", may_be_silent=True)
        started, process, stop = time.time(), self._process, self.stop
        while process.poll() is None:
            if stop.is_set:
                process.kill()
                process.wait()
                raise Interrupted(f"stopped by {stop.reason} while the saved model was verified")
            time.sleep(_POLL_SECONDS)
        result = self.folder / RESULT
        if not result.is_file():
            reason = f"its process ended with code {process.returncode}; see {self.folder / 'log'}"
            return {"passed": None, "reason": reason}
        return {**json.loads(result.read_text()), "waited_seconds": round(time.time() - started, 3)}

    @property
    def request(self) -> Path:
        """The probe's file, for which the process waits."""
        return self.folder / "probe.json"


def make_probe(
    trainer: Any, answers: LiveAnswers, *, state: Mapping[str, Any], adapter_state: Mapping[str, Any] | None
) -> Probe:
    """Return what the saved model has to be.

    Args:
        state: what was to be saved, under the names of the model without adapters.
        adapter_state: the state of the model with adapters; None: it has none.
    """
    import torch

    context: RunContext = trainer.context
    precision, strategy, section = context.launch.precision, context.recipe.strategy, context.recipe.model
    plain, scale = base_model(trainer.model), max(1.0, float(answers.logits.abs().max()))
    quantized = is_quantized(strategy)
    share = (SAME if adapter_state is None else MERGED)[precision]
    if quantized:
        share = max(share, QUANTIZED[4 if strategy.load_in_4bit else 8])  # type: ignore[union-attr]
    if adapter_state is not None and getattr(plain.config, "model_type", None) in _CHOOSE_QUERIES:
        share = max(share, OTHER_QUERIES)
    adapter = None
    if adapter_state is not None and not quantized and section.name_or_path is not None:
        # Quantised weights are others than those that the adapter's user would load; random ones lie nowhere.
        adapter = AdapterProbe(
            folder=str(context.run.adapter), base=locate(section.name_or_path), revision=section.revision,
            tolerance=SAME[precision] * scale,
            digests=digests({name: tensor for name, tensor in adapter_state.items() if part_of(name)}),
        )  # fmt: skip
    dtype = next(tensor.dtype for tensor in state.values() if tensor.is_floating_point())
    autocast = trainer.accelerator.native_amp and {"fp16": "float16"}.get(precision, "bfloat16")
    return Probe(
        rows=sum(len(next(iter(batch.values()))) for batch in answers.batches),
        precision=precision,
        architecture=type(plain).__name__,
        dtype=str(dtype).removeprefix("torch."),
        autocast=autocast or None,
        device=str(trainer.args.device),
        attention=_attention_of(plain.config),
        threads=torch.get_num_threads(),
        tolerance=share * scale,
        digests=digests(state),
        adapter=adapter,
        trust_remote_code=section.trust_remote_code,
    )


def _attention_of(config: Any) -> str | dict[str, str] | None:
    """Return how a model attends; with its parts' own ways, by the names of their configurations, where these are others."""
    own = getattr(config, "_attn_implementation", None)
    parts = {name: getattr(config, name, None) for name in getattr(config, "sub_configs", None) or ()}
    ways = {name: getattr(part, "_attn_implementation", None) for name, part in parts.items()}
    others = {name: way for name, way in ways.items() if way is not None and way != own}
    return {"": own, **others} if own is not None and others else own


def _plain_environment() -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(_OF_RANKS) and k not in ("RANK", "WORLD_SIZE")}
    # What it loads lies on this machine.
    return {**kept, "HF_HUB_OFFLINE": "1"}
